"""Learned parameters in or beside a backbone, and the view of the backbone in which they act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from torch import Tensor, nn


class Tuning(nn.Module):
    """Learned parameters under the paths of the backbone, and a view of the backbone that runs with them.

    The view stays out of the module tree: of what is in it, only the learned parameters are this module's.

    Args:
        base: The view; the backbone itself where nothing in it is changed.
        learned: Dotted path -> parameter that the view uses.
        beside: A network beside the backbone, if there is one; its `mix` takes the backbone's features and the images.
        behind: Path of a block -> module that its output passes, of which `learned` names the parameters.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> [name for name, _ in Tuning(net, {"deep.down.bias": net.bias}).named_parameters()]
        ['deep.down.bias']
    """

    def __init__(
        self,
        base: nn.Module,
        learned: Mapping[str, nn.Parameter] | None = None,
        beside: nn.Module | None = None,
        behind: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["_base"] = base
        self.__dict__["_behind"] = behind or {}
        self.side = beside
        for path, parameter in (learned or {}).items():
            holder, (*parents, name) = self, path.split(".")
            for step in parents:
                if step not in dict(holder.named_children()):
                    holder.add_module(step, nn.Module())
                holder = holder.get_submodule(step)
            holder.register_parameter(name, parameter)

    @property
    def base(self) -> Any:
        """The view of the backbone: a timm model."""
        return self.__dict__["_base"]

    def placed(self, parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """What runs in the place of blocks, by their paths, with what stands behind each."""
        behind = self.behind
        return {path: _Followed(part, behind[path]) if path in behind else part for path, part in parts.items()}

    def train(self, mode: bool = True) -> Self:
        """Sets what stands behind blocks to training, too, which is not in the module tree."""
        for module in self.behind.values():
            module.train(mode)
        return super().train(mode)

    @property
    def behind(self) -> Mapping[str, nn.Module]:
        """Path of a block -> module that its output passes."""
        return self.__dict__["_behind"]

    def finish(self, features_BF: Tensor, images_BCHW: Tensor) -> Tensor:
        """Features of the model, from those of the backbone and the images."""
        return features_BF if self.side is None else cast("Any", self.side).mix(features_BF, images_BCHW)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Takes copies of values, one for each parameter, in their type."""
        for name, parameter in self.named_parameters():
            parameter.data = values[name].detach().to(parameter.device, copy=True)


class _Followed(nn.Module):
    """A block, and what its output passes."""

    def __init__(self, block: nn.Module, behind: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.behind = behind

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return self.behind(self.block(*arguments, **options))
