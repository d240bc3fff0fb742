"""Looks into a `.pt2` archive before PyTorch does, and lets nothing pass that could run code.

`torch.export.load` unpickles what an archive calls a pickle, and evaluates sizes written as text. An archive of plain
weights needs no pickle and only plain sizes, so everything else is refused.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any, cast

import torch

from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import parse
from vprompt.utils.text import printable

_NAMES = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/vprompt\.json"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)

_SIZE = re.compile(
    r"(?:(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv|IntTrueDiv|TruncToInt)\("
    r"|'[su]\d{1,9}'|(?:positive|integer|nonnegative)=(?:True|False)|-?\d{1,19}|[(), ])+"
)
"""A size as the format writes it: symbols, whole numbers and arithmetic."""

_OPERATOR = re.compile(r"torch\.ops\.(?:aten|_operator)\.\w+\.\w+|_operator\.\w+|math\.\w+")

_NEVER = ("as_operator", "as_custom_obj", "as_graph", "as_graphs")


def text_of(path: Path, name: str) -> str | bytes | None:
    """The text of that name beside the model, after everything was looked at; None where there is none.

    Raises:
        VPromptError: If the archive holds more than data.
        ValueError: If it is damaged, as are `OSError`, `zipfile.BadZipFile` and `KeyError`.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0] + "/"
        inner = [found.removeprefix(root) for found in names]
        if len(set(names)) != len(names) or not all(map(_NAMES.fullmatch, inner)):
            strange = next((found for found in inner if not _NAMES.fullmatch(found)), "the same name twice")
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
        return archive.read(f"{root}extra/{name}") if f"extra/{name}" in inner else None


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
    found: list[dict[str, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found.append(cast("dict[str, Any]", value))
            waiting += value.values()  # pyright: ignore[reportUnknownMemberType]
        elif isinstance(value, list):
            waiting += cast("list[Any]", value)
    return found


def _refuse(path: Path, why: str) -> None:
    raise VPromptError(
        f"{printable(str(path))} is not opened because it could run code: {why}; export the adapter again."
    )
