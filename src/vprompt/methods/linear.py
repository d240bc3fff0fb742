"""Linear and MLP probes: a classifier on the frozen backbone's pooled feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vprompt.methods.base import Method, option
from vprompt.methods.registry import register


@register
@dataclass(frozen=True)
class Linear(Method):
    """Linear probe: a linear head on the frozen backbone's pooled feature, and no prompts.

    Example:
        >>> Linear().initial_counts(3)
        [0, 0, 0]
    """

    name: ClassVar[str] = "linear"


@register
@dataclass(frozen=True)
class MLP(Method):
    """A deeper head on the frozen backbone's feature: layers of the feature's width with GELU, then a linear one.

    Args:
        layers: How many in all, 2 to 100.

    Raises:
        VPromptError: If there are fewer or more.

    Example:
        >>> MLP().layers
        2

    Source: VPT (arXiv 2203.12119), section 4.1.
    """

    layers: int = option(2, least=2, most=100)
    name: ClassVar[str] = "mlp"
    letters: ClassVar[str] = "l{layers}"
    words: ClassVar[str] = "a head of {layers} layers"
    lr_factor: ClassVar[float] = 0.2
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"layers": (2, 3)}

    @property
    def head_layers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As many as are asked for."""
        return self.layers
