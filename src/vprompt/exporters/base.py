"""Export formats: the base class, and the registry that finds them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from vprompt.utils.errors import VPromptError
from vprompt.utils.registry import Registry
from vprompt.utils.text import printable

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    Run = Callable[[Any], Any]
    """Logits (B, C) of normalised images (B, 3, H, W), both float32; or probabilities of pixels (B, H, W, 3) in uint8,
    where the preprocessing is included. Of an engine, features and logits, of its inputs by name, in their order."""


KEY = "vprompt"
"""Name of the description in files that hold several texts."""

BLANK = f"vprompt-sha256:{'0' * 64}"
"""The checksum in a description before it is known; where files have several, the last one is used."""

SIGNATURE = "vprompt.signature"
"""Key of the names of inputs and outputs in the graph of a program."""

MOST_VALUES = 2**31
"""Numbers that a tensor in a model may have for one image."""


class Format(ABC):
    """An export format.

    `convert` gives the model as the format's own library holds it, `save` writes that, `read` runs what was written.
    The slow libraries are imported inside these methods.
    """

    name: str
    summary: ClassVar[str]
    """Who runs such files, in a few words for `--help`."""
    suffix: ClassVar[str]
    """End of the file's name, in lower case."""
    extra: ClassVar[str | None] = None
    """The optional dependencies of vprompt that it needs."""
    to_write: ClassVar[tuple[str, ...]] = ()
    """Packages that writing needs."""
    to_read: ClassVar[tuple[str, ...]] = ()
    """Packages that reading and running need."""
    max_batch: ClassVar[int] = 1024
    """Largest batch that one call takes."""
    opset: ClassVar[range] = range(0)
    """Versions of the operators that `convert` can be told to write."""
    fp16: ClassVar[bool] = False
    """Whether there is `halved`."""
    int8: ClassVar[bool] = False
    """Whether there is `quantised`."""
    calibrates: ClassVar[bool] = False
    """Whether int8 takes its ranges of values from images, rather than finding them while it runs."""
    engine: ClassVar[bool] = False
    """Whether it can hold an engine, which has several inputs and outputs."""
    needs_trust: ClassVar[bool] = False
    """Whether a file can be made to run code by what makes it ready to run."""

    @abstractmethod
    def convert(self, program: ExportedProgram, opset: int | None = None) -> Any:
        """The model in this format, in memory; an `opset` is only given where the format's allow it."""

    @abstractmethod
    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes it with its description, one line of ASCII; beside `path` only files that `companions` names.

        The description has a place for the checksum of all files, which is filled where it stands in one as it is.
        """

    @abstractmethod
    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """The description, None where there is none, and what makes the file ready to run."""

    def companions(self, path: Path) -> list[Path]:
        """Files that may belong to the one at `path`."""
        return []

    def files(self, path: Path) -> list[Path]:
        """All files of the export at `path`, that one last.

        Raises:
            VPromptError: If a link, a folder or a device is in the place of one beside it.
        """
        beside = [file for file in self.companions(path) if os.path.lexists(file)]
        for file in beside:
            if not stat.S_ISREG(file.lstat().st_mode):
                raise VPromptError(
                    f"{printable(str(file))}, which belongs to {printable(path.name)}, is no plain file; copy both."
                )
        return [*beside, path]

    def halved(self, converted: Any) -> Any:
        """What `convert` gave, which may be used up, with weights of float16; its inputs and outputs stay."""
        raise NotImplementedError

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """The model with int8 weights and activations, and the name of the tool that made it.

        Args:
            converted: From `convert`; may be used up.
            batches: Inputs of the model, one image each.
            folder: For files that are not needed later.
        """
        raise NotImplementedError

    def require(self, packages: Sequence[str]) -> None:
        """Raises the sentence that tells how to install what is missing."""
        for package in packages:
            try:
                with quiet():
                    import_module(package)
            except ImportError as error:
                wanted = package if self.extra is None else f"'vprompt[{self.extra}]'"
                raise VPromptError(
                    f"{self.suffix} files need {package}, which is not installed: pip install {wanted}."
                ) from error


FORMATS = Registry[Format]("export format", "vprompt.exporters.formats", "vprompt.exporters")
"""Members are instances: `FORMATS.register(MyFormat())`."""


def format_of(path: Path) -> Format:
    """The format of a file, by the end of its name.

    Raises:
        VPromptError: If no format's files end so.
    """
    for format in FORMATS:
        if path.suffix.lower() == format.suffix:
            return format
    known = ", ".join(f"{format.suffix} ({format.name})" for format in FORMATS)
    raise VPromptError(f"{path} is the name of no exported file; its end says the format: {known}.")


def signature(program: ExportedProgram) -> tuple[dict[str, dict[int, str]], list[str]]:
    """Inputs by name, each with its axes of any length and what these are called; and the names of the outputs.

    These are `logits`, or `probabilities` (or `values`) where the preprocessing is included, so that pixels come in; of
    an engine `features` and `logits`.
    """
    return program.graph.output_node().meta[SIGNATURE]


def refuse(path: Path, why: str) -> NoReturn:
    """Raises the VPromptError of a file that holds more than a model."""
    raise VPromptError(
        f"{printable(str(path))} is not opened because it could run code or do harm: {why}; export the adapter again."
    )


def check_shapes(path: Path, shapes: Iterable[Iterable[int]]) -> None:
    """Refuses a model in which a tensor has more than `MOST_VALUES` numbers; the batch is not among its sizes."""
    if any(prod(shape) > MOST_VALUES for shape in shapes):
        refuse(path, "it computes more numbers than a model does")


def is_exported(source: str | Path) -> bool:
    """Whether a name can only be that of an exported file."""
    return Path(source).suffix.lower() in {format.suffix for format in FORMATS} and not Path(source).is_dir()


@contextlib.contextmanager
def translated(problem: str, remedy: str = "") -> Generator[None]:
    """Turns whatever a format's library raises into a VPromptError: the problem, its reason in short, the remedy."""
    try:
        yield
    except VPromptError:
        raise
    except Exception as error:  # every library raises its own, and a damaged file can raise almost anything
        reason = printable(" ".join(str(error).split()))[:200] or type(error).__name__
        raise VPromptError(f"{problem} ({reason}){remedy}.") from error


_ALONE = threading.RLock()
"""What is silenced is the whole process's; and torch reads one program at a time."""


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps what the formats' libraries have to say about themselves off the screen, for one thread at a time."""
    with _ALONE:
        yield from _quiet()


def _quiet() -> Generator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
