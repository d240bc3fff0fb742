"""Splits of labelled images, cut class by class in a way that only names and the seed decide."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from vprompt.data.sources.base import UNSPLIT, Item

Splits = dict[str, list[Item]]
"""The images of each split."""


def missing_splits(splits: Mapping[str, Sequence[Item]]) -> bool:
    """Whether there are splits to be cut: all three, or val from train."""
    return UNSPLIT in splits or ("train" in splits and "val" not in splits)


def cut(splits: Splits, seed: int) -> Splits:
    """Cuts the splits that are not there: 64 % train, 16 % val and 20 % test, or 20 % of train as val."""
    if not missing_splits(splits):
        return splits
    whole, shares = (UNSPLIT, {"val": 16, "test": 20}) if UNSPLIT in splits else ("train", {"val": 20})
    classes: dict[str, list[str]] = {}
    for name, label in splits.pop(whole):
        classes.setdefault(label, []).append(name)
    parts = stratified(classes, shares, rest="train", seed=seed)
    return splits | {
        split: [Item(name, label) for label in sorted(part) for name in part[label]] for split, part in parts.items()
    }


def stratified(
    classes: Mapping[str, Sequence[str]], percent: Mapping[str, int], *, rest: str, seed: int
) -> dict[str, dict[str, list[str]]]:
    """Gives each split in `percent` that share of every class, rounded, and the rest to `rest`.

    A file's place follows from a hash of the seed and its path: the order of a listing, other classes and library
    versions have no part in it.

    Args:
        classes: The files of every class.
        percent: Share of each split besides `rest`, in percent; up to two splits of less than 50 together leave
            `rest` at least one file of every class.
        rest: The name of the split that gets what is left.
        seed: Another seed, another cut.

    Returns:
        For each split, the sorted files of the classes that have any in it.

    Example:
        >>> cut = stratified({"cat": ["a", "b", "c", "d"]}, {"val": 25}, rest="train", seed=0)
        >>> {split: len(files["cat"]) for split, files in cut.items()}
        {'val': 1, 'train': 3}
    """
    splits: dict[str, dict[str, list[str]]] = {name: {} for name in (*percent, rest)}
    for label, files in classes.items():
        shuffled = sorted(files, key=lambda file: place(seed, file))
        for split, share in percent.items():
            count = (len(files) * share + 50) // 100
            taken, shuffled = shuffled[:count], shuffled[count:]
            if taken:
                splits[split][label] = sorted(taken)
        if shuffled:
            splits[rest][label] = sorted(shuffled)
    return splits


def place(seed: int, file: str) -> bytes:
    """The key that files are sorted by before they are cut: a hash of the seed and the path."""
    return hashlib.sha256(f"{seed}\0".encode() + os.fsencode(file)).digest()
