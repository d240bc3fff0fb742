"""`vprompt backbones`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from vprompt.cli.console import print_json, print_note, print_table
from vprompt.cli.options import Json
from vprompt.utils.errors import BackboneError

if TYPE_CHECKING:
    from vprompt.backbones.catalogue import Entry


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """The timm models that prompts can be put into."""

    pattern: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PATTERN]")] = None
    """Part of a model's name or class, or a pattern such as 'vit_base*'; the families when left out."""
    json: Json = False

    def run(self) -> None:
        """Reads and prints the table."""
        from vprompt.backbones.catalogue import families, matching, read

        entries = read()
        listed = entries if self.pattern is None else matching(entries, self.pattern) or [_unlisted(self.pattern)]
        groups = families(listed)
        if self.json:
            print_json([asdict(row) for row in (groups if self.pattern is None else listed)])
        elif self.pattern is None:
            print_table(
                f"{len(entries)} models of timm in {len(groups)} families",
                ["model class, attention", "models", "blocks", "width", "pooling", "tested"],
                [
                    [f"{f.model}\n{f.attention}", str(f.models), f.blocks, f.width, f.pooling, _yes(f.tested)]
                    for f in groups
                ],
                whole_first=True,
            )
            print_note("Their models: vprompt backbones PATTERN, for example vprompt backbones 'vit_base*'.")
        else:
            for family in groups:
                members = [e for e in listed if (e.model, e.attention) == (family.model, family.attention)]
                print_table(
                    f"{family.model}, {family.attention}",
                    ["name", "blocks", "width", "pooling", "tested"],
                    [[e.name, str(e.blocks), e.width, e.pooling, _yes(e.tested)] for e in members],
                    whole_first=True,
                )


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _unlisted(name: str) -> Entry:
    """The entry of a model that the table does not have: timm may be newer than it."""
    import torch

    from vprompt.backbones.catalogue import Entry
    from vprompt.backbones.factory import can_create, create_backbone
    from vprompt.backbones.info import describe

    if not can_create(name):
        raise BackboneError(f"No supported model matches {name!r}; `vprompt backbones` lists the families.")
    with torch.device("meta"):
        model = create_backbone(name, pretrained=False)
    return Entry.of(name, model, describe(model), tested=False)
