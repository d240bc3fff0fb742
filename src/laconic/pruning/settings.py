"""How to prune, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from laconic.criteria import SCOPES, Criterion, Scope, check_name, check_segments_by
from laconic.errors import LaconicError
from laconic.pruning.choices import grid


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How to prune.

    Args:
        tokens: Share of the prompts to remove, 0 to below 1; searched on validation data when not given.
        segments: Share of the segments of the prompts that stay; searched when not given.
        num_segments: R, into which a prompt is cut; must divide every width of the backbone.
        criterion: See `laconic.score`.
        scope: See `laconic.select`; `"shared"` is one mask for all blocks.
        saving: Share of the validation loss that removing all prompts would be worth: with 0.08, half of them may
            cost 4 % of it.

    Raises:
        LaconicError: If a value is out of range.
    """

    tokens: float | None = None
    segments: float | None = None
    num_segments: int = 16
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    saving: float = 0.08

    def __post_init__(self) -> None:
        grid(self.tokens, self.segments)
        check_name(self.criterion)
        if self.scope not in SCOPES:
            raise LaconicError(f"The scope is 'global', 'local' or 'shared', not {self.scope!r}.")
        check_segments_by(self.criterion)
        if self.num_segments < 1:
            raise LaconicError(f"A prompt has at least one segment, not {self.num_segments}.")
        if not 0 <= self.saving <= 1:
            raise LaconicError(f"What removing all prompts is worth lies between 0 and 1, not {self.saving}.")

    @property
    def searched(self) -> bool:
        """Whether how much to prune is searched."""
        return self.tokens is None or self.segments is None
