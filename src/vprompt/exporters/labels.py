"""Names of classes as files that other tools read: `labels.txt` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable


def label_files(classes: Sequence[str]) -> dict[str, str]:
    """Name and content of each: a line a class for TensorFlow Lite's tools, `id2label` for those of transformers.

    Example:
        >>> label_files(["ant", "bee"])["labels.txt"]
        'ant\\nbee\\n'
    """
    numbers = {str(number): name for number, name in enumerate(classes)}
    config = {"id2label": numbers, "label2id": {name: int(number) for number, name in numbers.items()}}
    lines = "".join(f"{printable(' '.join(name.splitlines()))}\n" for name in classes)
    return {"labels.txt": lines, "config.json": json.dumps(config, indent=2) + "\n"}


def check_label_files(folder: Path, classes: Sequence[str], former: Sequence[str] | None) -> None:
    """Refuses to replace files that are neither those of these classes nor those of the export that is replaced.

    Raises:
        VPromptError: If there is one.
    """
    old = {} if former is None else label_files(former)
    for name, content in label_files(classes).items():
        file = folder / name
        if not file.exists():
            continue
        if not file.is_file() or file.read_bytes() not in (content.encode(), old.get(name, content).encode()):
            raise VPromptError(
                f"{printable(str(file))} is there already and holds something else; remove it, choose another folder, "
                "or overwrite it (--overwrite)."
            )
