"""A model cut in two: what lies below the first block in which something is learned, and the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import patch_embed_path
from vprompt.model.model import PromptedModel
from vprompt.model.wrappers import StandIn, running_blocks


class Split:
    """A model cut before the first block in which something is learned, so that what lies below may run once an image.

    `above(below(images))` is `model(images)`, for the same batch bit for bit (where the whole backbone lies below, as
    the model computes it without gradients). Where learning starts is asked of the
    gradients of one image, and so found for every method. Where nothing is learned in any block, the cut is behind the
    pooled features.

    Args:
        model: The model; its view as it is now is cut.
        image_1CHW: One image.

    Attributes:
        blocks: How many blocks lie below; 0 where there is nothing to cut.
        sample: What is handed over of the image, (1, ...).

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> late = model.keep([torch.arange(0)] * 4 + [torch.arange(2)] * 2).eval()
        >>> images = torch.randn(3, 3, 32, 32)
        >>> split = Split(late, images[:1])
        >>> split.blocks, torch.equal(split.above()(split.below(images)), late(images))
        (4, True)
    """

    def __init__(self, model: PromptedModel, image_1CHW: Tensor) -> None:
        self._model = model
        self._paths = running_blocks(model)
        self.blocks, self.sample, self._embedded = _cut(model.view, self._paths, image_1CHW)

    @property
    def whole(self) -> bool:
        """Whether the whole backbone lies below."""
        return self.blocks == len(self._paths)

    @property
    def needs_images(self) -> bool:
        """Whether what lies above looks at the images as well."""
        return self._model.tuned.side is not None

    @torch.no_grad()
    def below(self, images_BCHW: Tensor) -> Tensor:
        """What is handed over of images, (B, ...)."""
        view = self._model.view
        if not self.whole:
            path = self._paths[self.blocks]
            view = graft(view, {path: _Stop(view.get_submodule(path))})
        try:
            return _pooled(view, images_BCHW)
        except _Reached as reached:
            return reached.tensor

    def above(self) -> nn.Module:
        """A module from what is handed over (and the images, where it needs them) to logits."""
        return _FromFeatures(self._model) if self.whole else _FromBlock(self._model, *self._upper())

    def _upper(self) -> tuple[nn.Module, _Enter]:
        """A view in which nothing below the cut costs anything, and the block that is given what was handed over."""
        view, first = self._model.view, self._paths[self.blocks]
        enter = _Enter(view.get_submodule(first))
        names = [name for name, _ in view.named_modules()]
        # Where nothing is computed, the merging of patches between stages would only cost time.
        merging = [name for name in names[: names.index(first)] if name.endswith(".downsample")]
        parts: dict[str, nn.Module] = {name: nn.Identity() for name in merging}
        parts |= {path: _Skip(view.get_submodule(path)) for path in self._paths[: self.blocks]}
        embed = patch_embed_path(view)
        parts |= {first: enter, embed: _blank(view.get_submodule(embed), self._embedded)}
        return graft(view, parts), enter


def first_learned(model: PromptedModel) -> int:
    """The first block in which something is learned; the number of blocks where that is none of them."""
    like = next(model.parameters())
    paths = running_blocks(model)
    return _cut(model.view, paths, like.new_zeros(1, 3, *model.preprocessing.size))[0]


def _cut(view: nn.Module, paths: list[str], image_1CHW: Tensor) -> tuple[int, Tensor, Any]:
    """How many blocks lie below the cut, what is handed over there, and what the image's patches are embedded as."""
    watched = graft(view, {path: _Watch(view.get_submodule(path), n) for n, path in enumerate(paths)})
    noted: list[Any] = []
    hook = view.get_submodule(patch_embed_path(view)).register_forward_hook(lambda _, __, out: noted.append(out))
    with torch.enable_grad():
        try:
            features = _pooled(watched, image_1CHW)
        except _Reached as reached:
            return reached.block, reached.tensor.detach(), noted[0]
        finally:
            hook.remove()
    # With something learned behind the blocks and nothing in them there is no place to cut.
    return 0 if features.requires_grad else len(paths), features.detach(), noted[0]


def _pooled(view: Any, images_BCHW: Tensor) -> Tensor:
    return view.forward_head(view.forward_features(images_BCHW), pre_logits=True)


class _FromFeatures(nn.Module):
    """Logits of pooled features."""

    def __init__(self, model: PromptedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_BF: Tensor, *images_BCHW: Tensor) -> Tensor:
        model = self.model
        features_BF = features_BF.to(model.head.weight.dtype)
        return model.head(model.tuned.finish(features_BF, *images_BCHW) if images_BCHW else features_BF)


class _FromBlock(nn.Module):
    """Logits of what enters a block."""

    def __init__(self, model: PromptedModel, view: nn.Module, enter: _Enter) -> None:
        super().__init__()
        self.model = model
        self.__dict__["_upper"] = view, enter  # like the model's own view, no part of the module tree

    def forward(self, x: Tensor) -> Tensor:
        view, enter = self.__dict__["_upper"]
        enter.given = x
        try:
            return self.model.head(_pooled(view, x.new_empty(x.shape[0], 0)))
        finally:
            enter.given = None


class _Reached(Exception):  # noqa: N818 - nothing is wrong
    """The forward pass need not go on."""

    def __init__(self, block: int, tensor: Tensor) -> None:
        super().__init__()
        self.block = block
        self.tensor = tensor


class _Watch(StandIn):
    """Ends the forward pass with what entered the first block that gradients come out of."""

    def __init__(self, block: nn.Module, number: int) -> None:
        super().__init__(block)
        self.number = number

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        out = run(x, *arguments, **positions)
        if any(t is not None and t.requires_grad for t in (out if isinstance(out, tuple) else (out,))):
            raise _Reached(0 if x.requires_grad else self.number, x)
        return out


class _Stop(StandIn):
    """Ends the forward pass with what enters the block."""

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        raise _Reached(0, x)


class _Skip(StandIn):
    """Hands on what it is given."""

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        return x if run is self.block else (x, *arguments)


class _Enter(StandIn):
    """The block, given something else than what comes."""

    given: Tensor | None = None

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        assert self.given is not None
        return run(self.given, *arguments, **positions)


def _blank(embed: nn.Module, noted: Any) -> nn.Module:
    """The embedding of patches, with all that it tells of itself, that gives zeros which nothing will look at.

    Args:
        embed: The embedding.
        noted: What it gave for an image: a tensor, or one and more that all images share.
    """
    embedded, *others = noted if isinstance(noted, tuple) else (noted,)

    def forward(images: Tensor, *arguments: Any, **options: Any) -> Any:
        zeros = embedded.new_zeros(images.shape[0], *embedded.shape[1:])
        return (zeros, *others) if isinstance(noted, tuple) else zeros

    blank = graft(embed, {})
    blank.__dict__["forward"] = forward
    return blank
