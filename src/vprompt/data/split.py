"""Splits of labelled images that follow from what is in the images: which side each is on, and which are copies.

The rule. A hash of the seed and of a file's bytes gives every image a number from 0 to 1: below 0.20 it is a test
image, below 0.36 a validation image, else a training image (where only validation images are missing, it is one below
0.20). Names, order and neighbours have no part in it, so that no image changes sides when others come or go, and exact
copies are always together. Near copies form a group, which goes where the one with the smallest hash would.

Shares therefore hold on average and not to the image: of 100 images about 20 +- 4 are for testing. No rule can have
both fixed shares and images that never move, as the side of an image would have to depend on all others. Two things
come before: a class of three or more has something in each split, and at least half of a class is trained on. Where
the numbers give less, the images that are nearest to the limit are lent; as the class grows, they go back. Lent by
training is lent to be tested, which does no harm later. Lent to training are validation images first, and a test
image only where that is not enough: in 1 % of classes of eight, and fewer of larger ones.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.data.listing import UNSPLIT, Item

Splits = dict[str, list[Item]]
"""The images of each split."""

GRID = 12

NEAR = ((0.92, 0.1), (0.97, 0.25), (0.99, 0.5))
"""Cosines from which on images are near copies, and the share of a class up to which that is believed of a group. Of
natural images, copies at JPEG quality 40, of half the size or brighter reach 0.98, and no two of 1000 different ones
0.9; the others are for images that are all alike."""


def missing_splits(splits: Mapping[str, Sequence[Item]]) -> bool:
    """Whether there are splits to be cut: all three, or val from train."""
    return UNSPLIT in splits or ("train" in splits and "val" not in splits)


def cut(splits: Splits, seed: int, contents: Mapping[str, str], group_of: Mapping[str, str]) -> Splits:
    """Cuts the splits that are not there: 20 % test and 16 % val of all, or 20 % of train as val.

    Args:
        splits: The images.
        seed: Another seed, another cut.
        contents: Name -> hash of the image's bytes.
        group_of: Name -> name of the group of near copies that it is in, see `near_copies`.
    """
    if not missing_splits(splits):
        return splits
    whole, limits = (UNSPLIT, {"test": 0.2, "val": 0.36}) if UNSPLIT in splits else ("train", {"val": 0.2})
    items = sorted(splits.pop(whole), key=lambda item: (item.label, item.name))
    key_of = {item.name: group_of.get(item.name, contents[item.name]) for item in items}
    number = {key: int.from_bytes(place(seed, key)[:8]) / 2**64 for key in key_of.values()}
    classes: dict[str, set[float]] = {}
    for name, label in items:
        classes.setdefault(label, set()).add(number[key_of[name]])
    side_of: dict[float, int] = {}
    for numbers in classes.values():
        ends = _ends(sorted(numbers), list(limits.values()))
        for row, place_in_01 in enumerate(sorted(numbers)):
            # What is in several classes is trained on if one of them needs it.
            side_of[place_in_01] = max(side_of.get(place_in_01, 0), sum(row >= end for end in ends))
    sides = [*limits, "train"]
    parts: Splits = {side: [] for side in ("train", "val", "test") if side in sides}
    for item in items:
        parts[sides[side_of[number[key_of[item.name]]]]].append(item)
    return splits | parts


def _ends(numbers: Sequence[float], limits: Sequence[float]) -> list[int]:
    """Places at which sorted numbers are cut: at the limits, but half are left, and each part has one; 1 or 2 stay.

    Example:
        >>> [_ends(numbers, [0.2, 0.36]) for numbers in ([0.1, 0.3, 0.5, 0.9], [0.4, 0.5, 0.9], [0.1, 0.5])]
        [[1, 2], [1, 2], [0, 0]]
    """
    few, ends = len(numbers) < 3, [0]
    for later, limit in zip(reversed(range(len(limits))), limits, strict=True):
        most = 0 if few else len(numbers) - max(1, len(numbers) // 2) - later
        natural = sum(number < limit for number in numbers)
        ends.append(max(ends[-1], min(max(natural, ends[-1] + 1), most)))
    return ends[1:]


def place(seed: int, content: str) -> bytes:
    """The key that images are ordered by: a hash of the seed and a text."""
    return hashlib.sha256(f"{seed}\0".encode() + os.fsencode(content)).digest()


def content_of(source: str | os.PathLike[str] | bytes) -> str:
    """The SHA-256 of a file's bytes, in hex; empty where it can no longer be read."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def look(pixels: Tensor) -> Tensor:
    """A perceptual hash of an image (3, H, W): the differences between neighbours in a small grey copy, of length 1.

    Brightness and contrast have no part in it, nor has what a codec does to small parts; it is zero for one colour.
    """
    small = F.adaptive_avg_pool2d(pixels.float().mean(0, keepdim=True), GRID + 1)[0]
    steps = torch.cat([(small[:, 1:] - small[:, :-1]).flatten(), (small[1:] - small[:-1]).flatten()])
    return F.normalize(steps, dim=0)


