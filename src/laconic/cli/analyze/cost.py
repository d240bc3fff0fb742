"""`laconic analyze cost`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
