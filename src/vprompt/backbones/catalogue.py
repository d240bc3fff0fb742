"""The models of timm that prompts can be put into: a table that ships with the library; reading it needs no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo


FILE = Path(__file__).with_name("backbones.csv")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of timm.

    Args:
        name: timm's, without a tag.
        model: Its class.
        attention: Class of its attention.
        blocks: How many blocks have prompts.
        width: D of the blocks, smallest to largest: `"768"`, or `"128-1024"` where stages differ.
        pooling: See `vprompt.backbones.info.BackboneInfo`.
        prefix_tokens: Class, distillation and register tokens.
        pixels: Input height and width.
        tested: Whether vprompt's tests run prompts through it, built small.
    """

    name: str
    model: str
    attention: str
    blocks: int
    width: str
    pooling: str
    prefix_tokens: int
    pixels: str
    tested: bool

    @staticmethod
    def of(name: str, model: nn.Module, info: BackboneInfo, *, tested: bool) -> Entry:
        """The entry of a model that was made by name."""
        attention = sorted({type(model.get_submodule(site.attention)).__name__ for site in info.blocks})
        return Entry(
            name=name,
            model=type(model).__name__,
            attention=", ".join(attention),
            blocks=len(info.blocks),
            width="-".join(str(width) for width in sorted({min(info.widths), max(info.widths)})),
            pooling=info.pooling,
            prefix_tokens=info.num_prefix_tokens,
            pixels="x".join(str(pixels) for pixels in info.preprocessing.size),
            tested=tested,
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one class with one class of attention.

    Args:
        model: Class of the models.
        attention: Class of their attention.
        models: How many there are.
        blocks: Fewest to most.
        width: Smallest to largest.
        pooling: All kinds.
        tested: Whether all are.
        example: The first name.
    """

    model: str
    attention: str
    models: int
    blocks: str
    width: str
    pooling: str
    tested: bool
    example: str


def read() -> list[Entry]:
    """All entries, by name."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return msgspec.convert(list(csv.DictReader(file)), list[Entry], strict=False)


def matching(entries: Iterable[Entry], pattern: str) -> list[Entry]:
    """Entries whose name, class or attention class matches a pattern with `*` and `?`, or contains it; case is nothing.

    Example:
        >>> [entry.name for entry in matching(read(), "swin_base*")]
        ['swin_base_patch4_window12_384', 'swin_base_patch4_window7_224']
    """
    wanted = pattern.lower() if any(sign in pattern for sign in "*?[") else f"*{pattern.lower()}*"
    return [
        entry
        for entry in entries
        if any(fnmatchcase(text.lower(), wanted) for text in (entry.name, entry.model, entry.attention))
    ]


def families(entries: Iterable[Entry]) -> list[Family]:
    """Entries by class of model and attention, the largest family first."""

    def key(entry: Entry) -> tuple[str, str]:
        return entry.model, entry.attention

    rows: list[Family] = []
    for (model, attention), group in groupby(sorted(entries, key=key), key=key):
        members = list(group)
        rows.append(
            Family(
                model=model,
                attention=attention,
                models=len(members),
                blocks=_span(entry.blocks for entry in members),
                width=_span(int(width) for entry in members for width in entry.width.split("-")),
                pooling=" ".join(sorted({entry.pooling for entry in members})),
                tested=all(entry.tested for entry in members),
                example=members[0].name,
            )
        )
    return sorted(rows, key=lambda family: -family.models)


def _span(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    low, high = ordered[0], ordered[-1]
    return str(low) if low == high else f"{low}-{high}"
