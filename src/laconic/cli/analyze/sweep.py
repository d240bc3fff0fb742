"""`laconic analyze sweep`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Accuracy against the number of prompts."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
