"""Published numbers, to print beside measured ones, from a table that ships with the library; never part of means."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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

_VTAB_TASKS = tuple(task for group in VTAB.values() for task in group)

_MEANS: dict[tuple[str, str], tuple[str, ...]] = {
    **{("vtab", f"mean of {group}"): tasks for group, tasks in VTAB.items()},
    ("vtab", "mean of tasks"): _VTAB_TASKS,
    ("fgvc", "mean of tasks"): FGVC,
    ("", "mean of the eight tasks"): (
        *("cars", "svhn", "clevr_count", "dmlab"),
        *("dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
    ),
}
"""The tasks that a printed mean is over."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Numbers that one source prints of one method, in percent.

    Args:
        label: The method.
        source: Where the numbers stand.
        numbers: Accuracy by task.
        means: Printed means, by the tasks that they are over.
        group_mean: Printed mean of the means of VTAB's three groups.
    """

    label: str
    source: str
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    means: dict[frozenset[str], float] = field(default_factory=dict[frozenset[str], float])
    group_mean: float | None = None

    def mean(self, tasks: Iterable[str]) -> float | None:
        """The printed mean over exactly these tasks, or that of the numbers if all are there.

        Example:
            >>> row = PublishedRow(label="a", source="b", numbers={"svhn": 80.0, "dtd": 60.0})
            >>> row.mean(["svhn", "dtd"]), row.mean(["svhn", "cifar"])
            (70.0, None)
        """
        wanted = frozenset(tasks)
        if wanted in self.means:
            return self.means[wanted]
        if not wanted or not wanted <= self.numbers.keys():
            return None
        return sum(self.numbers[task] for task in wanted) / len(wanted)

    def mean_of_groups(self, groups: Iterable[Iterable[str]]) -> float | None:
        """The printed mean of VTAB's group means if these are its groups, or that of the means of these groups."""
        wanted = [frozenset(group) for group in groups]
        if self.group_mean is not None and sorted(map(sorted, wanted)) == sorted(map(sorted, VTAB.values())):
            return self.group_mean
        means = [self.mean(group) for group in wanted]
        known = [mean for mean in means if mean is not None]
        return sum(known) / len(known) if known and len(known) == len(means) else None


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
        Rows with the numbers of these tasks and the printed means over only such; none without any.

    Example:
        >>> row = next(row for row in rows(VIT, ["svhn", "dtd"]) if row.label == "VPT-Deep")
        >>> row.numbers, row.group_mean
        ({'dtd': 65.8, 'svhn': 78.1}, None)
    """
    wanted = frozenset(tasks)
    published: list[PublishedRow] = []
    for row in _table().get(family, ()):
        numbers = {task: value for task, value in row.numbers.items() if task in wanted}
        means = {over: value for over, value in row.means.items() if over <= wanted}
        group_mean = row.group_mean if wanted.issuperset(_VTAB_TASKS) else None
        if numbers or means or group_mean is not None:
            published.append(replace(row, numbers=numbers, means=means, group_mean=group_mean))
    return published


def gmacs(family: str | None) -> tuple[dict[int, float], str]:
    """Published GMACs of VPT-Deep by prompts per block, not folded, and their source.

    Example:
        >>> gmacs(VIT)[0][100]
        26.9
    """
    lines = [line for line in _lines(COSTS) if line["family"] == family and not line["percent"]]
    return {int(line["prompts"]): float(line["value"]) for line in lines}, lines[0]["source"] if lines else ""


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


def condensed_gmacs(family: str | None) -> dict[Condensed, str]:
    """Published GMACs after condensation, as printed.

    Example:
        >>> gmacs = condensed_gmacs(VIT)
        >>> gmacs[200, 10, "local"], gmacs[200, 50, "global"], gmacs[200, 100, "local"]
        ('19.43', '27.04', '36.77')
    """
    return _condensed(family).get("", {})


def condensed_milliseconds(family: str | None) -> dict[str, dict[Condensed, str]]:
    """Published milliseconds for 64 images after condensation, as printed, by the device they were measured on.

    Example:
        >>> times = condensed_milliseconds(VIT)
        >>> list(times), times["A100"][200, 10, "global"]
        (['Quadro RTX 5000', 'V100', 'A100'], '53')
    """
    return {device: times for device, times in _condensed(family).items() if device}


def _condensed(family: str | None) -> dict[str, dict[Condensed, str]]:
    """Numbers after condensation by device; multiply-accumulates have none."""
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
def _table() -> dict[str, tuple[PublishedRow, ...]]:
    """All rows of accuracies, by family, in the order of the file."""
    families: dict[str, dict[tuple[str, str], PublishedRow]] = {}
    for line in _lines(FILE):
        label, source, task, value = line["method"], line["source"], line["task"], float(line["value"])
        by_method = families.setdefault(line["family"], {})
        row = by_method.setdefault((label, source), PublishedRow(label=label, source=source))
        if task == "mean of groups":
            by_method[label, source] = replace(row, group_mean=value)
        elif task.startswith("mean of "):
            row.means[frozenset(_MEANS[line["benchmark"], task])] = value
        else:
            row.numbers[task] = value
    return {family: tuple(by_method.values()) for family, by_method in families.items()}
