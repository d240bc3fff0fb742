"""A model as an exported file, compared with the model before the file is called done."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vprompt.data.dataset import ImageDataset
from vprompt.data.images import decode
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import list_images
from vprompt.data.sources.bundled import bundled_images
from vprompt.exporters.base import FORMATS, Format, format_of, quiet, translated
from vprompt.exporters.exported import Exported, add_checksum, load_exported, opened, pixels_of
from vprompt.exporters.metadata import About, Comparison, Quantisation, describe_export, label_files
from vprompt.exporters.program import capture
from vprompt.model.classifier import Classifier
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.training.evaluate import evaluate
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import writing, written_together
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable

TOLERANCE = 1e-4
"""The largest difference of two logits that is taken for rounding, as a share of the largest logit."""

FP16_TOLERANCE = 2e-2
"""The same of float16."""

MOST_COMPARED = 64
"""Images that are compared at most; of more, some from all over the list."""

MOST_CALIBRATING = 300
"""Images that the ranges of int8 values come from at most."""

BUNDLED = 32
"""Bundled images that are compared where no others are given."""


def paired_logits(first: Classifier, second: Classifier, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of two models for the same images in the same batches: of 1, 3, and then 8."""
    cuts = (1, *range(4, len(images_NCHW), 8))
    with torch.inference_mode():
        pairs = [(first(batch), second(batch)) for batch in images_NCHW.tensor_split(cuts) if len(batch)]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def compare(eager_NC: Tensor, exported_NC: Tensor, *, tolerance: float = TOLERANCE, classes: bool = True) -> Comparison:
    """The distance between the logits of an exported file and those of the model; of `classes`, the largest is named.

    Raises:
        VPromptError: If that is more than rounding, or a class is named that is not the model's first. Classes whose
            logits are closer than the tolerance are all its first.

    Example:
        >>> compare(torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0001, -4.0]])).scale
        4.0
    """
    largest, scale = float((eager_NC - exported_NC).abs().max()), float(eager_NC.abs().max())
    if not largest <= tolerance * scale:
        raise VPromptError(
            f"The exported file does not compute what the model does: logits differ by up to {largest:.2g}, and "
            f"{tolerance * scale:.2g} is allowed ({tolerance:g} of the largest); nothing was written."
        )
    chosen_N = eager_NC.gather(1, exported_NC.argmax(1, keepdim=True))[:, 0]
    other = int((chosen_N < eager_NC.amax(1) - tolerance * scale).sum())
    if other and classes:
        raise VPromptError(
            f"The exported file names another class than the model for {other} of {len(eager_NC)} images; nothing was "
            "written."
        )
    return Comparison(images=len(eager_NC), largest=largest, scale=scale, tolerance=tolerance)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The images that a model in int8 is made and evaluated with.

    Args:
        calibration: Images that the ranges of values come from: files and folders, or a data set; at most 300 are
            taken, from all over.
        labelled: Other images, with labels, to measure the accuracy (or other score) before and after.
        data: Name of these, for the record.
        split: Their split, for the record.
    """

    calibration: Sequence[str | Path] | ImageDataset
    labelled: ImageDataset | None = None
    data: str | None = None
    split: str | None = None


def export(
    model: PromptedModel | FoldedModel,
    path: str | Path,
    *,
    images: Sequence[str | Path] = (),
    int8: Int8 | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    opset: int | None = None,
    include_preprocessing: bool = False,
    labels: bool = False,
    adapter: str | None = None,
    report: Report = silent,
) -> Exported:
    """Writes a model as a file that other runtimes take, and compares it with the model before it is called done.

    The file takes normalised float32 images `images` (B, 3, H, W) and gives `logits` (B, C), or pixels and
    `probabilities` (or `values`), for any number of images up to the format's largest. The preprocessing, the names of
    the classes and where all of it comes from are in the file, or in one beside it.

    Args:
        model: What to export; prompted ones are folded. It is not changed.
        path: The file; its end says the format: `.pt2`, `.onnx`, `.xml` (OpenVINO), `.pte` (ExecuTorch), or
            that of a registered one. An export that is there is replaced, any other file is not.
        images: Image files and folders to compare on; those of `int8` when there are none, or else bundled ones.
        int8: Make an int8 model with these images (`.onnx` and `.xml`).
        precision: `"fp16"` keeps the weights in float16 (`.onnx` and `.xml`).
        opset: Version of ONNX's operators; PyTorch's choice when left out.
        include_preprocessing: The file takes uint8 pixels (B, H, W, 3) in RGB, resized to the model's size, and gives
            probabilities, or values in their own units.
        labels: Write `labels.txt` and `config.json` (`id2label`) beside it, of classes or tags.
        adapter: Name of the adapter, for the record.
        report: Told of every step.

    Returns:
        The finished file, ready to run.

    Raises:
        VPromptError: If the format's packages are missing, the model cannot be converted, or the file's logits differ
            from the model's by more than `vprompt.exporters.export.TOLERANCE`. Then nothing is left behind.

    Example:
        >>> import tempfile, timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export(model, f"{folder}/model.pt2")
        >>> exported(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """
    format = format_of(path := Path(path))
    format.require(format.to_write)
    refuse_options(format, int8=int8 is not None, precision=precision, opset=opset)
    folded = copy.deepcopy(whole := model.fold() if isinstance(model, PromptedModel) else model).cpu().float()
    target = folded.target
    if labels and not target.unit:
        raise VPromptError(f"A model of {target.name} has no classes or tags to be named in files; leave labels out.")
    texts = label_files(target.names) if labels else {}
    refuse_others(path, format, texts)
    seen = folded.preprocessing.squashed
    compared_NCHW = prepared_images(images or (() if int8 is None else int8.calibration), seen, MOST_COMPARED)
    report(0, 3)
    half, tolerance = (True, FP16_TOLERANCE) if precision == "fp16" else (False, TOLERANCE)
    problem = f"{folded.info.name} cannot be converted to {format.name}, {precision}"
    with quiet(), translated(problem, "; choose another format"), writing(path):
        program = capture(folded, max_batch=format.max_batch, include_preprocessing=include_preprocessing)
        converted = format.convert(program) if opset is None else format.convert(program, opset)
        if half:
            converted = format.halved(converted)
    tools = ("torch", "timm", *(name.partition(".")[0] for name in format.to_write))
    about = describe_export(folded, adapter, tools, includes_preprocessing=include_preprocessing)
    if half:
        about = replace(about, precision="float16")
    report(1, 3)
    with written_together(path, [*format.companions(path), *map(path.with_name, texts)]) as part:
        # Logarithms of small probabilities differ by more than rounding; values have the scale of their logits.
        shares = include_preprocessing and target.answer == "probabilities"

        def outputs_of(about: About) -> tuple[Tensor, Tensor]:
            problem = f"{printable(str(path))} cannot be written"
            with quiet(), translated(problem, "; make room on the disk"), writing(path):
                format.save(converted, part, about.to_text())
                add_checksum(format.files(part))
            pair = paired_logits(folded, load_exported(part), compared_NCHW)
            return (target.activate(pair[0]), target.activate(pair[1])) if shares else pair

        eager_NC, exported_NC = outputs_of(about)
        comparison = compare(eager_NC, exported_NC, tolerance=tolerance, classes=target.grouped)
        about = replace(about, comparison=comparison)
        report(2, 3)
        if int8 is not None:
            calibration_NCHW = prepared_images(int8.calibration, seen, MOST_CALIBRATING)
            inputs = pixels_of(calibration_NCHW, folded.preprocessing) if include_preprocessing else calibration_NCHW
            with quiet(), translated(f"The {format.name} model cannot be made int8"), writing(path):
                batches = [image.numpy() for image in inputs.split(1)]
                converted, tool = format.quantised(converted, batches, part.parent)
            pair = (eager_NC, exported_NC := outputs_of(about)[1])
            cost = Quantisation(
                tool=tool,
                calibration_images=len(calibration_NCHW) if format.calibrates else 0,
                same_class=target.agreement(*(map(target.inverse, pair) if shares else pair)),
                **scores(int8, whole, load_exported(part)),
            )
            about = replace(about, precision="int8", quantisation=cost)
        if not torch.equal(outputs_of(about)[1], exported_NC):
            raise VPromptError(f"{printable(path.name)} does not give the same logits twice; nothing was written.")
        for name, content in texts.items():
            part.with_name(name).write_text(content, encoding="utf-8")
    report(3, 3)
    return load_exported(path)


def scores(int8: Int8, before: Classifier, after: Classifier) -> dict[str, Any]:
    """What a `Quantisation` says of labelled images, where there are some."""
    if int8.labelled is None:
        return {}
    first, second = (evaluate(model, int8.labelled).figures[before.target.headline] for model in (before, after))
    scores = {"score_before": first, "score_after": second}
    if before.target.grouped:
        scores |= {"accuracy_before": first, "accuracy_after": second}
    return {"data": int8.data, "split": int8.split, "images": len(int8.labelled), **scores}


def refuse_options(format: Format, *, int8: bool, precision: str, opset: int | None) -> None:
    """Raises a VPromptError where a format has no such option, or a package is missing that it needs."""
    if precision not in ("fp32", "fp16") or (int8 and precision == "fp16"):
        raise VPromptError(f"The precision is fp32, fp16, or int8 with images to calibrate, not {precision!r} here.")
    for option, wanted in {"int8": int8, "fp16": precision == "fp16", "opset": opset is not None}.items():
        if wanted and not getattr(format, option):
            able = " and ".join(sorted(other.name for other in FORMATS if getattr(other, option)))
            raise VPromptError(f"{option} is an option of {able}, not of {format.name}; choose one of them.")
    if opset is not None and opset not in format.opset:
        raise VPromptError(f"The opset can be {format.opset[0]} to {format.opset[-1]}, not {opset}.")


def refuse_others(path: Path, format: Format, texts: dict[str, str]) -> None:
    """Raises a VPromptError where files would be replaced that are no export, or labels of other classes than its."""
    existing = [file for file in (path, *format.companions(path)) if os.path.lexists(file)]
    problem = "is there already and is no export of vprompt's; remove it, or choose another name"
    try:
        about = opened(path)[0] if existing else None
    except VPromptError as error:
        raise VPromptError(f"{printable(str(existing[0]))} {problem}.") from error
    former = label_files(about.classes or ()) if about else {}
    for name, text in texts.items():
        file, known = path.with_name(name), (text.encode(), former.get(name, text).encode())
        if os.path.lexists(file) and not (file.is_file() and file.read_bytes() in known):
            raise VPromptError(f"{printable(str(file))} {problem}.")


def prepared_images(source: Sequence[str | Path] | ImageDataset, preprocessing: Preprocessing, most: int) -> Tensor:
    """At most so many images of a data set, files or folders, normalised (N, 3, H, W); bundled ones without any."""
    if isinstance(source, ImageDataset):
        pixels_NCHW = source.pixels(torch.tensor(_spread(len(source), most)))
    elif not source:
        pixels_NCHW = bundled_images(preprocessing, BUNDLED)
    else:
        files = list_images(source)
        pixels_NCHW = torch.stack([decode(files[number], preprocessing) for number in _spread(len(files), most)])
    return preprocessing.normalise(pixels_NCHW)


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, from all over."""
    taken = min(count, most)
    return [number * count // taken for number in range(taken)]
