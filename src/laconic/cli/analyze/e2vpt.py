"""`laconic analyze e2vpt`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class E2VPT:
    """E2VPT."""

    def run(self) -> None:
        """Analyses, writes, prints."""
        raise NotImplementedError
