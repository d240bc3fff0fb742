"""Settings of a run, as plain data: two runs with equal settings on equal data end with equal numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

from vprompt.backbones.names import BackbonePrecision, full_name
from vprompt.compression.choices import PruneSettings
from vprompt.compression.criteria import Criterion, Scope, check_name, check_riding
from vprompt.methods.base import HEAD_INIT, Method, check_head_init
from vprompt.methods.registry import METHODS, to_flat
from vprompt.methods.vpt import VPT
from vprompt.model.records import AUTO, Recipe
from vprompt.tasks.base import TARGETS
from vprompt.tasks.columns import Columns
from vprompt.tasks.segmentation import DenseHead
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import (
    ADDED,
    PLACE,
    Option,
    brief,
    build,
    check_fields,
    check_known,
    flat,
    options_of,
    typed,
)

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]

TrainOn = Literal["train", "train+val"]

DEFAULT_METHOD = VPT().name


@dataclass(frozen=True, kw_only=True)
class Condensing:
    """Prompt Condensation after training: score, keep the best, fine-tune them.

    Args:
        ratio: After training, keep this share of the prompts (0.3 keeps 30 %) and fine-tune them; auto: the smallest
            share that is not worse than all prompts on the validation images.
        fine_tune: Fine-tune the prompts that stay, at a tenth of the learning rate.
        fine_tune_epochs: Epochs of that fine-tuning.
        criterion: Measure of a prompt's importance: what zeroing it (taylor) or removing it does to the loss, to the
            loss with the model's own labels (pseudo-label) or to the features; attention of the class token; length;
            chance.
        scope: Choose over all blocks together, inside every block, or the same for all blocks.
        merge: Merge the other prompts of a block into those that stay, instead of dropping them.

    Raises:
        VPromptError: If a value is out of range.
    """

    ratio: float | Literal["auto"] = field(metadata={"flag": "condense", "off": True})
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    merge: bool = False

    def __post_init__(self) -> None:
        if self.ratio != "auto" and not 0 < self.ratio <= 1:
            raise VPromptError(
                f"The share of prompts to keep must be above 0 and at most 1, or auto, not {self.ratio}."
            )
        check_name(self.criterion)
        check_fields(self)
        Recipe(epochs=self.fine_tune_epochs)

    def check(self, method: Method) -> None:
        """Raises a `VPromptError` for a method whose prompts cannot be condensed so."""
        if method.riding == "nothing":
            raise VPromptError(f"The method {method.name!r} has no prompts to condense; leave out --condense.")
        check_riding(self.criterion, method)
        if self.merge and method.riding == "tokens":
            raise VPromptError("Shallow prompts cannot be merged; leave out --merge.")


@dataclass(frozen=True, kw_only=True)
class Pruning(PruneSettings):
    """Pruning after training, as E²VPT does: the least important prompts and segments go, the rest is trained again.

    Args:
        rewind_epoch: Train what is left from where it was after this epoch; 0 is before the first step, and the last
            one goes on from the trained values.
        fresh_start: Train it from new random values instead, to see what rewinding is good for.
    """

    rewind_epoch: int = 0
    fresh_start: bool = field(default=False, metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run: data, backbone, method, recipe, compression.

    Args:
        data: Image folder; a table of images and labels (.csv, .tsv, .jsonl, .parquet); hf:NAME of the Hub; or a task:
            vtab:NAME, fgvc:NAME (see `vprompt tasks`), synthetic:NAME; the bundled one when left out.
        columns: Columns of a table.
        root: Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out.
        backbone: small, base or large (vision transformers at 224 pixels, trained on ImageNet-21k); bundled (64 pixels,
            for trying things out); or any name that timm has.
        weights: Weights of that backbone in a file (.safetensors, a PyTorch checkpoint, or a .npz of Google's ViT)
            instead of the published ones.
        backbone_precision: How the weights of the frozen backbone's linear layers are held: bf16, int8, int4 or fp8
            need less memory; what is learned stays as it is.
        method: Method of adaptation.
        head_init: Start of the head: zero; paper, the VPT paper's random values, which suit its SGD and high rates; or
            a file of text features (.npz, .safetensors), which makes it a zero-shot classifier of CLIP or SigLIP.
        condense: Condensing after training.
        prune: Prune prompts, and segments of the prompts that stay; how much is searched on the validation images, at
            the price of about four more trainings.
        recipe: Training.
        resize: squash: to the backbone's size, whatever the aspect ratio. crop: short side, then the centre. When left
            out, crop for FGVC's tasks and squash for all others. Of images with masks: keep (when left out) or fit the
            short side, both seen in windows of the backbone's size, or squash.
        augment: crop-flip: train on random crops, half of them mirrored. light, medium, strong: crops of any size by
            timm, half of them mirrored, from medium on with RandAugment and random erasing; best with --workers. When
            left out, crop-flip for FGVC's tasks and none for all others.
        train_on: train+val trains on the validation images as well, once they have served to choose settings; no
            validation accuracy is reported then.
        test: Read the test images at the end; runs that serve to choose do not.
        img_size: Input size in pixels, where it should differ from the backbone's own.
        in_chans: Channels of the images, where they are not RGB: 1 for grey, 4 and more as satellites have them; 4 of a
            PNG are RGB and opacity.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images and classes that cannot be used, and say how many.
        track: Trackers that see loss, accuracy and rate of every epoch, beside log.jsonl in the run's folder.
        target: What is to be said of an image: single-label (one of the classes), multi-label (any number of tags),
            regression (numbers), segmentation (a class for each pixel); what the labels look like when left out.
        head: Of segmentation, what makes classes of features: linear (batch norm and a linear layer), multi (the same
            on four blocks), conv (two convolutions that enlarge the map); linear when left out.
        calibrate: Fit a temperature on the validation images, so that probabilities are as often right as they say.

        check_convergence: Train twice as long as well, to find out whether the training had converged: whether the loss
            on the validation images changes by no more than its standard error. It costs two trainings more.

    Raises:
        VPromptError: If a value is out of range, or two do not go together.
    """

    data: str | None = None
    columns: Columns = field(default_factory=Columns)
    root: str | None = field(default=None, metadata=PLACE)
    backbone: str
    weights: str | None = None
    backbone_precision: BackbonePrecision = field(default="fp32", metadata=ADDED)
    method: Method = field(default_factory=VPT, metadata={"polymorphic": True})
    head_init: str = HEAD_INIT
    condense: Condensing | None = field(default=None, metadata={"when": ("condense",)})
    prune: Pruning | None = field(
        default=None, metadata={"switch": "prune", "when": ("prune", "prune_tokens", "prune_segments")}
    )
    recipe: Recipe = field(default_factory=Recipe)
    resize: Literal["squash", "crop", "keep", "fit"] | None = None
    augment: Literal["none", "crop-flip", "light", "medium", "strong"] | None = None
    train_on: TrainOn = "train"
    test: bool = True
    img_size: int | None = None
    in_chans: int | None = field(default=None, metadata=ADDED)
    split_seed: int = 0
    skip_bad: bool = False
    track: tuple[Tracker, ...] = field(default=(), metadata=PLACE | ADDED)
    target: str | None = field(default=None, metadata=ADDED)
    head: DenseHead | None = field(default=None, metadata=ADDED)
    calibrate: bool = field(default=False, metadata=ADDED)
    check_convergence: bool = field(default=False, metadata=ADDED)

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self)
        check_head_init(self.head_init)
        if self.target is not None:
            TARGETS.get(self.target)
        if self.condense is not None:
            self.condense.check(self.method)
            if self.condense.ratio == "auto" and self.train_on != "train":
                raise VPromptError(
                    "How much to condense is chosen on validation images, so they cannot be trained on; give a share "
                    "instead of auto, or train on 'train'."
                )
        for what, flag in (("A temperature is fitted", "calibrate"), ("Convergence is told", "check_convergence")):
            if getattr(self, flag) and self.train_on != "train":
                raise VPromptError(
                    f"{what} on validation images, so they cannot be trained on; leave out --{flag.replace('_', '-')}, "
                    "or train on 'train'."
                )
        if self.train_on != "train" and self.recipe.watches:
            raise VPromptError(
                "The best epoch, and when to stop, are found on validation images, so they cannot be trained on; leave "
                "out --best-epoch and --early-stopping, or train on 'train'."
            )
        if self.prune is not None:
            self._check_pruning(self.prune)
        if self.img_size is not None and self.img_size < 1:
            raise VPromptError(f"The image size must be at least 1 pixel, not {self.img_size}.")
        if self.in_chans is not None and self.in_chans < 1:
            raise VPromptError(f"Images have at least 1 channel, not {self.in_chans}.")

    def _check_pruning(self, prune: Pruning) -> None:
        if self.condense is not None:
            raise VPromptError("Prompts are condensed or pruned, not both; leave out --condense or --prune.")
        if not sum(self.method.initial_counts(1)):
            raise VPromptError("There is nothing to prune: this method has no prompts that pass the projections.")
        if prune.searched and self.train_on != "train":
            raise VPromptError(
                "How much to prune is searched on validation images, so they cannot be trained on; give --prune-tokens "
                "and --prune-segments, or train on 'train'."
            )
        if prune.fresh_start and (prune.rewind_epoch or self.method.relocates):
            raise VPromptError(
                "A fresh start rewinds to no epoch, and prompts that move have none; leave out --fresh-start, or "
                "--rewind-epoch."
            )
        if prune.rewind_epoch and (self.recipe.early_stopping or self.method.relocates):
            raise VPromptError(
                "There may be no epoch to rewind to where a training stops early, or prompts move; leave out "
                "--rewind-epoch, or --early-stopping."
            )
        most = math.inf if self.recipe.epochs == AUTO else self.recipe.num_epochs
        if prune.rewind_epoch and not 0 <= prune.rewind_epoch <= most:
            raise VPromptError(
                f"The epoch to rewind to lies between 0 and the {self.recipe.epochs} of the training, not at "
                f"{prune.rewind_epoch}."
            )

    def resolved(self) -> Settings:
        """The same run with its learning rate spelt out, and the default momentum where the optimizer has none."""
        recipe = self.recipe.suited(self.method)
        if recipe.optimizer != "sgd":
            recipe = replace(recipe, momentum=Recipe().momentum)
        return replace(self, recipe=recipe)

    def to_flat(self, *, places: bool = True) -> dict[str, Any]:
        """Plain data under the flat names that commands, plans and results use; `settings_from` reads it.

        Args:
            places: With settings that only say where data lie or how the work is done.
        """
        return {**flat(self, places=places), **to_flat(self.method)}

    def words(self) -> list[str]:
        """Short words for the name of a run, without its data: method, sizes, compression, seed."""
        parts = [self.method.name, self.method.size]
        if self.condense is not None:
            ratio = self.condense.ratio if self.condense.ratio == "auto" else f"{self.condense.ratio:g}"
            parts.append(f"keep{ratio}{'-merged' * self.condense.merge}")
        parts += ["pruned"] * (self.prune is not None)
        return [*filter(None, parts), f"seed{self.recipe.seed}"]


