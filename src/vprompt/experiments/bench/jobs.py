"""Job: one run of a benchmark, and its name; runs that do the same have the same name, and are done once."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vprompt.experiments.run import first_stage
from vprompt.experiments.settings import Settings, settings_from, upgraded
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import checksum
from vprompt.utils.registry import load_plugin, plugins

PATHS = ("data", "weights")
"""Settings that are paths, of what makes a run what it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or a training that only serves to choose settings.

    Args:
        settings: What to do, `resolved`.
        until: Stop after this epoch and validate; None for a whole run.
        names: Path of data or weights -> what the store calls it, if that is something else; see `named_paths`.
    """

    settings: Settings
    until: int | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @functools.cached_property
    def first(self) -> Job | None:
        """The training that a condensing or pruning run starts from and shares with others."""
        first = None if self.until is not None else first_stage(self.settings)
        return None if first is None else replace(self, settings=first.resolved())

    @functools.cached_property
    def name(self) -> str:
        """The run in words, and sixteen hex digits that change with every setting that matters."""
        settings = self.settings
        parts = [self.identity["data"] or "bundled", *settings.words()]
        parts += [f"until{self.until}"] if self.until is not None else []
        words = "-".join("".join(c if (c.isalnum() and c.isascii()) or c in "._" else "-" for c in p) for p in parts)
        return f"{words[-80:].strip('-.')}-{self.key}"

    @functools.cached_property
    def key(self) -> str:
        """The hex digits in the name."""
        document = {"settings": self.identity, "until": self.until}
        return checksum(json.dumps(document, sort_keys=True).encode())[:16]

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that make the run what it is, as plain data, without where its data lies or who loads it."""
        settings = self.settings.resolved().to_flat(places=False)
        paths = {key: settings[key] for key in PATHS if isinstance(settings[key], str)}
        return settings | {key: self.names.get(path, path) for key, path in paths.items()}

    @functools.cached_property
    def work(self) -> str:
        """Name of the folder with its state; trainings up to different epochs go on in one."""
        return self.name if self.until is None else f"trial-{replace(self, until=None).name}"


def current_name(result: Mapping[str, Any]) -> str | None:
    """The name that the run of a result has today, which other versions named otherwise; None if it has none."""
    try:
        return Job(settings=settings_from(upgraded(result["run"])), until=result["until"]).name
    except (VPromptError, KeyError, TypeError):
        return None


def to_plain_data(job: Job) -> dict[str, Any]:
    """A job for another process, or another machine, and the plugins that its settings may need."""
    return {"settings": job.settings.to_flat(), "until": job.until, "names": dict(job.names), "plugins": plugins()}


def from_plain_data(document: Mapping[str, Any]) -> Job:
    """A job from `to_plain_data`, once its plugins are loaded.

    Raises:
        VPromptError: If a plugin is not there, or a setting cannot be.

    Example:
        >>> job = Job(settings=settings_from({"backbone": "test_vit", "prune_tokens": 0.5}))
        >>> from_plain_data(json.loads(json.dumps(to_plain_data(job)))) == job
        True
    """
    for place in document.get("plugins", ()):
        load_plugin(place)
    return Job(settings=settings_from(document["settings"]), until=document["until"], names=document["names"])
