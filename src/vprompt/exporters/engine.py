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
from vprompt.backbones.quantise import precision_held
from vprompt.exporters import export as exporting
from vprompt.exporters.base import FORMATS, KEY, format_of, quiet, translated
from vprompt.exporters.export import Int8, compare, paired_logits, prepared_images
from vprompt.exporters.exported import Exported, add_checksum, loaded, running, verify_checksum
from vprompt.exporters.metadata import About, EngineForm, Quantisation, describe_export, read_about
from vprompt.exporters.program import ENGINE_AXES, Engine, capture_engine
from vprompt.methods.layers.inject import ConstantPrefix
from vprompt.methods.layers.prompts import Prompts
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.load import load
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.utils.errors import AdapterError, VPromptError
from vprompt.utils.io import writing, written_together
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable

if TYPE_CHECKING:
    from vprompt.exporters.base import Run

HIDDEN = -1e9
"""Added to the logits of prompts that are not there: their weight is 0 in every type of numbers."""

COMPARED = 3
"""Adapters that an engine is compared with eager on, at least."""

SUFFIX = ".safetensors"
"""End of the name of an adapter's file."""

_PARTS = tuple(ENGINE_AXES)[1:]

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineAdapter:
    """An adapter as an engine takes it: `arrays` are the inputs beside the images, for one image.

    P is the most prompts that a block has, or 1; where a block has fewer, its `prefix_mask` is `HIDDEN`.
    """

    about: About
    arrays: Arrays

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return sum(array.nbytes for array in self.arrays.values())


class EngineFile:
    """An engine that is ready to run; made by `open_engine`."""

    def __init__(self, path: Path, about: About, run: Run) -> None:
        self.path = path
        self.about = about
        self._form = cast("EngineForm", about.engine)
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, images_BCHW: Tensor, adapters: Sequence[EngineAdapter]) -> tuple[Tensor, list[Tensor]]:
        """Features (B, F), and the logits (C,) of every normalised image by its adapter, in float32."""
        features, logits = list[Tensor](), list[Tensor]()
        for start in range(0, len(adapters), most := format_of(self.path).max_batch):
            part = adapters[start : start + most]
            inputs, columns = self.inputs(images_BCHW[start : start + most], part)
            with running(self.path), self._lock:
                found, all_BC = (torch.from_numpy(np.array(output)) for output in self._run(inputs))
            features.append(found)
            logits += [row_C[columns[id(adapter)]] for row_C, adapter in zip(all_BC, part, strict=True)]
        return torch.cat(features), logits

    def inputs(self, images_BCHW: Tensor, adapters: Sequence[EngineAdapter]) -> tuple[Arrays, dict[int, slice]]:
        """What the file takes, and where the logits of each adapter, by its `id`, are among all."""
        images, form = images_BCHW.detach().float().cpu().contiguous().numpy(), self._form
        distinct = {id(adapter): adapter.arrays for adapter in adapters}
        batch, most = len(adapters), max(len(arrays["prefix_keys"]) for arrays in distinct.values())
        keys, values = (np.zeros((batch, most, size), np.float32) for size in (form.keys, form.values))
        mask = np.full((batch, form.blocks, most), HIDDEN, np.float32)
        for row, adapter in enumerate(adapters):
            count = len(adapter.arrays["prefix_keys"])
            keys[row, :count], values[row, :count] = adapter.arrays["prefix_keys"], adapter.arrays["prefix_values"]
            mask[row, :, :count] = adapter.arrays["prefix_mask"]
        weight, bias = (np.concatenate([arrays[name] for arrays in distinct.values()]) for name in _PARTS[3:])
        ends = [0, *np.cumsum([len(arrays["head_bias"]) for arrays in distinct.values()]).tolist()]
        columns = dict(zip(distinct, map(slice, ends, ends[1:]), strict=True))
        return dict(zip(ENGINE_AXES, (images, keys, values, mask, weight, bias), strict=True)), columns

    def classifier(self, adapter: EngineAdapter) -> Exported:
        """One adapter on this engine, to predict and to evaluate with."""

        def run(images: Any) -> Any:
            return torch.stack(self(torch.from_numpy(images), [adapter] * len(images))[1]).numpy()

        return Exported(self.path, format_of(self.path), adapter.about, run)

    def check(self, adapter: EngineAdapter, name: str) -> EngineAdapter:
        """The adapter, if it is whole and for this engine, by an `AdapterError` if it is not."""
        ours, theirs, form = self.about, adapter.about, self._form
        if (ours.fingerprint, ours.preprocessing.shape) != (theirs.fingerprint, theirs.preprocessing.shape):
            raise AdapterError(
                f"{printable(name)} is for {printable(theirs.backbone)} (weights {theirs.fingerprint}, images "
                f"{theirs.preprocessing.shape}), and {printable(self.path.name)} is an engine of "
                f"{printable(ours.backbone)} (weights {ours.fingerprint}, images {ours.preprocessing.shape}): export "
                "an engine of its own backbone."
            )
        count, classes = len(adapter.arrays["prefix_keys"]), theirs.num_classes
        if count > form.max_prompts:
            raise AdapterError(
                f"{printable(name)} has {count} prompts in a block, and {printable(self.path.name)} takes "
                f"{form.max_prompts} at most; export the engine with --max-prompts {count}."
            )
        wanted = ((count, form.keys), (count, form.values), (form.blocks, count), (classes, form.features), (classes,))
        arrays = adapter.arrays.values()
        if tuple(a.shape for a in arrays) != wanted or not count or not all(np.isfinite(a).all() for a in arrays):
            raise AdapterError(f"{printable(name)} is damaged: its numbers are no adapter's; train or export it again.")
        return adapter


