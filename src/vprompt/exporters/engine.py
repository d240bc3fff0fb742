"""Engines: a frozen backbone as one file that runs any adapters, which are handed to it as inputs; and their files."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo
from vprompt.exporters.base import FORMATS, KEY, NamedFormat, format_of, quiet, translated
from vprompt.exporters.export import (
    FP16_TOLERANCE,
    MOST_CALIBRATING,
    MOST_COMPARED,
    TOLERANCE,
    Int8,
    compare,
    paired_logits,
    prepared_images,
    refuse_options,
    refuse_others,
    scores,
)
from vprompt.exporters.exported import add_checksum, loaded, running, verify_checksum
from vprompt.exporters.metadata import About, Comparison, EngineForm, Quantisation, describe_export, read_about
from vprompt.exporters.program import ENGINE_AXES, Engine, capture_engine
from vprompt.methods.layers.inject import ConstantPrefix, attention_at
from vprompt.methods.layers.prompts import Prompts
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.classifier import Classifier
from vprompt.model.load import load
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.utils.errors import AdapterError, VPromptError
from vprompt.utils.io import writing, written_together
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable

if TYPE_CHECKING:
    from vprompt.exporters.base import RunNamed

HIDDEN = -1e9
"""Added to the logits of prompts that are not there: their weight is 0 in every type of numbers."""

MAX_PROMPTS = 256
"""Most prompts of a block that an engine takes, unless it was told otherwise."""

ADAPTERS_COMPARED = 3
"""Adapters that an engine is compared with eager on, at least."""

SUFFIX = ".safetensors"
"""End of the name of an adapter's file."""

