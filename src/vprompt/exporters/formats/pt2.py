"""`.pt2`: a program of PyTorch, as `torch.export.save` writes it; an archive that could run code is not opened.

`torch.export.load` unpickles what an archive calls a pickle, and evaluates sizes written as text. An archive of plain
weights needs no pickle and only plain sizes, so everything else is refused before PyTorch sees it.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vprompt.exporters.base import FORMATS, FORMER_KEY, KEY, Format
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import parse
from vprompt.utils.text import printable

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


class Pt2(Format):
    """A zip archive of JSON and plain numbers."""

    name = "pt2"
    summary = "PyTorch without vprompt"
    suffix = ".pt2"

    def convert(self, program: ExportedProgram) -> ExportedProgram:
        """The program as it is."""
        return program

    def save(self, converted: ExportedProgram, path: Path, about: str) -> None:
        """Writes one file."""
        import torch

        torch.export.save(converted, path, extra_files={f"{KEY}.json": about})

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads nothing but data."""
        return text_of(path), lambda: _runner(path)


def _runner(path: Path) -> Run:
    import torch

    module: Any = torch.export.load(path).module(check_guards=False)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


_NAMES = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/(vprompt|laconic)\.json"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)

_SIZE = re.compile(
    r"(?:(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv|IntTrueDiv|TruncToInt)\("
    r"|'[su]\d{1,9}'|(?:positive|integer|nonnegative)=(?:True|False)|-?\d{1,19}|[(), ])+"
)
"""A size as the format writes it: symbols, whole numbers and arithmetic."""

_OPERATOR = re.compile(r"torch\.ops\.(?:aten|_operator)\.\w+\.\w+|_operator\.\w+|math\.\w+")

_NEVER = ("as_operator", "as_custom_obj", "as_graph", "as_graphs")


def text_of(path: Path) -> str | bytes | None:
    """The description beside the model, after everything was checked; None where there is none.

    Raises:
        VPromptError: If the archive holds more than data.
        ValueError: If it is damaged, as are `OSError`, `zipfile.BadZipFile` and `KeyError`.
    """
    import torch

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0] + "/"
        inner = [name.removeprefix(root) for name in names]
        if len(set(names)) != len(names) or not all(map(_NAMES.fullmatch, inner)):
            strange = next((name for name in inner if not _NAMES.fullmatch(name)), "the same name twice")
            _refuse(path, f"it has {strange!a} in it")
        for config in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
            for entry in _entries(parse(archive.read(root + config))):
                if entry.get("use_pickle"):
                    _refuse(path, "it has a pickle in it")
        try:
            torch.load(io.BytesIO(archive.read(root + "data/sample_inputs/model.pt")), weights_only=True)
        except Exception:  # whatever it holds, PyTorch would try it again as a pickle
            _refuse(path, "it has a pickle in it")
        document = parse(archive.read(root + "models/model.json"))
        if document["guards_code"]:
            _refuse(path, "it has code in it")
        for entry in _entries(document):
            _check(path, entry)
        texts = [name for name in (f"extra/{KEY}.json", f"extra/{FORMER_KEY}.json") if name in inner]
        return archive.read(root + texts[0]) if texts else None


def _check(path: Path, entry: dict[str, Any]) -> None:
    """Refuses an object of the model's JSON that is more than operators on tensors."""
    size, target = entry.get("expr_str", "Integer(1)"), entry.get("target", "math.pow")
    if not isinstance(size, str) or not _SIZE.fullmatch(size):
        _refuse(path, f"it has a size {str(size)[:40]!a} in it")
    if not isinstance(target, str) or not _OPERATOR.fullmatch(target):
        _refuse(path, f"it calls {str(target)[:40]!a}")
    if any(entry.get(key) is not None for key in _NEVER):
        _refuse(path, "it has code in it")


def _entries(document: Any) -> list[dict[str, Any]]:
    """All objects in a JSON document, however deep."""
    entries: list[dict[str, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            entries.append(cast("dict[str, Any]", value))
            waiting += value.values()  # pyright: ignore[reportUnknownMemberType]
        elif isinstance(value, list):
            waiting += cast("list[Any]", value)
    return entries


def _refuse(path: Path, why: str) -> None:
    raise VPromptError(
        f"{printable(str(path))} is not opened because it could run code: {why}; export the adapter again."
    )


FORMATS.register(Pt2())
