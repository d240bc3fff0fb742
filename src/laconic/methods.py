"""What can be attached to a backbone; a frozen dataclass each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

from laconic.baselines import MLP, Adapter, Bias, Full, Linear, LoRA, Partial, Side
from laconic.errors import LaconicError
from laconic.prompts import Share


@dataclass(frozen=True)
class VPT:
    """Visual prompt tuning: learned prompts in the first block (shallow) or in every block (deep), and a linear head.

    Args:
        num_prompts: P, prompts per block (deep) or in all (shallow); at least 1.
        depth: `"deep"` or `"shallow"`.
        dropout: Probability of prompt dropout while training, 0 to below 1; the paper's 0.1 (deep) or 0 (shallow) when
            not given.

    Raises:
        LaconicError: If a value is out of range.

    Example:
        >>> VPT(num_prompts=10).initial_counts(3), VPT(num_prompts=10, depth="shallow").initial_counts(3)
        ([10, 10, 10], [10, 0, 0])

    Source: VPT (arXiv 2203.12119), section 3.2.
    """

    num_prompts: int = 50
    depth: Literal["deep", "shallow"] = "deep"
    dropout: float | None = None
    lr_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise LaconicError(f"VPT needs at least one prompt, not {self.num_prompts}; without any, it is Linear().")
        if self.depth not in ("deep", "shallow"):
            raise LaconicError(f"VPT's depth is 'deep' or 'shallow', not {self.depth!r}.")
        if not 0 <= self.prompt_dropout < 1:
            raise LaconicError(f"Prompt dropout is at least 0 and below 1, not {self.dropout}.")

    @property
    def name(self) -> str:
        """`vpt-deep` or `vpt-shallow`."""
        return f"vpt-{self.depth}"

    @property
    def prompt_dropout(self) -> float:
        """The dropout in force."""
        if self.dropout is not None:
            return self.dropout
        return 0.1 if self.depth == "deep" else 0.0

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training and condensation."""
        if self.depth == "deep":
            return [self.num_prompts] * num_blocks
        return [self.num_prompts] + [0] * (num_blocks - 1)


@dataclass(frozen=True)
class E2VPT:
    """Effective and efficient VPT: deep prompts, key-value prompts behind the projections of attention, a linear head.

    Args:
        num_prompts: P, prompts per block that pass the projections, as in VPT-Deep; at least 0.
        num_kv_prompts: n, prompts per block that are keys and values from the start; at least 0.
        share: What the key-value prompts of a block have in common: `"key-value"`, keys and values are the same, each
            head has its own (the published code); `"heads"`, all heads have the same (the paper's summary); `"none"`.
        dropout: Probability of prompt dropout on the first kind while training, 0 to below 1; 0.1 when not given.

    Raises:
        LaconicError: If a value is out of range, or there is no prompt of either kind.

    Example:
        >>> E2VPT().initial_counts(3), E2VPT(num_prompts=0).prompt_dropout
        ([10, 10, 10], 0.1)

    Source: E²VPT (arXiv 2307.13770), section 3.2.
    """

    num_prompts: int = 10
    num_kv_prompts: int = 5
    share: Share = "key-value"
    dropout: float | None = None
    name: ClassVar[str] = "e2vpt"
    lr_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if min(self.num_prompts, self.num_kv_prompts) < 0:
            raise LaconicError(
                f"Numbers of prompts are at least 0, not {min(self.num_prompts, self.num_kv_prompts)}; "
                "give num_prompts and num_kv_prompts."
            )
        if self.num_prompts + self.num_kv_prompts == 0:
            raise LaconicError("E2VPT needs at least one prompt of either kind; without any, it is Linear().")
        if self.share not in get_args(Share):
            raise LaconicError(f"E2VPT's share is 'key-value', 'heads' or 'none', not {self.share!r}.")
        if not 0 <= self.prompt_dropout < 1:
            raise LaconicError(f"Prompt dropout is at least 0 and below 1, not {self.dropout}.")

    @property
    def prompt_dropout(self) -> float:
        """The dropout in force."""
        return 0.1 if self.dropout is None else self.dropout

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of the first kind in each block before training and pruning."""
        return [self.num_prompts] * num_blocks


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
        raise LaconicError(f"There is no method called {name!r}; there are {', '.join(METHOD_NAMES)}.")
    return makers.get(name, kind)()


def method_to_config(method: Method) -> dict[str, Any]:
    """A method as plain data for an adapter's configuration."""
    return {"name": method.name, **asdict(method)}


def method_from_config(config: dict[str, Any]) -> tuple[Method, Sequence[str]]:
    """A method from `method_to_config`'s data, and the keys that this version does not know."""
    name = config.get("name")
    kind = _KINDS.get(str(name))
    if kind is None:
        raise LaconicError(
            f"The method {name!r} is not known to this version of laconic, which knows {', '.join(METHOD_NAMES)}."
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