_PARTS = tuple(ENGINE_AXES)[1:]


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineAdapter:
    """An adapter as an engine takes it: the inputs beside the images, for one image.

    Args:
        about: What it is, and which backbone it is for.
        prefix_keys: Keys of all blocks, one after the other, (P, A); P is the most that a block has, or 1.
        prefix_values: Values, (P, A).
        prefix_mask: What is added to the logits of each key, (L, P); `HIDDEN` where a block has fewer.
        head_weight: (C, F).
        head_bias: (C,).
    """

    about: About
    prefix_keys: NDArray[np.float32]
    prefix_values: NDArray[np.float32]
    prefix_mask: NDArray[np.float32]
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The inputs by name."""
        return {name: getattr(self, name) for name in _PARTS}

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return sum(array.nbytes for array in self.arrays.values())


class EngineFile:
    """An engine, read back and ready to run; made by `open_engine`.

    Attributes:
        path: The file.
        format: Its format.
        about: What the file says of itself.
    """

    def __init__(self, path: Path, about: About, run: RunNamed) -> None:
        self.path = path
        self.format = format_of(path)
        self.about = about
        self.form = cast("EngineForm", about.engine)
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, images_BCHW: Tensor, adapters: Sequence[EngineAdapter]) -> tuple[Tensor, list[Tensor]]:
        """Features (B, F), and the logits (C,) of every image, in float32.

        Args:
            images_BCHW: Normalised, on any device.
            adapters: The adapter of every image.

        Raises:
            VPromptError: If the file cannot be run.
        """
        features, logits = list[Tensor](), list[Tensor]()
        for start in range(0, len(adapters), most := self.format.max_batch):
            part = adapters[start : start + most]
            inputs, columns = self.inputs(images_BCHW[start : start + most], part)
            with running(self.path), self._lock:
                found, all_BC = (torch.from_numpy(np.array(output)) for output in self._run(inputs))
            features.append(found)
            logits += [row_C[columns[id(adapter)]] for row_C, adapter in zip(all_BC, part, strict=True)]
        return torch.cat(features), logits

    def inputs(
        self, images_BCHW: Tensor, adapters: Sequence[EngineAdapter]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[int, slice]]:
        """What the file takes, and where the logits of each adapter, by its `id`, are among all."""
        images = images_BCHW.detach().float().cpu().contiguous().numpy()
        distinct = {id(adapter): adapter for adapter in adapters}
        batch, most = len(adapters), max(len(adapter.prefix_keys) for adapter in distinct.values())
        keys, values = (np.zeros((batch, most, size), np.float32) for size in self.form.sizes)
        mask = np.full((batch, len(self.form.shapes), most), HIDDEN, np.float32)
        for row, adapter in enumerate(adapters):
            count = len(adapter.prefix_keys)
            keys[row, :count], values[row, :count] = adapter.prefix_keys, adapter.prefix_values
            mask[row, :, :count] = adapter.prefix_mask
        ends = np.cumsum([len(adapter.head_bias) for adapter in distinct.values()]).tolist()
        columns = {key: slice(a, b) for key, a, b in zip(distinct, [0, *ends], ends, strict=False)}
        weight, bias = (
            np.concatenate([getattr(adapter, name) for adapter in distinct.values()]) for name in _PARTS[3:]
        )
        return dict(zip(ENGINE_AXES, (images, keys, values, mask, weight, bias), strict=True)), columns

    def check(self, adapter: EngineAdapter, name: str) -> EngineAdapter:
        """The adapter, if it is for this engine.

        Raises:
            AdapterError: If it is for another backbone or size, or has more prompts than the engine takes.
        """
        ours, theirs = self.about, adapter.about
        pairs = [(about.fingerprint, about.preprocessing.size) for about in (ours, theirs)]
        if pairs[0] != pairs[1]:
            (print_a, size_a), (print_b, size_b) = pairs
            raise AdapterError(
                f"{printable(name)} is for the backbone {printable(theirs.backbone)} (weights {print_b}, images "
                f"{size_b}), and {printable(self.path.name)} is an engine of {printable(ours.backbone)} (weights "
                f"{print_a}, images {size_a}): export the adapter for an engine of its own backbone."
            )
        if (count := len(adapter.prefix_keys)) > self.form.max_prompts:
            raise AdapterError(
                f"{printable(name)} has {count} prompts in a block, and {printable(self.path.name)} takes "
                f"{self.form.max_prompts} at most; export the engine with --max-prompts {count}."
            )
        sizes = self.form.sizes
        wanted = [(count, sizes[0]), (count, sizes[1]), (len(self.form.shapes), count)]
        wanted += [(theirs.num_classes, self.form.features), (theirs.num_classes,)]
        arrays = adapter.arrays
        if [array.shape for array in arrays.values()] != wanted or not count:
            raise AdapterError(
                f"{printable(name)} is damaged: its numbers are not those of an adapter; export it again."
            )
        # A prompt that is hidden has a large number; no other may be without bound.
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise AdapterError(f"{printable(name)} has numbers that are not finite; train or export it again.")
        return adapter


class EngineModel(Classifier):
    """One adapter on an engine, as a classifier.

    Args:
        engine: The engine.
        adapter: The adapter, for that engine.
    """

    def __init__(self, engine: EngineFile, adapter: EngineAdapter) -> None:
        super().__init__()
        self.engine = engine
        self.adapter = adapter
        about = adapter.about
        self.classes, self.target, self.preprocessing = about.classes, about.made_target, about.preprocessing
        self.eval()

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return self.adapter.about.num_classes

    @property
    def device(self) -> torch.device:
        """The processor."""
        return torch.device("cpu")

    @property
    def any_size(self) -> bool:
        """The image's size is part of the engine."""
        return False

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, 3, H, W)."""
        if (wanted := self.preprocessing.shape) != tuple(images_BCHW.shape[1:]) or not len(images_BCHW):
            raise VPromptError(f"The engine takes images (B, 3, H, W) of {wanted}, not {tuple(images_BCHW.shape)}.")
        return torch.stack(self.engine(images_BCHW, [self.adapter] * len(images_BCHW))[1])


def open_engine(path: str | Path, *, trust: bool = False) -> EngineFile:
    """Opens what `export_engine` wrote; `trust` and errors are as for `load_exported`."""
    path = Path(path)
    return EngineFile(path, *loaded(path, trust=trust, engine=True))


def packed(model: PromptedModel | FoldedModel, name: str | None = None) -> EngineAdapter:
    """A model as an engine takes it; `name` is for the record.

    Raises:
        AdapterError: If the model is more than keys, values and a linear head.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit"), vprompt.VPT(4), num_classes=3)
        >>> packed(model).prefix_keys.shape, packed(model).head_weight.shape
        ((4, 384), (3, 64))
    """
    method, why = model.method, None
    if method.tunes_backbone:
        why = f"{method.name} changes the backbone itself"
    elif method.riding == "tokens":
        why = "its shallow prompts ask queries of their own in every block"
    elif model.target.dense:
        why = "its head reads maps of patches"
    elif type(model.head) is not nn.Linear:
        why = "its head has several layers"
    if why is not None:
        raise AdapterError(
            f"{printable(name or 'The adapter')} cannot be run by an engine, which takes keys, values and one linear "
            f"layer: {why}. Export it with its backbone (--format), or serve it without --engine."
        )
    folded = copy.deepcopy(model.fold() if isinstance(model, PromptedModel) else model).cpu().float()
    prefixes = [cast("ConstantPrefix", prefix) for prefix in folded.prefixes]
    most = max(1, *map(len, prefixes))
    mask = np.full((len(prefixes), most), HIDDEN, np.float32)
    sides: list[list[NDArray[np.float32]]] = [[], []]
    for block, prefix in enumerate(prefixes):
        for side, heads_1HPd in zip(sides, (prefix.keys, prefix.values), strict=True):
            rows_PA = cast("Tensor", heads_1HPd)[0].transpose(0, 1).flatten(1).numpy()
            side.append(np.pad(rows_PA, ((0, most - len(prefix)), (0, 0))))
        mask[block, : len(prefix)] = 0 if prefix.bias is None else cast("Tensor", prefix.bias)[0].numpy()
    keys, values = (np.concatenate(side, axis=1) for side in sides)
    return EngineAdapter(
        about=describe_export(folded, name, ("torch", "timm")),
        prefix_keys=keys,
        prefix_values=values,
        prefix_mask=mask,
        head_weight=folded.head.weight.detach().numpy(),
        head_bias=folded.head.bias.detach().numpy(),
    )


def export_adapter(
    model: PromptedModel | FoldedModel,
    path: str | Path,
    engine: str | Path | EngineFile,
    *,
    images: Sequence[str | Path] = (),
    adapter: str | None = None,
    trust: bool = False,
) -> EngineAdapter:
    """Writes the file of an adapter for an engine, and compares the two with the model before it is called done.

    Args:
        model: Deep or key-value prompts with a linear head, or that head alone, on the engine's backbone.
        path: The file, which ends in `.safetensors`; an adapter that is there is replaced, any other file is not.
        engine: The engine, or its file.
        images: Image files and folders to compare on; bundled ones when not given.
        adapter: Name of the adapter, for the record.
        trust: As for `vprompt.load_exported`.

    Raises:
        AdapterError: If the adapter is for another backbone, or not of that kind.
        VPromptError: If the engine's logits differ from the model's by more than rounding; nothing is left behind then.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise VPromptError(f"The file of an adapter for an engine ends in {SUFFIX}, which {path} does not.")
    if path.exists():
        try:
            read_adapter(path)
        except VPromptError as error:
            raise VPromptError(
                f"{printable(str(path))} is there already and is no adapter for an engine; remove it, or choose "
                "another name."
            ) from error
    runs = engine if isinstance(engine, EngineFile) else open_engine(engine, trust=trust)
    shown = adapter or "The adapter"
    ready = runs.check(packed(model, adapter), shown)
    folded = copy.deepcopy(model.fold() if isinstance(model, PromptedModel) else model).cpu().float()
    pair = paired_logits(
        folded, EngineModel(runs, ready), prepared_images(images, folded.preprocessing.squashed, MOST_COMPARED)
    )
    if (cost := runs.about.quantisation) is None or runs.about.precision == "float16":
        about = replace(ready.about, comparison=_comparison(runs.about, len(pair[0]), [pair], [folded]))
    else:
        about = replace(ready.about, quantisation=_cost(cost.tool, [pair], [folded]))
    with written_together(path) as part, writing(path):
        save_file(ready.arrays, part, metadata={KEY: about.to_text()})
        add_checksum([part])
    return read_adapter(path)


