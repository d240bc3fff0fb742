"""Full, partial and bias tuning: which parameters of a backbone are learned, and a view with copies in their places."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo, classifier_parameters
from vprompt.backbones.meta import QuickShapes, on_meta
from vprompt.methods.base import Promptless
from vprompt.methods.tuned import Tuning
from vprompt.utils.errors import BackboneError, VPromptError


def learned_copies(
    method: Full | Partial | Bias, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None
) -> Tuning:
    """Copies of the parameters that the method learns, in place of the backbone's.

    Those that do not reach the pooled feature are left out, as is the backbone's own classifier.

    Args:
        method: The method.
        backbone: The timm model; it is not changed.
        info: Its description.
        learned: Names of those that are learned, where they are known; finding them out takes a run.

    Raises:
        VPromptError: If the backbone has fewer blocks than the method asks for, or nothing of the kind it learns.
    """
    left_out = classifier_parameters(backbone)
    names = [name for name, p in backbone.named_parameters() if id(p) not in left_out]
    if isinstance(method, Partial):
        names = _from_last_blocks(names, info, method.blocks)
    elif isinstance(method, Bias):
        names = [name for name in names if name.endswith("bias")]
    names = _reaching(names, backbone, info) if learned is None else [name for name in names if name in learned]
    if not names:
        raise BackboneError(f"The backbone {info.name} has no parameters that the method {method.name!r} could learn.")
    parameters = {name: nn.Parameter(backbone.get_parameter(name).detach().clone()) for name in names}
    copies = {id(backbone.get_parameter(name)): parameter for name, parameter in parameters.items()}
    # A parameter that is used in several places is learned once and acts in all of them.
    places = backbone.named_parameters(remove_duplicate=False)
    everywhere = {path: copies[id(p)] for path, p in places if id(p) in copies}
    return Tuning(graft(backbone, {}, parameters=everywhere), parameters)


def _from_last_blocks(names: Sequence[str], info: BackboneInfo, count: int) -> list[str]:
    """The names inside the last blocks, and those that are registered after the last block."""
    if count > len(info.blocks):
        raise VPromptError(
            f"The backbone {info.name} has {len(info.blocks)} blocks, so Partial cannot learn the last {count}; give "
            "it fewer blocks."
        )
    inside = tuple(f"{site.path}." for site in info.blocks[-count:])
    last = max(index for index, name in enumerate(names) if name.startswith(inside[-1]))
    return [name for index, name in enumerate(names) if index > last or name.startswith(inside)]


def _reaching(names: Sequence[str], backbone: nn.Module, info: BackboneInfo) -> list[str]:
    """The names of parameters on which the pooled feature depends, found out on shapes alone."""
    model: Any = on_meta(backbone).eval()
    watched = [model.get_parameter(name).requires_grad_() for name in names]
    if not watched:
        return []
    image = torch.zeros(1, 3, *info.preprocessing.size, device="meta", dtype=watched[0].dtype)
    with QuickShapes(), torch.enable_grad():
        feature = model.forward_head(model.forward_features(image), pre_logits=True)
        found = torch.autograd.grad(feature.sum(), watched, allow_unused=True)
    gradients = cast("tuple[Tensor | None, ...]", found)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]


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
        VPromptError: If `blocks` is below 1; too many are noticed when the method is attached.

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
            raise VPromptError(f"Partial needs at least one block, not {self.blocks}; without any, it is Linear().")


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
