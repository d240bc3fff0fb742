"""The page of one run, or of one evaluation: figures, curves, classes, pictures, settings, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.data.dataset import ImageDataset
from vprompt.experiments.report.attention import attention_maps
from vprompt.experiments.report.training import thin
from vprompt.experiments.stages import Outcome
from vprompt.model.model import PromptedModel
from vprompt.report.document import (
    Bar,
    Block,
    Chart,
    Charts,
    Code,
    Curve,
    Dot,
    Fold,
    Gallery,
    Paragraph,
    Photo,
    Section,
    Warn,
    simple_table,
)
from vprompt.report.html import html_page
from vprompt.report.plots import heated, jpeg
from vprompt.training.evaluate import Evaluation
from vprompt.utils.io import write_text
from vprompt.utils.text import line, show
from vprompt.utils.version import __version__

SHOWN, MAPPED, POINTS = 12, 4, 200
"""Images of each kind, images under attention maps, and points of a curve, at most."""


def write_page(path: Path, outcome: Outcome) -> None:
    """Writes the page of an outcome; a section that cannot be drawn says so."""
    sections: list[Section] = []
    for make in (_figures, _curves, _of_target, _pictures, _prompts, _attention, _settings, _next):
        try:
            sections += make(outcome)
        except Exception as error:
            why = f"This part cannot be drawn ({type(error).__name__}: {line(error)})."
            sections.append(Section(key=make.__name__[1:], title="Not drawn", blocks=[Warn(why)]))
    made = f"{outcome.model.target.size}; made by vprompt {__version__}"
    write_text(path, html_page(f"{outcome.adapter} on {outcome.data or 'the bundled task'}", made, sections))


def _figures(outcome: Outcome) -> Iterator[Section]:
    result, target = outcome.result, outcome.model.target
    blocks: list[Block] = []
    for split in outcome.evaluations:
        cells = [(name, target.cells(stage, f"{split}_")) for name, stage in outcome.stages]
        rows = [
            [name or "this model", *row.values(), show(stage.get(f"{split}_loss"), ".4g")]
            for (name, row), (_, stage) in zip(cells, outcome.stages, strict=True)
        ]
        title = f"{split}{target.beside(result, f'{split}_')}"
        blocks.append(simple_table(title, ["", *cells[0][1], "loss"], rows))
    calibration = {
        f"{split}, {when}": figures
        for split, of in result.get("calibration", {}).items()
        for when, figures in of.items()
    }
    if calibration:
        keys = [*next(iter(calibration.values()))]
        rows = [[name, *(show(figures[key], ".4f") for key in keys)] for name, figures in calibration.items()]
        blocks.append(simple_table("Calibration of the probabilities", ["", *keys], rows))
    blocks += [Warn(note) for note in result.get("notes", [])]
    yield Section(key="figures", title="Result", blocks=blocks)


def _curves(outcome: Outcome) -> Iterator[Section]:
    charts: list[Chart] = []
    target = outcome.model.target
    pairs = {
        "loss": ("loss", "val_loss"),
        target.title: (target.hit, f"val_{target.headline}"),
        "learning rate": ("lr",),
    }
    for stage, report in outcome.stages:
        rows: Sequence[Mapping[str, float]] = report.get("epochs", [])
        for title, keys in pairs.items() if rows else ():
            curves = [
                Curve(
                    name=key,
                    dots=[
                        Dot(x=x, y=y) for x, y in thin([(row["epoch"], row[key]) for row in rows if key in row], POINTS)
                    ],
                    style=style,
                    line="-",
                    marks=style == 1,
                )
                for style, key in enumerate(keys)
            ]
            name = f"{title}, {stage}" if stage else title
            charts.append(Chart(title=name, x="epoch", y=title, alt=f"{name} by epoch", curves=curves, zero=True))
    if charts:
        legend = [(0, "training images"), (1, "validation images")]
        yield Section(key="curves", title="Learning curves", blocks=[Charts(charts, legend)])


def _of_target(outcome: Outcome) -> list[Section]:
    evaluation = outcome.evaluations[outcome.split]
    return evaluation.target.sections(evaluation.figures, evaluation.logits, evaluation.labels)


def _pictures(outcome: Outcome) -> Iterator[Section]:
    evaluation, images = outcome.evaluations[outcome.split], outcome.images[outcome.split]
    target, logits, labels = evaluation.target, evaluation.logits, evaluation.labels
    losses, doubt = target.loss(logits, labels), target.doubt(logits)
    wrong = losses.argsort(descending=True)[:SHOWN]
    blocks: list[Block] = [
        Paragraph(f"The {outcome.split} images with the largest loss."),
        _gallery(images, evaluation, wrong),
    ]
    if doubt is not None:
        unsure = doubt.argsort(descending=True)[:SHOWN]
        blocks += [Paragraph("Those of which the model is least certain."), _gallery(images, evaluation, unsure)]
    yield Section(key="images", title="Worst mistakes, and doubts", blocks=blocks)


def _gallery(images: ImageDataset, evaluation: Evaluation, rows: Tensor) -> Gallery:
    words = evaluation.target.compared(evaluation.logits[rows], evaluation.labels[rows])
    pixels = images.pixels(rows)
    return Gallery(
        [
            Photo(jpeg(p.numpy()), [text, _name(images, row)])
            for p, text, row in zip(pixels, words, rows.tolist(), strict=True)
        ]
    )


def _name(images: ImageDataset, row: int) -> str:
    return f"image {row}" if images.paths is None else line(images.paths[row], 60)


def _prompts(outcome: Outcome) -> Iterator[Section]:
    counts = [report.get("prompt_counts", []) for _, report in outcome.stages]
    if any(counts[0]):
        bars = [Bar(before=before, retained=after) for before, after in zip(counts[0], counts[-1], strict=True)]
        chart = Chart(
            title=f"{sum(counts[-1])} of {sum(counts[0])}",
            x="block",
            y="prompts",
            alt="Prompts of each block",
            bars=bars,
        )
        yield Section(key="prompts", title="Prompts in each block", blocks=[Charts([chart])])


def _attention(outcome: Outcome) -> Iterator[Section]:
    model, images = outcome.model, outcome.images[outcome.split]
    if not isinstance(model, PromptedModel):
        return
    rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
    pixels = images.pixels(rows)
    maps = attention_maps(model, images.preprocessing.normalise(pixels).to(model.device))
    photos: list[Photo] = []
    for place, row in enumerate(rows.tolist()):
        photos.append(Photo(jpeg(pixels[place].numpy()), [_name(images, row)]))
        photos += [Photo(heated(pixels[place].numpy(), m[place].cpu().numpy()), [name]) for name, m in maps.items()]
    if maps:
        words = "Class token: what it looks at in the last block. Prompts: which patches look at them. Bright is more."
        yield Section(key="attention", title="Attention", blocks=[Paragraph(words), Gallery(photos)])


def _settings(outcome: Outcome) -> Iterator[Section]:
    result = outcome.result
    tables = {
        "Settings": result.get("settings"),
        "Provenance": result.get("provenance"),
        "Machine": result.get("machine"),
    }
    blocks = [
        Fold(title, [simple_table(title, ["", "value"], [*_flat(document)], words=True)])
        for title, document in tables.items()
        if document
    ]
    yield Section(key="settings", title="Settings and provenance", blocks=blocks)


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[list[str]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield [f"{above}{key}", line(value, 300)]


def _next(outcome: Outcome) -> Iterator[Section]:
    adapter, data = shlex.quote(outcome.adapter), "" if outcome.data is None else f" {shlex.quote(outcome.data)}"
    commands = [f"vprompt predict {adapter} IMAGE_OR_FOLDER", f"vprompt eval {adapter}{data} --out NEW_FOLDER"]
    if isinstance(outcome.model, PromptedModel) and any(outcome.model.prompt_counts):
        commands.append(f"vprompt condense {adapter}{data} --ratio 0.3 --out SMALLER")
    commands += [f"vprompt export {adapter} --out model.onnx", f"vprompt serve {adapter}"]
    yield Section(key="next", title="What to do next", blocks=[Code("\n".join(commands))])
