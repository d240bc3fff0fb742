"""Tensors of an adapter: taken from a model, read from a file and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vprompt.methods.layers.head import head_values
from vprompt.model.config import AdapterConfig
from vprompt.utils.errors import AdapterError

if TYPE_CHECKING:
    from vprompt.model.model import PromptedModel

CONFIG_FILE = "adapter_config.json"

TENSORS_FILE = "adapter_model.safetensors"

TUNED = "tuned."
"""Prefix of the names of tensors that act in the backbone; their shapes are the method's on that backbone."""

_REDO = "save or download the adapter again"

Shape = tuple[int | None, ...]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def tensors_of(model: PromptedModel) -> dict[str, Tensor]:
    """All that was learned, on the CPU as it is; see `held`."""
    return {name: p.detach().cpu().contiguous().clone() for name, p in held(model).items()}


def held(model: PromptedModel) -> dict[str, Tensor]:
    """All that was learned, where it is: prompts, key-value prompts, what is tuned in the backbone, the head.

    Of prompts whose segments were pruned, the retained ones (K, D / R), and a mask (P, R) that says which they are; of
    merged prompts, their multiplicity (P,).
    """
    prompts = model.prompts.settled()
    tensors: dict[str, Tensor] = {f"prompts.{name}": p for name, p in prompts.named_parameters() if p.numel()}
    used = [block for block, count in enumerate(prompts.counts) if count]
    if prompts.num_segments > 1:
        tensors |= {f"segments.{block}": prompts.segments(block) for block in used}
    if prompts.merged:
        tensors |= {f"copies.{block}": torch.tensor(prompts.multiplicity[block]) for block in used}
    tensors |= {f"kv_prompts.{block}": values for block, values in enumerate(model.kv_prompts)}
    tensors |= {f"{TUNED}{name}": p for name, p in model.tuned.named_parameters()}
    return tensors | {f"head.{name}": value for name, value in head_values(model.head).items()}


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
    check_values(tensors, str(path))
    return {name: tensor.clone() for name, tensor in tensors.items()}


def check_values(tensors: dict[str, Tensor], where: str) -> None:
    """Checks that tensors are of the types that belong there, and their numbers finite.

    Args:
        tensors: By name.
        where: The file, for messages.

    Raises:
        AdapterError: If there is one.
    """
    for name, tensor in tensors.items():
        if name.startswith("segments."):
            retained = len(tensors.get(name.replace("segments", "prompts"), ()))
            if tensor.dtype != torch.bool or int(tensor.sum()) != retained or not bool(tensor.any(1).all()):
                raise AdapterError(
                    f"{name!r} in {where} should be a mask of booleans that places {retained} segments, at least one "
                    f"in every prompt; {_REDO}."
                )
        elif name.startswith("copies."):
            if tensor.dtype != torch.int64 or not bool(((tensor >= 1) & (tensor < 2**31)).all()):
                problem = "should say for how many prompts each one stands, whole numbers from 1"
                raise AdapterError(f"{name!r} in {where} {problem}; {_REDO}.")
        elif tensor.dtype not in _DTYPES:
            raise AdapterError(f"{name!r} in {where} is of type {tensor.dtype}, not floating point; {_REDO}.")
        elif not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name!r} in {where} has values that are NaN or infinite; train the adapter again.")
    learned = {n: t.dtype for n, t in tensors.items() if not n.startswith(("segments.", "copies."))}
    if len(types := set(map(str, learned.values()))) > 1:
        raise AdapterError(f"The tensors in {where} are of several types ({', '.join(sorted(types))}); {_REDO}.")


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], where: str) -> None:
    """Compares names and shapes with those that a method has on its backbone.

    Args:
        tensors: By name.
        shapes: The shapes they should have; a size is None where the file decides.
        where: The file, for messages.

    Raises:
        AdapterError: If something does not fit.
    """
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise AdapterError(f"{where} lacks the tensor {missing[0]!r} that {CONFIG_FILE} calls for; {_REDO}.")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise AdapterError(f"{where} has a tensor {extra[0]!r} that {CONFIG_FILE} does not call for; {_REDO}.")
    for name, wanted in shapes.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != len(wanted) or any(w not in (None, n) for n, w in zip(shape, wanted, strict=True)):
            there, here = "×".join(map(str, shape)), "×".join("any" if n is None else str(n) for n in wanted)
            raise AdapterError(
                f"{name!r} in {where} has the shape {there}, not {here}; give the backbone the adapter was trained on, "
                f"or {_REDO}."
            )
