"""A comparison as tables, as Markdown and as a picture; from the document in its compare.json alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.report.plots import Trial, plot_comparison
from vprompt.utils.text import escape


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, heads, and rows of cells; plain text that nothing is escaped in."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


_LEARNED_TITLE = "Learned parameters, and how many percent of the backbone's"


def tables(document: dict[str, Any]) -> list[Table]:
    """Accuracy, size and cost of every method, each table narrow enough for a narrow terminal, and what failed."""
    rows: list[dict[str, Any]] = document["rows"]
    found = [
        _table("Accuracy, and how many runs converged", _ACCURACY, rows),
        _table(_LEARNED_TITLE, _LEARNED, rows),
        _table(_cost_title(document), _COST, rows),
    ]
    if failures := _failures(document):
        found.append(Table(title="Failed", columns=["run", "why"], rows=failures))
    return found


def title(document: dict[str, Any]) -> str:
    """What was compared, in a line; of an absolute path, the last name."""
    settings = document["settings"]
    data = document["data"] or settings["values"].get("data") or "the bundled task"
    data = Path(data).name if Path(data).is_absolute() else data
    return f"{data} on {document['backbone']}, {_count(settings['seeds'], 'seed')}"


def markdown(document: dict[str, Any]) -> str:
    """The text of compare.md: what was run, one table, what failed, the picture."""
    rows: list[dict[str, Any]] = document["rows"]
    whole = _table("", {**_ACCURACY, **_LEARNED, **_COST}, rows)
    settings = document["settings"]["values"]
    training = f"{_count(settings['epochs'], 'epoch')} of {settings['optimizer']}"
    if rates := document["settings"]["rates"]:
        training += f", learning rates {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}"
    parts = [
        f"# {escape(title(document))}",
        f"{escape(training)}; mean ± sample standard deviation over the seeds. "
        f"{_LEARNED_TITLE}. {_cost_title(document)}.",
        _markdown_table(whole),
    ]
    pruned = [row["method"] for row in rows if row["pruned"]]
    if pruned:
        parts.append(
            f"How much of {', '.join(pruned)} was pruned was decided on the validation images; its training "
            "time is that of one training times what the search cost in passes over the images."
        )
    if failures := _failures(document):
        parts += [
            "Failed:",
            _markdown_table(
                Table(title="", columns=["run", "why"], rows=[[escape(cell) for cell in row] for row in failures])
            ),
        ]
    if any(_accuracy(row, document) is not None for row in rows):
        parts.append("![accuracy against learned parameters and time per image](compare.png)")
    return "\n\n".join(parts) + "\n"


def draw(document: dict[str, Any], path: Path) -> bool:
    """Draws the picture where there is an accuracy to show, and says whether there is."""
    trials: list[Trial] = []
    for row in document["rows"]:
        accuracy = _accuracy(row, document)
        if accuracy is not None:
            trials.append(
                Trial(
                    name=row["method"],
                    learned_params=row["learned_params"],
                    milliseconds=row["milliseconds"],
                    accuracy=accuracy,
                    std=row["test_std"],
                )
            )
    if trials:
        split = "test" if _tested(document) else "validation"
        bare = document["bare"].get("milliseconds")
        plot_comparison(path, trials, title=title(document), bare_milliseconds=bare, split=split)
    return bool(trials)


def _tested(document: dict[str, Any]) -> bool:
    return any(row["test_accuracy"] is not None for row in document["rows"])


def _accuracy(row: dict[str, Any], document: dict[str, Any]) -> float | None:
    """What a picture shows: the validation accuracy where the data has no test images."""
    return row["test_accuracy" if _tested(document) else "val_accuracy"]


def _cost_title(document: dict[str, Any]) -> str:
    device = (document["bare"] or {}).get("device", "cpu")
    where = "one thread of the processor" if device == "cpu" else device
    return f"Cost per image, folded ({where}), and of training"


def _failures(document: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{row['method']}, seed {failure['seed']}", f"failed: {failure['failed']}"]
        for row in document["rows"]
        for failure in row["failed"]
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _spread(row: dict[str, Any]) -> str:
    if row["test_accuracy"] is None:
        return "-"
    return f"{100 * row['test_accuracy']:.1f} ± {_number(row['test_std'], '.1f', 100)}"


def _number(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else format(times * value, form)


def _gmacs(value: float | None) -> str:
    return _number(value, ".3f" if value is not None and value < 1 else ".3g")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


Columns = dict[str, Callable[[dict[str, Any]], str]]
"""Head -> what its cell shows of a row."""

_ACCURACY: Columns = {
    "test %": _spread,
    "val %": lambda row: _number(row["val_accuracy"], ".1f", 100),
    "converged": lambda row: f"{row['converged']} of {row['runs']}" if row["runs"] else "-",
}

_LEARNED: Columns = {
    "prompts": lambda row: _number(row["prompts"], ",.4g"),
    "learned": lambda row: _number(row["learned_params"], ",.0f"),
    "%": lambda row: _number(row["learned_share"], ".3g", 100),
}

_COST: Columns = {
    "GMACs": lambda row: _gmacs(row["folded_gmacs"]),
    "ms": lambda row: _number(row["milliseconds"], ".3g"),
    "x bare": lambda row: _number(row["time_ratio"], ".2f"),
    "trained": lambda row: _duration(row["training_seconds"]),
}


def _table(title: str, columns: Columns, rows: Sequence[dict[str, Any]]) -> Table:
    cells = [[row["method"], *(shown(row) for shown in columns.values())] for row in rows]
    return Table(title=title, columns=["method", *columns], rows=cells)


def _markdown_table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
