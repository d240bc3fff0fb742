"""Masks: images in which each pixel says a class, read beside the images that they are of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from vprompt.data.dataset import Files, FolderFiles, ImageDataset
from vprompt.data.images import Source, UnusableImageError, is_deep, opened, seen
from vprompt.data.listing import Item, Listing
from vprompt.data.preprocessing import Augment, View
from vprompt.data.threads import in_threads
from vprompt.report.masks import palette
from vprompt.tasks.base import CELLS, Target
from vprompt.tasks.segmentation import COLOUR, IGNORED, Segmentation, histogram, spelled
from vprompt.utils.errors import DataError
from vprompt.utils.text import count, listed, printable

TABLES = ("classes.txt", "classes.csv", "class_dict.csv", "label_colors.txt", "labelmap.txt")
"""Files beside the images that name the classes: one a line, or each with its red, green and blue."""

VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
"""Names of classes that are none."""

MOST = 100
"""Values that are taken for classes where nothing names them."""

LARGEST = 2**16 - 1
"""Value of a pixel."""

SUFFIX = re.compile(r"[ _-]?(mask|masks|label|labels|gt|seg|L)$")
"""Of the name of a mask that is otherwise its image's."""

HEADERS = {"class", "classes", "class_name", "code", "id", "index", "label", "labels", "name", "names", "value"}
"""Words of first lines of a class file that are none."""

PIXELS = 2**20
"""Of a batch of images that are evaluated."""


def read_codes(source: Source, *, coloured: bool = False) -> NDArray[np.int32]:
    """The code (H, W) of each pixel of a mask: a grey value, the number in a palette, or `COLOUR` and red-green-blue.

    Args:
        source: As for `vprompt.data.images.decode`.
        coloured: Take the colours of a palette instead of its numbers.

    Raises:
        UnusableImageError: It cannot be read, or lost the values; the message completes the sentence `FILE ...`.
    """
    with opened(source) as image:
        if isinstance(image, np.ndarray) or image.format is None or is_deep(image):  # not as it is in the file
            raise UnusableImageError("is no mask of whole numbers of 8 or 16 bits (save it as PNG)")
        if image.format in ("JPEG", "MPO"):
            raise UnusableImageError("is a JPEG, which changes values (save masks as PNG)")
        if image.mode == "F":
            raise UnusableImageError("has fractions as values (save it with whole numbers)")
        coloured = coloured or image.format == "GIF"  # whose writers number the colours as they please
        values = np.asarray(image.convert("RGB") if image.mode == "P" and coloured else image)
    values = values[:, :, 0] if values.ndim == 3 and values.shape[2] < 3 else values
    if values.ndim == 2:
        if (wrong := int(values.min())) < 0 or (wrong := int(values.max())) > LARGEST:
            raise UnusableImageError(f"has pixels of {wrong}, and masks have values from 0 to {LARGEST}")
        return values.astype(np.int32)
    red, green, blue = values[:, :, :3].astype(np.int32).transpose(2, 0, 1)
    grey = (red == green) & (green == blue)
    return np.where(grey, red, COLOUR | red << 16 | green << 8 | blue)


def read_mask(source: Source, target: Segmentation) -> Tensor:
    """The class (H, W) of each pixel, int64; `IGNORED` where it is none."""
    codes = np.array(target.code_of)
    order = codes.argsort()
    values = read_codes(source, coloured=int(codes.max()) >= COLOUR)
    places = np.searchsorted(codes[order], values).clip(max=len(codes) - 1)
    return torch.from_numpy(np.where(codes[order][places] == values, order[places], IGNORED))


