"""The page of one run, or of one evaluation: figures, curves, classes, pictures, settings, and what to do next."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vprompt.compression.gradients import observed
from vprompt.data.dataset import ImageDataset
from vprompt.experiments.report.training import thin
from vprompt.model.classifier import Classifier
from vprompt.model.model import PromptedModel
from vprompt.report import document as page
from vprompt.report.document import Block, Section
from vprompt.report.html import html_page
from vprompt.report.masks import coloured, errors
from vprompt.report.plots import heated, jpeg
from vprompt.tasks.base import Target
from vprompt.tasks.segmentation import resized
from vprompt.training.evaluate import Evaluation
from vprompt.utils.io import pretty_json, write_text
from vprompt.utils.text import line, percent, show, title_of
from vprompt.utils.version import __version__

SHOWN, MAPPED, POINTS, MASKS = 12, 4, 200, 3
"""Images of each kind, images under attention maps, points of a curve, and masks of each kind, at most."""

Stages = Sequence[tuple[str, Mapping[str, Any]]]
"""The figures of each model with its name."""


def write_page(
    path: Path,
    model: Classifier,
    evaluations: Mapping[str, Evaluation],
    images: Mapping[str, ImageDataset],
    result: Mapping[str, Any],
    *,
    adapter: str,
    data: str | None,
) -> None:
    """Writes a page; a section that cannot be drawn says so.

    Args:
        path: The file.
        model: With its last prompts.
        evaluations: On each split, the one to look at last.
        images: Of each split.
        result: The document in `result.json`, or the figures of an evaluation in its form.
        adapter: Where the model lies.
        data: What was read, as commands name it.
    """
    split, evaluation = [*evaluations.items()][-1]
    target, before = evaluation.target, result.get("before")
    stages = [("", result)] if before is None else [("all prompts", before), ("fewer prompts", result)]
    makers = {
        "Result": lambda: _figures(target, [*evaluations], stages, evaluation.figures),
        "Learning curves": lambda: _curves(target, stages),
        "Target": lambda: target.sections(evaluation.figures, evaluation.logits, evaluation.labels),
        **(
            {"Images and their masks": lambda: _masks(model, images[split], evaluation)}
            if target.dense
            else {"Worst and least certain": lambda: _pictures(images[split], evaluation)}
        ),
        "Prompts in each block": lambda: _prompts(stages),
        "Attention": lambda: _attention(model, images[split]),
        "Settings and provenance": lambda: _settings(result),
        "What to do next": lambda: _next(model, adapter, data),
    }
    sections: list[Section] = []
    for title, make in makers.items():
        try:
            made: Sequence[Any] = [*make()]
        except Exception as error:
            made = [page.Warn(f"This part cannot be drawn ({type(error).__name__}: {line(error)}).")]
        blocks = [block for block in made if not isinstance(block, Section)]
        sections += [Section(key=title.split()[0].lower(), title=title, blocks=blocks)] if blocks else made
    about = f"{target.size}, {split} images; made by vprompt {__version__}"
    write_text(path, html_page(f"{adapter} on {data or 'the bundled task'}", about, sections))


def _figures(target: Target, splits: Sequence[str], stages: Stages, figures: Mapping[str, Any]) -> Iterator[Block]:
    result = stages[-1][1]
    for split in splits:
        cells = [
            target.cells(stage, f"{split}_") | {"loss": show(stage.get(f"{split}_loss"), ".4g")} for _, stage in stages
        ]
        rows = [[name or "this model", *row.values()] for (name, _), row in zip(stages, cells, strict=True)]
        yield page.simple_table(f"{split}{target.beside(result, f'{split}_')}", ["", *cells[0]], rows)
    intervals = {target.headline: figures["interval"], **figures.get("intervals", {})}
    rows = [
        [shown, show(value, ".4g"), " to ".join(f"{end:.4g}" for end in ends or ())]
        for key, value in figures.items()
        if value is None or isinstance(value, float)
        for shown, ends in [(title_of(key), intervals.get(key))]
    ]
    yield page.simple_table(f"More figures, {splits[-1]}", ["", "value", "95 %"], rows)
    for split, found in result.get("calibration", {}).items():
        rows = [[when, *(show(value, ".4f") for value in figures.values())] for when, figures in found.items()]
        yield page.simple_table(f"Calibration, {split} images", ["", *found["after"]], rows)
    yield from map(page.Warn, result.get("notes", []))


def _curves(target: Target, stages: Stages) -> Iterator[Block]:
    charts: list[page.Chart] = []
    keys = {"loss": "loss", target.hit.replace("_", " "): target.hit, target.title: target.headline}
    for (name, stage), (y, key) in itertools.product(stages, keys.items()):
        pair = (key, f"val_{key}")
        courses = [[(row["epoch"], row[key]) for row in stage.get("epochs", []) if key in row] for key in pair]
        curves = [
            page.Curve(name=key, dots=page.points(thin(course, POINTS)), style=style, line="-", marks=style == 1)
            for style, (key, course) in enumerate(zip(pair, courses, strict=True))
        ]
        if any(courses):
            title = f"{y}, {name}" if name else y
            charts.append(page.Chart(title=title, x="epoch", y=y, alt=f"{title} by epoch", curves=curves, zero=True))
    if charts:
        yield page.Charts(charts, [(0, "training images"), (1, "validation images")])


def _pictures(images: ImageDataset, evaluation: Evaluation) -> Iterator[Block]:
    target, logits, labels = evaluation.target, evaluation.logits, evaluation.labels
    for words, doubt in {
        "The images with the largest loss:": target.loss(logits, labels),
        "Those of which the model is least certain:": target.doubt(logits),
    }.items():
        if doubt is not None:
            rows = doubt.argsort(descending=True)[:SHOWN]
            true, said = target.named(labels[rows]), target.named(target.pseudo(logits[rows]))
            lines = [[f"{t}, said {s}", _name(images, r)] for t, s, r in zip(true, said, rows.tolist(), strict=True)]
            pixels = [jpeg(each.numpy()) for each in images.pixels(rows)]
            yield page.Paragraph(words)
            yield page.Gallery([*zip(pixels, lines, strict=True)])


def _masks(model: Classifier, images: ImageDataset, evaluation: Evaluation) -> Iterator[Block]:
    target, classes = evaluation.target, len(evaluation.target.names)
    each = [target.score(evaluation.logits[row, None], evaluation.labels[row, None]) for row in range(len(images))]
    order = sorted(range(len(images)), key=each.__getitem__)
    some = min(MASKS, len(order))
    places = {"worst": 0, "median": (len(order) - some) // 2, "best": len(order) - some}
    for word, first in places.items():
        yield page.Paragraph(f"The {word} images; errors are orange, what counts for nothing grey:")
        for row in order[first : first + some]:
            pixels, true = next(images.pairs(torch.tensor([row])))
            with torch.inference_mode():
                logits = model(images.preprocessing.normalise(pixels).to(model.device)).float()
            said = target.pseudo(resized(logits, true.shape[1:]))[0].cpu().numpy()
            pictures = {
                f"{_name(images, row)}: {target.title} {percent(each[row])} %": pixels[0].numpy(),
                "truth": coloured(true[0].numpy(), classes).transpose(2, 0, 1),
                "prediction": coloured(said, classes).transpose(2, 0, 1),
                "errors": errors(said, true[0].numpy()).transpose(2, 0, 1),
            }
            yield page.Gallery([(jpeg(picture), [caption]) for caption, picture in pictures.items()])
    key = [coloured(np.full((24, 48), number), classes).transpose(2, 0, 1) for number in range(classes)]
    yield page.Paragraph("Colours of the classes:")
    yield page.Gallery([(jpeg(patch), [name]) for patch, name in zip(key, target.names, strict=True)])


def _name(images: ImageDataset, row: int) -> str:
    return f"image {row}" if images.paths is None else line(images.paths[row], 60)


def _prompts(stages: Stages) -> Iterator[Block]:
    before, after = (stage.get("prompt_counts", []) for _, stage in (stages[0], stages[-1]))
    if any(before):
        bars = [page.Bar(before=b, retained=a) for b, a in zip(before, after, strict=True)]
        title, alt = f"{sum(after)} of {sum(before)} prompts", f"Prompts in each block: {after} of {before}"
        yield page.Charts([page.Chart(title=title, x="block", y="prompts", alt=alt, bars=bars)])


def _attention(model: Classifier, images: ImageDataset) -> Iterator[Block]:
    rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
    photos: list[tuple[bytes, list[str]]] = []
    for row, pixels in zip(rows.tolist(), images.pixels(rows), strict=True):
        image = images.preprocessing.normalise(pixels[None]).to(model.device)
        maps = attention_maps(model, image) if isinstance(model, PromptedModel) else {}  # weights take much memory
        seen = [(heated(pixels.numpy(), of[0].cpu().numpy()), [name]) for name, of in maps.items()]
        photos += [(jpeg(pixels.numpy()), [_name(images, row)]), *seen] if seen else []
    if photos:
        words = "Class token: what it looks at in the last block. Prompts: which patches look at them. Bright is more."
        yield from (page.Paragraph(words), page.Gallery(photos))


@torch.no_grad()
def attention_maps(model: PromptedModel, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Mean attention over heads for normalised images, as maps (B, h, w) of patches; none where blocks see windows.

    `class token` is its attention to each patch in the last block, where there is one; `prompts` the attention that
    each patch pays to the prompts of its block, the mean over the blocks that have any.
    """
    if model.info.stages is not None:
        return {}
    height, width = (n // p for n, p in zip(images_BCHW.shape[2:], model.info.patch_size, strict=True))
    maps, paid = dict[str, Tensor](), list[Tensor]()

    def note(block: int, prompts: slice, weights: Callable[[int], Tensor]) -> None:
        weights_BNM = weights(sys.maxsize).mean(1)
        if model.info.class_token:
            maps["class token"] = weights_BNM[:, 0, -height * width :].unflatten(1, (height, width))
        # The last block may compute the class token only.
        if prompts.start < prompts.stop and weights_BNM.shape[1] >= height * width:
            paid.append(weights_BNM[:, -height * width :, prompts].sum(2).unflatten(1, (height, width)))

    observed(model, note)(images_BCHW)
    return {**maps, "prompts": torch.stack(paid).mean(0)} if paid else maps


def _settings(result: Mapping[str, Any]) -> Iterator[Block]:
    for title in ("settings", "provenance", "machine"):
        if title in result:
            yield page.Fold(title.capitalize(), [page.Code(pretty_json(result[title]))])


def _next(model: Classifier, adapter: str, data: str | None) -> Iterator[Block]:
    place, images = shlex.quote(adapter), "" if data is None else f" {shlex.quote(data)}"
    commands = [f"predict {place} IMAGE_OR_FOLDER", f"eval {place}{images} --out NEW_FOLDER"]
    if isinstance(model, PromptedModel):
        commands += [f"condense {place}{images} --ratio 0.3 --out SMALLER"] * any(model.prompt_counts)
        commands += [f"export {place} --format onnx --out MODEL.onnx", f"serve {place}"]
    yield page.Code("\n".join(f"vprompt {command}" for command in commands))
