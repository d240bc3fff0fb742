"""Where what is computed once for every image is kept: in memory while there is plenty, else in a file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHARE = 4
"""At most one part in so many of the free memory is taken, and of the free disk."""


def empty_rows(length: int, shape: Sequence[int], dtype: torch.dtype, *, processes: int = 1) -> Tensor | None:
    """A tensor (length, *shape) to be filled: in memory, or mapped to a file that vanishes with it, however that ends.

    The file has no name, so that the system removes it even after a kill; it lies where `tempfile` puts its own
    (`$TMPDIR`).

    Args:
        length: How many rows.
        shape: Of a row.
        dtype: Of its numbers.
        processes: How many on this machine do the same now.

    Returns:
        The tensor, not initialised; None where neither memory nor disk has room.

    Example:
        >>> rows = empty_rows(5, (2, 3), torch.float32)
        >>> rows.shape
        torch.Size([5, 2, 3])
    """
    size = length * math.prod(shape) * dtype.itemsize
    if size * processes * SHARE <= free_memory():
        return torch.empty(length, *shape, dtype=dtype)
    raw = _in_file(size) if size * processes * SHARE <= shutil.disk_usage(tempfile.gettempdir()).free else None
    return None if raw is None else raw.view(dtype).view(length, *shape)


def free_memory() -> int:
    """Bytes that can be had without harm to others, as far as the system says; 0 where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 0
    try:  # a container may have less
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


def _in_file(size: int) -> Tensor | None:
    """Bytes mapped to a temporary file, all of it claimed beforehand; None where the system refuses."""
    try:
        with tempfile.TemporaryFile(prefix="laconic-") as file:
            _claim(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
    except OSError:
        return None


def _claim(descriptor: int, size: int) -> None:
    """Takes the room on the disk: writing to a mapped file for which there is none ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    blank = bytes(2**20)
    for start in range(0, size, len(blank)):
        os.write(descriptor, blank[: size - start])
