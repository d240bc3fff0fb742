"""Sentences on the images of a task that a user should know before a figure is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vprompt.data.listing import Item
from vprompt.tasks.base import Target
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.text import listed, printable

FEW = 5
"""Fewer training images of a class than this are said."""

UNEVEN = 5
"""Classes are uneven where the largest has this many times the training images of the smallest."""

BALANCE = "With --balance loss, sampler or logit-adjustment all classes count alike."
"""A note on uneven classes."""

DIGITS, SAMPLE = 8, 1024
"""Hexadecimal digits of a hash in a sample, and hashes."""


def copy_notes(
    splits: Mapping[str, Sequence[Item]],
    target: Target,
    contents: Mapping[str, str],
    group_of: Mapping[str, str],
    *,
    was_cut: bool,
) -> list[str]:
    """Copies in two splits, copies in one, and files that are in two classes, or have two labels.

    Args:
        splits: The images of each split.
        target: What their labels mean, which may be written in two ways.
        contents: Name -> hash of the image's bytes.
        group_of: Name -> group of copies, of the images that have any.
        was_cut: Whether a split was cut by us.
    """
    notes: list[str] = []
    for other, split in (("train", "val"), ("train", "test"), ("val", "test")):
        first = {group_of[item.name]: item.name for item in splits.get(other, ()) if item.name in group_of}
        pairs = [
            (item.name, first[group_of[item.name]])
            for item in splits.get(split, ())
            if group_of.get(item.name) in first
        ]
        if pairs:
            count = len(splits[split])
            share = f"All {count}" if len(pairs) == count else f"{len(pairs)} of the {count}"
            them = listed([f"{printable(one)} and {printable(two)}" for one, two in pairs], 3)
            notes.append(
                f"{share} images of {split} are copies or near copies of images of {other} ({them}): {target.title} "
                f"on {split} says little about new images."
            )
    if was_cut and group_of:
        groups: dict[str, list[str]] = {}
        for name, group in group_of.items():
            groups.setdefault(group, []).append(printable(name))
        some = listed([" and ".join(names[:2]) for names in groups.values()], 3)
        notes.append(f"{len(group_of)} images are copies or near copies of others and were kept in one split ({some}).")
    labels: dict[str, dict[str, str]] = {}
    for items in splits.values():
        meant = target.encode([item.label for item in items]).tolist()
        for item, label in zip(items, meant, strict=True):
            if item.name in contents:
                labels.setdefault(contents[item.name], {}).setdefault(str(label), item.name)
    twice = [" and ".join(map(printable, named.values())) for named in labels.values() if len(named) > 1]
    if twice:
        files = "file is" if len(twice) == 1 else "files are"
        where = "in two classes" if target.grouped else "there with two labels"
        notes.append(f"{len(twice)} {files} {where}, byte for byte ({listed(twice, 3)}); one of the two is wrong.")
    return notes


def group_notes(splits: Mapping[str, Sequence[Item]], groups: Mapping[str, str]) -> list[str]:
    """Groups of images that are learned from and tested on.

    Example:
        >>> group_notes({"train": [Item("a", "x")], "test": [Item("b", "x")]}, {"a": "Ann", "b": "Ann"})[0]
        'Of the groups of test, 1 is in train as well (Ann): accuracy on test says little about new groups.'
    """
    inside = {split: {groups[item.name] for item in items if item.name in groups} for split, items in splits.items()}
    if groups and not any(splits.get(split) for split in ("val", "test")):
        return [f"All images are learned from: {len({*groups.values()})} groups are too few to keep one back."]
    shared = {split: sorted(map(printable, inside[split] & inside.get("train", set()))) for split in inside}
    return [
        f"Of the groups of {split}, {len(both)} {'is' if len(both) == 1 else 'are'} in train as well "
        f"({listed(both, 3)}): accuracy on {split} says little about new groups."
        for split, both in shared.items()
        if both and split != "train"
    ]


def count_notes(
    per_split: Mapping[str, Mapping[str, int]], target: type[Target] = SingleLabel, images: int = 0
) -> list[str]:
    """Classes (or tags) that a split is without, small ones and uneven ones, and those of all training images.

    Args:
        per_split: Number of images by class, for each split.
        target: What they are.
        images: To train on.

    Example:
        >>> count_notes({"train": {"ant": 90, "bee": 10}, "test": {"ant": 20, "bee": 0}})[0]
        'Of class bee there is no image in test: accuracy there says nothing of it.'
    """
    notes: list[str] = []
    unit, score = target.unit, target.title
    units = f"{unit}es" if unit.endswith("s") else f"{unit}s"
    missing: dict[tuple[str, ...], list[str]] = {}
    for split, counts in per_split.items():
        missing.setdefault(tuple(name for name, count in counts.items() if not count), []).append(split)
    for names, parts in missing.items():
        if names:
            classes, them = (unit, "it") if len(names) == 1 else (f"{len(names)} {units},", "them")
            so = f"nothing can be learned of {them}" if "train" in parts else f"{score} there says nothing of {them}"
            notes.append(f"Of {classes} {listed([*names], 3)} there is no image in {listed(parts)}: {so}.")
    train = per_split["train"]
    if target.dense:  # an image is of many classes
        return notes
    if everywhere := [name for name, count in train.items() if 0 < count == images]:
        notes.append(f"All training images are of {unit} {listed(everywhere, 3)}: nothing can be learned of that.")
    few = [f"{name} ({count})" for name, count in train.items() if 0 < count < FEW]
    if few:
        classes = f"1 {unit} has" if len(few) == 1 else f"{len(few)} {units} have"
        notes.append(f"{classes} fewer than {FEW} images to learn from: {listed(few, 3)}.")
    low, high = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    if train[high] >= UNEVEN * max(1, train[low]):
        always = 100 * train[high] / (images or sum(train.values()))
        notes.append(
            f"The {units} are uneven, {train[high]} training images of {high} and {train[low]} of {low}: whoever "
            f"always answers {high} is right in {always:.1f} % of such images, so look at each {unit}."
        )
        notes += [BALANCE] * target.grouped
    return notes


def sample_of(contents: Iterable[str | None]) -> str:
    """The beginnings of some hashes in one string, the smallest ones.

    Example:
        >>> sample_of(["ff00aa11cc", None, "00aa11bb22"])
        '00aa11bbff00aa11'
    """
    return "".join(sorted({content[:DIGITS] for content in contents if content})[:SAMPLE])


def in_sample(sample: str, contents: Mapping[str, str]) -> set[str]:
    """Names of the images that are in a sample.

    Example:
        >>> sorted(in_sample("00aa11bbff00aa11", {"a": "ff00aa11cc", "b": "ab"}))
        ['a']
    """
    seen = {sample[start : start + DIGITS] for start in range(0, len(sample), DIGITS)}
    return {name for name, content in contents.items() if content[:DIGITS] in seen}
