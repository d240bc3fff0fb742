"""Full, partial and bias tuning: parameters of the backbone are learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import Method, option
from vprompt.methods.registry import register

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.tuned import Tuning


class _FineTuning(Method):
    """Methods that learn copies of some of the backbone's parameters."""

    tunes_backbone: ClassVar[bool] = True

    def chosen(self, names: list[str], info: BackboneInfo) -> list[str]:
        """Names of the parameters that it learns, of all that the backbone has."""
        return names

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """Copies of the chosen parameters, in place of the backbone's."""
        from vprompt.methods.layers.copies import learned_copies, own_parameters

        return learned_copies(self.name, self.chosen(own_parameters(backbone), info), backbone, info, learned)


@register
@dataclass(frozen=True)
class Full(_FineTuning):
    """Full fine-tuning: all parameters of the backbone and a linear head.

    Example:
        >>> Full().name
        'full'
    """

    name: ClassVar[str] = "full"
    words: ClassVar[str] = "all parameters of the backbone"
    lr_factor: ClassVar[float] = 0.04
    backward_cost: ClassVar[float] = 2.0


@register
@dataclass(frozen=True)
class Partial(_FineTuning):
    """The parameters of the last blocks and of all that follows them, and a linear head.

    Args:
        blocks: k, at least 1 and at most as many as the backbone has.

    Raises:
        VPromptError: If `blocks` is below 1; too many are noticed when the method is attached.

    Example:
        >>> Partial(blocks=4).name
        'partial'

    Source: VPT (arXiv 2203.12119), section 4.1.
    """

    blocks: int = option(1, least=1)
    name: ClassVar[str] = "partial"
    letters: ClassVar[str] = "b{blocks}"
    words: ClassVar[str] = "the last {blocks} blocks of the backbone and what follows them"
    lr_factor: ClassVar[float] = 0.2
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"blocks": (1, 4)}

    def chosen(self, names: list[str], info: BackboneInfo) -> list[str]:
        """Those inside the last blocks and behind them."""
        from vprompt.methods.layers.copies import from_last_blocks

        return from_last_blocks(names, info, self.blocks)


@register
@dataclass(frozen=True)
class Bias(_FineTuning):
    """All biases of the backbone, and a linear head.

    Example:
        >>> Bias().name
        'bias'

    Source: BitFit (arXiv 2106.10199), section 3; VPT (arXiv 2203.12119), section 4.1.
    """

    name: ClassVar[str] = "bias"
    words: ClassVar[str] = "the biases of the backbone"

    def chosen(self, names: list[str], info: BackboneInfo) -> list[str]:
        """All biases."""
        return [name for name in names if name.endswith("bias")]