def read_adapter(path: str | Path) -> EngineAdapter:
    """Reads what `export_adapter` wrote.

    Raises:
        AdapterError: If there is no such file, or it is damaged or something else.
    """
    path = Path(path)
    shown = printable(str(path))
    if not path.is_file():
        raise AdapterError(
            f"There is no file {shown} of an adapter for an engine; check the path, or make one: vprompt export "
            "ADAPTER --for ENGINE."
        )
    with translated(f"{shown} is no adapter for an engine", "; make one: vprompt export ADAPTER --for ENGINE"):
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {})[KEY]
            arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in _PARTS}
        verify_checksum([path])
        return EngineAdapter(about=read_about(text, shown), **arrays)


def export_engine(
    backbone: str | nn.Module,
    path: str | Path,
    *,
    adapters: Sequence[str | Path | PromptedModel] = (),
    images: Sequence[str | Path] = (),
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    data: Int8 | None = None,
    opset: int | None = None,
    max_prompts: int = MAX_PROMPTS,
    report: Report = silent,
) -> EngineFile:
    """Writes a backbone once, for any number of adapters, and compares it with eager PyTorch before it is called done.

    The file takes `images` (B, 3, H, W), `prefix_keys` and `prefix_values` (B, P, A), `prefix_mask` (B, L, P),
    `head_weight` (C, F) and `head_bias` (C,), and gives `features` (B, F) and `logits` (B, C).

    Args:
        backbone: A timm name, or a timm model, which is not changed.
        path: The file; its end says the format: `.pt2`, `.onnx`, `.xml` (OpenVINO).
        adapters: Adapters to compare with, of this backbone; random ones make them up to three.
        images: Image files and folders to compare on; bundled ones when not given.
        precision: Numbers that the weights are held in; int8 (`.onnx`, `.xml`) and fp16 say what they cost.
        data: Images to make int8 with, and labelled ones to measure the cost for the first of the adapters.
        opset: Version of ONNX's operators; PyTorch's choice when left out.
        max_prompts: Most prompts of a block.
        report: Told of every step.

    Raises:
        VPromptError: As `vprompt.export` does; nothing is left behind then.
    """
    path, format = Path(path), format_of(Path(path))
    if not isinstance(format, NamedFormat):
        able = ", ".join(sorted(other.name for other in FORMATS if isinstance(other, NamedFormat)))
        raise VPromptError(f"An engine is one of {able}, not {format.name}, which takes images alone; choose another.")
    if max_prompts < 1:
        raise VPromptError(f"An engine takes at least 1 prompt in a block, not {max_prompts}.")
    format.require(format.to_write)
    int8, half = precision == "int8", precision == "fp16"
    refuse_options(format, int8=int8, precision="fp32" if int8 else precision, opset=opset)
    refuse_others(path, format, {})
    models = _models(create_backbone(backbone) if isinstance(backbone, str) else backbone, adapters)
    ready, info = [packed(model) for model in models], models[0].info
    compared_NCHW = prepared_images(images, info.preprocessing.squashed, MOST_COMPARED)
    report(0, 3)
    form = EngineForm(shapes=_shapes(models[0].backbone, info), features=info.num_features, max_prompts=max_prompts)
    with quiet(), translated(f"{info.name} cannot be made an engine for {format.name}, {precision}"), writing(path):
        module, most = Engine(models[0].backbone, info, form.shapes), max(max_prompts, 4)  # what it is traced with
        program = capture_engine(module, info.preprocessing.shape, max_batch=format.max_batch, max_prompts=most)
        converted = format.convert(program) if opset is None else format.convert(program, opset)
        converted = format.halved(converted) if half else converted
    report(1, 3)
    tools = ("torch", "timm", *(name.partition(".")[0] for name in format.to_write))
    about = replace(
        describe_export(models[0], None, tools),
        method="engine",
        prompt_counts=(),
        preprocessing=info.preprocessing,
        classes=None,
        num_classes=1,
        target=None,
        precision="float16" if half else "float32",
        engine=form,
    )
    with written_together(path, format.companions(path)) as part:

        def written(about: About) -> EngineFile:
            with quiet(), translated(f"{printable(str(path))} cannot be written"), writing(path):
                format.save(converted, part, about.to_text())
                add_checksum(format.files(part))
            return open_engine(part)

        pairs = _pairs(engine := written(about), models, ready, compared_NCHW)
        about = replace(about, comparison=_comparison(about, len(compared_NCHW), pairs, models))
        report(2, 3)
        tool, calibration = "rounding to float16", 0
        if int8:
            source = images if data is None else data.calibration
            calibration_NCHW = prepared_images(source, info.preprocessing.squashed, MOST_CALIBRATING)
            with quiet(), translated(f"The {format.name} engine cannot be made int8"), writing(path):
                batches: Any = [
                    engine.inputs(image, [ready[number % len(ready)]])[0]
                    for number, image in enumerate(calibration_NCHW.split(1))
                ]
                converted, tool = format.quantised(converted, batches, part.parent)
            about, calibration = replace(about, precision="int8"), len(batches) if format.calibrates else 0
            pairs = _pairs(engine := written(about), models, ready, compared_NCHW)
        if about.precision != "float32":
            cost = _cost(tool, pairs, models, calibration_images=calibration)
            if data is not None:
                cost = replace(cost, **scores(data, models[0], EngineModel(engine, ready[0])))
            about = replace(about, quantisation=cost)
        again = _pairs(written(about), models, ready, compared_NCHW[:ADAPTERS_COMPARED])
        if not all(torch.equal(pair[1][:1], before[1][:1]) for pair, before in zip(again, pairs, strict=True)):
            raise VPromptError(f"{printable(path.name)} does not give the same logits twice; nothing was written.")
        report(3, 3)
    return open_engine(path)


