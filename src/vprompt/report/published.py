"""Published numbers, to print beside measured ones, from a table that ships with the library; never part of means."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vprompt.utils.statistics import mean_of

FILE, COSTS = (Path(__file__).with_name(name) for name in ("published.csv", "published_costs.csv"))

VTAB: dict[str, tuple[str, ...]] = {
    "natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        *("clevr_count", "clevr_dist", "dmlab", "kitti"),
        *("dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
    ),
}
"""Groups and tasks of VTAB-1k, as the table calls them."""

FGVC = ("cub", "nabirds", "flowers", "dogs", "cars")

VIT, SWIN = "ViT-B/16 in21k", "Swin-B in22k"

_FAMILIES = (
    (r"vit_base_patch16_224.*in21k", VIT),
    (r"vit_base_patch16_224.*mae", "ViT-B/16 MAE"),
    (r"vit_base_patch16_224.*moco", "ViT-B/16 MoCo-v3"),
    (r"swin_base.*in22k", SWIN),
)

_MEASURED = {"vit_base_patch16_224": VIT, "swin_base_patch4_window7_224": SWIN}
"""Architecture -> family; what a model costs does not depend on its weights."""

Grouping = frozenset[frozenset[str]]
"""What a printed number is over: it is the mean, over groups of tasks, of the means over their tasks."""


def grouping(groups: Iterable[Iterable[str]]) -> Grouping:
    """Groups of tasks, whatever their order."""
    return frozenset(map(frozenset, groups))


_VTAB_TASKS = tuple(task for group in VTAB.values() for task in group)

_MEANS = {
    **{("vtab", f"mean of {group}"): grouping([tasks]) for group, tasks in VTAB.items()},
    ("vtab", "mean of tasks"): grouping([_VTAB_TASKS]),
    ("vtab", "mean of groups"): grouping(VTAB.values()),
    ("fgvc", "mean of tasks"): grouping([FGVC]),
    ("", "mean of the eight tasks"): grouping(
        [["cars", "svhn", "clevr_count", "dmlab", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"]]
    ),
}
"""Words of the table for a mean."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Numbers that one source prints of one method, in percent.

    Args:
        label: The method.
        source: Where the numbers stand.
        printed: By what they are over.
    """

    label: str
    source: str
    printed: dict[Grouping, float] = field(default_factory=dict[Grouping, float])

    def mean(self, groups: Iterable[Iterable[str]]) -> float | None:
        """The printed mean over exactly these groups of tasks, or that of the printed numbers if all are there.

        Example:
            >>> printed = {grouping([["svhn"]]): 80.0, grouping([["dtd"]]): 60.0}
            >>> row = PublishedRow(label="a", source="b", printed=printed)
            >>> row.mean([["svhn", "dtd"]]), row.mean([["svhn"], ["dtd"]]), row.mean([["svhn", "cifar"]])
            (70.0, 70.0, None)
        """
        wanted = grouping(groups)
        if wanted in self.printed:
            return self.printed[wanted]
        parts = [[group] for group in wanted] if len(wanted) > 1 else [[[task]] for group in wanted for task in group]
        return mean_of([self.mean(part) for part in parts]) if len(parts) > 1 else None


def family_of(backbone: str) -> str | None:
    """The family under which numbers of a timm model are published, if there are any.

    Example:
        >>> family_of("vit_base_patch16_224.augreg_in21k"), family_of("vit_small_patch16_224")
        ('ViT-B/16 in21k', None)
    """
    name = backbone.rsplit("/", 1)[-1]
    return next((family for pattern, family in _FAMILIES if re.match(pattern, name)), None)


def rows(family: str, tasks: Iterable[str]) -> list[PublishedRow]:
    """The published rows of a family on some tasks.

    Args:
        family: As `family_of` gives it.
        tasks: Names as in `VTAB` and `FGVC`.

    Returns:
        Rows with the numbers that are over only such tasks; none without any.

    Example:
        >>> row = next(row for row in rows(VIT, ["svhn", "dtd"]) if row.label == "VPT-Deep")
        >>> row.mean([["dtd"]]), row.mean([["svhn"]]), len(row.printed)
        (65.8, 78.1, 2)
    """
    wanted = frozenset(tasks)
    of_tasks = [
        replace(
            row,
            printed={over: value for over, value in row.printed.items() if wanted.issuperset(frozenset().union(*over))},
        )
        for row in _table().get(family, ())
    ]
    return [row for row in of_tasks if row.printed]


def gmacs(family: str | None) -> tuple[dict[int, float], str]:
    """Published GMACs of VPT-Deep by prompts per block, not folded, and their source.

    Example:
        >>> gmacs(VIT)[0][100]
        26.9
    """
    lines = [line for line in _lines(COSTS) if line["family"] == family and not line["percent"] + line["scope"]]
    return {int(line["prompts"]): float(line["value"]) for line in lines}, lines[0]["source"] if lines else ""


def overheads(family: str | None) -> dict[int, float]:
    """Published overheads of VPT-Deep in percent, by prompts per block, as printed.

    Example:
        >>> overheads(SWIN)
        {5: 5.8, 10: 11.6, 25: 28.5, 50: 57.8}
    """
    lines = [line for line in _lines(COSTS) if line["family"] == family and line["scope"] == "overhead"]
    return {int(line["prompts"]): float(line["value"]) for line in lines}


def measured_family(backbone: str, img_size: Sequence[int]) -> str | None:
    """The family under which costs and times of a timm model are published, whatever its weights.

    Example:
        >>> measured_family("vit_base_patch16_224.mae", (224, 224)), measured_family("vit_base_patch16_224", (96, 96))
        ('ViT-B/16 in21k', None)
    """
    name = backbone.rsplit("/", 1)[-1].split(".", 1)[0]
    return _MEASURED.get(name) if tuple(img_size) == (224, 224) else None


Condensed = tuple[int, int, str]
"""Prompts per block before, percent of them that stay, and `"local"` or `"global"` (`"local"` too where all stay)."""


def condensed(family: str | None) -> dict[str, dict[Condensed, str]]:
    """Published numbers after condensation, as printed: milliseconds for 64 images by device, and GMACs under `""`.

    Example:
        >>> numbers = condensed(VIT)
        >>> list(numbers), numbers["A100"][200, 10, "global"], numbers[""][200, 100, "local"]
        (['', 'Quadro RTX 5000', 'V100', 'A100'], '53', '36.77')
    """
    numbers: dict[str, dict[Condensed, str]] = {}
    for line in _lines(COSTS):
        if line["family"] == family and line["percent"]:
            key = int(line["prompts"]), int(line["percent"]), line["scope"]
            numbers.setdefault(line["device"], {})[key] = line["value"]
    return numbers


@functools.cache
def _lines(path: Path) -> tuple[dict[str, str], ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def _table() -> dict[str, list[PublishedRow]]:
    """All rows of accuracies, by family, in the order of the file."""
    found: dict[tuple[str, ...], PublishedRow] = {}
    for line in _lines(FILE):
        row = PublishedRow(label=line["method"], source=line["source"])
        row = found.setdefault((line["family"], row.label, row.source), row)
        over = _MEANS.get((line["benchmark"], line["task"]), grouping([[line["task"]]]))
        row.printed[over] = float(line["value"])
    families: dict[str, list[PublishedRow]] = {}
    for (family, *_), row in found.items():
        families.setdefault(family, []).append(row)
    return families
