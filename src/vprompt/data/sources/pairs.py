"""Folders of images beside folders of their masks: `images/` and `masks/`, with splits above or inside them."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.masks import pair_names
from vprompt.data.scan import PassedOver, images_below, relative, visible_entries
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.folder import images_and_marks, split_folders_of, unwrapped
from vprompt.tasks.base import TARGETS
from vprompt.utils.text import printable


class Pairs:
    """`images/` and `masks/` with files of equal names, as they are or in `train/`, `val/` and `test/`."""

    name = "masks"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`."""
        root = Path(query.spec)
        if not root.is_dir() or (query.target is not None and not TARGETS.get(query.target).dense):
            return None
        remarks: list[str] = []
        places = _places(unwrapped(root, root, remarks), query.training)
        passed_over: PassedOver = {}
        splits: dict[str, list[Item]] = {}
        problems: list[str] = []
        for split, folders in places.items():
            images, masks = (
                {}
                if folder is None
                else {
                    path.relative_to(folder).as_posix(): path for path in images_below(folder, passed_over=passed_over)
                }
                for folder in folders
            )
            pairs, lonely = pair_names([*images], [*masks])
            splits[split] = [
                Item(*(path.relative_to(root).as_posix() for path in (images[image], masks[mask])))
                for image, mask in pairs.items()
            ]
            place = next(folder for folder in folders if folder is not None)
            problems += [f"{printable(str(place))}: {each}" for each in lonely]
        if not any(splits.values()):
            return None
        where = printable(str(root))
        return Listing(
            name=printable(root.resolve().name),
            source=where,
            where=where,
            splits=splits,
            files=root,
            passed_over=relative(passed_over, root),
            remarks=remarks,
            label_names=("mask",),
            problems=problems,
        )


def _places(top: Path, training: bool) -> dict[str, tuple[Path | None, Path | None]]:
    """Split -> the folder of its images and that of its masks; nothing where there are no such folders."""
    folders, _ = visible_entries(top)
    if (pair := images_and_marks(folders)) is not None:
        images, masks = (split_folders_of(folder, visible_entries(folder)[0], training) for folder in pair)
        if not images.keys() & masks.keys():
            return {UNSPLIT: pair}
        return {split: (images.get(split), masks.get(split)) for split in {**images, **masks}}
    parts = split_folders_of(top, folders, training)
    pairs = {split: images_and_marks(visible_entries(folder)[0]) for split, folder in parts.items()}
    names = next(([path.name for path in pair] for pair in pairs.values() if pair is not None), None)
    if names is None:
        return {}

    def alone(part: Path) -> tuple[Path | None, Path | None]:
        """What there is of a part that lacks its images or its masks."""
        images, masks = (part / name if (part / name).is_dir() else None for name in names)
        return (images or (None if masks else part)), masks

    return {split: pairs[split] or alone(folder) for split, folder in parts.items()}


SOURCES.register(Pairs())
