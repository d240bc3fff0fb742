"""Side-tuning: a small network beside the backbone."""

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


@register
@dataclass(frozen=True)
class Side(Method):
    """A small convolutional network beside the backbone, whose features are mixed with its, and a linear head.

    The feature is sigmoid(a)·backbone(x) + (1 - sigmoid(a))·side(x) with a learned number a, 0 at the start.

    Args:
        width: Channels of its first layer, 1 to 1024.

    Raises:
        VPromptError: If `width` is out of range.

    Example:
        >>> Side().width
        32

    Source: Side-Tuning (arXiv 1912.13503), section 3; VPT (arXiv 2203.12119), section 4.1.
    """

    width: int = option(32, flag="side_width", least=1, most=1024)
    name: ClassVar[str] = "side"
    letters: ClassVar[str] = "w{width}"
    words: ClassVar[str] = "a convolutional network of {width} channels and more beside the backbone"
    lr_factor: ClassVar[float] = 0.4
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"side_width": (16, 32)}
    tunes_backbone: ClassVar[bool] = True

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """The network beside the backbone, which is left as it is."""
        from vprompt.methods.layers.side import SideNetwork
        from vprompt.methods.layers.tuned import Tuning

        like = next(backbone.parameters())
        return Tuning(backbone, beside=SideNetwork(self.width, info.num_features).to(like.device, like.dtype))
