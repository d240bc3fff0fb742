"""How to prune, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from vprompt.compression.choices import grid
from vprompt.compression.criteria import SCOPES, Criterion, Scope, check_name, check_segments_by
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How to prune.

    Args:
        tokens: Prune this share of the prompts (0.5 halves them), 0 to below 1; searched on validation data when not
            given.
        segments: Prune this share of the segments of the prompts that stay; searched when not given.
        num_segments: Segments that a prompt is cut into; must divide the widths of the backbone.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`; `"shared"` is one mask for all blocks.
        saving: Share of the validation loss that removing all prompts would be worth: with 0.08, half of them may
            cost 4 % of it.

    Raises:
        VPromptError: If a value is out of range.
    """

    tokens: float | None = field(default=None, metadata={"flag": "prune_tokens"})
    segments: float | None = field(default=None, metadata={"flag": "prune_segments"})
    num_segments: int = 16
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    saving: float = 0.08

    def __post_init__(self) -> None:
        grid(self.tokens, self.segments)
        check_name(self.criterion)
        if self.scope not in SCOPES:
            raise VPromptError(f"The scope is 'global', 'local' or 'shared', not {self.scope!r}.")
        check_segments_by(self.criterion)
        if self.num_segments < 1:
            raise VPromptError(f"A prompt has at least one segment, not {self.num_segments}.")
        if not 0 <= self.saving <= 1:
            raise VPromptError(f"What removing all prompts is worth lies between 0 and 1, not {self.saving}.")

    @property
    def searched(self) -> bool:
        """Whether how much to prune is searched."""
        return self.tokens is None or self.segments is None
