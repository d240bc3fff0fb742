"""A view of a module tree in which some parts are exchanged and everything else is shared."""

# pyright: reportPrivateUsage=false
# A module's children are kept in `_modules`; nothing public lets two modules share all but one of them.

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def graft(root: M, parts: Mapping[str, nn.Module]) -> M:
    """Returns `root` with the submodules at the given paths exchanged; `root` itself is not touched.

    Only the modules on the way to an exchanged part are new, and they are shells: they share the parameters, buffers
    and all other children of the originals, so moving or changing `root` shows in the view. Nothing is copied.

    Args:
        root: Any module.
        parts: Dotted path below `root` -> module to find there.

    Returns:
        A module of the same class as `root`.

    Raises:
        KeyError: If a path names no submodule.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> view = graft(net, {"1": nn.Tanh()})
        >>> type(view[1]).__name__, type(net[1]).__name__, view[0] is net[0]
        ('Tanh', 'ReLU', True)
    """
    view = _shell(root)
    shells: dict[str, nn.Module] = {"": view}
    for path, part in parts.items():
        *parents, name = path.split(".")
        holder, at = view, ""
        for step in parents:
            at = f"{at}.{step}" if at else step
            if at not in shells:
                shells[at] = _shell(_child(holder, step, path))
                holder._modules[step] = shells[at]
            holder = shells[at]
        _child(holder, name, path)
        holder._modules[name] = part
    return view


def _shell(module: M) -> M:
    """A second module object over the same parameters and buffers, with a list of children of its own."""
    shell = object.__new__(type(module))
    shell.__dict__.update(module.__dict__)
    shell.__dict__["_modules"] = dict(module._modules)
    return shell


def _child(holder: nn.Module, name: str, path: str) -> nn.Module:
    child = holder._modules.get(name)
    if child is None:
        raise KeyError(f"no submodule {path!r}")
    return child
