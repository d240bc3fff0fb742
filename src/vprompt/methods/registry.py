"""What can be attached to a backbone; a frozen dataclass each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.info import BackboneInfo
from vprompt.backbones.meta import on_meta
from vprompt.methods.adapter import Adapter, with_bottlenecks
from vprompt.methods.e2vpt import E2VPT
from vprompt.methods.finetune import Bias, Full, Partial, learned_copies
from vprompt.methods.linear import MLP, Linear
from vprompt.methods.lora import LoRA, merged, with_updates
from vprompt.methods.prompts import Share
from vprompt.methods.side import Side, SideNetwork
from vprompt.methods.tuned import Tuning
from vprompt.methods.vpt import VPT
from vprompt.utils.errors import VPromptError

Method = VPT | E2VPT | Linear | MLP | Full | Partial | Bias | Adapter | LoRA | Side

_KINDS: dict[str, type[Method]] = {
    "vpt-deep": VPT,
    "vpt-shallow": VPT,
    "e2vpt": E2VPT,
    **{kind.name: kind for kind in (Linear, MLP, Full, Partial, Bias, Adapter, LoRA, Side)},
}

METHOD_NAMES = tuple(_KINDS)


def method_from_name(
    name: str,
    *,
    num_prompts: int,
    num_kv_prompts: int = 5,
    share: Share = "key-value",
    layers: int = 2,
    blocks: int = 1,
    reduction: int = 8,
    rank: int = 8,
    side_width: int = 32,
) -> Method:
    """The method that the command line calls by this name, with those of the settings that it has.

    Example:
        >>> method_from_name("vpt-shallow", num_prompts=5)
        VPT(num_prompts=5, depth='shallow', dropout=None)
    """
    makers: dict[str, Callable[[], Method]] = {
        "vpt-deep": lambda: VPT(num_prompts, "deep"),
        "vpt-shallow": lambda: VPT(num_prompts, "shallow"),
        "e2vpt": lambda: E2VPT(num_prompts, num_kv_prompts, share),
        "mlp": lambda: MLP(layers),
        "partial": lambda: Partial(blocks),
        "adapter": lambda: Adapter(reduction),
        "lora": lambda: LoRA(rank),
        "side": lambda: Side(side_width),
    }
    kind = _KINDS.get(name)
    if kind is None:
        raise VPromptError(f"There is no method called {name!r}; there are {', '.join(METHOD_NAMES)}.")
    return makers.get(name, kind)()


def method_to_config(method: Method) -> dict[str, Any]:
    """A method as plain data for an adapter's configuration."""
    return {"name": method.name, **asdict(method)}


def method_from_config(config: dict[str, Any]) -> tuple[Method, Sequence[str]]:
    """A method from `method_to_config`'s data, and the keys that this version does not know."""
    name = config.get("name")
    kind = _KINDS.get(str(name))
    if kind is None:
        raise VPromptError(
            f"The method {name!r} is not known to this version of vprompt, which knows {', '.join(METHOD_NAMES)}."
        )
    known = {field.name for field in fields(kind)}
    values = {key: value for key, value in config.items() if key in known}
    unknown = [key for key in config if key not in known and key != "name"]
    if kind is VPT and "depth" not in values:
        values["depth"] = str(name).removeprefix("vpt-")
    return kind(**values), unknown


def without_dropout(method: Method) -> Method:
    """The same method with prompt dropout off, as condensed prompts are fine-tuned."""
    return replace(method, dropout=0.0) if isinstance(method, VPT | E2VPT) else method


def tuning_for(
    method: Method, backbone: nn.Module, info: BackboneInfo, values: Mapping[str, Tensor] | None = None
) -> Tuning:
    """What a method learns in or beside a backbone; empty for prompts and for heads alone.

    Args:
        method: The method.
        backbone: The timm model; it is not changed.
        info: Its description.
        values: Of all that is learned, by name; when not given, the method's initial values, for which torch's global
            generator is used.

    Raises:
        VPromptError: If the method does not fit the backbone.
    """
    if values is None:
        return _initial(method, backbone, info)
    with torch.random.fork_rng(devices=[]):
        tuned = _initial(method, backbone, info, values)
    tuned.fill(values)
    return tuned


def learned_shapes(method: Method, backbone: nn.Module, info: BackboneInfo) -> dict[str, torch.Size]:
    """Name -> shape of all that a method learns in or beside a backbone; costs neither memory nor random numbers."""
    with torch.random.fork_rng(devices=[]):
        tuned = _initial(method, on_meta(backbone), info)
    return {name: parameter.shape for name, parameter in tuned.named_parameters()}


def folded(method: Method, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
    """A copy for inference, in which nothing learns: low-rank updates are merged into the weights."""
    if isinstance(method, LoRA):
        return merged(method, backbone, info, tuned).requires_grad_(False)
    return tuning_for(method, backbone, info, dict(tuned.named_parameters())).requires_grad_(False)


def _initial(method: Method, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
    if isinstance(method, Full | Partial | Bias):
        return learned_copies(method, backbone, info, learned)
    if isinstance(method, Adapter):
        return with_bottlenecks(method, backbone, info)
    if isinstance(method, LoRA):
        return with_updates(method, backbone, info)
    if isinstance(method, Side):
        like = next(backbone.parameters())
        return Tuning(backbone, side=SideNetwork(method.width, info.num_features).to(like.device, like.dtype))
    return Tuning(backbone)