def mask_picture(mask_HW: Tensor, target: Target) -> Image.Image:
    """A mask with the codes that a target's classes have in masks: with a palette, grey of 16 bits, or in colours."""
    assert isinstance(target, Segmentation)  # the only kind with masks
    codes, most = np.array(target.code_of)[mask_HW.numpy()], max(target.code_of)
    if most >= COLOUR:
        grey = codes * 0x010101
        rgb = np.where(codes >= COLOUR, codes - COLOUR, grey)
        return Image.fromarray(np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8))
    if most > 255:
        return Image.fromarray(codes.astype(np.uint16))
    picture = Image.fromarray(codes.astype(np.uint8), "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[[*target.code_of]] = palette(len(target.names))
    picture.putpalette(colours.tobytes())
    return picture


def with_masks(listing: Listing, known: Target | None = None) -> Listing:
    """The listing with its masks read: labels say how many pixels have which code, and columns which code is what.

    Args:
        listing: Its labels are names of masks.
        known: The target of a model, whose classes count; else those of a file in `TABLES`, or every code is a class.

    Raises:
        DataError: There are too many codes for classes, or a file says that one is of another class.
    """
    files = FolderFiles(listing.files) if isinstance(listing.files, Path) else listing.files
    if files is None:
        raise DataError(f"{listing.where} has no files, and so no masks; give a folder or a table of files.")
    first = next((item.label for part in listing.splits.values() for item in part), "")
    table = class_table(listing.files, first) if isinstance(listing.files, Path) else {}
    coloured = any(code >= COLOUR for code in (known.code_of if isinstance(known, Segmentation) else table))
    items = [(split, item) for split, part in listing.splits.items() for item in part]
    splits: dict[str, list[Item]] = {split: [] for split in listing.splits}
    problems, found = [*listing.problems], set[int]()
    read = in_threads(lambda pair: _summary(files, pair[1], coloured=coloured), items)
    for (split, item), label in zip(items, read, strict=True):
        if label.startswith(item.label + CELLS):
            splits[split].append(Item(item.name, label))
            found |= histogram(label).keys()
        else:
            problems.append(f"{listing.places[item.name]}: {label}" if item.name in listing.places else label)
    remarks: list[str] = []
    if known is None:
        table, remarks = _completed(table, found, listing.where)
        remarks += ["Pixels of the value 255 count for nothing."] * (255 in found and 255 not in table)
        nothing = {code for code, name in table.items() if not name} | {255} - {*table}
    else:
        assert isinstance(known, Segmentation)  # the only kind with masks
        nothing = {*known.ignored}
        _check_names(table, known, listing.where)
        if found == {0, 255} and 255 in nothing:
            remarks = ["These masks have the values 0 and 255 alone, of which 255 counts for nothing."]
        table = {}
    for split, part in splits.items():
        splits[split] = [item for item in part if histogram(item.label).keys() - nothing]
        kept = {item.name for item in splits[split]}
        if empty := [item.name for item in part if item.name not in kept]:
            names = listed([*map(printable, empty)], 3)
            remarks.append(f"{count(len(empty), 'image')} without a pixel that counts left out: {names}.")
    columns = (*listing.label_names[:1], *(f"{code}{CELLS}{name}" for code, name in table.items()))
    remarks = [*listing.remarks, *remarks]
    return replace(listing, splits=splits, problems=problems, label_names=columns, remarks=remarks)


def _check_names(table: Mapping[int, str], known: Segmentation, where: str) -> None:
    """Raises where a file of classes says otherwise than the model what a code is."""
    for code, name in zip(known.code_of, known.names, strict=True):
        said = printable(table.get(code, name))
        if name != spelled(code) and said.casefold() not in {name.casefold(), *VOID}:
            raise DataError(
                f"In the masks of {where}, {spelled(code)} is {said} by the file of classes, and {name} to the model; "
                "give masks with the values of the training's."
            )


def _summary(files: Files, item: Item, *, coloured: bool) -> str:
    """A mask's name and how many of its pixels have which code; or what is wrong with it."""
    shown = f"the mask {printable(item.label)}"
    try:
        codes = read_codes(files.read(item.label), coloured=coloured)
    except (UnusableImageError, DataError) as error:
        return f"{shown} {error}"
    try:
        size = upright_size(files.read(item.name))
    except UnusableImageError:
        size = codes.shape  # the image is looked at later
    if size != codes.shape:
        ours, theirs = (f"{side[1]} x {side[0]}" for side in (codes.shape, size))
        return f"{shown} has {ours} pixels, and the image {printable(item.name)} {theirs}"
    pairs = zip(*(part.tolist() for part in np.unique(codes, return_counts=True)), strict=True)
    return f"{item.label}{CELLS}{' '.join(f'{code}:{pixels}' for code, pixels in pairs)}"


def upright_size(source: Source) -> tuple[int, int]:
    """Height and width of an image, upright, from its header."""
    with opened(source) as image:
        if isinstance(image, np.ndarray):
            return image.shape[0], image.shape[1]
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def class_table(folder: Path, mask: str = "") -> dict[int, str]:
    """Code -> name of the classes that a file in a folder, or between it and a mask in it, names; empty without one."""
    places = [folder, *(folder / place for place in reversed(Path(mask).parents) if not Path(mask).is_absolute())]
    file = next((place / name for place in places for name in TABLES if (place / name).is_file()), None)
    if file is None:
        return {}
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(str(file))} cannot be read as text ({error}); save it as UTF-8.") from error
    lines = [line for line in lines if line.strip(" ,:;") and not line.startswith("#")]
    if not lines:
        return {}
    rows = [[cell for each in re.split(r"[\s,:;]+", line) if (cell := each.strip("\"'"))] for line in lines]
    colours = [[int(cell) for cell in row if cell.isdecimal()] for row in rows]
    coloured = [len(values) == 3 and max(values) < 256 for values in colours]
    if sum(coloured) >= len(rows) - 1 and any(coloured):
        words = (" ".join(cell for cell in row if not cell.isdecimal()) for row in rows)
        named = [(name, rgb) for name, rgb, has in zip(words, colours, coloured, strict=True) if has]
        return _unique([(r if r == g == b else COLOUR | r << 16 | g << 8 | b, name) for name, (r, g, b) in named], file)
    headed = file.suffix == ".csv" or {cell.lower() for cell in rows[0]} <= HEADERS
    last = all(re.search("[,:;\t]", line) for line in lines)  # "car 1" may be a name
    if pairs := _numbered(rows, 0, headed=headed) or (_numbered(rows, -1, headed=headed) if last else []):
        return _unique(pairs, file)
    names = [line.strip("\"'") for line in lines]
    return dict(enumerate(names[file.suffix == ".csv" and names[0].lower() in HEADERS :]))


