"""Backbones by name: timm makes them and loads their weights; what goes wrong becomes one sentence."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import nn

from vprompt.backbones.bundled import BUNDLED_BACKBONE, FORMER_NAMES
from vprompt.backbones.bundled import vit as _bundled_vit  # noqa: F401  # pyright: ignore[reportUnusedImport] - registers it
from vprompt.backbones.catalogue import read
from vprompt.backbones.huggingface.convert import convert, convert_name
from vprompt.backbones.info import BackboneInfo, describe
from vprompt.backbones.names import SHORT_NAMES, full_name
from vprompt.backbones.weights import check_weights_file, load_weights, reason
from vprompt.data.preprocessing import MAX_SIDE
from vprompt.utils.errors import BackboneError

HUB_SECONDS = 4.0
"""To wait for the Hub's first answer: a network that drops what is sent must not make a run wait."""


def can_create(name: str) -> bool:
    """Whether `create_backbone` can try this name: one that timm has, or hf:, hf-hub: or local-dir: and a place."""
    name = timms_name(name)
    return name.startswith(("hf:", "hf-hub:", "local-dir:")) or timm.is_model(name)


def as_timm(model: nn.Module) -> nn.Module:
    """A model of transformers as timm's module of the same function; others as they are.

    Raises:
        BackboneError: If it is of transformers, and not one that is converted exactly.
    """
    foreign = any(cls.__module__ == "transformers.modeling_utils" for cls in type(model).__mro__)
    return convert(model) if foreign else model


def names_folder(name: str) -> bool:
    """Whether a backbone's name says a folder of this machine."""
    source, _, place = timms_name(name).partition(":")
    folder = os.path.isabs(place) or place.startswith((".", "~")) or place.count("/") > 1 or os.path.isdir(place)
    return source == "local-dir" or (source == "hf" and folder)


def public_name(name: str) -> str:
    """A backbone's name for what others get to see: where folders lie on this machine is nobody's business."""
    source, _, place = name.partition(":")
    return f"{source}:{Path(place).name}" if names_folder(name) else name


def create_backbone(
    name: str,
    *,
    pretrained: bool = True,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    weights: str | Path | None = None,
) -> nn.Module:
    """Makes a timm model by name.

    Args:
        name: `small`, `base`, `large` or `bundled` (`vprompt.backbones.names`), or any name that `timm.create_model`
            takes, `hf-hub:` and `local-dir:` included, and what stands for such a name elsewhere; see `timms_name`. Or
            `hf:` and a model of transformers: its id on the Hub, or a folder that `save_pretrained` wrote.
        pretrained: Load the weights, from timm's cache, the Hub or the package.
        img_size: Input size in pixels (one number, or height and width) where it should differ from the
            pre-training size; timm resizes position embeddings and relative position tables.
        in_chans: Channels of the images, where they are not RGB; timm makes the first layer's weights of those for RGB.
        weights: File with other weights than those that the name stands for: safetensors, a PyTorch checkpoint in
            timm's or the original layout, or a `.npz` file of Google's ViT. The preprocessing still comes with the
            name and its tag, and the model has no classifier.

    Raises:
        BackboneError: If timm knows no such model, or its weights cannot be had.
    """
    given, name = name, timms_name(name)
    if not can_create(name):
        raise BackboneError(f"timm has no model called {given!r}; {_hint(name)}.")
    if weights is not None:
        if in_chans not in (None, 3):
            raise BackboneError(f"Weights from a file are for RGB, not for {in_chans} channels; leave one of them out.")
        return _create_from_file(name, Path(weights).absolute(), pretrained=pretrained, img_size=img_size)
    if name.startswith("hf:"):
        require_weights(name)
        place = name.removeprefix("hf:")
        return convert_name(place, pretrained=pretrained, img_size=img_size, in_chans=in_chans)
    if pretrained or name.startswith("hf-hub:"):  # there, even the architecture is on the Hub
        require_weights(name)
    channels = {} if in_chans in (None, 3) else {"in_chans": in_chans}
    return _create(name, img_size, pretrained=pretrained, **channels)


def timms_name(name: str) -> str:
    """A name as timm writes it: from a short one, in capitals, with hyphens, of the Hub's pages, of earlier versions.

    Example:
        >>> timms_name("timm/ViT-Base-Patch16-224.augreg_in21k"), timms_name("HF_hub:me/ViT")
        ('vit_base_patch16_224.augreg_in21k', 'hf-hub:me/ViT')
    """
    name = full_name(name.strip())
    source, colon, place = name.partition(":")
    if colon and (source := source.lower().replace("_", "-")) in ("hf", "hf-hub", "local-dir"):
        return f"{source}:{place}"
    plain = re.sub(r"^((https?://)?(www\.)?(huggingface\.co|hf\.co)/)?(timm/)?", "", name)
    for spelling in (plain, plain.lower().replace("-", "_")):
        architecture, dot, tag = spelling.partition(".")
        architecture = FORMER_NAMES.get(architecture, architecture)
        if timm.is_model(architecture):
            return architecture + dot + tag
    return name


