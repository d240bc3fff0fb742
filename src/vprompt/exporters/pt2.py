"""`.pt2`: a program of PyTorch, as `torch.export.save` writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from vprompt.exporters.base import Format
from vprompt.exporters.metadata import KEY
from vprompt.exporters.pt2_archive import text_of

if TYPE_CHECKING:
    import numpy as np

    from vprompt.exporters.base import Run


_TEXT = f"{KEY}.json"


class Pt2(Format):
    """A zip archive of JSON and plain numbers."""

    name = "pt2"
    suffix = ".pt2"

    def convert(self, program: ExportedProgram) -> ExportedProgram:
        """The program as it is."""
        return program

    def save(self, converted: ExportedProgram, path: Path, about: str) -> None:
        """Writes one file."""
        torch.export.save(converted, path, extra_files={_TEXT: about})

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads nothing but data: `vprompt.exporters.pt2_archive` refuses archives with pickles or code first."""
        return text_of(path, _TEXT), lambda: _runner(path)


def _runner(path: Path) -> Run:
    module: Any = torch.export.load(path).module(check_guards=False)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


FORMAT = Pt2()
