"""Which of several processes this one is."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this process speaks and writes for the others that `torchrun` started, or is alone."""
    return os.environ.get("RANK", "0") == "0"
