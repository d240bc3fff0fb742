"""A model of transformers, alive or by name, as timm's module of the same function; that it is the same is checked."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import re
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.huggingface.base import FAMILIES, Family, pair
from vprompt.data.preprocessing import MAX_SIDE
from vprompt.utils.errors import BackboneError

TOLERANCE = 1e-4
"""Largest difference of two features that are equal but for rounding, relative to their norm."""

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of interpolations."""


def convert(model: nn.Module, *, img_size: Any = None, place: str | None = None) -> nn.Module:
    """timm's module of the function of a model of transformers, which is not changed.

    Weights are shared with it but for queries, keys and values, which timm holds as one tensor, and positions of
    images of another size. Dropout and stochastic depth are left out.

    Args:
        model: A model of a registered family, or one that contains such a model.
        img_size: Input size where it should differ.
        place: Folder or id on the Hub that it is from; its own word when not given.

    Raises:
        BackboneError: If its class is not converted, or the module is not of the same function.
    """
    trunk, family = _trunk(model)
    place = str(getattr(model, "name_or_path", "")) if place is None else place
    processor, config = _processor(place), trunk.config
    own = pair(config.image_size)
    size = own if img_size is None else pair(img_size)
    if img_size is None and family.sizes == "always":
        size = _size(processor) or own
    try:
        like = next(trunk.parameters())
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _evaluating(model):
            module: Any = _converted(model, trunk, family, size)
            if not like.is_meta:
                _check(model, size)
    except BackboneError:
        raise
    except Exception as error:  # torch, timm and transformers each raise their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = next((line.strip() for line in lines if "mismatch" in line), lines[0])
        raise _refusal(model, family, f"with images of {size[0]}×{size[1]} pixels, {why.rstrip('.')}") from error
    name = _name(place) or type(model).__name__
    module.pretrained_cfg = module.default_cfg = {
        "architecture": name,
        "hf_hub_id": name.removeprefix("hf:") if name.startswith("hf:") and not os.path.isdir(place) else None,
        "input_size": (config.num_channels, *size),
        "mean": _statistics(processor, "image_mean", family.mean, 0.0, config.num_channels),
        "std": _statistics(processor, "image_std", family.std, 1.0, config.num_channels),
        "interpolation": _FILTERS.get(processor.get("resample", -1), family.interpolation),
    }
    return module.train(model.training)


def convert_name(place: str, *, pretrained: bool, img_size: Any = None, in_chans: int | None = None) -> nn.Module:
    """timm's module of the function of a model by name.

    Args:
        place: Folder that transformers saved, or id on the Hub (`user/name`, `user/name@revision`).
        pretrained: Load the weights; else they are random.
        img_size: Input size where it should differ.
        in_chans: Channels, for a check.

    Raises:
        BackboneError: If it cannot be had, or not converted.
    """
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise BackboneError(
            f"The backbone 'hf:{place}' needs transformers: pip install 'vprompt[transformers]'."
        ) from error
    if os.path.isabs(place) and not os.path.isdir(place):
        raise BackboneError(
            f"The folder {place} of the backbone is not there; put it back, or give vprompt.load the backbone."
        )
    path, _, revision = (place, "", "") if os.path.isdir(place) else place.partition("@")
    how = {"revision": revision or "main"}
    with _quiet(library), torch.random.fork_rng(devices=[]):
        try:
            config: Any = library.AutoConfig.from_pretrained(path, **how)
        except Exception as error:  # transformers, the Hub and the file system each raise their own
            why = str(error).strip().splitlines()[0].rstrip(".")
            raise BackboneError(
                f"There is no model of transformers in 'hf:{place}' ({why}); give an id on the Hub, or a folder that "
                "its save_pretrained wrote."
            ) from error
        family = next((cls() for cls in FAMILIES if config.model_type in cls.types), None)
        if family is None:
            raise BackboneError(f"'hf:{place}' is a model of type {config.model_type!r}, and {_listed()}.")
        cls, vision = getattr(library, family.loaded(config)), getattr(config, "vision_config", config)
        if hasattr(vision, "projection_dim"):  # of CLIP as a whole, that of its vision part is not read
            vision.projection_dim = config.projection_dim
        if in_chans not in (None, vision.num_channels):
            channels = f"images of {vision.num_channels} channels, not {in_chans}"
            raise BackboneError(f"The backbone 'hf:{place}' takes {channels}; leave in_chans out.")
        if not pretrained:
            return convert(cls(vision).eval(), img_size=img_size, place=place)
        try:
            options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, **how}
            model, found = cls.from_pretrained(path, config=vision, **options)
        except Exception as error:
            why = str(error).strip().splitlines()[0].rstrip(".")
            raise BackboneError(
                f"The weights of 'hf:{place}' cannot be read ({why}); save them again as .safetensors."
            ) from error
    lacking = [key for key in sorted(found["missing_keys"]) if not re.match(rf"(.*\.)?({family.unused})", key)]
    if lacking or found["mismatched_keys"]:
        what = lacking[0] if lacking else sorted(map(str, found["mismatched_keys"]))[0]
        raise BackboneError(f"The weights of 'hf:{place}' lack {what!r} of {cls.__name__}; give all of its weights.")
    return convert(model.eval(), img_size=img_size, place=place)


def _trunk(model: nn.Module) -> tuple[Any, Family]:
    """The part of a model that is converted, and its family."""
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in FAMILIES and cls.__module__.startswith("transformers."):
                return module, FAMILIES.get(cls.__name__)()
    raise BackboneError(f"The model class {type(model).__name__} of transformers is not converted; {_listed()}.")


def _listed() -> str:
    return f"converted are {', '.join(FAMILIES.names())}, and models that contain one of these"


