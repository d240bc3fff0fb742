"""A view of a module tree in which some parts or parameters are exchanged and everything else is shared."""

# pyright: reportPrivateUsage=false
# A module's children are kept in `_modules`; nothing public lets two modules share all but one of them.

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def graft(root: M, parts: Mapping[str, nn.Module], *, parameters: Mapping[str, nn.Parameter] | None = None) -> M:
    """Returns `root` with the submodules and parameters at the given paths exchanged; `root` itself is not touched.

    Only the modules on the way to what is exchanged are new, and they are shells: they share the parameters, buffers
    and all other children of the originals, so moving or changing `root` shows in the view. Nothing is copied. A shell
    with an exchanged parameter keeps the other Parameter objects that the original has now.

    Args:
        root: Any module.
        parts: Dotted path below `root` -> module to find there.
        parameters: Dotted path below `root` -> parameter to find there; not inside one of the parts.

    Returns:
        A module of the same class as `root`.

    Raises:
        KeyError: If a path names no submodule, or no parameter.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> view = graft(net, {"1": nn.Tanh()})
        >>> type(view[1]).__name__, type(net[1]).__name__, view[0] is net[0]
        ('Tanh', 'ReLU', True)
    """
    view = _shell(root)
    shells: dict[str, nn.Module] = {"": view}
    for path, parameter in (parameters or {}).items():
        parent, _, name = path.rpartition(".")
        holder = _shell_at(shells, parent, path)
        if holder._parameters.get(name) is None:
            raise KeyError(f"no parameter {path!r}")
        holder.__dict__["_parameters"] = {**holder._parameters, name: parameter}
    for path, part in parts.items():
        parent, _, name = path.rpartition(".")
        holder = _shell_at(shells, parent, path)
        _child(holder, name, path)
        holder._modules[name] = part
    return view


def _shell_at(shells: dict[str, nn.Module], at: str, path: str) -> nn.Module:
    """The shell of the module at a path below the root, made with those above it where there is none."""
    if at not in shells:
        parent, _, name = at.rpartition(".")
        holder = _shell_at(shells, parent, path)
        shells[at] = _shell(_child(holder, name, path))
        holder._modules[name] = shells[at]
    return shells[at]


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
