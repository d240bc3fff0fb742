"""`laconic analyze latency`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
