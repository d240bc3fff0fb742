"""The export of a model: converted, written beside its place, compared, and only then put there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.data import ImageDataset, decode, list_images
from laconic.data.bundled import bundled_images
from laconic.data.images import printable
from laconic.errors import LaconicError
from laconic.evaluation import evaluate
from laconic.exporting.about import Quantisation, describe_export
from laconic.exporting.compare import compare, paired_logits, same_class
from laconic.exporting.exported import Exported, load_exported
from laconic.exporting.formats import Format, format_of, quiet
from laconic.exporting.program import capture
from laconic.files import written_together
from laconic.model import FoldedModel, PromptedModel
from laconic.preprocessing import Preprocessing
from laconic.progress import Report, silent

MOST_COMPARED = 64
"""Images that are compared at most; of more, some from all over the list."""
MOST_CALIBRATING = 300
"""Images that the ranges of int8 values come from at most."""
BUNDLED = 32
"""How many of the bundled images are compared where no others are given."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What a model in int8 is made and judged with.

    Args:
        calibration: Images that the ranges of values come from: files and folders, or a data set; at most 300 are
            taken, from all over.
        labelled: Other images, with labels, to measure the accuracy before and after.
        data: What these are called, for the record.
        split: Which split of it they are, for the record.
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
    adapter: str | None = None,
    report: Report = silent,
) -> Exported:
    """Writes a model as a file that other runtimes take, and compares it with the model before it is called done.

    The file takes normalised float32 images `images` (B, 3, H, W) and gives `logits` (B, C), for any number of images
    up to the format's largest. What images must look like, the names of the classes and where all of it comes from are
    in the file, or in one beside it.

    Args:
        model: What to export; prompted ones are folded. It is not changed.
        path: The file; its end says the format: `.pt2`, `.onnx`, `.xml` (OpenVINO) or `.pte` (ExecuTorch). An
            export that is there is replaced, any other file is not.
        images: Image files and folders to compare on; those of `int8` when there are none, or else bundled ones.
        int8: Make an int8 model with these images (`.onnx` and `.xml`).
        adapter: What the adapter is called, for the record.
        report: Told of every step.

    Returns:
        The finished file, ready to run.

    Raises:
        LaconicError: If the format's packages are missing, the model cannot be converted, or the file's logits differ
            from the model's by more than `laconic.exporting.compare.TOLERANCE`. Then nothing is left behind.

    Example:
        >>> import tempfile, timm, torch, laconic
        >>> model = laconic.attach(timm.create_model("test_vit", img_size=32), laconic.VPT(2), num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export(model, f"{folder}/model.pt2")
        >>> exported(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """
    path = Path(path)
    format = format_of(path)
    format.require(format.to_write)
    if int8 is not None:
        _refuse_int8(format)
    _refuse_others(path, format)
    folded = _plain(model)
    looks, source = folded.preprocessing, images or (() if int8 is None else int8.calibration)
    seen_NCHW = looks.normalise(_pixels(source, looks, MOST_COMPARED))
    report(0, 3)
    converted = _converted(folded, format)
    about = describe_export(folded, adapter, ("torch", "timm", *(name.partition(".")[0] for name in format.to_write)))
    report(1, 3)
    with written_together(path, format.companions(path)) as part:
        format.save(converted, part, about.to_text())
        eager_NC, exported_NC = paired_logits(folded, load_exported(part), seen_NCHW)
        about = replace(about, comparison=compare(eager_NC, exported_NC))
        report(2, 3)
        if int8 is not None:
            ranges_NCHW = looks.normalise(_pixels(int8.calibration, looks, MOST_CALIBRATING))
            converted, tool = _quantised(format, converted, ranges_NCHW, part.parent)
            format.save(converted, part, about.to_text())
            exported_NC = paired_logits(folded, load_exported(part), seen_NCHW)[1]
            cost = Quantisation(
                tool=tool,
                calibration_images=len(ranges_NCHW) if format.calibrates else 0,
                same_class=same_class(eager_NC, exported_NC),
            )
            about = replace(about, precision="int8", quantisation=_judged(folded, part, int8, cost))
        format.save(converted, part, about.to_text())
        if not torch.equal(paired_logits(folded, load_exported(part), seen_NCHW)[1], exported_NC):
            raise LaconicError(f"{printable(path.name)} does not give the same logits twice; nothing was written.")
    report(3, 3)
    return load_exported(path)


def _refuse_int8(format: Format) -> None:
    if not format.int8:
        raise LaconicError(f"laconic makes int8 models as onnx and openvino, not as {format.name}; choose one of them.")
    if format.calibrates:
        format.require(["nncf"])


def _refuse_others(path: Path, format: Format) -> None:
    """Raises a LaconicError where a file would be replaced that is no export of ours."""
    there = [file for file in (path, *format.companions(path)) if file.exists()]
    if not there:
        return
    try:
        load_exported(path)
    except LaconicError as error:
        raise LaconicError(
            f"{printable(str(there[0]))} is there already and is no export of laconic's; remove it, or choose another "
            "name."
        ) from error


def _plain(model: PromptedModel | FoldedModel) -> FoldedModel:
    """The folded model on the CPU in float32."""
    folded = model.fold() if isinstance(model, PromptedModel) else model
    held = folded.state_dict().values()
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in held):
        return folded
    return copy.deepcopy(folded).cpu().float()


def _pixels(source: Sequence[str | Path] | ImageDataset, preprocessing: Preprocessing, most: int) -> Tensor:
    """At most so many images of a data set, files or folders, uint8 (N, 3, H, W); bundled ones when there are none."""
    if isinstance(source, ImageDataset):
        return source.pixels(torch.tensor(_spread(len(source), most)))
    if not source:
        return bundled_images(preprocessing, BUNDLED)
    files = list_images(source)
    return torch.stack([decode(files[number], preprocessing) for number in _spread(len(files), most)])


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, from all over."""
    taken = min(count, most)
    return [number * count // taken for number in range(taken)]


def _converted(model: FoldedModel, format: Format) -> Any:
    try:
        with quiet():
            return format.convert(capture(model, max_batch=format.max_batch))
    except Exception as error:  # every exporter raises its own
        raise LaconicError(
            f"{model.info.name} cannot be converted to {format.name} ({_reason(error)}); choose another format."
        ) from error


def _quantised(format: Format, converted: Any, images_NCHW: Tensor, folder: Path) -> tuple[Any, str]:
    """The model in int8, and the tool."""
    try:
        with quiet():
            return format.quantised(converted, [image.numpy() for image in images_NCHW.split(1)], folder)
    except LaconicError:
        raise
    except Exception as error:  # every tool raises its own
        raise LaconicError(f"The {format.name} model cannot be made int8 ({_reason(error)}).") from error


def _judged(model: FoldedModel, part: Path, int8: Int8, cost: Quantisation) -> Quantisation:
    """What int8 cost, with the accuracy before and after where there are labels."""
    if int8.labelled is None:
        return cost
    before, after = evaluate(model, int8.labelled), evaluate(load_exported(part), int8.labelled)
    return replace(
        cost,
        data=int8.data,
        split=int8.split,
        images=before.images,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
    )


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__
