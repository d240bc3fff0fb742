"""The report of the cost of prompts by execution, before and after condensation, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import Column, handle, share_of, table
from vprompt.report import published
from vprompt.report.document import Block, Paragraph, Table
from vprompt.report.plots import COLOURS, MARKERS, short, side_by_side
from vprompt.utils.text import amount, count, gmacs, line, listed, percent

Row = Mapping[str, Any]

EXECUTIONS = {"published": "-", "prefix": "--", "folded": ":"}
"""Name -> line."""


def answer(result: Result) -> str:
    """Cost of the most prompts, the point from which condensing pays, and how far the paper's figures are met."""
    bare = result["bare_gmacs"]
    most = max(result["prompts"], key=lambda row: row["prompts"])
    times = [f"{most[f'{name}_gmacs'] / bare:.2f}" for name in ("published", "folded")]
    first = (
        f"With {_prompts(result, most['prompts'])} an image costs {gmacs(most['published_gmacs'])} GMACs as published, "
        f"{times[0]} times the bare {gmacs(bare)}; folded it costs {gmacs(most['folded_gmacs'])}, {times[1]} times."
    )
    verdicts = [_verdict(result, key) for key in ("rule", "published", "folded")]
    second = (
        f"Where {percent(result['threshold'])} % more is too much, condensing for its cost is worth it "
        f"{verdicts[0]} by the paper's rule, {verdicts[1]} as published, {verdicts[2]} when folded."
    )
    return " ".join([first, second, *_against_paper(result)])


def tables(result: Result) -> list[Block]:
    """The paper's Table 1, its rule, what is learned, and its Table 5."""
    blocks: list[Block] = [_by_prompts(result), _rule(result), _learned(result), *_condensed(result)]
    if result["given"]:
        blocks.append(_given(result))
    if any(row["where"] == "global" for row in result["condensed"]):
        blocks.append(
            Paragraph(
                "Global counts depend on training. Here a profile stands in for them: counts in proportion to the "
                "place of the block, the first being number 1, for early blocks keep few."
            )
        )
    return blocks


def figure(result: Result) -> Figure:
    """GMACs against prompts per block; beside it, against the share that condensation keeps."""
    columns = 2 if result["condensed"] else 1
    drawn, axes = side_by_side(6.0 * columns, 4.4, columns)
    _draw_prompts(axes[0], result)
    if columns == 2:
        _draw_condensed(axes[1], result)
    drawn.suptitle(short(_title(result), 60 * columns), x=0.01, ha="left", fontsize=11)
    return drawn


def alt(result: Result) -> str:
    """The picture in words."""
    rows = sorted(result["prompts"], key=lambda row: row["prompts"])
    costs = ", ".join(
        f"{row['prompts']}: {gmacs(row['published_gmacs'])} published, {gmacs(row['folded_gmacs'])} folded"
        for row in rows
    )
    return f"GMACs per image against prompts; the bare backbone {gmacs(result['bare_gmacs'])}; {costs}."


def _title(result: Result) -> str:
    return f"{line(result['backbone'], 60)}, {'×'.join(map(str, result['img_size']))} pixels"


def _prompts(result: Result, number: int) -> str:
    return f"{count(number, 'prompt')} {'per block' if result['depth'] == 'deep' else 'in all'}"


def _verdict(result: Result, key: str) -> str:
    rows = sorted(result["prompts"], key=lambda row: row["prompts"])
    paying = [row["prompts"] for row in rows if row[key]["condense"]]
    if not paying:
        return "at none of these numbers"
    return f"from {count(paying[0], 'prompt')} on"


# ── what the paper prints ────────────────────────────────────────────────────────────────────────────────────────────


def _family(result: Result) -> str | None:
    deep = result["depth"] == "deep"
    return published.measured_family(result["backbone"], result["img_size"]) if deep else None


def _printed_by_prompts(result: Result) -> dict[int, str]:
    family = _family(result)
    return {} if family is None else {number: f"{value:.1f}" for number, value in published.gmacs(family)[0].items()}