def open_engine(path: str | Path, *, trust: bool = False) -> EngineFile:
    """Opens what `export_engine` wrote; `trust` and errors are as for `load_exported`."""
    return EngineFile(Path(path), *loaded(Path(path), trust=trust, engine=True))


def packed(model: PromptedModel | FoldedModel, name: str | None = None) -> EngineAdapter:
    """A model as an engine takes it; `name` is for the record.

    Raises:
        AdapterError: If the model is more than keys, values and a linear head.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit"), vprompt.VPT(4), num_classes=3)
        >>> packed(model).arrays["prefix_keys"].shape, packed(model).arrays["head_weight"].shape
        ((4, 384), (3, 64))
    """
    obstacles = {
        f"{model.method.name} changes the backbone itself": model.method.tunes_backbone,
        "its shallow prompts ask queries of their own in every block": model.method.riding == "tokens",
        "its head reads maps of patches": model.target.dense,
        "its head has several layers": type(model.head) is not nn.Linear,
    }
    for why in (why for why, there in obstacles.items() if there):
        raise AdapterError(
            f"{printable(name or 'The adapter')} cannot be run by an engine, which takes keys, values and one linear "
            f"layer: {why}. Export it with its backbone (--format), or serve it without --engine."
        )
    folded = _folded(model)
    prefixes = [cast("ConstantPrefix", prefix) for prefix in folded.prefixes]
    mask = np.full((len(prefixes), max(1, *map(len, prefixes))), HIDDEN, np.float32)
    sides: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for row, prefix in zip(mask, prefixes, strict=True):
        for side, heads_1HPd in zip(sides, (prefix.keys, prefix.values), strict=True):
            rows_PA = cast("Tensor", heads_1HPd)[0].transpose(0, 1).flatten(1).numpy()
            side.append(np.pad(rows_PA, ((0, len(row) - len(prefix)), (0, 0))))
        bias = cast("Tensor | None", prefix.bias)
        row[: len(prefix)] = 0 if bias is None else bias[0].numpy()
    head = [parameter.detach().numpy() for parameter in (folded.head.weight, folded.head.bias)]
    arrays = [*(np.concatenate(side, axis=1) for side in sides), mask, *head]
    about = describe_export(folded, name, ("torch", "timm"))
    return EngineAdapter(about=about, arrays=dict(zip(_PARTS, arrays, strict=True)))


