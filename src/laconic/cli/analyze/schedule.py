"""`laconic analyze schedule`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Schedule."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