def _printed(result: Result, row: Row) -> str | None:
    """Printed figures for a row of the paper's Table 5."""
    family = _family(result)
    if family is None or row["share"] is None:
        return None
    return published.condensed_gmacs(family).get((row["original"], round(100 * row["share"]), row["where"]))


def _against_paper(result: Result) -> list[str]:
    sentences: list[str] = []
    printed = _printed_by_prompts(result)
    rows = [row for row in result["prompts"] if row["prompts"] in printed]
    if rows:
        other = [
            f"{printed[row['prompts']]} for {row['prompts']} prompts is {gmacs(row['published_gmacs'])} here"
            + (", cut instead of rounded" if str(row["published_gmacs"]).startswith(printed[row["prompts"]]) else "")
            for row in rows
            if f"{row['published_gmacs']:.1f}" != printed[row["prompts"]]
        ]
        sentences.append(_met("Table 1", len(rows), other))
    for where in ("local", "global"):
        pairs = [(row, _printed(result, row)) for row in result["condensed"] if row["where"] == where]
        known = [(row, text) for row, text in pairs if text is not None]
        if not known:
            continue
        gaps = [abs(row["published_gmacs_with_biases"] - float(text)) for row, text in known]
        exact = sum(f"{row['published_gmacs_with_biases']:.2f}" == text for row, text in known)
        name = f"Table 5, {where}, biases counted"
        if where == "local":
            other = [] if exact == len(known) else [f"off by at most {max(gaps):.3f}"]
            sentences.append(_met(name, len(known), other, exact))
        else:
            sentences.append(f"{name}: {exact} of {len(known)}, by a stand-in for its counts, within {max(gaps):.3f}.")
    return ["The paper's figures, to the printed digit: " + " ".join(sentences)] if sentences else []


def _met(name: str, many: int, other: Sequence[str], exact: int | None = None) -> str:
    met = many - len(other) if exact is None else exact
    return f"{name}: {'all' if met == many else met} of {many}{f' ({listed(list(other))})' if other else ''}."


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_prompts(result: Result) -> Table:
    printed = _printed_by_prompts(result)
    paper: list[Column] = [("paper", lambda row: printed.get(row["prompts"], "–"))] if printed else []
    each = "per block" if result["depth"] == "deep" else "in all"
    return table(
        f"GMACs per image by prompts {each}, {_title(result)}",
        result["prompts"],
        ("prompts", _number),
        *paper,
        *_gmacs_columns(),
        ("folded / bare", lambda row: f"{row['folded_gmacs'] / result['bare_gmacs']:.3f}"),
    )


def _number(row: Row) -> str:
    return str(row["prompts"])


def _gmacs_columns() -> list[Column]:
    return [(name, lambda row, key=f"{name}_gmacs": gmacs(row[key])) for name in EXECUTIONS]


def _rule(result: Result) -> Table:
    return table(
        f"What prompts add, and whether to condense them for it (above {percent(result['threshold'])} %); by the "
        f"paper's rule with N = {result['tokens']} tokens, and by GMACs over the bare backbone's",
        result["prompts"],
        ("prompts", _number),
        ("(N+P)/N - 1", lambda row: _extra(row["rule"])),
        ("published", lambda row: _extra(row["published"])),
        ("folded", lambda row: _extra(row["folded"])),
    )


def _extra(extra: Row) -> str:
    return f"{100 * extra['overhead']:+.1f} % {'condense' if extra['condense'] else 'leave'}"


def _learned(result: Result) -> Table:
    params = result["backbone_params"]
    return table(
        f"Learned numbers, classes in the head: {amount(result['num_classes'])}; the adapter's file in 32 bits",
        result["prompts"],
        ("prompts", _number),
        ("in prompts", lambda row: amount(row["prompt_params"])),
        ("in head", lambda row: amount(row["head_params"])),
        ("% of backbone", lambda row: f"{100 * (row['prompt_params'] + row['head_params']) / params:.3f}"),
        ("bytes", lambda row: amount(row["adapter_bytes"])),
    )


def _condensed(result: Result) -> list[Table]:
    originals: dict[int, list[Row]] = {}
    for row in result["condensed"]:
        originals.setdefault(row["original"], []).append(row)
    return [
        _table5(result, rows, f"GMACs per image after condensing {_prompts(result, original)}")
        for original, rows in originals.items()
    ]


