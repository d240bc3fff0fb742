"""Shape inference: modules copied to the meta device."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def on_meta(module: M) -> M:
    """A deep copy on the meta device: only shapes are left, so running it costs neither memory nor time.

    Example:
        >>> on_meta(nn.Linear(2, 3)).weight.device.type
        'meta'
    """
    memo: dict[int, Tensor] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(module, memo)
