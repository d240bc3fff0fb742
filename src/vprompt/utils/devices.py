"""Devices by name."""

from __future__ import annotations

import torch

from vprompt.utils.errors import VPromptError


def found_devices() -> list[torch.device]:
    """The CPU, and the accelerator where there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]


def device_named(name: str) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1"; "auto" is the accelerator where there is one.

    Raises:
        VPromptError: If it is not here.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return found_devices()[-1]
    types = {device.type for device in found_devices()}
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in types or (device.index or 0) >= _count(device):
        raise VPromptError(f"There is no device {name!r} here; there is {' and '.join(sorted(types))}.")
    return device


def _count(device: torch.device) -> int:
    return 1 if device.type == "cpu" else torch.accelerator.device_count()