def _table5(result: Result, rows: Sequence[Row], caption: str) -> Table:
    known = any(_printed(result, row) is not None for row in rows)
    paper: list[Column] = [("paper", lambda row: _printed(result, row) or "–")] if known else []
    return table(
        f"{caption}; + biases: as published, each bias counted",
        rows,
        ("kept", lambda row: share_of(row["share"])),
        ("where", lambda row: row["where"]),
        ("prompts", lambda row: amount(sum(row["counts"]))),
        *paper,
        ("+ biases", lambda row: gmacs(row["published_gmacs_with_biases"])),
        *_gmacs_columns(),
    )


def _given(result: Result) -> Table:
    counts = ", ".join(map(str, result["given"][0]["counts"]))
    caption = f"GMACs per image with {line(counts, 400)} prompts in the blocks, and with as many spread evenly"
    return _table5(result, result["given"], caption)


# ── picture ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_prompts(axes: Axes, result: Result) -> None:
    rows = sorted(result["prompts"], key=lambda row: row["prompts"])
    for (name, style), colour, marker in zip(EXECUTIONS.items(), COLOURS, MARKERS, strict=False):
        xs, ys = [row["prompts"] for row in rows], [row[f"{name}_gmacs"] for row in rows]
        axes.plot(xs, ys, style, color=colour, marker=marker, markersize=5, label=name, zorder=3)
    printed = _printed_by_prompts(result)
    seen = [row["prompts"] for row in rows if row["prompts"] in printed]
    if seen:
        values = [float(printed[number]) for number in seen]
        axes.plot(seen, values, "x", color="#000000", markersize=8, label="the paper's figure", zorder=4)
    axes.axhline(result["bare_gmacs"], color="#777777", linewidth=1, label="bare backbone", zorder=1)
    most = max(1, rows[-1]["prompts"])
    axes.set(xlim=(-0.04 * most, 1.04 * most), ylim=(0, 1.08 * max(row["published_gmacs"] for row in rows)))
    each = "prompts per block" if result["depth"] == "deep" else "prompts in all"
    axes.set(xlabel=each, ylabel="GMACs per image")
    axes.legend(loc="lower right")


def _draw_condensed(axes: Axes, result: Result) -> None:
    handles: list[Line2D] = []
    originals = list(dict.fromkeys(row["original"] for row in result["condensed"]))
    for number, original in enumerate(originals):
        colour = COLOURS[number % len(COLOURS)]
        rows = [row for row in result["condensed"] if row["original"] == original]
        rows.sort(key=lambda row: row["share"])
        local = [row for row in rows if row["where"] == "local"]
        others = [row for row in rows if row["where"] == "global"]
        for key, style in (("published_gmacs_with_biases", "-"), ("folded_gmacs", ":")):
            axes.plot([100 * r["share"] for r in local], [r[key] for r in local], style, color=colour, marker=".")
            places = [100 * r["share"] for r in others]
            axes.plot(places, [r[key] for r in others], "o", color=colour, markersize=8, fillstyle="none")
        handles.append(handle(f"of {_prompts(result, original)}", colour, style="-"))
        known = [(100 * r["share"], _printed(result, r)) for r in rows]
        axes.plot([x for x, y in known if y], [float(y) for _, y in known if y], "x", color="#000000", zorder=4)
    handles += [
        handle("published, local", marker=".", style="-"),
        handle("folded, local", marker=".", style=":"),
        handle("global", marker="o", size=8, fill="none"),
    ]
    axes.axhline(result["bare_gmacs"], color="#777777", linewidth=1, zorder=1)
    axes.set(xlim=(0, 104), xlabel="prompts kept (%)", ylabel="GMACs per image")
    axes.set_ylim(0, 1.08 * max(row["published_gmacs_with_biases"] for row in result["condensed"]))
    axes.legend(handles=handles, loc="lower right", ncols=2)


VIEW = View(title="What prompts cost", answer=answer, tables=tables, figure=figure, alt=alt)