@dataclass(frozen=True, kw_only=True)
class CondenseSettings:
    """Settings of the condensation of a saved adapter.

    Args:
        adapter: Folder of the adapter, or its Hub id.
        data: The image folder, table or task it was trained on; the bundled task when left out.
        columns: Columns of a table, where they are not those that it was trained on.
        root: Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out.
        weights: The backbone's weights, where the adapter was trained with a file of them that is no longer where it
            was.
        backbone_precision: How the backbone's linear layers are held, where not as in training.
        condense: Share of the prompts, and how they are chosen.
        seed: Seeds order and random scores.
        split_seed: Cuts the splits that a folder does not have; as for the training when left out.
        train_on: Fine-tune on the training images alone, or on the validation images as well; as for the training
            when left out.
        augment: Random views of the images in fine-tuning; as for the training when left out.
        skip_bad: Go on without images and classes that cannot be used, and say how many.
    """

    adapter: str
    data: str | None = None
    columns: Columns = field(default_factory=Columns)
    root: str | None = field(default=None, metadata=PLACE)
    weights: str | None = None
    backbone_precision: BackbonePrecision | None = field(default=None, metadata=ADDED)
    condense: Condensing = field(default_factory=lambda: Condensing(ratio=0.3))
    seed: int = 0
    split_seed: int | None = None
    train_on: TrainOn | None = field(default=None, metadata=ADDED)
    augment: Literal["none", "crop-flip", "light", "medium", "strong"] | None = field(default=None, metadata=ADDED)
    skip_bad: bool = False

    # What only `Settings` ask for, by the names that they have there.
    test: ClassVar[bool] = True
    calibrate: ClassVar[bool] = False
    check_convergence: ClassVar[bool] = False
    track: ClassVar[tuple[Tracker, ...]] = ()

    def __post_init__(self) -> None:
        Recipe(seed=self.seed)

    def to_flat(self) -> dict[str, Any]:
        """Plain data under flat names."""
        return flat(self)


