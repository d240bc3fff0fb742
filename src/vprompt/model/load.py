"""Adapters on disk and on the Hub: all that was learned in one file, all else readable beside it.

A folder holds `adapter_config.json`, `adapter_model.safetensors` and `README.md`. The configuration is written last and
names the SHA-256 of the tensors, so a half-written adapter never looks finished.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vprompt.backbones.factory import as_timm, can_create, create_backbone, names_folder
from vprompt.backbones.info import describe, precision_of
from vprompt.backbones.names import BackbonePrecision
from vprompt.backbones.quantise import original_fingerprint, original_rounded, precision_held, quantise
from vprompt.backbones.weights import reason
from vprompt.methods.layers.head import head_values, new_head
from vprompt.methods.layers.prompts import Prompts
from vprompt.model import hub as adapter_hub
from vprompt.model.config import AdaptedBackbone, AdapterConfig, read_config
from vprompt.model.model import Execution, PromptedModel
from vprompt.model.tensors import CONFIG_FILE, TENSORS_FILE, TUNED, Shape, check_shapes, read_bytes, read_tensors
from vprompt.utils.errors import AdapterError, BackboneError

M = TypeVar("M", bound=nn.Module)

HUB = "hf:"
"""Beginning of what is on the Hub, whatever folders there are here."""


def load(
    source: str | Path,
    backbone: nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    execution: Execution = "prefix",
    backbone_precision: BackbonePrecision | None = None,
) -> PromptedModel:
    """Puts a saved adapter on its backbone.

    Args:
        source: A folder, or, where there is no such folder, an id `user/name` on the Hugging Face Hub; `hf:user/name`
            and `hf:user/name@COMMIT` are on the Hub in any case.
        backbone: The model (timm's or transformers') the adapter was trained on; made by name when not given. It is
            not changed.
        weights: File with the backbone's weights, as `vprompt.attach` takes it; when not given, the file that the
            adapter was trained with, beside the adapter or where it was (never for an adapter from the Hub), or else
            the weights that the name stands for.
        execution: `"prefix"` or `"published"`; the same function, see `PromptedModel`.
        backbone_precision: How to hold the backbone's linear layers, as `vprompt.attach` takes it; as in training when
            not given. In another, logits differ a little.

    Returns:
        A `PromptedModel` in eval mode; its logits are those of the saved one, bit for bit.

    Raises:
        AdapterError: If there is no adapter, a file of it is damaged, or the backbone is not the one it was trained on.
        BackboneError: If the backbone cannot be made or is not supported.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        vprompt.utils.errors.AdapterError: There is no folder 'no/such/folder', and that is no id on the Hub...
    """
    if backbone is not None and weights is not None:
        raise BackboneError("weights goes with a backbone made by name; a model object has its weights already.")
    folder = _find(source)
    config = read_config(read_bytes(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    tensors = read_tensors(folder / TENSORS_FILE, config)
    own = folder == Path(source)
    model = _make_backbone(config, folder, weights, own=own) if backbone is None else as_timm(backbone)
    now, then = precision_held(model), config.backbone.precision
    if backbone_precision is None and now not in ("fp32", then):
        raise AdapterError(
            f"The adapter was trained on a backbone in {then}, and this one is held in {now}; give the original, or "
            f"load it all the same: backbone_precision={now!r}."
        )
    model = quantise(model, backbone_precision or then)
    _check_backbone(config, model, by_name=backbone is None)
    return _assemble(config, tensors, model, execution, folder).eval()


def backbone_of(source: str | Path) -> AdaptedBackbone:
    """The backbone that a saved adapter was trained on, by its configuration; a folder or a Hub id, as for `load`."""
    file = _find(source) / CONFIG_FILE
    return read_config(read_bytes(file), str(file)).backbone


def _find(source: str | Path) -> Path:
    """The folder of an adapter, fetched from the Hub where need be."""
    if isinstance(source, str) and source.startswith(HUB):
        name, _, revision = source.removeprefix(HUB).partition("@")
        if not adapter_hub.is_hub_id(name):
            raise AdapterError(f"{name!r} is no id on the Hub; give hf:USER/NAME.")
        return adapter_hub.fetch(name, [CONFIG_FILE, TENSORS_FILE], revision=revision or None)
    if os.path.isdir(source):  # unlike Path.is_dir, never raises
        return Path(source)
    if os.path.exists(source):
        raise AdapterError(f"{source} is a file; give the folder that holds {CONFIG_FILE}.")
    if isinstance(source, Path):
        raise AdapterError(f"There is no folder {str(source)!r}; check the path.")
    if not adapter_hub.is_hub_id(source):
        raise AdapterError(
            f"There is no folder {source!r}, and that is no id on the Hub ('user/name'); check the path."
        )
    return adapter_hub.fetch(source, [CONFIG_FILE, TENSORS_FILE])


def _make_backbone(config: AdapterConfig, folder: Path, weights: str | Path | None, *, own: bool) -> nn.Module:
    name, size = config.backbone.name, config.backbone.img_size
    if names_folder(name) and not own:
        raise AdapterError(
            f"The adapter in {folder} names a folder of the machine that it was made on as its backbone, and no "
            "adapter from the Hub chooses folders here; give the model object: vprompt.load(..., backbone=model)."
        )
    if not can_create(name):
        raise AdapterError(
            f"The adapter in {folder} was trained on a backbone called {name!r}, which timm cannot make by name; "
            "give the model object: vprompt.load(..., backbone=model)."
        )
    weights = _recorded(config, folder, own) if weights is None else weights
    return create_backbone(name, img_size=size, in_chans=config.preprocessing.shape[0], weights=weights)


def _recorded(config: AdapterConfig, folder: Path, own: bool) -> Path | None:
    """The weights file that the adapter was trained with: beside the adapter, or where it was then.

    Where it was then is looked at only for a folder of the user's own: no adapter from the Hub chooses files here.
    """
    if config.backbone.weights is None:
        return None
    recorded = Path(config.backbone.weights)
    for file in (folder / recorded.name, recorded) if own else ():
        if os.path.isfile(file):
            return file
    raise AdapterError(
        f"The adapter in {folder} was trained with the backbone's weights in {recorded}, which is not there; give the "
        "file: vprompt.load(..., weights=FILE), or --weights FILE on the command line."
    )


def _check_backbone(config: AdapterConfig, backbone: nn.Module, *, by_name: bool) -> None:
    info, wanted = describe(backbone), config.backbone
    pair = f"The adapter was trained on {wanted.name!r} and the backbone is {info.name!r}:"
    if len(info.widths) != len(config.widths):
        there, here = len(config.widths), len(info.widths)
        raise AdapterError(f"{pair} {there} blocks there, {here} here; give the same backbone.")
    for block, (there, here) in enumerate(zip(config.widths, info.widths, strict=True)):
        if there != here:
            raise AdapterError(f"{pair} block {block} is {there} wide there, {here} here; give the same backbone.")
    if info.preprocessing.size != wanted.img_size:
        there, here = ("×".join(map(str, size)) for size in (wanted.img_size, info.preprocessing.size))
        raise AdapterError(
            f"{pair} it took images of {there} pixels there, {here} here; make the backbone with "
            f"img_size={wanted.img_size if wanted.img_size[0] != wanted.img_size[1] else wanted.img_size[0]}."
        )
    here = original_fingerprint(backbone)
    # The same, or the same when either of both is rounded.
    if here in (wanted.fingerprint, *wanted.rounded) or wanted.fingerprint in original_rounded(backbone):
        return
    held = str(precision_of(backbone)).removeprefix("torch.")
    todo = (
        "give the weights it was trained on: vprompt.load(..., weights=FILE), --weights FILE on the command line, or "
        "vprompt.load(..., backbone=model)"
        if by_name
        else "give the backbone with the weights it was trained on"
    )
    if held in ("float16", "bfloat16") and not wanted.rounded:
        todo += f"; this older adapter does not know weights rounded to {held}: load it on float32, and round the model"
    raise AdapterError(
        f"{pair} their weights differ (fingerprints {wanted.fingerprint}, and {here} of {held}); {todo}."
    )


def _assemble(
    config: AdapterConfig, tensors: dict[str, Tensor], backbone: nn.Module, execution: Execution, folder: Path
) -> PromptedModel:
    """The model with the saved values, each of which must have the name and shape that the method gives it here."""
    info, method = describe(backbone), config.method
    try:
        # Without memory, until it is known that the file has as many numbers.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            prompts, kv_prompts = method.make_prompts(info), method.make_kv_prompts(backbone, info)
            head = new_head(method, info, config.target, config.num_classes)
        tuned = method.tuned_shapes(backbone, info)
    except (RuntimeError, ArithmeticError, TypeError, ValueError, MemoryError) as error:
        raise AdapterError(
            f"{folder / CONFIG_FILE} asks for what cannot be ({reason(error)}); save or download the adapter again."
        ) from error
    shapes: dict[str, Shape] = {f"kv_prompts.{name}": tuple(p.shape) for name, p in kv_prompts.named_parameters()}
    shapes |= {f"head.{name}": tuple(value.shape) for name, value in head_values(head).items()}
    shapes |= {TUNED + name: tuple(shape) for name, shape in tuned.items()}
    plain = prompts.plain or config.plain_prompts
    shapes |= (
        _plain_shapes(config) if plain else {f"prompts.{n}": tuple(p.shape) for n, p in prompts.named_parameters()}
    )
    check_shapes(tensors, shapes, str(folder / TENSORS_FILE))
    parts = {kind: _under(tensors, kind) for kind in ("prompts.", "kv_prompts.", "head.", TUNED)}
    with torch.random.fork_rng(devices=[]):
        head = _filled(new_head(method, info, config.target, config.num_classes), parts["head."])
        kv_prompts = _filled(method.make_kv_prompts(backbone, info), parts["kv_prompts."])
        if plain:
            prompts = _plain_prompts(config, tensors, next(head.parameters()))
        else:
            prompts = _filled(method.make_prompts(info), parts["prompts."])
    model = PromptedModel(
        backbone,
        method,
        prompts,
        head,
        kv_prompts=kv_prompts,
        tuned=parts[TUNED],
        execution=execution,
        classes=config.classes,
        target=config.target,
        preprocessing=config.preprocessing,
    )
    model.condensation, model.pruning, model.recipe = config.condensation, config.pruning, config.recipe
    for part in (model.prompts, model.kv_prompts, model.tuned, model.head):
        part.to(device=next(backbone.parameters()).device, dtype=precision_of(backbone))
    return model


def _plain_shapes(config: AdapterConfig) -> dict[str, Shape]:
    """Name -> shape of the tensors of ordinary prompts; None where the file decides."""
    shapes: dict[str, Shape] = {}
    for block, (count, width) in enumerate(zip(config.prompt_counts, config.widths, strict=True)):
        if count and config.num_segments == 1:
            shapes[f"prompts.{block}"] = (count, width)
        elif count:
            shapes[f"prompts.{block}"] = (None, width // config.num_segments)
            shapes[f"segments.{block}"] = (count, config.num_segments)
        if count and config.merged:
            shapes[f"copies.{block}"] = (count,)
    return shapes


def _plain_prompts(config: AdapterConfig, tensors: dict[str, Tensor], like: Tensor) -> Prompts:
    """Ordinary prompts as they were saved, also where some or their segments were removed, or several merged."""
    blocks, parts = range(len(config.widths)), config.num_segments
    values = [tensors.get(f"prompts.{n}", like.new_empty(0, config.widths[n] // parts)) for n in blocks]
    masks = [tensors.get(f"segments.{n}", torch.zeros(0, parts).bool()) for n in blocks]
    multiplicity = [tensors.get(f"copies.{n}", torch.zeros(0)).tolist() for n in blocks]
    return Prompts(
        values,
        dropout=config.method.prompt_dropout,
        segments=masks if parts > 1 else None,
        multiplicity=multiplicity if config.merged else None,
    )


def _under(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


def _filled(module: M, values: dict[str, Tensor]) -> M:
    """A module with its parameters set to values, in their type."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if name in values:
            value.data = values[name]
    return module
