"""What a run does, as plain data: two runs with equal settings on equal data end with equal numbers."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vprompt.compression.criteria import SCOPES, Criterion, Scope, check_method, check_name
from vprompt.compression.settings import PruneSettings
from vprompt.data.preprocessing import Augment, Resize
from vprompt.methods.base import Promptless
from vprompt.methods.linear import HeadInit
from vprompt.methods.prompts import Share
from vprompt.methods.registry import Method, method_from_name
from vprompt.model.records import Recipe
from vprompt.utils.errors import VPromptError

TrainOn = Literal["train", "train+val"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does; two runs with equal settings on equal data end with equal numbers.

    Args:
        data: Image folder, a task such as `vtab:svhn` or `synthetic:counting`, or None for the bundled task.
        root: Folder that holds the benchmarks' tasks; see `vprompt.data.open_task`.
        backbone: timm name.
        weights: File with other weights than those that the name stands for; see `vprompt.backbones.factory`.
        method: One of `vprompt.methods.registry.METHOD_NAMES`.
        prompts: Prompts per block (deep, E2VPT) or in all (shallow).
        kv_prompts: Key-value prompts per block, for E2VPT.
        share: What those have in common; see `vprompt.E2VPT`.
        layers: Of the head, for `mlp`.
        blocks: How many of the last are learned, for `partial`.
        reduction: For `adapter`; see `vprompt.Adapter`.
        rank: For `lora`; see `vprompt.LoRA`.
        side_width: For `side`; see `vprompt.Side`.
        head_init: See `vprompt.attach`.
        condense: Share of the prompts to keep after training; None keeps all.
        fine_tune: Whether condensed prompts are fine-tuned.
        fine_tune_epochs: For how long.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.
        merge: See `vprompt.condense`.
        prune: How to prune after training, by the criterion and scope in it; None does not.
        rewind_epoch: Epoch of the training after which the values are recorded that pruned prompts are trained from; 0
            is before the first step.
        recipe: How to train.
        resize: How images are brought to the backbone's size; the task's own way when not given (`"crop"` for FGVC,
            `"squash"` for all others).
        augment: What is done to training images at random: `"crop-flip"`, `"none"`, or the task's own when not given.
        train_on: `"train+val"` trains on the validation images as well, once they have served to choose settings; no
            validation accuracy is reported then.
        test: Whether the test images are read, at the end; not by runs that serve to choose.
        img_size: Input size in pixels where it should differ from the backbone's own.
        split_seed: Cuts the splits that a folder does not have; apart from the recipe's seed, so that several seeds
            share their splits.
        skip_bad: Go on without images that cannot be used.
    """

    data: str | None = None
    root: str | None = None
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
    merge: bool = False
    prune: PruneSettings | None = None
    rewind_epoch: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    resize: Resize | None = None
    augment: Augment | None = None
    train_on: TrainOn = "train"
    test: bool = True
    img_size: int | None = None
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.make_method(), Promptless) and self.condense is not None:
            raise VPromptError(f"The method {self.method!r} has no prompts to condense; leave out --condense.")
        if self.prune is not None:
            self._check_pruning(self.prune)
        if self.resize not in ("squash", "crop", None):
            raise VPromptError(f"Images are resized by 'squash' or 'crop', not {self.resize!r}.")
        if self.augment not in ("none", "crop-flip", None):
            raise VPromptError(f"Images are augmented by 'none' or 'crop-flip', not {self.augment!r}.")
        if self.train_on not in ("train", "train+val"):
            raise VPromptError(f"A run trains on 'train' or on 'train+val', not on {self.train_on!r}.")
        if self.img_size is not None and self.img_size < 1:
            raise VPromptError(f"The image size must be at least 1 pixel, not {self.img_size}.")
        _check_condensing(self.condense, self.criterion, self.scope)
        if self.condense is not None:
            check_method(self.criterion, self.make_method().name)
            if self.merge and self.method == "vpt-shallow":
                raise VPromptError("Shallow prompts cannot be merged; leave out --merge.")
        self.recipe.for_fine_tuning(epochs=self.fine_tune_epochs)

    def _check_pruning(self, prune: PruneSettings) -> None:
        if self.condense is not None:
            raise VPromptError("Prompts are condensed or pruned, not both; leave out --condense or --prune.")
        if not sum(self.make_method().initial_counts(1)):
            raise VPromptError("There is nothing to prune: this method has no prompts that pass the projections.")
        if prune.searched and self.train_on != "train":
            raise VPromptError(
                "How much to prune is searched on validation images, so they cannot be trained on; give --prune-tokens "
                "and --prune-segments, or train on 'train'."
            )
        if not 0 <= self.rewind_epoch <= self.recipe.epochs:
            raise VPromptError(
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
        weights: File with the backbone's weights, where `vprompt.load` cannot find them by itself.
        data: Image folder or task it was trained on, or None for the bundled task.
        root: See `Settings`.
        ratio: Share of the prompts to keep.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.
        merge: See `vprompt.condense`.
        fine_tune: Whether the kept prompts are fine-tuned.
        fine_tune_epochs: For how long.
        seed: Seeds order and random scores.
        split_seed: See `Settings`.
        skip_bad: Go on without images that cannot be used.
    """

    adapter: str
    weights: str | None = None
    data: str | None = None
    root: str | None = None
    ratio: float = 0.3
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    merge: bool = False
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
        raise VPromptError(f"The share of prompts to keep must be above 0 and at most 1, not {ratio}.")
    check_name(criterion)
    if scope not in SCOPES:
        raise VPromptError(f"The scope is 'global', 'local' or 'shared', not {scope!r}.")


_PRUNING = {"prune_tokens": "tokens", "prune_segments": "segments", "num_segments": "num_segments", "saving": "saving"}
"""Flat names, as commands and plans have them, and those of `PruneSettings`."""


@functools.cache
def setting_types() -> Mapping[str, Any]:
    """The flat name of every setting, as commands and plans have it, and its type.

    Example:
        >>> setting_types()["epochs"], setting_types()["prune_tokens"]
        (<class 'int'>, float | None)
    """
    own = {name: hint for name, hint in get_type_hints(Settings).items() if name not in ("recipe", "prune")}
    pruning = get_type_hints(PruneSettings)
    return own | get_type_hints(Recipe) | {flat: pruning[name] for flat, name in _PRUNING.items()} | {"prune": bool}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from flat names, as commands and plans have them; what is not named has its default.

    Args:
        values: `backbone` at least. `prune`, `prune_tokens`, `prune_segments`, `num_segments` and `saving` make up the
            pruning, whose criterion and scope are those of the run; `epochs`, `lr` and so on the recipe.

    Raises:
        VPromptError: If a name is unknown, or a value of the wrong type or out of range.

    Example:
        >>> settings_from({"backbone": "test_vit", "epochs": 3, "prune_tokens": 0.5}).prune.tokens
        0.5
    """
    types = setting_types()
    given = {name: typed(name, value, types) for name, value in values.items()}
    if "backbone" not in given:
        raise VPromptError("The settings name no backbone.")
    prune = None
    if given.get("prune") or given.get("prune_tokens") is not None or given.get("prune_segments") is not None:
        chosen = {name: given[flat] for flat, name in _PRUNING.items() if flat in given}
        both = {name: given[name] for name in ("criterion", "scope") if name in given}
        prune = PruneSettings(**chosen, **both)
    own = {field.name for field in fields(Settings)}
    recipe = {field.name for field in fields(Recipe)}
    return Settings(
        **{name: value for name, value in given.items() if name in own and name != "prune"},
        prune=prune,
        recipe=Recipe(**{name: value for name, value in given.items() if name in recipe}),
    )


def typed(name: str, value: Any, types: Mapping[str, Any]) -> Any:
    """A value as its setting wants it: whole numbers serve as others, and nothing else is taken for something else.

    Raises:
        VPromptError: If there is no such setting, or it takes something else.

    Example:
        >>> typed("lr", 1, {"lr": float | None})
        1.0
    """
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(types))}."
        raise VPromptError(f"There is no setting called {name!r}{hint}")
    for kind in _kinds(types[name]):
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind or (not isinstance(kind, type) and type(value) is str and value == kind):
            return value
    wanted = " or ".join(_WORDS.get(kind, repr(kind)) for kind in _kinds(types[name]))
    raise VPromptError(f"The setting {name} takes {wanted}, not {value!r}.")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    NoneType: "nothing",
}


def _kinds(hint: Any) -> Iterator[Any]:
    """The types, and the words of a Literal, that a hint allows."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) in (UnionType, Union):
        for part in get_args(hint):
            yield from _kinds(part)
    else:
        yield hint
