"""The device, the precision and the kernel of attention of a training."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel

from vprompt.model.model import PromptedModel
from vprompt.model.records import Precision, Recipe
from vprompt.utils.devices import device_named, fast_bf16
from vprompt.utils.distributed import launcher_checked


def accelerator(**options: Any) -> Accelerator:
    """Accelerate's `Accelerator`, with which processes that `torchrun` started are one training."""
    # Without an accelerator, say so: accelerate would otherwise look for one in the environment of `torchrun`.
    with launcher_checked():
        return Accelerator(cpu=device_named("auto").type == "cpu", **options)


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether to compute in bf16: as asked, or (`"auto"`) where the device is faster in it."""
    return precision == "bf16" or (precision == "auto" and fast_bf16(device.type))


def emulated(precision: Precision, device: torch.device) -> str:
    """A sentence where bf16 is asked of a device that has no units for it; else nothing."""
    if precision != "bf16" or fast_bf16(device.type):
        return ""
    return f"The {device.type} has no units for bf16 and emulates it slowly; --precision auto takes fp32."


def autocast(model: PromptedModel, recipe: Recipe) -> torch.autocast:
    """The precision of forward passes, as a context."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(recipe.precision, device))


@contextmanager
def attention_for_training(model: PromptedModel, recipe: Recipe) -> Generator[None]:
    """Plain attention for short sequences in bf16 on a CPU, where the fused kernel's backward pass takes longer.

    Measured: plain is 1.4 times as fast with 65 tokens and 1.5 times with windows of 49, fused 1.3 times as fast with
    197 tokens.
    """
    device = next(model.parameters()).device
    plain = device.type == "cpu" and in_bf16(recipe.precision, device) and model.info.attended <= 128
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield
