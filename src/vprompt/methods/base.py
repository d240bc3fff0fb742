"""What prompts are compared with: methods that learn a head or parts of the backbone; a frozen dataclass each."""

from __future__ import annotations

from typing import ClassVar


class Promptless:
    """What methods without prompts have in common."""

    prompt_dropout: ClassVar[float] = 0.0
    lr_factor: ClassVar[float] = 1.0
    """Share of the default learning rate at which the method trains; weights that are good already need a low one."""

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training: none."""
        return [0] * num_blocks
