"""A comparison as tables, as Markdown and as a picture; from the document in its compare.json alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vprompt.experiments.folder import score_key, target_of
from vprompt.experiments.report.search import settings as shown_settings
from vprompt.report import document as page
from vprompt.report.document import Block, Section, Table, simple_table
from vprompt.report.markdown import markdown_page
from vprompt.report.plots import save_png
from vprompt.tasks.base import Target
from vprompt.utils.text import capital, count, duration, gmacs, percent, show

Row = dict[str, Any]

Columns = dict[str, Callable[[Row], str]]
"""Head -> what its cell shows of a row."""

_VALIDATION: Columns = {
    "val %": lambda row: percent(row[score_key(row, "val")]),
    "converged": lambda row: _converged(row) if row["runs"] else "–",
}

_LEARNED: Columns = {
    "prompts": lambda row: show(row["prompts"], ",.4g"),
    "learned": lambda row: show(row["learned_params"], ",.0f"),
    "%": lambda row: show(row["learned_share"], ".3g", factor=100),
}

_COST: Columns = {
    "GMACs": lambda row: gmacs(row["folded_gmacs"]),
    "ms": lambda row: show(row["milliseconds"], ".3g"),
    "x bare": lambda row: show(row["time_ratio"], ".2f"),
    "trained": lambda row: duration(row["training_seconds"]),
}

_LEARNED_TITLE = "Learned parameters, and how many percent of the backbone's"


def tables(document: Row) -> list[Table]:
    """Scores, size and cost of every method, each table narrow enough for a narrow terminal, and what failed."""
    rows: list[Row] = document["rows"]
    score = capital(_target(rows).title)
    return [
        _table(f"{score}{_beside(rows)}", _tested_columns(rows), rows),
        _table(f"{score} on validation images, and how many runs converged", _VALIDATION, rows),
        _table(_LEARNED_TITLE, _LEARNED, rows),
        _table(_cost_title(document), _COST, rows),
        *_searches(rows),
        *_failures(document),
    ]


def title(document: Row) -> str:
    """The data, the backbone and the number of seeds in a line; of an absolute path, the last name."""
    settings = document["settings"]
    data = document["data"] or settings["values"].get("data") or "the bundled task"
    data = Path(data).name if Path(data).is_absolute() else data
    return f"{data} on {document['backbone']}, {count(settings['seeds'], 'seed')}"


def _converged(row: Row) -> str:
    """How many runs had converged; a row of an earlier version tells by an older rule."""
    if "unknown" not in row:
        return f"{row['converged']} of {row['runs']} (older rule)"
    known = row["runs"] - row["unknown"]
    return f"{row['converged']} of {known}" if known else "not known"


def _target(rows: Sequence[Row]) -> type[Target]:
    """The target of the runs that there are; methods of which none is left do not say it."""
    return target_of(next((row for row in rows if row["runs"]), {}))


def _tested_columns(rows: Sequence[Row]) -> Columns:
    """The figures of the target; of the first, the spread over the seeds as well."""
    target = _target(rows)

    def cell(head: str, row: Row) -> str:
        return target.cells(row, "test_")[head].replace("-", "–")

    _, *others = target.cells({})
    columns: Columns = {"test %": lambda row: _spread(row[score_key(row, "test")], row["test_std"])}
    return columns | {head: partial(cell, head) for head in others}


def _beside(rows: Sequence[Row]) -> str:
    """What the scores have to be held against, in words."""
    return next((beside for row in rows if (beside := target_of(row).beside(row, "test_"))), "")


def markdown(document: Row) -> str:
    """The text of compare.md: what was run, one table, what failed, the picture."""
    rows: list[Row] = document["rows"]
    settings = document["settings"]["values"]
    long, epochs = settings.get("time"), settings["epochs"]
    if long is None:
        long = count(epochs, "epoch") if isinstance(epochs, int) else "epochs by the number of images"
    training = f"{long} of {settings['optimizer']}"
    if rates := document["settings"]["rates"]:
        training += f", learning rates {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}"
    blocks: list[Block] = [
        page.Paragraph(
            f"{training}; mean ± sample standard deviation over the seeds{_beside(rows)}. "
            f"{_LEARNED_TITLE}. {_cost_title(document)}."
        ),
        _table("", {**_tested_columns(rows), **_VALIDATION, **_LEARNED, **_COST}, rows),
    ]
    if pruned := [row["method"] for row in rows if row["pruned"]]:
        blocks.append(
            page.Paragraph(
                f"How much of {', '.join(pruned)} was pruned was decided on the validation images; its training "
                "time is that of one training times what the search cost in passes over the images."
            )
        )
    blocks += [*_searches(rows), *_failures(document)]
    if any(_score(row, document) is not None for row in rows):
        alt = f"{_target(rows).title} against learned parameters and time per image"
        blocks.append(page.Picture(png=b"", alt=alt, file="compare.png"))
    return markdown_page(title(document), [Section(key="comparison", title="", blocks=blocks)])


def draw(document: Row, path: Path) -> bool:
    """Draws the score against learned parameters and time where there is one, and says whether there is."""
    rows = [row for row in document["rows"] if _score(row, document) is not None]
    sizes, times = (_dots(document, rows, key) for key in ("learned_params", "milliseconds"))
    if not rows:
        return False
    y = f"{'test' if _tested(document) else 'validation'} {target_of(rows[0]).title} (%)"
    charts = [page.Chart(title="", x="learned parameters", y=y, curves=[*sizes, *page.pareto(sizes)], log=True)]
    if times:
        bare = document["bare"].get("milliseconds")
        rule = None if bare is None else (bare, "bare backbone")
        charts.append(
            page.Chart(title="", x="time per image, folded (ms)", y=y, curves=[*times, *page.pareto(times)], rule=rule)
        )
    save_png(
        path, page.Charts(charts, [(style, row["method"]) for style, row in enumerate(rows)]), title=title(document)
    )
    return True


def _dots(document: Row, rows: Sequence[Row], key: str) -> list[page.Curve]:
    """The scores of the methods against something that was measured of them."""
    dots = {
        style: page.Dot(x=row[key], y=100 * (_score(row, document) or 0.0), error=100 * (row["test_std"] or 0.0))
        for style, row in enumerate(rows)
        if row[key] is not None
    }
    return [page.Curve(name=rows[style]["method"], dots=[dot], style=style) for style, dot in dots.items()]


def _tested(document: Row) -> bool:
    return any(row[score_key(row, "test")] is not None for row in document["rows"])


def _score(row: Row, document: Row) -> float | None:
    """Score in pictures: that of validation where the data has no test images."""
    return row[score_key(row, "test" if _tested(document) else "val")]


def _cost_title(document: Row) -> str:
    device = (document["bare"] or {}).get("device", "cpu")
    where = "one thread of the processor" if device == "cpu" else device
    return f"Cost per image, folded ({where}), and of training"


def _table(caption: str, columns: Columns, rows: Sequence[Row]) -> Table:
    cells = [[row["method"], *(shown(row) for shown in columns.values())] for row in rows]
    return simple_table(caption, ["method", *columns], cells)


def _searches(rows: Sequence[Row]) -> list[Table]:
    chosen = [[row["method"], str(row["tries"]), shown_settings(row["chosen"])] for row in rows if row.get("tries")]
    title = "Chosen on validation images, and of how many trainings"
    return [simple_table(title, ["method", "tried", "chosen"], chosen, words=True)] if chosen else []


def _failures(document: Row) -> list[Table]:
    failures = [
        [f"{row['method']}, seed {failure['seed']}", f"failed: {failure['failed']}"]
        for row in document["rows"]
        for failure in row["failed"]
    ]
    return [simple_table("Failed", ["run", "why"], failures, words=True)] if failures else []


def _spread(mean: float | None, std: float | None) -> str:
    return "–" if mean is None else f"{percent(mean)} ± {percent(std)}"