def _numbered(rows: Sequence[Sequence[str]], place: Literal[0, -1], *, headed: bool) -> list[tuple[int, str]]:
    """Code and name of rows that have a number first, or last, but for a heading; nothing where others have none."""
    body = rows[1:] if headed and len(rows[0]) > 1 and not rows[0][place].isdecimal() else rows
    if not all(len(row) > 1 and row[place].isdecimal() for row in body):
        return []
    return [(int(row[place]), " ".join(row[1:] if place == 0 else row[:-1])) for row in body]


def _unique(pairs: Sequence[tuple[int, str]], file: Path) -> dict[int, str]:
    """Code -> name; a `DataError` where two have the same code."""
    table: dict[int, str] = {}
    for code, name in pairs:
        if code in table:
            both = listed([table[code], name])
            raise DataError(
                f"In {printable(str(file))}, {both} are both {spelled(code)}; give each a value of its own."
            )
        table[code] = name
    return table


def _completed(table: Mapping[int, str], found: set[int], where: str) -> tuple[dict[int, str], list[str]]:
    """Code -> name of the classes, an empty one for what counts for nothing, and sentences on how they were found."""
    if not table:
        codes = sorted(found if found == {0, 255} else found - {255})
        if len(codes) > MOST:
            raise DataError(
                f"The masks of {where} have {len(codes)} different values, too many to be classes: give a file "
                f"{TABLES[0]} that names them, a line for each value, and masks whose edges are not smoothed."
            )
        return {code: spelled(code) for code in codes}, [f"Classes are called by their values: no {TABLES[0]}."]
    remarks: list[str] = []
    complete = {code: "" if name.lower() in VOID else name for code, name in table.items()}
    if [*complete] == [0, 1] and found == {0, 255}:
        complete = {0: complete[0], 255: complete[1]}
        remarks.append(f"In the masks, {complete[255]} is 255.")
    if void := [table[code] for code, name in complete.items() if not name]:
        remarks.append(f"Pixels of {listed(void)} count for nothing.")
    return complete, remarks


