"""From a listing of labelled images to a task: they are checked, split and decoded, the same for every source."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vprompt.data.dataset import Files, FolderFiles, ImageDataset, Summary, Task
from vprompt.data.images import SHALLOW, bits_used, render_arrays, try_decode
from vprompt.data.listing import UNSPLIT, Item, Listing, with_one_spelling
from vprompt.data.masks import masked, with_masks
from vprompt.data.notes import copy_notes, count_notes, group_notes, sample_of
from vprompt.data.preprocessing import WHITE, WHOLE, Preprocessing, Resize
from vprompt.data.scan import in_words
from vprompt.data.split import Splits, content_of, cut, joined, look, missing_splits, near_copies
from vprompt.data.threads import in_threads
from vprompt.tasks.base import Target, kind_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

Progress = Callable[[int, int], None]
"""Called with the number of images checked so far and of all."""

DEFAULT_MEMORY_LIMIT = 2 * 1024**3


def load(
    listing: Listing,
    preprocessing: Preprocessing,
    *,
    target: str | None = None,
    resize: Resize | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Task:
    """Makes a task of listed images; every file is looked at before anything is trained.

    Args:
        listing: From a source; with images to train on.
        preprocessing: See `load_folder`, as all below.
        target: Name of what is to be said of an image; what the labels look like when not given.
        resize: Another way of resizing than that of the preprocessing; where pixels have labels, `"keep"` when not
            given.
        split_seed: Decides which files go where when a split is cut.
        skip_bad: Goes on without what cannot be used.
        memory_limit: Bytes of decoded images to hold; where the source has fixed the splits, images to train and
            validate on come first, and then those to test on.
        progress: Called after every image with (done, total).

    Raises:
        DataError: There is something wrong, and it is not to be skipped; or nothing is left to tell apart.
    """
    kind, fixed = kind_of(_learned(listing.splits), listing.label_names, target), listing.classes is not None
    listing = with_one_spelling(listing) if kind.grouped else with_masks(listing) if kind.dense else listing
    preprocessing = _fitting(kind, preprocessing, resize)
    splits = {split: list(items) for split, items in listing.splits.items()}
    problems = [*listing.problems]
    notes: tuple[str, ...] = ()
    if not fixed:
        if kind.grouped:
            problems += _drop_unusable(splits, listed_classes(listing, splits))
        else:
            if kind.dense:
                refuse(listing, problems, skip_bad)  # before too few masks are left to find classes in
            problems += drop_unread(splits, _fitted(kind, listing, splits), listing.places)
        refuse(listing, problems, skip_bad)
        _fitted(kind, listing, splits)
        names = [item.name for items in splits.values() for item in items]
        preprocessing, notes = _with_white(listing, names, preprocessing)
    learned = tuple(split for split in splits if split != "test")
    parts = (learned, ("test",)) if fixed else (tuple(splits),)
    groups = [[item.name for split in part for item in splits.get(split, ())] for part in parts]
    decode_all = skip_bad or not fixed or missing_splits(splits)
    held = 0 if kind.dense else memory_limit
    checked = check(listing, groups, preprocessing.squashed, held, progress, decode_all=decode_all)
    refuse(listing, checked.problems, skip_bad)
    problems += checked.problems
    present = {split: _labels(items) for split, items in splits.items()}
    splits = checked.usable(splits)
    if not fixed and kind.grouped:
        problems += _drop_unusable(splits, present)
    made = _fitted(kind, listing, splits)
    was_cut = missing_splits(splits)
    splits, group_of = checked.cut(splits, made, split_seed, listing.groups, near=not fixed)
    made = _refusing(listing, made.settled, [item.label for item in splits["train"]])

    def dataset(split: str) -> ImageDataset | None:
        items = splits.get(split)
        return checked.labelled(items, made, preprocessing) if items else None

    parts = {split: images for split in splits if (images := dataset(split)) is not None}
    per_split = {split: dict(made.counts(images.labels)) for split, images in parts.items()}
    about_copies = copy_notes(splits, made, checked.contents, group_of, was_cut=was_cut)
    about_copies += group_notes(splits, listing.groups)
    about_counts = count_notes(per_split, type(made), len(parts["train"])) if made.unit else []
    return Task(
        name=listing.name,
        source=listing.source,
        classes=made.names,
        preprocessing=preprocessing,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        skipped=as_sentences([*problems, *listing.notes]),
        differences=listing.differences,
        summary=Summary(
            per_split=per_split,
            passed_over=listing.passed_over,
            notes=(*listing.remarks, *notes, *about_copies, *about_counts),
            sample=sample_of(checked.contents.get(item.name) for item in splits["train"]),
        ),
        target=made,
    )


def _fitting(kind: type[Target], preprocessing: Preprocessing, resize: Resize | None) -> Preprocessing:
    """A preprocessing resized as is asked for, or as a target needs it.

    Raises:
        DataError: It is not for such a target.
    """
    resize = resize or ("keep" if kind.dense else preprocessing.resize)
    if (resize == "crop") if kind.dense else (resize in WHOLE):
        able = "keep, fit or squash" if kind.dense else "squash or crop"
        raise DataError(f"Images of the target {kind.name} are resized by {able}, not by {resize}.")
    return replace(preprocessing, resize=resize)


def _learned(splits: Mapping[str, Sequence[Item]]) -> list[str]:
    """The labels to learn from, as far as the splits are there."""
    return [item.label for item in splits.get("train", splits.get(UNSPLIT, ()))]


def _fitted(kind: type[Target], listing: Listing, splits: Splits) -> Target:
    """The target of what is there to learn from."""
    made = _refusing(listing, kind.fit, _learned(splits), listing.label_names)
    fixed = kind.grouped and listing.classes
    return replace(made, names=tuple(map(printable, fixed))) if fixed else made


def _refusing(listing: Listing, make: Callable[..., Target], *arguments: Sequence[str]) -> Target:
    try:
        return make(*arguments)
    except ValueError as error:
        raise DataError(f"{listing.where} has {error}") from error


def drop_unread(splits: Splits, target: Target, places: Mapping[str, str]) -> list[str]:
    """Takes out the images whose labels a target cannot use; says which."""
    problems: list[str] = []
    for split, items in splits.items():
        wrong = {item: problem for item in items if (problem := target.problem(item.label)) is not None}
        problems += [
            _located(places, item.name, f"the label of {printable(item.name)} {problem}")
            for item, problem in wrong.items()
        ]
        splits[split] = [item for item in items if item not in wrong]
    return problems


def _with_white(
    listing: Listing, names: Sequence[str], preprocessing: Preprocessing
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Finds the white of images of 16 bits that together use fewer, as those of a camera of 12 bits; and says so."""
    if listing.files is None or preprocessing.white != WHITE:
        return preprocessing, ()
    files, bits = FolderFiles(listing.files) if isinstance(listing.files, Path) else listing.files, 0
    deep = [name for name in names if not name.lower().endswith(SHALLOW)]
    for found in in_threads(lambda name: bits_used(files.read(name)), deep):
        bits = max(bits, found)
        if bits >= 16:
            break
    if not 0 < bits < 16:
        return preprocessing, ()
    white = 2 ** max(bits, 8) - 1
    note = f"The images of 16 bits use a range of 0 to {white}, not 0 to {WHITE}: {white} is taken as white."
    return replace(preprocessing, white=white), (note,)


