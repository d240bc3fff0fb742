"""An exported model, read back and run, once its files are as they were written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vprompt.data.preprocessing import Preprocessing
from vprompt.exporters.base import Format, format_of, quiet, translated
from vprompt.exporters.metadata import About, read_about
from vprompt.model.classifier import Classifier
from vprompt.model.windows import by_windows
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

if TYPE_CHECKING:
    from vprompt.exporters.base import Run

_CHECKSUM = re.compile(rb"vprompt-sha256:(.{64})", re.DOTALL)

_written = set[bytes]()
"""Checksums of what this process wrote."""


class Exported(Classifier):
    """A model in a file of another format; needs neither the adapter nor the backbone. Made by `load_exported`.

    Attributes:
        path: The file.
        format: Its format.
        about: What the file says of itself.
    """

    def __init__(self, path: Path, format: Format, about: About, run: Run) -> None:
        super().__init__()
        self.path = path
        self.format = format
        self.about = about
        self.classes = about.classes
        self.target = about.made_target
        self.preprocessing = about.preprocessing
        self._run = run
        self.eval()

    @property
    def any_size(self) -> bool:
        """The image's size is part of the file; where pixels have labels, it is that of windows."""
        return self.target.dense

    @property
    def bytes(self) -> int:
        """Size of the file and of what lies beside it."""
        return sum(file.stat().st_size for file in self.format.files(self.path))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, 3, H, W), in float32; (B, num_classes, H, W) where pixels
        have labels.

        A file that includes the preprocessing is given pixels, and logits that say the same as its outputs come back.

        Raises:
            VPromptError: If the file cannot be run on them.
        """
        if self.target.dense and images_BCHW.ndim == 4:
            return by_windows(self._fixed, images_BCHW, self.preprocessing.size)
        return self._fixed(images_BCHW)

    def _fixed(self, images_BCHW: Tensor) -> Tensor:
        images = images_BCHW.detach().float().contiguous()
        wanted = self.preprocessing.shape
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
            raise VPromptError(f"{shown(self.path)} takes images (B, 3, H, W) of {wanted}, not {tuple(images.shape)}.")
        whole = self.about.includes_preprocessing
        with running(self.path):
            inputs = pixels_of(images, self.preprocessing) if whole else images
            parts = [self._run(part.numpy()) for part in inputs.split(self.format.max_batch)]
        outputs = torch.cat([torch.from_numpy(part) for part in parts])
        expected = (self.num_classes, *(self.preprocessing.size if self.target.dense else ()))
        logits = self.target.inverse(outputs) if whole and outputs.shape[1:] == expected else outputs
        if logits.shape != (len(images), *expected):
            raise VPromptError(
                f"{shown(self.path)} gave logits {tuple(logits.shape)} for {len(images)} images and "
                f"{self.num_classes} classes: it is damaged; export the adapter again."
            )
        return logits


def pixels_of(images_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The uint8 pixels (B, H, W, 3) that normalised images were made of; values between two are rounded."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((images_BCHW * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def load_exported(path: str | Path, *, trust: bool = False) -> Exported:
    """Opens what `vprompt.export` wrote; no code in it is run, and nothing is unpickled, unless it is trusted.

    Args:
        path: A `.pt2`, `.onnx`, `.xml` (OpenVINO) or `.pte` file, with the file beside it that belongs to it.
        trust: Read a `.pt2` or `.pte` file, too, that this process did not write. PyTorch and ExecuTorch read them, and
            a file that was made to do so can then run code and write files: only for files whose maker you trust.

    Raises:
        VPromptError: If there is no such file, it is damaged, vprompt did not write it, it takes `trust`, or a package
            is missing.

    Example:
        >>> load_exported("no/such/model.onnx")
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: There is no exported file no/such/model.onnx; check the path.
    """
    path = Path(path)
    return Exported(path, format_of(path), *loaded(path, trust=trust, engine=False))


def loaded(path: Path, *, trust: bool, engine: bool) -> tuple[About, Run]:
    """What a file says of itself, and what runs it; errors as those of `load_exported`, or if it is no `engine`."""
    (about, ours, ready), format = opened(path), format_of(path)
    if about.engine is not None and not engine:
        raise VPromptError(
            f"{shown(path)} is an engine, which runs adapters that were exported for it: give --adapter FILE to "
            "`vprompt predict`, or --engine to `vprompt serve` (in Python: vprompt.Engine)."
        )
    if about.engine is None and engine:
        raise VPromptError(
            f"{shown(path)} is the export of one adapter and no engine; make one: vprompt export BACKBONE --engine."
        )
    if format.needs_trust and not (ours or trust):
        raise VPromptError(
            f"{shown(path)} is not read, because whoever made a {format.suffix} file can run code with it on this "
            "machine; if you trust its maker, give --trust-file (in Python: trust=True)."
        )
    with quiet(), running(path):
        return about, ready()


def opened(path: Path) -> tuple[About, bool, Callable[[], Run]]:
    """What a file says of itself, whether this process wrote it, and what makes it ready to run.

    Raises:
        VPromptError: If it is not whole, or vprompt did not write it.
    """
    format = format_of(path)
    if not path.is_file():
        raise VPromptError(f"There is no exported file {shown(path)}; check the path.")
    format.require(format.to_read)
    with quiet(), running(path):
        ours = verify_checksum(format.files(path))
        text, ready = format.read(path)
    if text is None:
        raise VPromptError(
            f"{shown(path)} was not exported by vprompt: it does not say which classes and images it knows."
        )
    return read_about(text, shown(path)), ours, ready


def shown(path: Path) -> str:
    """A path in messages."""
    return printable(str(path))


def running(path: Path) -> AbstractContextManager[None]:
    """Errors in the block become those of a file that cannot be run."""
    problem = f"{shown(path)} cannot be run: it is damaged, or its library is of another version"
    return translated(problem, "; export the adapter again")


def add_checksum(files: Sequence[Path]) -> None:
    """Replaces the last `BLANK` in the files, which are all that belong to an export."""
    digest, places = _digest(files)
    for file, start, _ in places[-1:]:
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(digest)
    _written.add(digest)


def verify_checksum(files: Sequence[Path]) -> bool:
    """Checks that files are as they were written; those of vprompt 0.1.0 have no checksum.

    Returns:
        Whether this process wrote them.

    Raises:
        VPromptError: If a bit of them has changed, or they are not of one export.
    """
    digest, places = _digest(files)
    if places and places[-1][2] != digest:
        raise VPromptError(
            f"{shown(files[-1])} is not as it was written, or what belongs to it is missing or of another "
            "export (the checksum differs): copy all of it again, or export the adapter again."
        )
    return digest in _written


def _digest(files: Sequence[Path]) -> tuple[bytes, list[tuple[Path, int, bytes]]]:
    """The checksum of files, and where they have one: the file, the place in it, and the digits there."""
    total, places = hashlib.sha256(), list[tuple[Path, int, bytes]]()
    for file in files:
        content, done = np.memmap(file, np.uint8, "r").data if file.stat().st_size else memoryview(b""), 0
        total.update(f"{len(content)}\n".encode())
        for match in _CHECKSUM.finditer(content):
            places.append((file, match.start(1), match[1]))
            total.update(content[done : match.start(1)])
            total.update(bytes(64))
            done = match.end(1)
        total.update(content[done:])
    return total.hexdigest().encode(), places