def _models(backbone: nn.Module, adapters: Sequence[str | Path | PromptedModel]) -> list[FoldedModel]:
    """Adapters over a copy of a backbone, folded: those given, and as many random ones as make them enough."""
    backbone = copy.deepcopy(backbone).cpu().float().eval()
    given = [adapter if isinstance(adapter, PromptedModel) else load(adapter, backbone) for adapter in adapters]
    folded = [copy.deepcopy(model.fold()).cpu().float() for model in given]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number in range(len(given), ADAPTERS_COMPARED):
            model = attach(backbone, VPT(1), num_classes=3 + 2 * number, head_init="paper").eval()
            counts = [(number + block) % 4 if number else 4 for block in range(len(model.info.blocks))]
            prompts = Prompts(
                [torch.randn(count, width) for count, width in zip(counts, model.info.widths, strict=True)],
                multiplicity=[[1 + prompt for prompt in range(count)] for count in counts],
            )
            folded.append(model.copy(prompts=prompts).fold())
    return folded


def _shapes(backbone: nn.Module, info: BackboneInfo) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Number and width of the heads of keys and values of every block."""
    with torch.no_grad():
        pairs = [
            attention_at(backbone, info, block).key_values(torch.zeros(1, 1, width))[:2]
            for block, width in enumerate(info.widths)
        ]
    return tuple(((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3])) for k, v in pairs)


def _pairs(
    engine: EngineFile, models: Sequence[FoldedModel], ready: Sequence[EngineAdapter], images_NCHW: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits of every adapter by eager PyTorch and by the engine: alone, and then mixed in one batch."""
    mixed = engine(images_NCHW, [ready[row % len(ready)] for row in range(len(images_NCHW))])[1]
    pairs: list[tuple[Tensor, Tensor]] = []
    for number, (model, adapter) in enumerate(zip(models, ready, strict=True)):
        eager_NC, alone_NC = paired_logits(model, EngineModel(engine, adapter), images_NCHW)
        rows = slice(number, None, len(ready))
        pairs.append((torch.cat([eager_NC, eager_NC[rows]]), torch.stack([*alone_NC, *mixed[rows]])))
    return pairs


def _comparison(
    about: About, images: int, pairs: Sequence[tuple[Tensor, Tensor]], models: Sequence[FoldedModel]
) -> Comparison:
    """The worst of those of all adapters."""
    tolerance = FP16_TOLERANCE if about.precision == "float16" else TOLERANCE
    found = [
        compare(*pair, tolerance=tolerance, classes=model.target.grouped)
        for pair, model in zip(pairs, models, strict=True)
    ]
    return replace(max(found, key=lambda one: one.largest / one.scale), images=images)


def _cost(
    tool: str, pairs: Sequence[tuple[Tensor, Tensor]], models: Sequence[FoldedModel], calibration_images: int = 0
) -> Quantisation:
    same = [model.target.agreement(*pair) for pair, model in zip(pairs, models, strict=True)]
    return Quantisation(tool=tool, calibration_images=calibration_images, same_class=sum(same) / len(same))
