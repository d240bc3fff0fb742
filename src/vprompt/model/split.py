"""A model split into its frozen trunk, all before the first block in which something is learned, and the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.blocks import BlockCall, with_forward, wrapped
from vprompt.backbones.graft import graft
from vprompt.backbones.info import patch_embed_path
from vprompt.model.model import PromptedModel
from vprompt.model.wrappers import running_blocks


class Split:
    """A model split before the first block in which something is learned, so that its trunk may run once an image.

    `trainable_part()(trunk(images))` is `model(images)`, for the same batch bit for bit (where the whole backbone is
    frozen, as the model computes it without gradients). The first block that learns is found from the gradients of one
    image, for any method. Where no block learns, the split is behind the pooled features.

    Args:
        model: The model; its view as it is now is split.
        image_1CHW: One image.

    Attributes:
        blocks: Number of blocks in the trunk; 0 where there is nothing to split.
        sample: Features of the image, (1, ...).

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> late = model.keep([torch.arange(0)] * 4 + [torch.arange(2)] * 2).eval()
        >>> images = torch.randn(3, 3, 32, 32)
        >>> split = Split(late, images[:1])
        >>> split.blocks, torch.equal(split.trainable_part()(split.trunk(images)), late(images))
        (4, True)
    """

    def __init__(self, model: PromptedModel, image_1CHW: Tensor) -> None:
        self._model = model
        self._paths = running_blocks(model)
        self.blocks, self.sample, self._embedded = _split(model.view, self._paths, model.as_held(image_1CHW))

    @property
    def whole(self) -> bool:
        """True where the whole backbone is the trunk."""
        return self.blocks == len(self._paths)

    @property
    def needs_images(self) -> bool:
        """True where the trainable part takes the images as well."""
        return self._model.tuned.side is not None

    @torch.no_grad()
    def trunk(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, ...) of images: the input of the first block that learns, or the pooled features."""
        view = self._model.view
        if not self.whole:
            path = self._paths[self.blocks]
            view = graft(view, {path: wrapped(view.get_submodule(path), _stop)})
        try:
            return _pooled(view, self._model.as_held(images_BCHW))
        except _Reached as reached:
            return reached.tensor

    def trainable_part(self) -> nn.Module:
        """A module from features (and the images, where it needs them) to logits."""
        return _Head(self._model) if self.whole else _UpperBlocks(self._model, self._paths, self.blocks, self._embedded)


def first_learned(model: PromptedModel) -> int:
    """The first block in which something is learned; the number of blocks where that is none of them."""
    like = next(model.parameters())
    return _split(model.view, running_blocks(model), like.new_zeros(1, *model.preprocessing.shape))[0]


def _split(view: nn.Module, paths: list[str], image_1CHW: Tensor) -> tuple[int, Tensor, Any]:
    """Number of blocks before the split, features of the image there, and the image's embedded patches."""
    embed = view.get_submodule(patch_embed_path(view))
    embedded: list[Any] = []

    def embedding(*arguments: Any, **options: Any) -> Any:
        embedded.append(embed(*arguments, **options))
        return embedded[-1]

    def watching(number: int) -> BlockCall:
        def watch(run: BlockCall, x: Tensor, *arguments: Any, **positions: Any) -> Any:
            out = run(x, *arguments, **positions)
            if any(t is not None and t.requires_grad for t in (out if isinstance(out, tuple) else (out,))):
                raise _Reached(0 if x.requires_grad else number, x)
            return out

        return watch

    parts = {path: wrapped(view.get_submodule(path), watching(number)) for number, path in enumerate(paths)}
    watched = graft(view, {**parts, patch_embed_path(view): with_forward(embed, embedding)})
    with torch.enable_grad():
        try:
            features = _pooled(watched, image_1CHW)
        except _Reached as reached:
            return reached.block, reached.tensor.detach(), embedded[0]
    # With something learned behind the blocks and nothing in them there is no place to split.
    return 0 if features.requires_grad else len(paths), features.detach(), embedded[0]


def _pooled(view: Any, images_BCHW: Tensor) -> Tensor:
    return view.forward_head(view.forward_features(images_BCHW), pre_logits=True)


class _Head(nn.Module):
    """Logits of pooled features."""

    def __init__(self, model: PromptedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_BF: Tensor, *images_BCHW: Tensor) -> Tensor:
        model = self.model
        features_BF = features_BF.to(model.head.weight.dtype)
        return model.head(model.tuned.finish(features_BF, *images_BCHW) if images_BCHW else features_BF)


class _UpperBlocks(nn.Module):
    """Logits of the input of a block: a view of the model runs in which nothing before that block costs anything."""

    def __init__(self, model: PromptedModel, paths: list[str], blocks: int, embedded: Any) -> None:
        super().__init__()
        self.model = model
        self.given: Tensor | None = None
        view, first = model.view, paths[blocks]
        names = [name for name, _ in view.named_modules()]
        # Where nothing is computed, the merging of patches between stages would only cost time.
        merging = [name for name in names[: names.index(first)] if name.endswith(".downsample")]
        parts: dict[str, nn.Module] = {name: nn.Identity() for name in merging}
        parts |= {path: wrapped(view.get_submodule(path), _skip) for path in paths[:blocks]}
        parts[first] = wrapped(view.get_submodule(first), self._enter)
        embed = patch_embed_path(view)
        parts[embed] = _blank(view.get_submodule(embed), embedded)
        self.__dict__["_view"] = graft(view, parts)  # like the model's own view, no part of the module tree

    def _enter(self, run: BlockCall, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        return run(self.given, *arguments, **positions)

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        try:
            return self.model.head(_pooled(self.__dict__["_view"], x.new_empty(x.shape[0], 0)))
        finally:
            self.given = None


class _Reached(Exception):  # noqa: N818 - nothing is wrong
    """The forward pass need not go on."""

    def __init__(self, block: int, tensor: Tensor) -> None:
        super().__init__()
        self.block = block
        self.tensor = tensor


def _stop(run: BlockCall, x: Tensor, *arguments: Any, **positions: Any) -> Any:
    """Ends the forward pass with the input of the block."""
    raise _Reached(0, x)


def _skip(run: BlockCall, x: Tensor, *arguments: Any, **positions: Any) -> Any:
    """Returns the input: of `carry`, the prompts as well."""
    return x if isinstance(run, nn.Module) else (x, *arguments)


def _blank(embed: nn.Module, embedded: Any) -> nn.Module:
    """A view of the patch embedding that returns zeros in the shape of an image's embedded patches.

    Args:
        embed: The embedding.
        embedded: Its output for one image: a tensor, or one and more that all images share.
    """
    patches, *others = embedded if isinstance(embedded, tuple) else (embedded,)

    def forward(images: Tensor, *arguments: Any, **options: Any) -> Any:
        zeros = patches.new_zeros(images.shape[0], *patches.shape[1:])
        return (zeros, *others) if isinstance(embedded, tuple) else zeros

    return with_forward(embed, forward)