def export_adapter(
    model: PromptedModel | FoldedModel,
    path: str | Path,
    engine: EngineFile,
    *,
    images: Sequence[str | Path] = (),
    adapter: str | None = None,
) -> EngineAdapter:
    """Writes the file of an adapter for an engine, and compares the two with the model before it is called done.

    Args:
        model: Deep or key-value prompts with a linear head, or that head alone, on the engine's backbone.
        path: The file, which ends in `.safetensors`; an adapter that is there is replaced, any other file is not.
        engine: From `open_engine`.
        images: Image files and folders to compare on; bundled ones when not given.
        adapter: Name of the adapter, for the record.

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
            problem = "is there already and is no adapter for an engine; remove it, or choose another name"
            raise VPromptError(f"{printable(str(path))} {problem}.") from error
    ready, folded = engine.check(packed(model, adapter), adapter or "The adapter"), _folded(model)
    images_NCHW = prepared_images(images, folded.preprocessing.squashed, exporting.MOST_COMPARED)
    pairs = [paired_logits(folded, engine.classifier(ready), images_NCHW)]
    tool = "" if engine.about.quantisation is None else engine.about.quantisation.tool
    about = _compared(replace(ready.about, precision=engine.about.precision), pairs, [folded], images_NCHW, tool)
    with written_together(path) as part, writing(path):
        save_file(ready.arrays, part, metadata={KEY: about.to_text()})
        add_checksum([part])
    return read_adapter(path)


def read_adapter(path: str | Path) -> EngineAdapter:
    """Reads what `export_adapter` wrote; a `VPromptError` says if it is something else."""
    path, remedy = Path(path), "; make one: vprompt export ADAPTER --for ENGINE"
    name = printable(str(path))
    if not path.is_file():
        raise AdapterError(f"There is no file {name} of an adapter for an engine; check the path{remedy}.")
    with translated(f"{name} is no adapter for an engine", remedy):
        verify_checksum([path])
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {})[KEY]
            arrays = {part: np.asarray(file.get_tensor(part), np.float32) for part in _PARTS}
        return EngineAdapter(about=read_about(text, name), arrays=arrays)


def export_engine(
    backbone: str | nn.Module,
    path: str | Path,
    *,
    adapters: Sequence[str | Path | PromptedModel] = (),
    images: Sequence[str | Path] = (),
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    data: Int8 | None = None,
    opset: int | None = None,
    max_prompts: int = 256,
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
        precision: Numbers that the weights are held in; int8 and fp16 (`.onnx`, `.xml`) say what they cost.
        data: Images to make int8 with, and labelled ones to measure the cost for the first of the adapters.
        opset: Version of ONNX's operators; PyTorch's choice when left out.
        max_prompts: Most prompts of a block.
        report: Told of every step.

    Raises:
        VPromptError: As `vprompt.export` does; nothing is left behind then.
    """
    path, int8 = Path(path), precision == "int8"
    if not (format := format_of(path)).engine:
        able = ", ".join(sorted(other.name for other in FORMATS if other.engine))
        raise VPromptError(f"An engine is one of {able}, not {format.name}, which takes images alone; choose another.")
    if max_prompts < 1:
        raise VPromptError(f"An engine takes at least 1 prompt in a block, not {max_prompts}.")
    format.require(format.to_write)
    exporting.refuse_options(format, int8=int8, precision="fp32" if int8 else precision, opset=opset)
    exporting.refuse_others(path, format, {})
    models = _models(create_backbone(backbone) if isinstance(backbone, str) else backbone, adapters)
    ready, info = [packed(model) for model in models], models[0].info
    seen = info.preprocessing.squashed
    compared_NCHW = prepared_images(images or (() if data is None else data.calibration), seen, exporting.MOST_COMPARED)
    report(0, 3)
    with quiet(), translated(f"{info.name} cannot be made an engine for {format.name}, {precision}"), writing(path):
        program = capture_engine(
            module := Engine(models[0].backbone, info), info, max_batch=format.max_batch, max_prompts=max_prompts
        )
        converted = format.convert(program) if opset is None else format.convert(program, opset)
        converted = format.halved(converted) if precision == "fp16" else converted
    (keys, values), blocks = map(sum, module.sizes), len(info.blocks)
    form = EngineForm(blocks=blocks, keys=keys, values=values, features=info.num_features, max_prompts=max_prompts)
    about = replace(
        describe_export(models[0], None, ("torch", "timm", *(name.partition(".")[0] for name in format.to_write))),
        method="engine",
        prompt_counts=(),
        preprocessing=info.preprocessing,
        classes=None,
        num_classes=1,
        target=None,
        precision="float16" if precision == "fp16" else "float32",
        engine=form,
    )
    report(1, 3)
    with written_together(path, format.companions(path)) as part:

        def written(about: About) -> EngineFile:
            with quiet(), translated(f"{printable(str(path))} cannot be written"), writing(path):
                format.save(converted, part, about.to_text())
                add_checksum(format.files(part))
            return open_engine(part)

        pairs = _pairs(engine := written(about), models, ready, compared_NCHW)
        about = _compared(about, pairs, models, compared_NCHW)
        report(2, 3)
        if int8:
            calibration_NCHW = prepared_images(
                () if data is None else data.calibration, seen, exporting.MOST_CALIBRATING
            )
            with quiet(), translated(f"The {format.name} engine cannot be made int8"), writing(path):
                images_1CHW = enumerate(calibration_NCHW.split(1))
                batches: Any = [engine.inputs(image, [ready[n % len(ready)]])[0] for n, image in images_1CHW]
                converted, tool = format.quantised(converted, batches, part.parent)
            pairs = _pairs(engine := written(replace(about, precision="int8")), models, ready, compared_NCHW)
            about = _compared(engine.about, pairs, models, compared_NCHW, tool, len(batches) * format.calibrates)
        if about.quantisation is not None and data is not None:
            found = exporting.scores(data, models[0], engine.classifier(ready[0]))
            about = replace(about, quantisation=replace(about.quantisation, **found))
        again = _pairs(written(about), models, ready, compared_NCHW[:COMPARED])
        if not all(torch.equal(pair[1][:1], before[1][:1]) for pair, before in zip(again, pairs, strict=True)):
            raise VPromptError(f"{printable(path.name)} does not give the same logits twice; nothing was written.")
    report(3, 3)
    return open_engine(path)


