"""An adapter's tensors: taken from a model, and read from a file with every doubt about it answered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vprompt.model.config import AdapterConfig
from vprompt.utils.errors import AdapterError

if TYPE_CHECKING:
    from vprompt.model.model import PromptedModel

CONFIG_FILE = "adapter_config.json"

TENSORS_FILE = "adapter_model.safetensors"

TUNED = "tuned."
"""How the names of tensors begin that act in the backbone; whether they fit is for the backbone to say."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensors_of(model: PromptedModel) -> dict[str, Tensor]:
    """The prompts of the blocks that have any, what is tuned in the backbone, and the head, on the CPU as they are.

    Of prompts whose segments were pruned, the kept ones (K, D / R), and a mask (P, R) that says which they are; of
    merged prompts, how many each stands for (P,).
    """
    held: dict[str, Tensor] = {f"prompts.{block}": p for block, p in enumerate(model.prompts) if len(p)}
    if model.prompts.num_segments > 1:
        held |= {f"segments.{n}": model.prompts.segments(n) for n, p in enumerate(model.prompts) if len(p)}
    if model.prompts.merged:
        held |= {f"copies.{n}": torch.tensor(model.prompts.copies[n]) for n, p in enumerate(model.prompts) if len(p)}
    held |= {f"kv_prompts.{block}": prompts for block, prompts in enumerate(model.kv_prompts)}
    held |= {f"{TUNED}{name}": p for name, p in model.tuned.named_parameters()}
    held |= {f"head.{name}": p for name, p in model.head.named_parameters()}
    return {name: p.detach().cpu().contiguous().clone() for name, p in held.items()}


def read_bytes(path: Path) -> bytes:
    """The bytes of one of an adapter's files.

    Raises:
        AdapterError: If it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        pickles = [file for file in ("adapter_model.bin", "adapter_model.pt") if (path.parent / file).exists()]
        note = f" {pickles[0]} is not read: pickles can run code." if pickles and path.name == TENSORS_FILE else ""
        raise AdapterError(
            f"The folder {path.parent} has no {path.name}: it holds no adapter, or its saving was cut short.{note} "
            "Check the path, or save the adapter again."
        ) from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error}); check the file and its permissions.") from error


def read_tensors(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors that a configuration calls for, from a safetensors file.

    Raises:
        AdapterError: If the file is not the one the configuration was written for, or what is in it does not fit.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != config.tensors_sha256:
        raise AdapterError(
            f"{path} is damaged, or is not the file that {CONFIG_FILE} was written for: its SHA-256 begins with "
            f"{digest[:12]}, not {config.tensors_sha256[:12]}; save or download the adapter again."
        )
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise AdapterError(f"{path} is no safetensors file ({error}); save or download the adapter again.") from error
    check_tensors(tensors, config, str(path))
    return {name: tensor.clone() for name, tensor in tensors.items()}


def check_tensors(tensors: dict[str, Tensor], config: AdapterConfig, where: str) -> None:
    """Compares names, shapes and types with the configuration, and looks for numbers that are not finite.

    Args:
        tensors: By name.
        config: What they should be.
        where: The file, for messages.

    Raises:
        AdapterError: If something does not fit.
    """
    shapes, redo = config.shapes, "save or download the adapter again"
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise AdapterError(f"{where} lacks the tensor {missing[0]!r} that {CONFIG_FILE} calls for; {redo}.")
    if extra := sorted(name for name in tensors.keys() - shapes.keys() if not name.startswith(TUNED)):
        raise AdapterError(f"{where} has a tensor {extra[0]!r} that {CONFIG_FILE} does not call for; {redo}.")
    tuned = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(TUNED)}
    for name, wanted in (shapes | tuned).items():
        tensor = tensors[name]
        found = tuple(tensor.shape)
        if len(found) != len(wanted) or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
            shown = "×".join("any" if size is None else str(size) for size in wanted)
            raise AdapterError(f"{name!r} in {where} has the shape {'×'.join(map(str, found))}, not {shown}; {redo}.")
        if name.startswith("segments."):
            _check_mask(tensor, len(tensors[name.replace("segments", "prompts")]), f"{name!r} in {where}")
            continue
        if name.startswith("copies."):
            _check_copies(tensor, f"{name!r} in {where}")
            continue
        if tensor.dtype not in _DTYPES:
            raise AdapterError(f"{name!r} in {where} is of type {tensor.dtype}, not floating point; {redo}.")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name!r} in {where} has values that are NaN or infinite; train the adapter again.")


def _check_mask(mask: Tensor, kept: int, where: str) -> None:
    """Raises an AdapterError for a mask of segments that does not say where the kept ones belong."""
    if mask.dtype != torch.bool or int(mask.sum()) != kept or not bool(mask.any(1).all()):
        raise AdapterError(
            f"{where} should be a mask of booleans that places {kept} segments, at least one in every prompt; save or "
            "download the adapter again."
        )


def _check_copies(copies_P: Tensor, where: str) -> None:
    """Raises an AdapterError for numbers of prompts that cannot be."""
    if copies_P.dtype != torch.int64 or not bool(((copies_P >= 1) & (copies_P < 2**31)).all()):
        raise AdapterError(
            f"{where} should say for how many prompts each one stands, whole numbers from 1; save or download the "
            "adapter again."
        )
