"""The report of a study as an HTML page and as Markdown, its runs as CSV and its accuracies as LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from vprompt.experiments.report import accuracy, blocks, cost, provenance, ranks, search, selection, summary, training
from vprompt.experiments.report.search import trials_of
from vprompt.experiments.report.study import Model, Run, Study, read
from vprompt.report.csv import csv_table
from vprompt.report.document import Code, Paragraph, Section, simple_table
from vprompt.report.html import html_page
from vprompt.report.latex import escaped, latex_table
from vprompt.report.markdown import markdown_page
from vprompt.utils.text import count

_FACTS = {
    "data": "data.source",
    "data_fingerprint": "data.fingerprint",
    "backbone": "settings.backbone",
    "backbone_fingerprint": "backbone_fingerprint",
    "weights_sha256": "weights.sha256",
    "size": "preprocessing.size",
    "mean": "preprocessing.mean",
    "std": "preprocessing.std",
    "resize": "preprocessing.resize",
    "optimizer": "settings.optimizer",
    "lr": "settings.lr",
    "weight_decay": "settings.weight_decay",
    "batch_size": "settings.batch_size",
    "device": "device",
    "vprompt": "versions.vprompt",
    "torch": "versions.torch",
}
"""Column -> where its value stands in the settings and the provenance of a run."""


_MODEL: dict[str, Callable[[Model], Any]] = {
    "converged": attrgetter("converged"),
    "epochs": lambda model: len(model.losses),
    "final_loss": lambda model: next(reversed(model.losses), None),
    "prompts": lambda model: model.prompts,
    "prompts_per_block": lambda model: None if model.prompt_counts is None else " ".join(map(str, model.prompt_counts)),
    **{name: attrgetter(name) for name in ("learned_params", "folded_gmacs", "training_seconds")},
}
"""Column -> its value for a model, besides its scores."""


def page(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as an HTML page.

    Args:
        document: The study; see `vprompt.experiments.report.study.read`.
        more: Sections that follow its own.
    """
    study = read(document)
    made = f", made {study.made}" if study.made else ""
    return html_page(study.title, f"Report of the study {study.name}{made}", [*sections(study), *more])


def markdown(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as Markdown; arguments as those of `page`."""
    study = read(document)
    return markdown_page(study.title, [*sections(study), *more])


def csv_rows(document: Mapping[str, Any]) -> str:
    """Every run of a study as a line of CSV; arguments as those of `page`."""
    study = read(document)
    rows = [_row(study, run) for run in study.runs]
    texts = [[_text(value) for value in row.values()] for row in rows]
    return csv_table(simple_table("Every run", list(rows[0]), texts)) if rows else ""


def latex(document: Mapping[str, Any]) -> str:
    """The accuracies of a study, and the published ones below, as LaTeX; arguments as those of `page`.

    The tables need the packages booktabs and graphicx.
    """
    study = read(document)
    publications = accuracy.Publications(study)
    tables = accuracy.tables(study, publications)
    words = f"{study.metric}: mean ± sample standard deviation over {count(len(study.seeds), 'seed')}."
    if any(run.unconverged for run in study.runs):
        words += " †: a training had not converged."
    parts = ["% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs,graphicx}"]
    parts += [latex_table(table, caption=f"{study.title}. {table.caption}, {words}") for table in tables]
    if any(body.published for table in tables for body in table.bodies):
        sources = [f"% {escaped(source)}" for source in publications.sources]
        parts.append("\n".join(["% Sources of the published rows", *sources]))
    return "\n\n".join(parts) + "\n"


def sections(study: Study) -> list[Section]:
    """The sections of the report of a study; those without anything to show are left out."""
    parts = [
        summary.section(study),
        accuracy.section(study),
        ranks.section(study),
        selection.section(study),
        cost.section(study),
        blocks.section(study),
        training.curves_section(study),
        search.section(study),
        training.time_section(study),
        provenance.section(study),
        _failures(study),
        Section(key="plan", title="Plan", blocks=[Code(study.plan)]) if study.plan else None,
    ]
    return [section for section in parts if section is not None]


def _failures(study: Study) -> Section:
    rows = [[run.title, run.failure] for run in study.runs if run.state == "failed"]
    table = simple_table("Runs that failed, and why", ["Run", "Why"], rows, words=True)
    return Section(key="failures", title="Failures", blocks=[table if rows else Paragraph("No run failed.")])


def _row(study: Study, run: Run) -> dict[str, Any]:
    search = run.search or {}
    return {
        "study": study.name,
        "task": run.task.key,
        "title": run.task.title,
        "group": run.task.group,
        "method": run.method.label,
        "seed": run.seed,
        "state": run.state,
        "failure": run.failure,
        **_model(study, run.model),
        **{f"before_{name}": value for name, value in _model(study, run.before).items()},
        "backbone_params": study.backbone_params,
        "seconds": run.seconds,
        "trials": len(trials_of(search)) if run.search else None,
        "chosen": json.dumps(search.get("chosen"), default=str) if run.search else None,
        **{name: run.facts.get(key) for name, key in _FACTS.items()},
        "result": run.name,
    }


def _model(study: Study, model: Model | None) -> dict[str, Any]:
    headline = "score" if study.target is None else study.target.headline
    columns = {f"{split}_{headline}": attrgetter(f"{split}_score") for split in ("test", "val")} | _MODEL
    return {name: None if model is None else value(model) for name, value in columns.items()}


def _text(value: Any) -> str:
    """Numbers as they are, whole ones without a point."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    whole = isinstance(value, float) and value.is_integer() and abs(value) > 1
    return str(int(value) if whole else value)
