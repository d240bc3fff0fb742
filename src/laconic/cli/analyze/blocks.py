"""`laconic analyze blocks`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