def _hint(name: str) -> str:
    """What to write instead of a name that there is not."""
    words = re.split(r"[/:]", name)[-1].partition(".")[0].lower().replace("-", "_")
    names = [entry.name for entry in read()]
    near = sorted((known for known in names if words and words in known), key=len)
    near = near or difflib.get_close_matches(words, names)
    hub = f", or hf-hub:{name} for timm's models of others" if name.count("/") == 1 and ":" not in name else ""
    return (f"close names: {', '.join(near[:3])}" if near else "`vprompt backbones` lists the names") + hub


def _create_from_file(name: str, file: Path, *, pretrained: bool, img_size: int | tuple[int, int] | None) -> nn.Module:
    if not pretrained:
        raise BackboneError(f"pretrained=False asks for no weights, and weights= for those in {file}; leave one out.")
    if ":" in name:
        raise BackboneError(
            f"The name {name!r} says where the weights are, and weights= gives {file}; leave that out, or give timm's "
            "name of the architecture."
        )
    check_weights_file(file)
    source = {"file": str(file), "custom_load": file.suffix.lower() == ".npz"}
    model = _create(name, img_size, pretrained=False, num_classes=0, pretrained_cfg_overlay=source)
    load_weights(model, file, name)
    return model


def _create(name: str, img_size: int | tuple[int, int] | None, **options: Any) -> nn.Module:
    try:
        if img_size is not None:
            height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
            if max(height, width) > MAX_SIDE:
                raise ValueError(f"at most {MAX_SIDE} pixels a side")
            # A model that takes any size keeps none; what its configuration says is then what images are brought to.
            overlay = {**options.get("pretrained_cfg_overlay", {}), "input_size": (3, height, width)}
            options.update(img_size=(height, width), pretrained_cfg_overlay=overlay)
        return timm.create_model(name, **options)
    except Exception as error:  # timm, the Hub and the file system each raise their own
        size = "" if img_size is None else f" with images of {img_size} pixels"
        raise BackboneError(
            f"The backbone {name!r} could not be made{size} ({reason(error)}); check the name"
            f"{' and the size' if size else ''}."
        ) from error


def require_weights(name: str) -> None:
    """Asks for the weights' whereabouts first: timm takes a minute to find out that the Hub cannot be reached.

    Raises:
        BackboneError: If they are neither in the cache nor to be had.
    """
    name = timms_name(name)
    if name.startswith(("hf:", "hf-hub:")) and not names_folder(name):
        repository, _, revision = name.partition(":")[2].partition("@")
        _require_reachable(name, repository, "config.json", revision or None)
    if ":" in name:
        return
    try:
        config: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise BackboneError(f"timm has no weights called {name!r}; there are {', '.join(tags) or 'none'}.") from error
    if config is not None and not config.file and config.hf_hub_id:
        _require_reachable(name, config.hf_hub_id, config.hf_hub_filename or "model.safetensors", None)


def _require_reachable(name: str, repository: str, file: str, revision: str | None) -> None:
    try:
        # timm takes the older file where the newer is not there.
        cached = (try_to_load_from_cache(repository, name, revision=revision) for name in (file, "pytorch_model.bin"))
        if any(isinstance(path, str) for path in cached):
            return
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OfflineModeIsEnabled  # the client only reads this when it is imported
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=HUB_SECONDS)
    except Exception as error:  # the Hub's own errors and the network's have no common base
        answered = getattr(getattr(error, "response", None), "status_code", None) is not None
        if answered and name not in SHORT_NAMES.values():  # these are there for sure: something on the way answered
            return  # it can be reached; timm knows other places to look
        raise BackboneError(
            f"The weights of the backbone {name!r} are not in the cache, and the Hub cannot be reached to get them "
            f"({type(error).__name__}); check the network, give a file of them (weights), or use the bundled "
            f"backbone {BUNDLED_BACKBONE!r}, which needs no download."
        ) from error


def describe_name(
    name: str, *, img_size: int | tuple[int, int] | None = None, in_chans: int | None = None
) -> BackboneInfo:
    """Describes a backbone before its weights are there; arguments and errors as those of `create_backbone`."""
    with torch.device("meta"):
        return describe(create_backbone(name, pretrained=False, img_size=img_size, in_chans=in_chans))
