"""Structured tasks that are rendered here."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.sources.base import SOURCES, Listing
from vprompt.data.synthetic.tasks import PREFIX, synthetic_listing


class Synthetic:
    """Tasks that are specified by their factors: nothing to download, the same everywhere."""

    name = "synthetic"

    def find(self, spec: str, *, root: str | Path | None, training: bool) -> Listing | None:
        """See `DataSource`; the tasks are those of `synthetic_names`."""
        return synthetic_listing(spec) if spec.startswith(PREFIX) else None


SOURCES.register(Synthetic())
