"""Adapters of an analysis: found again with the images that they were trained on, each measured by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from vprompt.analysis.base import Host
from vprompt.analysis.options import Adapters
from vprompt.data.dataset import ImageDataset, Task
from vprompt.experiments.folder import result_of
from vprompt.experiments.settings import CondenseSettings
from vprompt.experiments.stages import Sources
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.model.tensors import CONFIG_FILE
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.utils.errors import AdapterError, BackboneError, DataError, VPromptError
from vprompt.utils.io import read_json
from vprompt.utils.progress import bar

T = TypeVar("T")

Split = Literal["auto", "train", "val", "test"]
"""Images of a task; auto: those to validate on, or those to test on where none are left that were not learned."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter and its task.

    Args:
        folder: Of the adapter; its name on the Hub where it has none here.
        result: What its run wrote beside it; empty where it wrote nothing.
        model: In eval mode.
        task: The images it was trained on.
    """

    folder: str
    result: dict[str, Any]
    model: PromptedModel
    task: Task

    def split(self, name: Split) -> ImageDataset:
        """Images of the task.

        Raises:
            DataError: If there are none of that kind.
        """
        name = self.split_name(name)
        images: ImageDataset | None = getattr(self.task, name)
        if images is None:
            raise DataError(f"{self.task.source} has no {name} images; choose another --split.")
        return images

    def split_name(self, name: Split) -> Split:
        """The split that `"auto"` stands for here; other names as they are."""
        if name != "auto":
            return name
        learned = self.result.get("settings", {}).get("train_on") == "train+val"
        return "test" if learned or self.task.val is None else "val"

    @property
    def label(self) -> str:
        """The task, and the seed where it is known."""
        seed = self.result.get("seed")
        return self.task.source if seed is None else f"{self.task.source}, seed {seed}"


def find_adapters(places: Sequence[str]) -> list[str]:
    """The adapters at some places: folders of adapters, folders with such below them, or ids on the Hub.

    Of a folder with several, those that have prompts and all they were trained with.

    Raises:
        VPromptError: If there is none at one of them.
    """
    if not all(places):
        raise VPromptError("An empty name is no folder; give the folder of an adapter, or one with adapters in it.")
    adapters: list[str] = []
    for place in places:
        root = Path(place)
        if not root.is_dir() or (root / CONFIG_FILE).exists():
            adapters.append(place)
            continue
        found = [path.relative_to(root).parent for path in sorted(root.rglob(CONFIG_FILE))]
        below = [root / folder for folder in found if not any(part.startswith(".") for part in folder.parts)]
        whole = [folder for folder in below if _is_whole(folder)]
        if not whole:
            there = f"; the {len(below)} adapters in it have no prompts, or not all of them" if below else ""
            raise VPromptError(f"There is no adapter with prompts in {place}{there}. Train one: vprompt fit --out DIR.")
        adapters += map(str, whole)
    return list(dict.fromkeys(adapters))


def open_trained(
    folder: str,
    sources: Sources,
    *,
    data: str | None = None,
    root: str | None = None,
    weights: str | None = None,
    backbone: nn.Module | None = None,
    progress: bool = False,
) -> Trained:
    """Loads an adapter with the images that it was trained on.

    Args:
        folder: Of the adapter, or its id on the Hub.
        sources: Keeps the images for the next adapter.
        data: The images instead of those that the run names in its result; as `vprompt fit` takes them.
        root: Folder that holds the benchmarks' tasks, instead of the run's.
        weights: The backbone's weights, where `vprompt.load` cannot find them by itself.
        backbone: That of the adapter before, which serves this one too where it fits.
        progress: Show a bar while images are read.

    Raises:
        AdapterError: If the adapter is damaged.
        DataError: If it is not known what it was trained on.
    """
    model: PromptedModel | None = None
    if backbone is not None:
        with suppress(AdapterError, BackboneError):
            model = load(folder, backbone)
    model = load(folder, weights=weights) if model is None else model
    if not any(model.prompt_counts) and not len(model.kv_prompts):
        raise VPromptError(f"The adapter {folder} has no prompts; there is nothing to analyse.")
    result = result_of(folder)
    settings = result["settings"]
    if data is None and "data" not in settings:
        raise DataError(f"Nothing in {folder} says what images the adapter was trained on; give them by --data.")
    images = CondenseSettings(
        adapter=folder,
        data=settings["data"] if data is None else data,
        columns=Columns.among(settings) if data is None else NO_COLUMNS,
        root=root or settings.get("root"),
        split_seed=settings.get("split_seed", 0),
        skip_bad=settings.get("skip_bad", False),
    )
    with bar("reading images", enabled=progress) as report:
        task = sources.task(images, model.preprocessing, model.target.name, report)
    if model.classes is not None and model.target.names != task.target.names:
        raise DataError(f"The classes of {task.source} are not those of the adapter {folder}; give its own data.")
    return Trained(folder=folder, result=result, model=model, task=task)


def _is_whole(folder: Path) -> bool:
    """Whether an adapter has prompts and all that it was trained with; one that cannot be read says so when loaded."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except VPromptError:
        return True
    removed = config.get("condensation") is not None or config.get("pruning") is not None
    counts = config.get("prompt_counts")
    return not removed and (not isinstance(counts, list) or any(counts))  # pyright: ignore[reportUnknownArgumentType]


def measure_each(adapters: Adapters, host: Host, measure: Callable[[Trained], T]) -> list[T]:
    """Measurements of every adapter; one that fails does not end the others.

    Args:
        adapters: Where they are, and on which images.
        host: Told of adapters that failed, once all others are measured.
        measure: Measures one.

    Raises:
        VPromptError: If there is no adapter, or all of them fail; what was wrong with the first.
    """
    where = {"data": adapters.data, "root": adapters.root, "weights": adapters.weights}
    places, sources, backbone = find_adapters(adapters.places), Sources(), None
    measured: list[T] = []
    failures: list[VPromptError] = []
    for place in places:
        try:
            trained = open_trained(place, sources, **where, backbone=backbone, progress=host.progress)
            backbone = trained.model.backbone
            measured.append(measure(trained))
        except VPromptError as error:
            failures.append(error)
    if not measured:
        raise failures[0]
    if failures:
        host.fail(VPromptError(f"{len(failures)} of {len(places)} adapters have no result, the first: {failures[0]}"))
    return measured
