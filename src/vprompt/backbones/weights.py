"""Weights from a file: read and converted by timm, never by code in the file, and every tensor accounted for."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import timm
import torch
from safetensors.torch import load, load_file
from timm.models import clean_state_dict, deit
from torch import Tensor, nn

from vprompt.utils.errors import BackboneError

_SWIN_BUFFERS = ("relative_position_index", "attn_mask")
"""Buffers of original Swin files, whose names alone tell nothing."""

_AVERAGED, _LESS = {"ema", "teacher"}, {"student", "momentum", "target"}
"""Words in the names of a trainer's parts: of averages, which DINO and timm evaluate, and of what is left aside."""

_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
"""Blocks that were trained in chunks (DINOv2): their chunk, and their number in all."""

_WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts in front of the names of a module's parts that it compiles, shards or checkpoints, on every level."""

_PRETRAINING = ("mask_token", "masked_embed")
"""Parameters that stand for hidden patches in pre-training, and are of no use afterwards."""

_PARTS = ("state_dict_ema.", "model_ema.", "state_dict.", "model.", "")
"""Where timm looks for weights in a training checkpoint."""

_KINDS = "a .safetensors file, a PyTorch checkpoint, or a .npz file of Google's ViT"


def check_weights_file(file: Path) -> None:
    """Checks that a weights file is there and not empty.

    Raises:
        BackboneError: If there is none, or nothing in it.
    """
    if os.path.isdir(file):  # unlike Path.is_dir, never raises
        raise BackboneError(f"{file} is a folder; give the file with the weights in it.")
    if not os.path.exists(file):
        raise BackboneError(f"There is no weights file {file}; check the path.")
    if os.path.getsize(file) == 0:
        raise BackboneError(f"The weights file {file} is empty (0 bytes); download or save it again.")
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max(10**9, 20 * os.path.getsize(file)):
            raise BackboneError(
                f"The weights file {file} unpacks to {unpacked / 1e9:.0f} GB, which no weights do; give another."
            )


def load_weights(model: nn.Module, file: Path, name: str) -> None:
    """Fills a backbone that timm made, without its classifier, from a file.

    timm converts from the layouts that it knows (original Swin, DeiT, BEiT, DINOv2, CLIP and others, Google's `.npz`)
    and resizes what depends on the input size. A classifier in the file is left out.

    Args:
        model: Made by timm with `num_classes=0`; changed in place.
        file: A `.safetensors` file, a PyTorch checkpoint, or a `.npz` file.
        name: Name of the backbone, for messages.

    Raises:
        BackboneError: If the file cannot be read without running code, or is not of exactly this backbone.
    """
    if file.suffix.lower() == ".npz":
        _load_arrays(model, file, name)
    else:
        wanted = model.state_dict()
        prefix, state = _unwrapped(_read(file), wanted, file)
        where = f"{file} (under {prefix.rstrip('.')!r})" if prefix else str(file)
        _check_plain(state, file)
        _check_patches(state, model, where, name)
        state = _converted(state, model, where, name)
        _check_fit(state, wanted, where, name)
        model.load_state_dict(state)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BackboneError(
                f"{key!r} in the weights file {file} has values that are NaN or infinite; give another."
            )


def weights_file(model: nn.Module) -> Path | None:
    """The file that a timm model has its weights from, where that is not the one its name stands for."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    file, tag = config.get("file"), config.get("tag")
    if not file or config.get("source") == "local-dir":
        return None
    architecture = config.get("architecture", "")
    with contextlib.suppress(RuntimeError):  # a tag of the user's own
        registered = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
        if registered is not None and registered.file == file:
            return None
    return Path(file).absolute()


def weights_origin(model: nn.Module) -> dict[str, str] | None:
    """Name and SHA-256 (first 16 hex digits) of `weights_file`, for the record; None where there is no such file.

    Raises:
        BackboneError: If the file is not there any more.
    """
    file = weights_file(model)
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            return {"file": file.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()[:16]}
    except OSError as error:
        raise BackboneError(f"The weights file {file} cannot be read any more ({error.strerror}).") from error


def _read(file: Path) -> dict[str, Any]:
    """What is in a file, by dotted names."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's unpickler about pickle protocols that it then refuses
            with file.open("rb") as stream:
                start = stream.read(9)
            if file.suffix.lower() == ".safetensors" or start[8:] == b"{":  # whatever it is called
                utf8 = str(file) == str(file).encode(errors="ignore").decode()
                return dict(load_file(file) if utf8 else load(file.read_bytes()))  # it takes no other path
            return dict(_leaves(torch.load(file, map_location="cpu", weights_only=True)))
    except Exception as error:  # torch, safetensors and the file system each raise their own
        why = f" ({reason(error)})"
        if isinstance(error, pickle.UnpicklingError):
            if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise BackboneError(
                    f"The weights file {file} is a pickle that runs code when it is read ({needed[1]}), and vprompt "
                    "runs none; give the tensors alone, best as .safetensors."
                ) from error
            why = ""
        raise BackboneError(f"The weights file {file} is damaged or of no known kind{why}; give {_KINDS}.") from error


