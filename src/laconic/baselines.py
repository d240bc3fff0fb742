"""What prompts are compared with: methods that learn a head or parts of the backbone; a frozen dataclass each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from laconic.errors import LaconicError


class Promptless:
    """What methods without prompts have in common."""

    prompt_dropout: ClassVar[float] = 0.0
    lr_factor: ClassVar[float] = 1.0
    """Share of the default learning rate at which the method trains; weights that are good already need a low one."""

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training: none."""
        return [0] * num_blocks


@dataclass(frozen=True)
class Linear(Promptless):
    """Linear probe: a linear head on the frozen backbone's pooled feature, and no prompts.

    Example:
        >>> Linear().initial_counts(3)
        [0, 0, 0]
    """

    name: ClassVar[str] = "linear"


@dataclass(frozen=True)
class MLP(Promptless):
    """A deeper head on the frozen backbone's feature: layers of the feature's width with GELU, then a linear one.

    Args:
        layers: How many in all, 2 to 100.

    Raises:
        LaconicError: If there are fewer or more.

    Example:
        >>> MLP().layers
        2

    Source: VPT (arXiv 2203.12119), section 4.1.
    """

    layers: int = 2
    name: ClassVar[str] = "mlp"
    lr_factor: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= 100:
            raise LaconicError(f"MLP has 2 to 100 layers, not {self.layers}; with one, it is Linear().")


@dataclass(frozen=True)
class Full(Promptless):
    """Full fine-tuning: all parameters of the backbone and a linear head.

    Example:
        >>> Full().name
        'full'
    """

    name: ClassVar[str] = "full"
    lr_factor: ClassVar[float] = 0.04


@dataclass(frozen=True)
class Partial(Promptless):
    """The parameters of the last blocks and of all that follows them, and a linear head.

    Args:
        blocks: k, at least 1 and at most as many as the backbone has.

    Raises:
        LaconicError: If `blocks` is below 1; too many are noticed when the method is attached.

    Example:
        >>> Partial(blocks=4).name
        'partial'

    Source: VPT (arXiv 2203.12119), section 4.1.
    """

    blocks: int = 1
    name: ClassVar[str] = "partial"
    lr_factor: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise LaconicError(f"Partial needs at least one block, not {self.blocks}; without any, it is Linear().")


@dataclass(frozen=True)
class Bias(Promptless):
    """All biases of the backbone, and a linear head.

    Example:
        >>> Bias().name
        'bias'

    Source: BitFit (arXiv 2106.10199), section 3; VPT (arXiv 2203.12119), section 4.1.
    """

    name: ClassVar[str] = "bias"
    lr_factor: ClassVar[float] = 1.0


@dataclass(frozen=True)
class Adapter(Promptless):
    """A bottleneck after the MLP of every block, inside the residual branch, and a linear head.

    h = mlp(x) becomes h + up(gelu(down(h))); `up` starts at zero, and so the network at the backbone's function.

    Args:
        reduction: Width of a block over that of its bottleneck; at least 1.

    Raises:
        LaconicError: If `reduction` is below 1.

    Example:
        >>> Adapter().reduction
        8

    Source: Houlsby et al. (arXiv 1902.00751), section 2; placed once a block, as in Pfeiffer et al. (arXiv 2005.00247).
    """

    reduction: int = 8
    name: ClassVar[str] = "adapter"
    lr_factor: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise LaconicError(f"The reduction of Adapter must be at least 1, not {self.reduction}.")

    def hidden(self, width: int) -> int:
        """Width of the bottleneck in a block of this width, at least 1."""
        return max(1, width // self.reduction)


@dataclass(frozen=True)
class LoRA(Promptless):
    """Low-rank updates of the projections to queries, keys and values, W + (alpha / rank)·B·A, and a linear head.

    Needs `peft`: `pip install 'laconic[lora]'`.

    Args:
        rank: r, 1 to 4096.
        alpha: Above 0; the updates are scaled by alpha / rank.

    Raises:
        LaconicError: If a value is out of range.

    Example:
        >>> LoRA(rank=4).scale
        4.0

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    name: ClassVar[str] = "lora"
    lr_factor: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise LaconicError(f"The rank of LoRA must be at least 1 and at most 4096, not {self.rank}.")
        if not 0 < self.alpha < math.inf:
            raise LaconicError(f"The alpha of LoRA must be above 0, not {self.alpha}.")

    @property
    def scale(self) -> float:
        """Factor of B·A."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Side(Promptless):
    """A small convolutional network beside the backbone, whose features are mixed with its, and a linear head.

    The feature is sigmoid(a)·backbone(x) + (1 - sigmoid(a))·side(x) with a learned number a, 0 at the start.

    Args:
        width: Channels of its first layer, 1 to 1024.

    Raises:
        LaconicError: If `width` is out of range.

    Example:
        >>> Side().width
        32

    Source: Side-Tuning (arXiv 1912.13503), section 3; VPT (arXiv 2203.12119), section 4.1.
    """

    width: int = 32
    name: ClassVar[str] = "side"
    lr_factor: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 1024:
            raise LaconicError(f"The width of Side must be at least 1 and at most 1024, not {self.width}.")