def setting_types() -> Mapping[str, Option]:
    """Every setting of a run by its flat name, those of all methods included.

    Example:
        >>> setting_types()["seed"].type, setting_types()["prune_tokens"].type
        (<class 'int'>, float | None)
    """
    return _setting_types(METHODS.names())  # a method may join at any time


@functools.cache
def _setting_types(names: tuple[str, ...]) -> Mapping[str, Option]:
    methods = {flag: option for name in names for flag, option in METHODS.get(name).options.items()}
    return {**methods, **options_of(Settings), "method": Option(flag="method", type=str, default=DEFAULT_METHOD)}


def check_setting(name: str, value: Any, method: str | None = None) -> Any:
    """A value as its setting wants it; of a setting that methods have, as one of them, or this one, wants it.

    Raises:
        VPromptError: If there is no such setting, or it takes something else.
    """
    check_known({name: value}, setting_types())
    if name in options_of(Settings) or name == "method":
        return typed(name, value, setting_types()[name].type)
    hints = {kind.name: kind.options[name].type for kind in METHODS if name in kind.options}
    problem: VPromptError | None = None
    for hint in [hints[method]] if method in hints else hints.values():
        try:
            return typed(name, value, hint)
        except VPromptError as error:
            problem = error
    raise problem or VPromptError(f"The setting {name} cannot be {value!r}.")


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from flat names, as commands and plans have them; what is not named has its default.

    Args:
        values: `backbone` at least; `method` and its options; `condense` and what goes with it; `prune`,
            `prune_tokens` and what goes with them; `epochs`, `lr` and so on of the recipe. Options of other methods
            than the one named are passed over.

    Raises:
        VPromptError: If a name is unknown, or a value of the wrong type or out of range.

    Example:
        >>> settings_from({"backbone": "test_vit", "epochs": 3, "prune_tokens": 0.5}).prune.tokens
        0.5
    """
    kind = METHODS.get(check_setting("method", values.get("method", DEFAULT_METHOD)))
    given = {name: check_setting(name, value, kind.name) for name, value in values.items()}
    if "backbone" not in given:
        raise VPromptError("The settings name no backbone.")
    given["backbone"] = full_name(given["backbone"])
    return build(Settings, given, method=kind.make(given))


def place_settings() -> frozenset[str]:
    """Settings that say where data lie, or how the work is done: they may change between a run and its continuation."""
    return frozenset(name for name, option in setting_types().items() if option.place)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a result, flat, also those that earlier versions nested.

    Example:
        >>> upgraded({"method": "linear", "recipe": {"epochs": 3}, "prune": None, "condense": None})
        {'method': 'linear', 'epochs': 3}
    """
    flattened: dict[str, Any] = {key: value for key, value in document.items() if not isinstance(value, dict)}
    flattened |= recipe if isinstance(recipe := document.get("recipe"), dict) else {}
    if prune := cast("dict[str, Any]", document["prune"] if isinstance(document.get("prune"), dict) else {}):
        names = {"tokens": "prune_tokens", "segments": "prune_segments"}
        flattened |= {"prune": True, **{names.get(key, key): value for key, value in prune.items()}}
    if isinstance(ratio := flattened.pop("ratio", None), float):
        flattened["condense"] = ratio
    return {key: value for key, value in flattened.items() if value is not None or key not in ("condense", "prune")}


def changed_settings(earlier: object, now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ from earlier ones; one that is not named has its default.

    Example:
        >>> changed_settings({"prompts": 5, "recipe": {"lr": 1.0}}, {"prompts": 5, "lr": 0.1})
        ['lr']
    """
    known = upgraded(earlier) if isinstance(earlier, dict) else {}
    types, own = setting_types(), options_of(Settings)

    def value_of(settings: Mapping[str, Any], name: str) -> Any:
        return settings.get(name, types[name].default if name in types else None)

    names = [*now, *(name for name in known if name not in now and name in own)]
    without = place_settings()
    return sorted({name for name in names if name not in without and value_of(known, name) != value_of(now, name)})
