"""Several processes of one training: the main one, and decisions that all of them share."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process speaks and writes for the others that `torchrun` started, or is alone."""
    return os.environ.get("RANK", "0") == "0"


def agreed(value: T) -> T:
    """The first process's value in all processes, so that they decide alike; waits for it. Alone, the value."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def unanimous(value: bool) -> bool:
    """Whether it is true in all processes; waits for them."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    votes = [False] * distributed.get_world_size()
    distributed.all_gather_object(votes, value)
    return all(votes)
