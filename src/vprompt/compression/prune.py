"""E²VPT's pruning as one call: score, search the shares to prune, rewind, train the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vprompt.compression.choices import PruneSettings
from vprompt.compression.search import Pruned, Search, delete_search
from vprompt.methods.layers.prompts import check_segments
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.loader import ImageLabels, size_of
from vprompt.training.trainer import given_or_own
from vprompt.utils.devices import device_named
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import VPromptError


def prune(
    model: PromptedModel,
    train: ImageLabels,
    val: ImageLabels | None = None,
    *,
    early: Mapping[str, Tensor] | None = None,
    rewind_epoch: int = 0,
    settings: PruneSettings | None = None,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Pruned:
    """Removes the least important prompts and segments of prompts, and trains the rest from rewind weights.

    How much to remove is searched on validation data: every choice is evaluated without training it again; then the
    size is bisected, at the price of three trainings. With the first training, and scoring, that is less than six.

    Args:
        model: A trained model with prompts; it is not changed.
        train: Data to score and train on; as for `vprompt.fit`.
        val: Data that decides the search; not needed where both shares are given.
        early: Rewind weights: what `model.state()` was at `rewind_epoch`; those of now when not given.
        rewind_epoch: Epoch of `early`, for the record; 0 is before the first step.
        settings: Shares, segments and criterion; searched shares when not given.
        recipe: Recipe of the trainings; that of the model when not given.
        folder: Folder for the state of the search, so that it can be resumed.
        resume: Go on with the search in `folder`.
        progress: Show bars on standard error.

    Returns:
        A `Pruned`.

    Raises:
        VPromptError: If the model has no prompts or an argument is out of range.
        TrainingError: If `folder` holds another search.
        Interrupted: On Ctrl-C, after the state was saved.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.E2VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> early = model.state()
        >>> _ = vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1))
        >>> result = prune(model, data, early=early, settings=PruneSettings(tokens=0.5, segments=0.25))
        >>> sum(result.model.prompt_counts), sum(p.numel() for p in result.model.prompts)
        (12, 576)

    Source: E²VPT (arXiv 2307.13770), section 3.3; bisection instead of a search over all choices.
    """
    settings = settings or PruneSettings()
    if not any(model.prompt_counts):
        raise VPromptError("There is nothing to prune: the model has no prompts that pass the projections.")
    if early is not None and model.method.relocates:
        raise VPromptError(
            f"Prompts of {model.method.name} move in training, so that there are no earlier values to rewind them "
            "to; leave out early."
        )
    check_segments(settings.num_segments, model.info.widths)
    if model.prompts.num_segments not in (1, settings.num_segments):
        raise VPromptError(
            f"Segments of this model were pruned before, of {model.prompts.num_segments} a prompt; give num_segments "
            "as then."
        )
    recipe = given_or_own(recipe, model.recipe or Recipe(), val).suited(model.method).scheduled(size_of(train))
    if recipe.num_epochs < 1:
        raise VPromptError("The retained prompts are trained again after pruning, which takes at least one epoch.")
    if settings.searched and val is None:
        raise VPromptError("The search for how much to prune needs validation data; give both shares instead.")
    model.to(device_named("auto"))  # where training will move its backbone
    place = None if folder is None else Path(folder)
    if place is not None and not resume and is_main_process():
        delete_search(place)
    search = Search(
        model=model,
        train=train,
        val=val,
        early=early,
        rewind_epoch=None if early is None else rewind_epoch,
        settings=settings,
        recipe=recipe,
        folder=place,
        progress=progress and is_main_process(),
    )
    return search.run()