def near_copies(
    looks: Mapping[str, Tensor], contents: Mapping[str, str], label_of: Mapping[str, str]
) -> dict[str, str]:
    """The group of every image that has a copy, near or exact; a group is named after the first content in it.

    A group that takes much of a class, and more than four images, is a kind of image and no copies: it is looked at
    again by the next measure in `NEAR`, and at last only exact copies are held together.

    Args:
        looks: Name -> `look` of the image; without one, only exact copies are found.
        contents: Name -> hash of its bytes.
        label_of: Name -> class.
    """
    sizes = Counter(label_of[name] for name in contents)
    by_content: dict[str, list[str]] = {}
    for name, content in contents.items():
        by_content.setdefault(content, []).append(name)
    groups: dict[str, list[str]] = {}
    waiting = [(0, sorted(content for content, names in by_content.items() if names[0] in looks))]
    while waiting:
        level, members = waiting.pop()
        if level == len(NEAR) or not members:
            continue
        least, most = NEAR[level]
        for group in _connected(torch.stack([looks[by_content[content][0]] for content in members]), least):
            alike = [members[row] for row in group]
            labels = Counter(label_of[by_content[content][0]] for content in alike)
            if any(count > max(4, most * sizes[label]) for label, count in labels.items()):
                waiting.append((level + 1, alike))
            else:
                groups[alike[0]] = alike
    together = {content: first for first, alike in groups.items() for content in alike}
    return {
        name: together.get(content, content)
        for content, names in by_content.items()
        if content in together or len(names) > 1
        for name in names
    }


def joined(group_of: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, str]:
    """Groups of images that are copies, or that belong together, or both in turn; named after what belongs together.

    Args:
        group_of: Image -> group of copies, see `near_copies`.
        groups: Image -> what it belongs to.

    Example:
        >>> joined({"a": "1", "b": "1"}, {"b": "Ann", "c": "Ann", "d": "Bob"})
        {'a': 'Ann', 'b': 'Ann', 'c': 'Ann', 'd': 'Bob'}
    """
    above: dict[tuple[bool, str], tuple[bool, str]] = {}

    def top(node: tuple[bool, str]) -> tuple[bool, str]:
        while (next_one := above.setdefault(node, node)) != node:
            above[node] = node = above[next_one]
        return node

    for name in group_of.keys() & groups.keys():
        low, high = sorted((top((True, group_of[name])), top((False, groups[name]))))
        above[high] = low
    copies = {name: top((True, group))[1] for name, group in group_of.items()}
    return copies | {name: top((False, group))[1] for name, group in groups.items()}


def _connected(looks_ND: Tensor, least: float) -> list[list[int]]:
    """Rows that are linked by cosines of at least `least`, in groups of two and more."""
    first_N = torch.arange(len(looks_ND))
    for rows in first_N.clone().split(max(1, 2**24 // len(looks_ND))):
        linked = looks_ND[rows] @ looks_ND[rows[0] :].T >= least
        for row in (linked.sum(1) > 1).nonzero().flatten():
            alike = first_N[rows[0] :][linked[row]].unique()
            if len(alike) > 1:
                first_N[torch.isin(first_N, alike)] = alike[0]
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(first_N.tolist()):
        groups.setdefault(first, []).append(row)
    return [group for group in groups.values() if len(group) > 1]
