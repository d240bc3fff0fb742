"""Attention wrappers by the attention class that they stand for, found also in other packages and in files of users."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.utils.errors import BackboneError
from vprompt.utils.registry import Registry

W = TypeVar("W", bound=type[PrefixAttention])

WRAPPERS = Registry[type[PrefixAttention]]("attention wrapper", "vprompt.backbones.attention", "vprompt.attention")


def register(wrapper: W) -> W:
    """Makes an attention wrapper known; decorates a subclass of `PrefixAttention`.

    Raises:
        VPromptError: If its name is taken.
    """
    WRAPPERS.register(wrapper)
    return wrapper


def wrapper_for(attention: nn.Module) -> type[PrefixAttention]:
    """The attention wrapper of an attention module; of several, the one that was registered last.

    Raises:
        BackboneError: If there is none for its class.
    """
    wrappers = {cls: wrapper for wrapper in WRAPPERS for cls in wrapper.attends}
    if type(attention) not in wrappers:
        raise BackboneError(
            f"The attention class {type(attention).__name__} is not supported; supported are "
            f"{', '.join(sorted({cls.__name__ for cls in wrappers}))} of timm."
        )
    return wrappers[type(attention)]
