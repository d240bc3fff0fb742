"""What one run of a benchmark is, and its name: runs that do the same have the same name, and are done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vprompt.compression.settings import PruneSettings
from vprompt.experiments.folder import PLACES
from vprompt.experiments.run import first_stage
from vprompt.experiments.settings import Settings
from vprompt.model.records import Recipe

OF_METHODS: Mapping[str, tuple[str, ...]] = {
    "vpt-deep": ("prompts",),
    "vpt-shallow": ("prompts",),
    "e2vpt": ("prompts", "kv_prompts", "share"),
    "mlp": ("layers",),
    "partial": ("blocks",),
    "adapter": ("reduction",),
    "lora": ("rank",),
    "side": ("side_width",),
}
"""Settings that only some methods read."""

OF_CONDENSING = ("fine_tune", "fine_tune_epochs", "criterion", "scope", "merge")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or a training that only serves to choose settings.

    Args:
        settings: What to do; as `plain` gives them.
        until: Stop after this epoch and validate; None for a whole run.
        first: Name of the finished run that this one starts from, where several share their first stage.
    """

    settings: Settings
    until: int | None = None
    first: str | None = None

    @property
    def name(self) -> str:
        """What was run in words, and sixteen hex digits that change with every setting that matters."""
        settings = self.settings
        parts = [settings.data or "bundled", settings.method]
        parts += [f"p{settings.prompts}"] if settings.method in ("vpt-deep", "vpt-shallow", "e2vpt") else []
        parts += [f"keep{settings.condense:g}"] if settings.condense is not None else []
        parts += ["pruned"] if settings.prune is not None else []
        parts += [f"s{settings.recipe.seed}"]
        parts += [f"until{self.until}"] if self.until is not None else []
        words = "-".join("".join(c if (c.isalnum() and c.isascii()) or c in "._" else "-" for c in p) for p in parts)
        return f"{words[-80:].strip('-.')}-{self.key}"

    @property
    def key(self) -> str:
        """The hex digits in the name."""
        document = {"settings": identity(self.settings), "until": self.until}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def work(self) -> str:
        """Name of the folder with its state; trainings up to different epochs go on in one."""
        return self.name if self.until is None else f"trial-{replace(self, until=None).name}"


def plain(settings: Settings) -> Settings:
    """The same run with its learning rate spelt out, and defaults wherever its method reads nothing.

    Example:
        >>> plain(Settings(backbone="test_vit", method="linear", prompts=7)).prompts
        20
    """
    defaults = {field.name: field.default for field in fields(Settings) if field.name in _unread(settings)}
    recipe = settings.recipe.with_rate(settings.make_method().lr_factor)
    if recipe.optimizer != "sgd":
        recipe = replace(recipe, momentum=Recipe().momentum)
    return replace(settings, recipe=recipe, **defaults)


def _unread(settings: Settings) -> set[str]:
    """Names of the settings that a run does not read."""
    found = {name for names in OF_METHODS.values() for name in names} - set(OF_METHODS.get(settings.method, ()))
    if settings.condense is None:
        found |= set(OF_CONDENSING)
    if settings.prune is None:
        found |= {"rewind_epoch"}
    return found


def identity(settings: Settings) -> dict[str, Any]:
    """What makes a run what it is, as plain data; where its data lies, or who loads them, is no part of it."""
    # Without what is not read: a setting that comes with a new method renames no run of the others.
    without = {*PLACES, *_unread(settings)}
    document = {name: value for name, value in asdict(plain(settings)).items() if name not in without}
    document["recipe"] = {name: value for name, value in document["recipe"].items() if name not in PLACES}
    return document


def starts_from(settings: Settings) -> Job | None:
    """The training that a condensing or pruning run shares with others."""
    first = first_stage(settings)
    return None if first is None else Job(settings=plain(first))


def to_plain_data(job: Job) -> dict[str, Any]:
    """A job for another process, or another machine."""
    return {"settings": asdict(job.settings), "until": job.until, "first": job.first}


def from_plain_data(document: Mapping[str, Any]) -> Job:
    """A job from `to_plain_data`.

    Example:
        >>> job = Job(settings=Settings(backbone="test_vit", prune=PruneSettings(tokens=0.5, segments=0.0)))
        >>> from_plain_data(json.loads(json.dumps(to_plain_data(job)))) == job
        True
    """
    values = dict(document["settings"])
    prune = values.pop("prune")
    values |= {"recipe": Recipe(**values["recipe"]), "prune": None if prune is None else PruneSettings(**prune)}
    return Job(settings=Settings(**values), until=document["until"], first=document["first"])
