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


def _bf16(weight_OI: Tensor) -> tuple[Tensor, None]:
    return weight_OI.to(torch.bfloat16), None


def _rows(weight_OI: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Rows between -most and most, and the factor of each."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True).float() / most
    scale_O1 = scale_O1.where(scale_O1 > 0, 1)
    return weight_OI / scale_O1, scale_O1


def _int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    rows_OI, scale_O1 = _rows(weight_OI, 127)
    return rows_OI.round().to(torch.int8), scale_O1


def _fp8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    most = torch.finfo(torch.float8_e4m3fn).max
    rows_OI, scale_O1 = _rows(weight_OI, most)
    return rows_OI.clamp(-most, most).to(torch.float8_e4m3fn), scale_O1


def _int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers in a byte, one of each half of a row, (O, I/2), and a factor of each group, (O, G, 1)."""
    groups_OGg = F.pad(weight_OI.float(), (0, -weight_OI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest_OG1 = groups_OGg.gather(-1, groups_OGg.abs().argmax(-1, keepdim=True))
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for level in _LEVELS:
        scale_OG1 = (largest_OG1 / level).to(torch.bfloat16)
        scale_OG1 = scale_OG1.where(scale_OG1 != 0, 1)
        codes_OGg = (groups_OGg / scale_OG1).round().clamp(-8, 7)
        error_OG1 = (codes_OGg * scale_OG1 - groups_OGg).square().sum(-1, keepdim=True)
        if best is not None:
            better = error_OG1 < best[0]
            now = (error_OG1, scale_OG1, codes_OGg)
            error_OG1, scale_OG1, codes_OGg = (a.where(better, b) for a, b in zip(now, best, strict=True))
        best = (error_OG1, scale_OG1, codes_OGg)
    _, scale_OG1, codes_OGg = cast("tuple[Tensor, Tensor, Tensor]", best)
    low, high = (codes_OGg + 8).to(torch.uint8).flatten(1).chunk(2, dim=1)
    return low | (high << 4), scale_OG1


FORMS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    "bf16": _bf16,
    "int8": _int8,
    "int4": _int4,
    "fp8": _fp8,
}
"""By precision: weight (O, I) -> codes and factors, for `decode`."""


def decode(codes: Tensor, scale: Tensor | None, width: int, dtype: torch.dtype) -> Tensor:
    """The weight (O, I) that codes and factors stand for: codes times factors, in at least single precision.

    Args:
        codes: As a form gives them.
        scale: Their factors, if any.
        width: I.
        dtype: Of the result.
    """
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
        (grad,) = gradients
        grad_x = grad @ decode(*ctx.saved_tensors, ctx.width, grad.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None, None, None


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

    Source: GPTQ (arXiv 2210.17323), section 2, on rounding to nearest by rows and groups; QLoRA (arXiv 2305.14314),
    section 3, on gradients through a frozen weight that is made anew in the backward pass.
    """

    codes: Tensor
    scale: Tensor | None
    like: Tensor

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.precision = linear.in_features, linear.out_features, precision
        weight = linear.weight.detach()
        codes, scale = self._possible(lambda: FORMS[precision](weight), weight.device)
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
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
        held = (self.codes[rows], None if self.scale is None else self.scale[rows], self.in_features)
        learns = x.requires_grad or (bias is not None and bias.requires_grad)
        if torch.is_grad_enabled() and learns:
            return cast("Tensor", _Product.apply(x, bias, *held))
        return F.linear(x, decode(*held, x.dtype), bias)

    def _possible(self, make: Callable[[], Any], device: torch.device | None) -> Any:
        """What `make` returns, unless torch cannot."""
        try:
            return make()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            if self.precision != "fp8" or isinstance(error, torch.OutOfMemoryError):
                raise
            raise BackboneError(
                f"torch has no fp8 numbers on the device {device or 'asked for'}; hold the backbone in int8 instead."
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLinear:
        """To another device; codes and factors keep their type."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        codes = self._possible(lambda: moved(self.codes), None)
        scale = None if self.scale is None else moved(self.scale)
        self.codes, self.scale = codes.new_empty(0), None
        try:
            return super()._apply(fn, recurse)
        finally:
            self.codes, self.scale = codes, scale

    def extra_repr(self) -> str:
        """Sizes and precision."""
        return f"{super().extra_repr()}, {self.precision}"


LINEAR = (nn.Linear, FrozenLinear)
"""Linear layers and nothing else, by their type: what is derived from them does more."""
