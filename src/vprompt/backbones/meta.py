"""Shape inference: modules copied to the meta device, and run there quickly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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


class QuickShapes(TorchDispatchMode):
    """Answers on the meta device for operations whose shape torch itself finds out in slow Python.

    They are half of what running a transformer there takes (ViT-L: 0.5 instead of 1.1 s for a count of its
    multiply-accumulates in three executions). Where a counter runs as well, it is entered after this.

    Example:
        >>> with QuickShapes():
        ...     nn.functional.gelu(torch.empty(2, 3, device="meta")).shape
        torch.Size([2, 3])
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        if args and isinstance(args[0], Tensor) and args[0].is_meta and (known := _KNOWN.get(func)) is not None:
            return known(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _addmm(bias: Tensor, rows: Tensor, columns: Tensor, **_: Any) -> Tensor:
    return bias.new_empty(rows.shape[0], columns.shape[1])


def _like(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    means = x.new_empty((*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)))
    return x.new_empty(x.shape), means, means.clone()


_KNOWN: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.addmm.default: _addmm,
    torch.ops.aten.gelu.default: _like,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
}
