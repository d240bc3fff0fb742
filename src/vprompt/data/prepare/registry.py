"""Recipes: the files that a task is prepared from and its reader, or the reason why it cannot be prepared.

They are in `recipes.csv`, the files in `pieces.csv`, with hashes from torchvision's sources (MD5) and the checksums of
TensorFlow Datasets (SHA-256). No reader has been run on the real archives yet, only on small stand-ins in the
documented formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vprompt.data.benchmarks.tasks import BenchmarkTask, find_task, read_table
from vprompt.data.prepare import fgvc, vtab_arrays, vtab_images
from vprompt.data.prepare.archives import Originals, Piece
from vprompt.data.prepare.contents import Contents
from vprompt.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe of one task.

    Args:
        spec: The task: `vtab:cifar`.
        pieces: The files that it is prepared from.
        read: Makes contents of its pieces; None where the task cannot be prepared.
        images: Number of images that the original has in the parts that are used.
        where: The `site`, if it is not the task's.
        needs: A Python package that vprompt does not bring.
        folder: The name of the folder that is written, if it is not the task's.
        prefix: FGVC: the folder that the names in its lists begin in.
    """

    spec: str
    pieces: Mapping[str, Piece]
    read: Callable[[Originals], Contents] | None = None
    images: int = 0
    where: str = ""
    needs: str = ""
    folder: str = ""
    prefix: str = ""

    @property
    def task(self) -> BenchmarkTask:
        """The benchmark's task."""
        return find_task(self.spec)

    @property
    def site(self) -> str:
        """Address of the pieces, or the reason why the task cannot be prepared."""
        return self.where or self.task.site


def recipe_of(spec: str) -> Recipe:
    """The recipe of a task.

    Raises:
        DataError: There is no such task, or it cannot be prepared.

    Example:
        >>> recipe_of("fgvc:cub").folder
        'CUB_200_2011'
    """
    task = find_task(spec)
    recipe = next(recipe for recipe in RECIPES if recipe.spec == task.spec)
    if recipe.read is None:
        raise DataError(f"{recipe.spec} cannot be prepared by vprompt: {recipe.where}.")
    return recipe


def _read_pieces() -> dict[str, dict[str, Piece]]:
    """The pieces in `pieces.csv` by task and key; rows with the same key are other names of one piece."""
    pieces: dict[str, dict[str, Piece]] = {}
    for row in read_table("vprompt.data.prepare", "pieces.csv"):
        for spec in row["tasks"].split():
            known = pieces.setdefault(spec, {})
            names = known[row["piece"]].names if row["piece"] in known else {}
            names = {**names, row["name"]: row["hash"] or None}
            known[row["piece"]] = Piece(names=names, marker=row["marker"])
    return pieces


_READERS = {"fgvc": fgvc, "vtab_arrays": vtab_arrays, "vtab_images": vtab_images}


def _read_recipes() -> tuple[Recipe, ...]:
    """The recipes in `recipes.csv`, whose readers are functions of one of the modules."""
    recipes: list[Recipe] = []
    pieces = _read_pieces()
    for row in read_table("vprompt.data.prepare", "recipes.csv"):
        module, _, function = row.pop("read").partition(".")
        read = getattr(_READERS[module], function) if module else None
        images = int(row.pop("images"))
        recipes.append(Recipe(pieces=pieces.get(row["spec"], {}), read=read, images=images, **row))
    return tuple(recipes)


RECIPES = _read_recipes()
"""All tasks, in the order of the papers' tables."""
