"""Devices by name, and what the machine can do: measured, never assumed."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from vprompt.utils.errors import VPromptError


def found_devices() -> list[torch.device]:
    """The CPU, and the accelerator where there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]


_chosen = ContextVar("device", default="auto")


@contextmanager
def computing_on(name: str) -> Generator[None]:
    """Inside, "auto" is the device of that name, see `device_named`."""
    device, before = device_named(name), _chosen.set(name)
    try:
        with torch.accelerator.device_index(None if device.type == "cpu" else device.index):
            yield
    finally:
        _chosen.reset(before)


def device_named(name: str) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1"; "auto" is the accelerator where there is one.

    Raises:
        VPromptError: If it is not here.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    if name == "auto" and (name := _chosen.get()) == "auto":
        return found_devices()[-1]
    types = {device.type for device in found_devices()}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = 1 if device is None or device.type == "cpu" else torch.accelerator.device_count()
    if device is None or device.type not in types or (device.index or 0) >= count:
        raise VPromptError(f"There is no device {name!r} here; there is {' and '.join(sorted(types))}.")
    return device


FAST_BF16 = dict[str, bool]()
"""What `fast_bf16` says of kinds of devices, by this process's own measurement or that of the one whose run goes on."""


def fast_bf16(kind: str) -> bool:
    """Whether a kind of device multiplies matrices clearly faster in bf16 than in fp32; measured in milliseconds, once.

    A processor without instructions for bf16 emulates it, up to thirty times as slowly.
    """
    if kind in FAST_BF16:
        return FAST_BF16[kind]
    size = 384 if kind == "cpu" else 4096  # enough for the start of the work not to count
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    try:
        for _ in range(5):  # in turn: others may be at work on the machine
            for dtype in seconds:
                matrix = torch.ones(size, size, device=kind, dtype=dtype)
                started = time.perf_counter()
                float((matrix @ matrix)[0, 0])  # waits for the device
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    except RuntimeError:  # a device that knows no bf16
        return False
    return FAST_BF16.setdefault(kind, seconds[torch.bfloat16] < 0.8 * seconds[torch.float32])


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; towards a GPU by memory that it reads itself, so that nothing waits for the copy."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    plain = type(tensor) is torch.Tensor  # fake ones have no memory
    return (tensor.pin_memory() if plain else tensor).to(device, non_blocking=True)


def usable_threads(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Threads that torch should have: those it started with, but no more than the container's share of processors."""
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return max(1, min(torch.get_num_threads(), math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # no container, or one without a limit
        return torch.get_num_threads()