def _leaves(document: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in a mapping and, under dotted names, in those within it."""
    for key, value in document.items():
        if isinstance(value, Mapping) and place.count(".") < 5:  # a mapping may hold itself
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _unwrapped(found: dict[str, Any], wanted: Mapping[str, Tensor], file: Path) -> tuple[str, dict[str, Any]]:
    """The tensors of a model out of what a trainer saved around them, and the prefix under which they stood.

    Whatever wraps them, the ends of their names are those of the model: of all prefixes, the one under which most of
    the names are, and most with the right shape. Of several such parts an average of weights is taken, and said.
    """
    found = {_CHUNK.sub(r"\1blocks.\2.", _WRAPPED.sub("", key)): value for key, value in found.items()}
    matches: dict[str, list[bool]] = {}
    for key, value in found.items():
        shape = None if _unusable(value) else value.shape
        for start in (0, *(place.end() for place in re.finditer(r"\.", key))):
            if key[start:] in wanted:
                matches.setdefault(key[:start], []).append(shape == wanted[key[start:]].shape)
    most = max(((len(shapes), sum(shapes)) for shapes in matches.values()), default=(0, 0))
    if 2 * most[0] < len(wanted):  # the layout of another library, which timm converts
        part = next((part for part in _PARTS if any(key.startswith(part) for key in found)), "")
        return "", clean_state_dict(_under(found, part))

    def order(prefix: str) -> int:
        words = set(re.split(r"[._]", prefix))
        return bool(words & _LESS) - bool(words & _AVERAGED)

    parts = sorted((p for p, shapes in matches.items() if (len(shapes), sum(shapes)) == most), key=order)
    if len(parts) > 1:
        listed = ", ".join(repr(part.rstrip(".")) for part in parts)
        warnings.warn(f"{file} has weights of this backbone under {listed}; the first were taken.", stacklevel=4)
    return parts[0], _under(found, parts[0])


def _under(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}


def _unusable(value: Any) -> str | None:
    """A tensor's form that has no numbers to copy; None for one that has."""
    if not isinstance(value, Tensor):
        return "no tensor"
    if value.is_meta:
        return "on the meta device, without numbers"
    if value.is_nested or value.layout != torch.strided:
        return "a sparse or nested tensor"
    if value.is_quantized:
        return "quantised"
    # One number may serve as many: then a small file fills the memory.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "larger than what the file holds of it"
    return None


def _check_plain(state: Mapping[str, Any], file: Path) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and (form := _unusable(value)) is not None:
            raise BackboneError(
                f"{key!r} in the weights file {file} is {form}; save the weights as ordinary tensors, best as "
                ".safetensors."
            )


def _check_patches(state: Mapping[str, Any], model: nn.Module, file: str, name: str) -> None:
    """Refuses patches of another size: timm would resample them, and make another backbone of it."""
    key = "patch_embed.proj.weight"
    wanted = model.state_dict().get(key)
    given = next((value for other, value in state.items() if other.endswith(key) and isinstance(value, Tensor)), None)
    if wanted is None or given is None or given.ndim != 4 or given.shape[2:] == wanted.shape[2:]:
        return
    config: Any = model.pretrained_cfg
    if "flexi" not in config["architecture"]:
        there, here = ("×".join(map(str, tensor.shape[2:])) for tensor in (given, wanted))
        _refuse(file, name, f"their patches are {there} pixels, and its {here}")


def _converted(state: dict[str, Any], model: nn.Module, file: str, name: str) -> dict[str, Any]:
    """The file's tensors in the layout of the model, without a classifier."""
    config: Any = model.pretrained_cfg
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm prints while it converts DINOv3, and resizes tables with warnings
            return _headless(_conversion(config["architecture"])(state, model), model)
    except Exception as error:  # what a conversion raises on weights of something else has no common base
        if not state.keys() & {f"layers.0.blocks.0.attn.{buffer}" for buffer in _SWIN_BUFFERS}:
            _check_fit(_headless(state, model), model.state_dict(), file, name)
        _refuse(file, name, f"timm cannot convert them to it, as if they were of another size ({reason(error)})", error)


def _headless(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    config: Any = model.pretrained_cfg
    classifiers = config.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    dropped = tuple(f"{head}." for head in heads)  # of one layer or, for pre-training, of several
    if "siglip" in config["architecture"] and getattr(model, "attn_pool", None) is None:
        dropped += ("attn_pool.",)  # the same file for models that do not pool so
    return {key: value for key, value in state.items() if not key.startswith(dropped) and key not in _PRETRAINING}


def _conversion(architecture: str) -> Callable[[dict[str, Any], nn.Module], dict[str, Any]]:
    """timm's own conversion of checkpoints of an architecture, with the settings that timm calls it with."""
    module = sys.modules[timm.model_entrypoint(architecture).__module__]
    names = ("checkpoint_filter_fn", "checkpoint_filter_fn_classifier")
    convert = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if convert is None:
        return lambda state, model: state
    if module is deit:
        return partial(convert, adapt_layer_scale=True)
    if "flexi" in architecture:
        return partial(convert, interpolation="bilinear", antialias=False)
    if "radio" in architecture:
        corners = architecture.endswith(("base_patch16_radio_v3", "huge_patch16_radio_v3"))
        return partial(convert, interpolation="bilinear", antialias=False, align_corners=corners)
    return convert


def _check_fit(state: Mapping[str, Any], wanted: Mapping[str, Tensor], file: str, name: str) -> None:
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    lack = [f"lack {key!r}" for key in missing[:1]] + [f"have {key!r}, which it does not have" for key in extra[:1]]
    if lack:
        _refuse(file, name, f"they {', and '.join(lack)}")
    for key, tensor in wanted.items():
        value = state[key]
        if not isinstance(value, Tensor):
            _refuse(file, name, f"{key!r} is no tensor")
        if value.shape != tensor.shape:
            there, here = ("×".join(map(str, shape)) or "one number" for shape in (value.shape, tensor.shape))
            sized = ", which may come from another image size, to which timm does not fit it" if "pos" in key else ""
            _refuse(file, name, f"{key!r} is {there} in the file, and {here} in the backbone{sized}")
        if tensor.is_floating_point() and not value.is_floating_point():
            _refuse(file, name, f"{key!r} is of type {value.dtype}, not floating point")


def _load_arrays(model: nn.Module, file: Path, name: str) -> None:
    """Loads Google's arrays by timm; what it leaves alone shows by the NaN that it held before."""
    load: Any = getattr(model, "load_pretrained", None)
    if load is None:
        raise BackboneError(
            f"timm reads no .npz file for the backbone {name!r}, only for plain ViTs; give a .safetensors file or a "
            f"PyTorch checkpoint instead of {file}."
        )
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    try:
        blocks = _count_blocks(file)
        load(str(file))
    except KeyError as error:
        _refuse(file, name, f"they lack {str(error.args[0]).removesuffix(' is not a file in the archive')!r}", error)
    except RuntimeError as error:  # torch, of shapes
        _refuse(file, name, reason(error), error)
    except Exception as error:  # numpy, zipfile and the file system each raise their own
        raise BackboneError(
            f"The weights file {file} is damaged, or no .npz file of Google's ViT ({reason(error)}); give {_KINDS}."
        ) from error
    depth = len(model.get_submodule("blocks"))  # pyright: ignore[reportArgumentType] - an nn.Sequential
    if blocks != depth:
        _refuse(file, name, f"they have {blocks} blocks, and it has {depth}")
    unset = [key for key, tensor in model.state_dict().items() if bool(torch.isnan(tensor).all())]
    if unset:
        _refuse(file, name, f"they lack {unset[0]!r}")


def _count_blocks(file: Path) -> int:
    """The number of transformer blocks in Google's arrays, one by one or stacked."""
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        names: list[str] = arrays.files
        for name in names:
            if name.endswith("Transformer/encoderblock/LayerNorm_0/scale"):
                return len(arrays[name])
    return len({match[1] for name in names if (match := re.search(r"Transformer/encoderblock_(\d+)/", name))})


def _refuse(file: str | Path, name: str, why: str, cause: Exception | None = None) -> NoReturn:
    raise BackboneError(
        f"The weights in {file} are not those of the backbone {name!r}: {why}; give weights of this backbone, or the "
        "name of theirs."
    ) from cause


def reason(error: Exception) -> str:
    """The class of an error and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}" if text else type(error).__name__
