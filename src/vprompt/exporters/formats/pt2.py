"""`.pt2`: a program of PyTorch, as `torch.export.save` writes it.

`torch.export.load` unpickles what an archive calls a pickle and evaluates sizes that are written as text. So it reads
only what this process wrote or its reader trusts; of all others nothing but the description is read.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import BLANK, FORMATS, KEY, Format
from vprompt.utils.version import FORMER_NAME

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run

MOST_TEXT = 2**24
"""Bytes of a description that are unpacked at most."""


class Pt2(Format):
    """A zip archive; the checksum is its comment, because the archive has one of its own over the description."""

    name = "pt2"
    summary = "PyTorch without vprompt"
    suffix = ".pt2"
    engine = needs_trust = True

    def convert(self, program: ExportedProgram, opset: int | None = None) -> ExportedProgram:
        """The program as it is."""
        return program

    def save(self, converted: ExportedProgram, path: Path, about: str) -> None:
        """Writes one file."""
        import torch

        archive = io.BytesIO()  # PyTorch ends the process where it cannot write to a disk
        torch.export.save(converted, archive, extra_files={f"{KEY}.json": about})
        with zipfile.ZipFile(archive, "a") as packed:
            packed.comment = BLANK.encode()
        path.write_bytes(archive.getbuffer())

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads the description; the rest when it is to run."""
        import torch

        def ready() -> Run:
            module: Any = torch.export.load(path).module(check_guards=False)

            @torch.inference_mode()
            def run(given: Any) -> Any:
                outputs = module(*map(torch.from_numpy, given.values() if isinstance(given, dict) else [given]))
                return [output.numpy() for output in outputs] if isinstance(given, dict) else outputs.numpy()

            return run

        wanted = [f"extra/{key}.json" for key in (KEY, FORMER_NAME)]
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.partition("/")[2] in wanted]
            text = archive.open(names[0]).read(MOST_TEXT) if names else None
        return text, ready


FORMATS.register(Pt2())