def _folded(model: PromptedModel | FoldedModel) -> FoldedModel:
    """A folded copy on the CPU in float32."""
    return copy.deepcopy(model.fold() if isinstance(model, PromptedModel) else model).cpu().float()


def _models(backbone: nn.Module, adapters: Sequence[str | Path | PromptedModel]) -> list[FoldedModel]:
    """Adapters over a copy of a backbone, folded: those given, and as many random ones as make them enough."""
    given = [a if isinstance(a, PromptedModel) else load(a, backbone, backbone_precision="fp32") for a in adapters]
    if held := {*map(precision_held, [backbone, *(model.backbone for model in given)])} - {"fp32"}:
        raise VPromptError(
            f"An engine has a precision of its own, and a backbone held in {held.pop()} is given; load it with "
            "backbone_precision='fp32'."
        )
    folded = [*map(_folded, given)]
    backbone = copy.deepcopy(backbone).cpu().float().eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number in range(len(folded), COMPARED):
            model = attach(backbone, VPT(1), num_classes=3 + 2 * number, head_init="paper").eval()
            counts = [(number + block) % 4 if number else 4 for block in range(len(model.info.blocks))]
            tokens = [torch.randn(count, width) for count, width in zip(counts, model.info.widths, strict=True)]
            prompts = Prompts(tokens, multiplicity=[[*range(1, count + 1)] for count in counts])
            folded.append(model.copy(prompts=prompts).fold())
    return folded


def _pairs(
    engine: EngineFile, models: Sequence[FoldedModel], ready: Sequence[EngineAdapter], images_NCHW: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits of every adapter by eager PyTorch and by the engine: alone, and then mixed in one batch."""
    mixed = engine(images_NCHW, [ready[row % len(ready)] for row in range(len(images_NCHW))])[1]
    pairs: list[tuple[Tensor, Tensor]] = []
    for number, (model, adapter) in enumerate(zip(models, ready, strict=True)):
        eager_NC, alone_NC = paired_logits(model, engine.classifier(adapter), images_NCHW)
        rows = slice(number, None, len(ready))
        pairs.append((torch.cat([eager_NC, eager_NC[rows]]), torch.stack([*alone_NC, *mixed[rows]])))
    return pairs


def _compared(
    about: About,
    pairs: Sequence[tuple[Tensor, Tensor]],
    models: Sequence[FoldedModel],
    images_NCHW: Tensor,
    tool: str = "rounding",
    calibration: int = 0,
) -> About:
    """With the worst comparison of all adapters, unless it is int8; and with what fewer bits cost."""
    if about.precision != "int8":
        limit = exporting.FP16_TOLERANCE if about.precision == "float16" else exporting.TOLERANCE
        both = zip(pairs, models, strict=True)
        found = [compare(*pair, tolerance=limit, classes=model.target.grouped) for pair, model in both]
        worst = max(found, key=lambda one: one.largest / one.scale)
        about = replace(about, comparison=replace(worst, images=len(images_NCHW)))
    if about.precision == "float32":
        return about
    same = [model.target.agreement(*pair) for pair, model in zip(pairs, models, strict=True)]
    cost = Quantisation(tool=tool, calibration_images=calibration, same_class=sum(same) / len(same))
    return replace(about, quantisation=cost)