def _refusal(model: nn.Module, family: Family, why: str) -> BackboneError:
    return BackboneError(
        f"This {type(model).__name__} of transformers cannot be converted exactly: {why}; give a {family.name} that is "
        "made as transformers makes it, or timm's model of these weights."
    )


def _converted(model: nn.Module, trunk: Any, family: Family, size: tuple[int, int]) -> nn.Module:
    """timm's module with the weights of a model."""
    config, like = trunk.config, next(trunk.parameters())
    if max(size) > MAX_SIDE:
        raise _refusal(model, family, f"images have at most {MAX_SIDE} pixels a side, not {max(size)}")
    with torch.device("meta"):
        module: Any = family.timm(img_size=size, **family.options(config))
    library: Any = importlib.import_module("transformers.activations")
    for part in module.modules():
        if hasattr(part, "fc2") and hasattr(part, "act"):
            part.act = library.ACT2FN[family.activation(config)]
    wanted = module.state_dict()
    state = _state(trunk, family, size, wanted)
    extra, missing = sorted(state.keys() - wanted.keys()), sorted(wanted.keys() - state.keys())
    if extra or missing:
        what = f"it has {extra[0]!r}, which is unknown" if extra else f"it lacks {missing[0]!r}"
        raise _refusal(model, family, what)
    module.load_state_dict(state, assign=True)
    family.settle(module, trunk, like.new_empty(1, config.num_channels, *size))
    projection = getattr(model, "visual_projection", None)
    if projection is not None:
        out, into = projection.weight.shape
        with torch.device("meta"):
            module.head = nn.Linear(into, out, bias=False)
        module.head.load_state_dict({"weight": projection.weight.detach()}, assign=True)
        module.num_classes = out
    return module.eval()


def _state(trunk: Any, family: Family, size: tuple[int, int], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights by timm's names."""
    state: dict[str, Tensor] = {}
    for name, tensor in trunk.state_dict().items():
        if not re.match(family.unused, name):
            state[family.renamed(name)] = tensor.detach()
    family.finish(state)
    for name in [name for name in wanted if ".attn.qkv." in name]:
        parts = [state.pop(name.replace(".qkv.", f".{kind}."), None) for kind in "qkv"]
        there = next((part for part in parts if part is not None), None)
        if there is not None:  # a bias that is not there is none
            state[name] = torch.cat([torch.zeros_like(there) if part is None else part for part in parts])
    if family.positions is not None:
        positions = _positions(trunk, size, state["pos_embed"], family.positions)
        if "reg_token" in wanted:  # timm then adds no positions to what is before the patches
            before = positions[:, : family.positions].split(1, 1)
            for name, position in zip(("cls_token", "reg_token"), before, strict=False):
                state[name] = state[name] + position
            positions = positions[:, family.positions :]
        state["pos_embed"] = positions
    like = next(iter(state.values()))
    for name in wanted.keys() - state.keys():
        if name.endswith(".bias"):
            state[name] = like.new_zeros(wanted[name].shape)
    return state


def _positions(trunk: Any, size: tuple[int, int], positions: Tensor, before: int) -> Tensor:
    """Positions of images of a size, (1, N, D), resized by transformers where they are not its own."""
    positions = positions.reshape(-1, *positions.shape[-2:])
    config = trunk.config
    if size == pair(config.image_size):
        return positions
    height, width = pair(config.patch_size)
    count = before + (size[0] // height) * (size[1] // width)
    return trunk.embeddings.interpolate_pos_encoding(positions.new_empty(1, count, positions.shape[-1]), *size)


def _check(model: nn.Module, size: tuple[int, int]) -> None:
    """Compares features of random images, in float32 where the model is of lower precision."""
    if next(model.parameters()).itemsize < 4:
        model = copy.deepcopy(model).float()
    trunk, family = _trunk(model)
    like = next(trunk.parameters())
    numbers = torch.randn(2, trunk.config.num_channels, *size, generator=torch.Generator().manual_seed(0))
    images = numbers.to(like)
    own = family.sizes == "always" or size == pair(trunk.config.image_size)
    options = {} if own else {"interpolate_pos_encoding": True}
    theirs = family.feature(trunk, images, **options)
    module: Any = _converted(model, trunk, family, size)
    ours = module.forward_head(module.forward_features(images), pre_logits=True)
    difference = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    if not difference <= TOLERANCE:
        why = f"its features differ from those of timm's module by {difference:.2g} of their norm"
        raise _refusal(model, family, why)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """In eval mode meanwhile."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _quiet(library: Any) -> Generator[None]:
    """Without reports of what was loaded: what is missing is an error."""
    log = library.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _name(place: str) -> str | None:
    """What `create_backbone` makes it by; None where it came from nowhere."""
    return f"hf:{os.path.abspath(place)}" if os.path.isdir(place) else f"hf:{place}" if place else None


def _processor(place: str) -> dict[str, Any]:
    """The image processor's settings, where they are at hand."""
    if not place:
        return {}
    library: Any = importlib.import_module("transformers.image_processing_base")
    path, _, revision = (place, "", "") if os.path.isdir(place) else place.partition("@")
    with contextlib.suppress(OSError, ValueError):
        how = {"revision": revision or "main"}
        return library.ImageProcessingMixin.get_image_processor_dict(path, local_files_only=True, **how)[0]
    return {}


def _size(processor: dict[str, Any]) -> tuple[int, int] | None:
    """The size of images behind an image processor."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    return None if size is None else pair(size)


def _statistics(
    processor: dict[str, Any], key: str, usual: tuple[float, ...], none: float, channels: int
) -> tuple[float, ...]:
    """Mean or standard deviation, as the image processor has it."""
    if not processor.get("do_normalize", True):
        return (none,) * channels
    return tuple(processor.get(key) or usual)
