"""`laconic prepare`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from laconic.cli.commands import UsageError, print_json, print_note, print_table

if TYPE_CHECKING:
    from laconic.data.prepare import Recipe


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """A task of VTAB-1k or FGVC in its usual layout, from the original archives; nothing is downloaded."""

    task: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TASK]")] = None
    """Such as vtab:cifar or fgvc:cub."""
    source: Path | None = None
    """Folder with the original archives or an unpacked copy of them; also the root of a torchvision data set."""
    root: Path | None = None
    """Folder that the task's own folder is written into."""
    lists: Path | None = None
    """Folder with published lists that say which images to use for what, where they name the original files."""
    accept_changed: bool = False
    """Go on where a hash or the number of images is not the known one; source.json records it."""
    overwrite: bool = False
    """Replace a folder that this command has written."""
    list: bool = False
    """Print what each task needs and where that can be had, and do nothing else."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Prepares one task and prints what was written, or prints the table of tasks."""
        from laconic.data.prepare import RECIPES, prepare

        if self.list:
            self._show(RECIPES)
            return
        if self.task is None or self.source is None or self.root is None:
            raise UsageError(
                "Say what to prepare: laconic prepare TASK --source DIR --root DIR (--list shows the tasks)."
            )
        done = prepare(
            self.task,
            source=self.source,
            root=self.root,
            lists=self.lists,
            accept_changed=self.accept_changed,
            overwrite=self.overwrite,
            show=True,
        )
        if self.json:
            print_json(asdict(done))
            return
        counts = [str(done.classes), *(str(done.images[part]) for part in ("train", "val", "test"))]
        print_table(done.folder, ["classes", "training images", "validation", "test"], [counts])
        print_note(f"Parts: {done.parts}.")
        if done.note:
            print_note(done.note)

    def _show(self, recipes: tuple[Recipe, ...]) -> None:
        if self.json:
            print_json([_as_json(recipe) for recipe in recipes])
            return
        # No table: names and addresses are copied from here.
        for recipe in recipes:
            lines = [f"needs  {need}" for need in _needs(recipe)]
            lines.append(f"from   {recipe.where}" if recipe.read else f"cannot be prepared: {recipe.where}")
            sys.stdout.write("\n    ".join([recipe.spec, *lines]) + "\n")
        print_note("Tested on small stand-ins in the documented formats; no reader has met the real archives yet.")


def _needs(recipe: Recipe) -> list[str]:
    """The files and packages that a task is made from."""
    package = [f"the Python package {recipe.needs}"] if recipe.needs else []
    return [*(piece.text() for piece in recipe.pieces.values()), *package]


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return {
        "task": recipe.spec,
        "supported": recipe.read is not None,
        "files": [[*piece.names] for piece in recipe.pieces.values()],
        "where": recipe.where,
        "needs": recipe.needs or None,
        "folder": recipe.folder or None,
    }
