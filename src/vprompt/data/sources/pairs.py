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
                {path.relative_to(folder).as_posix(): path for path in images_below(folder, passed_over=passed_over)}
                for folder in folders
            )
            pairs, lonely = pair_names([*images], [*masks])
            splits[split] = [
                Item(*(path.relative_to(root).as_posix() for path in (images[image], masks[mask])))
                for image, mask in pairs.items()
            ]
            problems += [f"{printable(str(folders[0]))}: {each}" for each in lonely]
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


def _places(top: Path, training: bool) -> dict[str, tuple[Path, Path]]:
    """Split -> the folder of its images and that of its masks; nothing where there are no such folders."""
    folders, _ = visible_entries(top)
    if (pair := images_and_marks(folders)) is not None:
        inside = [split_folders_of(folder, visible_entries(folder)[0], training) for folder in pair]
        shared = {split: (inside[0][split], inside[1][split]) for split in inside[0] if split in inside[1]}
        return shared or {UNSPLIT: pair}
    places: dict[str, tuple[Path, Path]] = {}
    for split, folder in split_folders_of(top, folders, training).items():
        if (pair := images_and_marks(visible_entries(folder)[0])) is None:
            return {}
        places[split] = pair
    return places


SOURCES.register(Pairs())
