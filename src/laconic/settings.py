"""What a run does, as plain data: two runs with equal settings on equal data end with equal numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from laconic.baselines import Promptless
from laconic.condensation import CRITERIA, SCOPES, Criterion, Scope
from laconic.errors import LaconicError
from laconic.head import HeadInit
from laconic.methods import Method, method_from_name
from laconic.preprocessing import Resize
from laconic.prompts import Share
from laconic.pruning import PruneSettings
from laconic.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does; two runs with equal settings on equal data end with equal numbers.

    Args:
        data: Image folder, or None for the bundled task.
        backbone: timm name.
        weights: File with other weights than those that the name stands for; see `laconic.creation.create_backbone`.
        method: One of `laconic.methods.METHOD_NAMES`.
        prompts: Prompts per block (deep, E2VPT) or in all (shallow).
        kv_prompts: Key-value prompts per block, for E2VPT.
        share: What those have in common; see `laconic.E2VPT`.
        layers: Of the head, for `mlp`.
        blocks: How many of the last are learned, for `partial`.
        reduction: For `adapter`; see `laconic.Adapter`.
        rank: For `lora`; see `laconic.LoRA`.
        side_width: For `side`; see `laconic.Side`.
        head_init: See `laconic.attach`.
        condense: Share of the prompts to keep after training; None keeps all.
        fine_tune: Whether condensed prompts are fine-tuned.
        fine_tune_epochs: For how long.
        criterion: See `laconic.score`.
        scope: See `laconic.select`.
        prune: How to prune after training, by the criterion and scope in it; None does not.
        rewind_epoch: Epoch of the training after which the values are recorded that pruned prompts are trained from; 0
            is before the first step.
        recipe: How to train.
        resize: How images are brought to the backbone's size.
        img_size: Input size in pixels where it should differ from the backbone's own.
        split_seed: Cuts the splits that a folder does not have; apart from the recipe's seed, so that several seeds
            share their splits.
        skip_bad: Go on without images that cannot be used.
    """

    data: str | None = None
    backbone: str
    weights: str | None = None
    method: str = "vpt-deep"
    prompts: int = 20
    kv_prompts: int = 5
    share: Share = "key-value"
    layers: int = 2
    blocks: int = 1
    reduction: int = 8
    rank: int = 8
    side_width: int = 32
    head_init: HeadInit = "zero"
    condense: float | None = None
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    prune: PruneSettings | None = None
    rewind_epoch: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    resize: Resize = "squash"
    img_size: int | None = None
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.make_method(), Promptless) and self.condense is not None:
            raise LaconicError(f"The method {self.method!r} has no prompts to condense; leave out --condense.")
        if self.prune is not None:
            self._check_pruning()
        if self.resize not in ("squash", "crop"):
            raise LaconicError(f"Images are resized by 'squash' or 'crop', not {self.resize!r}.")
        if self.img_size is not None and self.img_size < 1:
            raise LaconicError(f"The image size must be at least 1 pixel, not {self.img_size}.")
        _check_condensing(self.condense, self.criterion, self.scope)
        self.recipe.for_fine_tuning(epochs=self.fine_tune_epochs)

    def _check_pruning(self) -> None:
        if self.condense is not None:
            raise LaconicError("Prompts are condensed or pruned, not both; leave out --condense or --prune.")
        if not sum(self.make_method().initial_counts(1)):
            raise LaconicError("There is nothing to prune: this method has no prompts that pass the projections.")
        if not 0 <= self.rewind_epoch <= self.recipe.epochs:
            raise LaconicError(
                f"The epoch to rewind to lies between 0 and the {self.recipe.epochs} of the training, not at "
                f"{self.rewind_epoch}."
            )

    def make_method(self) -> Method:
        """What these settings attach."""
        return method_from_name(
            self.method,
            num_prompts=self.prompts,
            num_kv_prompts=self.kv_prompts,
            share=self.share,
            layers=self.layers,
            blocks=self.blocks,
            reduction=self.reduction,
            rank=self.rank,
            side_width=self.side_width,
        )


@dataclass(frozen=True, kw_only=True)
class CondenseSettings:
    """What the condensation of a saved adapter does.

    Args:
        adapter: Folder or Hub id.
        weights: File with the backbone's weights, where `laconic.load` cannot find them by itself.
        data: Image folder it was trained on, or None for the bundled task.
        ratio: Share of the prompts to keep.
        criterion: See `laconic.score`.
        scope: See `laconic.select`.
        fine_tune: Whether the kept prompts are fine-tuned.
        fine_tune_epochs: For how long.
        seed: Seeds order and random scores.
        split_seed: See `Settings`.
        skip_bad: Go on without images that cannot be used.
    """

    adapter: str
    weights: str | None = None
    data: str | None = None
    ratio: float = 0.3
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    seed: int = 0
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        _check_condensing(self.ratio, self.criterion, self.scope)
        Recipe(epochs=self.fine_tune_epochs, seed=self.seed)


def _check_condensing(ratio: float | None, criterion: str, scope: str) -> None:
    if ratio is not None and not 0 < ratio <= 1:
        raise LaconicError(f"The share of prompts to keep must be above 0 and at most 1, not {ratio}.")
    if criterion not in CRITERIA:
        raise LaconicError(f"There is no criterion called {criterion!r}; there are {', '.join(CRITERIA)}.")
    if scope not in SCOPES:
        raise LaconicError(f"The scope is 'global', 'local' or 'shared', not {scope!r}.")