def refuse(listing: Listing, problems: Sequence[str], skip_bad: bool) -> None:
    """Raises a `DataError` for the first problem, unless bad files are to be skipped."""
    if not problems or skip_bad:
        return
    other = in_words(listing.passed_over) if "no usable image" in problems[0] else ""
    other = f" (passed over: {other})" if other else ""
    more = {1: "", 2: " (and 1 more problem)"}.get(len(problems), f" (and {len(problems) - 1} more problems)")
    them = "it" if len(problems) == 1 else "them"
    placed = problems[0] in listing.problems or problems[0].startswith(tuple(listing.places.values()))
    where = "" if placed else f"In {listing.where}, "
    raise DataError(
        f"{where}{problems[0]}{other}{more}; fix {them}, or go on without {them} by --skip-bad (skip_bad=True)."
    )


def _located(places: Mapping[str, str], name: str, problem: str) -> str:
    """What is wrong with an image, after where a table has it."""
    return f"{places[name]}: {problem}" if name in places else problem


def as_sentences(problems: Sequence[str]) -> tuple[str, ...]:
    """Problems, each as a sentence."""
    # A problem may begin with the name of a table.
    words = (problem.partition(" ") for problem in problems)
    return tuple(f"{word.capitalize() if word.isalpha() else word}{blank}{rest}." for word, blank, rest in words)


