"""Linear layers whose weights are frozen, held in few bits, and made numbers of only where they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.utils.errors import BackboneError

GROUP = 32
"""Neighbours in a row that have one factor in int4."""

_LEVELS = (7.0, 7.5, 8.0, -7.5, -8.0)
"""In int4, the largest number of a group becomes one of these; the one with the least squared error is taken."""


def _rows(weight_OI: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Rows between -most and most, and the factor of each."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True).float() / most
    scale_O1 = scale_O1.where(scale_O1 > 0, 1)
    return (weight_OI / scale_O1).clamp(-most, most), scale_O1


def _int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    rows_OI, scale_O1 = _rows(weight_OI, 127)
    return rows_OI.round().to(torch.int8), scale_O1


def _fp8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    rows_OI, scale_O1 = _rows(weight_OI, torch.finfo(torch.float8_e4m3fn).max)
    return rows_OI.to(torch.float8_e4m3fn), scale_O1


def _int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers in a byte, one of each half of a row, (O, I/2), and a factor of each group, (O, G, 1)."""
    groups_OGg = F.pad(weight_OI.float(), (0, -weight_OI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest_OG1 = groups_OGg.gather(-1, groups_OGg.abs().argmax(-1, keepdim=True))
    scale_OGL1 = (largest_OG1 / largest_OG1.new_tensor(_LEVELS)).to(torch.bfloat16).unsqueeze(-1)
    scale_OGL1 = scale_OGL1.where(scale_OGL1 != 0, 1)
    tried_OGLg = (groups_OGg.unsqueeze(2) / scale_OGL1).round_().clamp_(-8, 7)
    error_OGL = (tried_OGLg * scale_OGL1).sub_(groups_OGg.unsqueeze(2)).square_().sum(-1)
    best_OG11 = error_OGL.argmin(-1)[..., None, None]
    codes_OGg = tried_OGLg.take_along_dim(best_OG11, 2).squeeze(2)
    low, high = (codes_OGg + 8).to(torch.uint8).flatten(1).chunk(2, dim=1)
    return low | (high << 4), scale_OGL1.take_along_dim(best_OG11, 2).squeeze(2)


FORMS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    "bf16": lambda weight_OI: (weight_OI.to(torch.bfloat16), None),
    "int8": _int8,
    "int4": _int4,
    "fp8": _fp8,
}
"""By precision: weight (O, I) -> codes and factors, for `decode`."""


def decode(codes: Tensor, scale: Tensor | None, width: int, dtype: torch.dtype) -> Tensor:
    """The weight (O, I = `width`) that codes and factors stand for: their products, in single precision at least."""
    if scale is None:
        return codes.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    if codes.dtype == torch.uint8:
        groups = torch.cat([codes & 15, codes >> 4], dim=1).to(wide).sub_(8).unflatten(1, (-1, GROUP))
        return groups.mul_(scale.to(wide)).flatten(1)[:, :width].to(dtype)
    return codes.to(wide).mul_(scale).to(dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ + b, which keeps the codes for the backward pass, and neither W nor x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, codes: Tensor, scale: Tensor | None, width: int) -> Tensor:
        """Takes what `decode` does."""
        ctx.save_for_backward(codes, scale)
        ctx.width = width
        return F.linear(x, decode(codes, scale, width, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (codes, scale) = gradients, ctx.saved_tensors
        grad_x = grad @ decode(codes, scale, ctx.width, grad.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None, None, None


class FrozenLinear(nn.Linear):
    """A linear layer with its weight as codes of few bits; gradients pass through it, and it never learns.

    Args:
        linear: The layer to take the place of; it stays as it is, and its bias is shared.
        precision: One of `FORMS`.

    Raises:
        BackboneError: If torch has no such numbers on the weight's device.

    Example:
        >>> layer = FrozenLinear(nn.Linear(64, 32), "int8")
        >>> layer.codes.dtype, layer(torch.ones(2, 64)).shape, [name for name, _ in layer.named_parameters()]
        (torch.int8, torch.Size([2, 32]), ['bias'])

    Source: GPTQ (arXiv 2210.17323), section 2, rounding by rows and groups; QLoRA (arXiv 2305.14314), section 3,
    gradients through a weight that is made anew in the backward pass.
    """

    codes: Tensor
    scale: Tensor | None
    like: Tensor

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.precision = linear.in_features, linear.out_features, precision
        weight = linear.weight.detach()
        codes, scale = self._possible(lambda: FORMS[precision](weight))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("like", weight.new_empty(0), persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """W, made anew."""
        return decode(self.codes, self.scale, self.in_features, self.like.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Of rows (..., in_features), in their type or that of autocast."""
        return self.part(input, slice(None), self.bias)

    def part(self, x: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        """Some of the outputs, with a bias of them."""
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        bias = None if bias is None else bias.to(x.dtype)
        held = (self.codes[rows], None if self.scale is None else self.scale[rows], self.in_features)
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return cast("Tensor", _Product.apply(x, bias, *held))
        return F.linear(x, decode(*held, x.dtype), bias)

    def _possible(self, make: Callable[[], Any]) -> Any:
        """What `make` returns, unless torch has no fp8 there."""
        try:
            return make()
        except (TypeError, NotImplementedError) as error:
            if self.precision != "fp8":
                raise
            raise BackboneError("torch has no fp8 numbers on this device; hold the backbone in int8.") from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLinear:
        """To another device; codes and factors keep their type."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        held = {id(self.codes), id(self.scale)}  # which are there all the time: other threads may compute with them

        def applied(tensor: Tensor) -> Tensor:
            return self._possible(lambda: moved(tensor)) if id(tensor) in held else fn(tensor)

        return super()._apply(applied, recurse)


LINEAR = (nn.Linear, FrozenLinear)
"""Linear layers and nothing else, by their type: what is derived from them does more."""