def pair_names(images: Sequence[str], masks: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Image -> mask of the same name but for the ending, or for a word at its end such as `_mask`; and what has none.

    Example:
        >>> pair_names(["a.jpg", "b.jpg"], ["a_mask.png", "b.png"])[0]
        {'a.jpg': 'a_mask.png', 'b.jpg': 'b.png'}
    """
    stems = {image: image.rpartition(".")[0] for image in images}
    exact: dict[str, str] = {}
    for mask in masks:
        exact.setdefault(mask.rpartition(".")[0], mask)
    inside = {*stems.values()}
    short = {SUFFIX.sub("", stem): mask for stem, mask in reversed(exact.items()) if stem not in inside}
    by_stem, owner, problems = short | exact, dict[str, str](), list[str]()
    for image, stem in stems.items():
        if (mask := by_stem.get(stem)) is None:
            problems.append(f"the image {printable(image)} has no mask")
        elif (other := owner.setdefault(mask, image)) != image:
            problems.append(f"the images {printable(other)} and {printable(image)} have one mask, {printable(mask)}")
    lonely = [f"the mask {printable(mask)} has no image" for mask in masks if mask not in owner]
    return {image: mask for mask, image in owner.items()}, problems + lonely


def masked(images: ImageDataset, labels: Mapping[str, str], target: Target) -> ImageDataset:
    """Images with the masks that their labels name."""
    assert isinstance(target, Segmentation)  # the only kind of label for every pixel
    return MaskedImages(images, {name: label.partition(CELLS)[0] for name, label in labels.items()}, target)


class MaskedImages(ImageDataset):
    """Images in files with a label for every pixel, which is read with them; `labels` counts pixels by class (N, K).

    Args:
        images: The images with those counts.
        masks: Image -> its mask.
        target: Says which code is which class.
    """

    def __init__(
        self, images: ImageDataset, masks: Mapping[str, str], target: Segmentation, augment: Augment = "crop-flip"
    ) -> None:
        super().__init__(images.labels, images.preprocessing, root=images.files, paths=images.paths, augment=augment)
        self._masks, self._target = masks, target

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pixels, labels = next(self.pairs(torch.tensor([range(len(self))[index]])))
        return self.preprocessing.normalise(pixels[0]), labels[0]

    def pixels(self, indices: Tensor) -> Tensor:
        """All of the images, whatever their sizes, in that of the preprocessing."""
        squashed = ImageDataset(self.labels, self.preprocessing.squashed, root=self.files, paths=self.paths)
        return squashed.pixels(indices)

    def pairs(self, indices: Tensor, **training: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ImageDataset`: masks in their own size; in training, windows of images and masks.

        With `"crop-flip"` a window is anywhere, half to twice as large as the preprocessing sees the image, and
        mirrored or not; without, in its middle.
        """
        if training:
            yield from _stacked([*in_threads(lambda number: self._window(number, training), map(int, indices))])
            return
        held: list[tuple[Tensor, Tensor]] = []
        for pair in in_threads(lambda number: (self._decoded(number), self._mask(number)), map(int, indices)):
            shapes = [[each.shape for each in one] for one in (pair, *held[-1:])]
            if shapes[0] != shapes[-1] or (len(held) + 1) * pair[0][0].numel() > PIXELS:
                yield from _stacked(held)
                held.clear()
            held.append(pair)
        yield from _stacked(held)

    def with_augment(self, augment: Augment) -> Self:
        """See `ImageDataset`: `"none"` or `"crop-flip"`."""
        if augment not in ("none", "crop-flip"):
            raise DataError(f"Images with masks are augmented by none or crop-flip, not by {augment!r}.")
        return super().with_augment(augment)

    def joined(self, other: ImageDataset) -> Self:
        """See `ImageDataset`; with the masks of both."""
        assert isinstance(other, MaskedImages)  # parts of one task
        return super().joined(other)._with(_masks={**other._masks, **self._masks})

    def fingerprint(self) -> str:
        """See `ImageDataset`; masks count as the images do."""
        files, paths = self._named_files()
        masks = [(self._masks[path], files.size(self._masks[path])) for path in paths]
        return hashlib.sha256(repr((super().fingerprint(), masks)).encode()).hexdigest()[:16]

    def _mask(self, number: int) -> Tensor:
        files, paths = self._named_files()
        return read_mask(files.read(self._masks[paths[number]]), self._target)

    def _window(self, number: int, training: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        view = View(top=0.5, left=0.5, mirrored=False, zoom=0.5)
        if self.augment == "crop-flip":
            view = View.drawn(seed=training["seed"], epoch=training["epoch"], index=number, zoomed=True)
        whole = Image.fromarray(self._mask(number).numpy().astype(np.int32))
        mask = np.asarray(seen(whole, self.preprocessing, view, Image.Resampling.NEAREST, IGNORED)).astype(np.int64)
        return self._decoded(number, view), torch.from_numpy(mask[:, ::-1].copy() if view.mirrored else mask)


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    if pairs:
        pixels, masks = zip(*pairs, strict=True)
        yield torch.stack(pixels), torch.stack(masks)