def listed_classes(listing: Listing, splits: Splits) -> dict[str, set[str]]:
    """The classes that are listed in each split, also those without images."""
    return {split: _labels(items) | set(listing.empty.get(split, ())) for split, items in splits.items()}


def _labels(items: Sequence[Item]) -> set[str]:
    return {item.label for item in items}


def _drop_unusable(splits: Splits, listed: Mapping[str, set[str]]) -> list[str]:
    """Takes out classes without images, classes that train lacks and splits without classes; says which."""
    train = "train" if "train" in splits else UNSPLIT
    known = _labels(splits.get(train, ()))
    problems: list[str] = []
    for split, items in list(splits.items()):
        present = _labels(items)
        for name in sorted(listed[split]):
            if name not in present:
                where = "" if split == UNSPLIT else f" in {split}"
                problems.append(f"class {printable(name)} has no usable image{where}")
            elif name not in listed.get(train, ()):
                problems.append(f"class {printable(name)} is in {split} but not in train")
        splits[split] = [item for item in items if item.label in known]
        if not splits[split] and split != train:
            problems.append(f"the {split} folder has no usable class")
            del splits[split]
    return problems


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Images that were looked at.

    Args:
        files: Where they are read from again; None for rendered ones.
        held: For images that are held, by name the pixels of its group, and its row in them.
        bad: By name what is wrong with an image.
        places: By name where a table has an image.
    """

    files: Files | None
    held: Mapping[str, tuple[Tensor, int]]
    bad: Mapping[str, str]
    contents: Mapping[str, str]
    looks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    places: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def problems(self) -> list[str]:
        """The bad images with their names, in words."""
        return [_located(self.places, name, f"file {printable(name)} {reason}") for name, reason in self.bad.items()]

    def usable(self, splits: Mapping[str, Sequence[Item]]) -> Splits:
        """The images in which nothing is wrong."""
        return {split: [item for item in items if item.name not in self.bad] for split, items in splits.items()}

    def cut(
        self, splits: Splits, target: Target, seed: int, groups: Mapping[str, str], *, near: bool = True
    ) -> tuple[Splits, dict[str, str]]:
        """Cuts the splits that are not there, so that all strata of a target are in all of them; see `cut`.

        Args:
            splits: Usable images.
            target: What is to be said of them.
            seed: Another seed, another cut.
            groups: Image -> what it belongs to; on one side of a cut, as copies are.
            near: Whether near copies are copies as well.

        Returns:
            The splits, and the groups of copies, see `near_copies`.
        """
        strata: Splits = {}
        for split, items in splits.items():
            labels = target.strata([item.label for item in items])
            strata[split] = [Item(item.name, label) for item, label in zip(items, labels, strict=True)]
        stratum_of = {item.name: item.label for items in strata.values() for item in items}
        contents = {name: content for name, content in self.contents.items() if name in stratum_of}
        copies = near_copies(self.looks if near else {}, contents, stratum_of)
        sides = joined(copies, groups)
        if groups and 2 * max(Counter(sides.values()).values()) > len(groups):
            # The images are all alike: near copies would tie most groups to one another.
            sides = joined(near_copies({}, contents, stratum_of), groups)
        item_of = {item.name: item for items in splits.values() for item in items}
        parts = cut(strata, seed, self.contents, sides)
        return {split: [item_of[item.name] for item in items] for split, items in parts.items()}, copies

    def labelled(self, items: Sequence[Item], target: Target, preprocessing: Preprocessing) -> ImageDataset:
        """A data set of images of one group, with labels for a target."""
        names = [item.name for item in items]
        places = [self.held[name] for name in names if name in self.held]
        images = ImageDataset(
            target.encode([item.label for item in items]),
            preprocessing,
            pixels=places[0][0] if places else None,
            rows=torch.tensor([row for _, row in places]) if places else None,
            root=self.files,
            paths=None if self.files is None else names,
        )
        return masked(images, {item.name: item.label for item in items}, target) if target.dense else images


def check(
    listing: Listing,
    groups: Sequence[Sequence[str]],
    preprocessing: Preprocessing,
    memory_limit: int,
    progress: Progress | None,
    *,
    decode_all: bool,
) -> Checked:
    """Looks at every image of a listing once; see `check_files`."""
    if listing.rendered is not None:
        images = listing.rendered()
        store = render_arrays(images, preprocessing)
        names = (item.name for items in listing.splits.values() for item in items)
        held = {name: (store, row) for row, name in enumerate(names)}
        contents = {name: content_of(images[row].tobytes()) for row, name in enumerate(held)}
        return Checked(files=None, held=held, bad={}, contents=contents)
    assert listing.files is not None
    checked = check_files(
        listing.files, groups, preprocessing, memory_limit, progress, decode_all=decode_all, compare=True
    )
    return replace(checked, places=listing.places)


def check_files(
    files: Path | Files,
    groups: Sequence[Sequence[str]],
    preprocessing: Preprocessing,
    memory_limit: int,
    progress: Progress | None,
    *,
    decode_all: bool,
    compare: bool = False,
) -> Checked:
    """Looks at every file once.

    Args:
        files: The folder that names are paths in, or what reads an image by its name.
        groups: Their names; a group is held decoded if it fits into what the groups before left of the memory.
        preprocessing: How they are decoded.
        memory_limit: Bytes of decoded images to hold.
        progress: Called after every image with (done, total).
        decode_all: Decode also what is not held, which is decoded again when it is used, instead of reading headers.
        compare: Also take the hashes of what is decoded, by which copies are found.
    """
    files = FolderFiles(files) if isinstance(files, Path) else files
    groups = [list(dict.fromkeys(names)) for names in groups]
    done, total = 0, sum(map(len, groups))
    held: dict[str, tuple[Tensor, int]] = {}
    bad: dict[str, str] = {}
    contents: dict[str, str] = {}
    looks: dict[str, Tensor] = {}

    def read(name: str, how: Preprocessing | None) -> tuple[Tensor | str | None, str, Tensor | None]:
        source = files.read(name)
        source = source if isinstance(source, str | os.PathLike | bytes) else source.read()
        image = try_decode(source, how)
        if compare and isinstance(image, Tensor):
            return image, content_of(source), look(image)
        return image, "", None

    for names in groups:
        shape = (len(names), *preprocessing.shape)
        fits = math.prod(shape) <= memory_limit
        store = torch.empty(shape if fits else 0, dtype=torch.uint8)
        memory_limit -= store.numel()
        how = preprocessing if fits or decode_all else None
        images = in_threads(partial(read, how=how), names)
        for row, (name, (image, content, seen)) in enumerate(zip(names, images, strict=True)):
            if seen is not None:
                contents[name], looks[name] = content, seen
            if isinstance(image, str):
                bad[name] = image
            elif fits and image is not None:
                store[row] = image
                held[name] = (store, row)
            done += 1
            if progress is not None:
                progress(done, total)
    return Checked(files=files, held=held, bad=bad, contents=contents, looks=looks)
