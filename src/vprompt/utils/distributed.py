"""Several processes of one training: the main one, and decisions that all of them share."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that `torchrun` sets, all of them."""

_LEFTOVERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
"""How the names of variables begin by which libraries take a process for one of several."""


def number_of_processes() -> int:
    """The processes that `torchrun` started, this one among them; 1 where its variables are not all there, or wrong.

    Example:
        >>> number_of_processes()
        1
    """
    rank, local, size, *address = (os.environ.get(name, "") for name in _LAUNCHED)
    if not all(address) or not all(text.isdecimal() for text in (rank, local, size)):
        return 1
    return int(size) if int(rank) < int(size) else 1


@contextmanager
def launcher_checked() -> Generator[list[str]]:
    """Inside, variables of a launcher count only where it started several processes; others are hidden meanwhile.

    Yields:
        The names of those that would have made this process one of several: left over from something else.
    """
    hidden: dict[str, str] = {}
    if number_of_processes() == 1:
        hidden = {name: value for name, value in os.environ.items() if name.startswith(_LEFTOVERS)}
    for name in hidden:
        del os.environ[name]
    try:
        alone = {"RANK": "0", "SIZE": "1"}
        yield sorted(name for name, value in hidden.items() if value != alone.get(name.rpartition("_")[2], value))
    finally:
        os.environ.update(hidden)


def is_main_process() -> bool:
    """Whether this process speaks and writes for the others that `torchrun` started, or is alone."""
    return number_of_processes() == 1 or os.environ["RANK"] == "0"


def gathered(value: T) -> list[T]:
    """The values of all processes, that of the first before the others, so that they decide alike; waits for them."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
