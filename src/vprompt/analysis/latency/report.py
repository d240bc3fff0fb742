"""The report of the time that prompts and condensation take, by execution and device, beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import handle, share_of
from vprompt.report import published
from vprompt.report.document import Block, Table, simple_table
from vprompt.report.plots import COLOURS, MARKERS, short, side_by_side
from vprompt.utils.text import count, line, percent

Row = Mapping[str, Any]

EXECUTIONS = ("published", "prefix", "folded")


def answer(result: Result) -> str:
    """By device: what prompts cost in time, what condensing them saves, and whether the paper's claims hold."""
    return " ".join(_of_device(device) for device in result["devices"])


def tables(result: Result) -> list[Block]:
    """Ratios to the bare backbone, the milliseconds behind them, and the paper's Table 4 as ratios."""
    blocks: list[Block] = []
    for device in result["devices"]:
        blocks += [_ratios(device, series) for series in device["series"]]
        blocks += [_milliseconds(device, series) for series in device["series"]]
        blocks += [table for series in device["series"] if (table := _beside_paper(result, device, series))]
    return blocks


def figure(result: Result) -> Figure:
    """Time over the bare backbone's against the prompts that are left, a panel for each device."""
    devices = result["devices"]
    drawn, axes = side_by_side(7.0 if len(devices) == 1 else 5.6 * len(devices), 4.4, len(devices))
    for panel, device in zip(axes, devices, strict=True):
        _draw(panel, device, result["blocks"])
    axes[-1].legend(handles=_legend(), loc="lower right", ncols=2)
    size = "×".join(map(str, result["img_size"]))
    title = f"{line(result['backbone'], 60)}, {size} pixels, {line(result['dtype'], 20)}"
    drawn.suptitle(short(title, 90), x=0.01, ha="left", fontsize=11)
    return drawn


def alt(result: Result) -> str:
    """The picture in words."""
    return f"Time over the bare backbone's against prompts per block after condensation. {answer(result)}"


def _of_device(device: Row) -> str:
    series = max(device["series"], key=lambda series: series["original"])
    rows = series["times"]
    most, least = max(row["share"] for row in rows), min(row["share"] for row in rows)
    full = {name: _row(rows, most, name)["ratio"] for name in EXECUTIONS}
    kept = "all" if most == 1 else f"{share_of(most)} of the"
    words = ", ".join(f"{full[name]:.2f} {name}" for name in EXECUTIONS)
    text = (
        f"On {line(device['name'], 60)} ({device['device']}, {count(device['images'], 'image')} in a batch) "
        f"{kept} {count(series['original'], 'prompt')} per block take this many times what the bare backbone takes: "
        f"{words}."
    )
    if least == most:
        return text
    saved = {name: 1 - _row(rows, least, name)["ratio"] / full[name] for name in ("published", "folded")}
    text += (
        f" Condensing them to {share_of(least)} saves {percent(saved['published'])} % of the time as published and "
        f"{percent(saved['folded'])} % when folded."
    )
    return f"{text} {_claims(device)}".strip()


def _claims(device: Row) -> str:
    """Whether the paper's two claims about time hold for prompts as published; what noise can explain is open."""
    verdicts: list[int] = []
    gaps: list[float] = []
    for series in device["series"]:
        places = {place: by_execution["published"] for place, by_execution in _by_place(series).items()}
        full = places.get((1.0, "local"))
        for (share, where), row in places.items():
            if share < 1 and full is not None:
                verdicts.append((row["spread"][1] < full["spread"][0]) - (row["spread"][0] > full["spread"][1]))
            if where == "global" and (share, "local") in places:
                gaps.append(abs(row["ratio"] / places[share, "local"]["ratio"] - 1))
    claims: list[str] = []
    if verdicts:
        claims.append(
            f"As published, condensation saves time in {verdicts.count(1)} of {len(verdicts)} configurations, costs it "
            f"in {verdicts.count(-1)}, and {verdicts.count(0)} are too close to tell; on the paper's GPUs all save it."
        )
    if gaps:
        claims.append(f"Local and global differ by at most {percent(max(gaps))} %, as published.")
    return " ".join(claims)


def _row(rows: Sequence[Row], share: float, name: str) -> Row:
    """The global one where there are both."""
    return [row for row in rows if row["share"] == share and row["execution"] == name][-1]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_place(series: Row) -> dict[tuple[float, str], dict[str, Row]]:
    places: dict[tuple[float, str], dict[str, Row]] = {}
    for row in series["times"]:
        places.setdefault((row["share"], row["where"]), {})[row["execution"]] = row
    return places


def _where(device: Row) -> str:
    threads = "" if device["threads"] is None else f", {count(device['threads'], 'thread')}"
    return f"{line(device['name'], 60)}{threads}, {count(device['rounds'], 'round')}"


def _ratios(device: Row, series: Row) -> Table:
    caption = (
        f"Time over the bare backbone's, from {count(series['original'], 'prompt')} per block: median and middle half "
        f"of the rounds; {_where(device)}"
    )
    return _times(series, caption, lambda row: "{:.2f} ({:.2f}–{:.2f})".format(row["ratio"], *row["spread"]))


def _milliseconds(device: Row, series: Row) -> Table:
    caption = (
        f"Milliseconds for a batch of {count(device['images'], 'image')}, from {count(series['original'], 'prompt')} "
        f"per block; the bare backbone takes {_ms(series['bare_milliseconds'])}"
    )
    return _times(series, caption, lambda row: _ms(row["milliseconds"]))


def _times(series: Row, caption: str, shown: Callable[[Row], str]) -> Table:
    rows = [
        [share_of(share), where, *(shown(by_execution[name]) for name in EXECUTIONS)]
        for (share, where), by_execution in _by_place(series).items()
    ]
    return simple_table(caption, ["kept", "where", *EXECUTIONS], rows)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _beside_paper(result: Result, device: Row, series: Row) -> Table | None:
    """The paper has no bare backbone, so that its times are over those with all prompts."""
    family = published.measured_family(result["backbone"], result["img_size"])
    printed = {} if family is None else published.condensed_milliseconds(family)
    places = _by_place(series)
    original, full = series["original"], places.get((1.0, "local"))
    if full is None or not any((original, 100, "local") in times for times in printed.values()):
        return None
    rows: list[list[str]] = []
    for (share, where), by_execution in places.items():
        if share == 1:
            continue
        here = [by_execution[name]["ratio"] / full[name]["ratio"] for name in EXECUTIONS]
        there = [_printed(times, (original, round(100 * share), where)) for times in printed.values()]
        rows.append([share_of(share), where, *(f"{value:.2f}" for value in here), *there])
    if not rows:
        return None
    caption = f"Time over that with all {original} prompts: here, and as the paper printed it of its GPUs and 64 images"
    head = ["kept", "where", *EXECUTIONS, *(name.removeprefix("Quadro ") for name in printed)]
    return replace(simple_table(caption, head, rows), over=[("", 1), ("here", 3), ("paper", len(printed))])


def _printed(times: Mapping[published.Condensed, str], key: published.Condensed) -> str:
    whole = times.get((key[0], 100, "local"))
    return f"{float(times[key]) / float(whole):.2f}" if key in times and whole is not None else "–"


# ── picture ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw(axes: Axes, device: Row, blocks: int) -> None:
    most = max(sum(row["counts"]) / blocks for series in device["series"] for row in series["times"])
    for series in device["series"]:
        for number, name in enumerate(EXECUTIONS):
            for row in (row for row in series["times"] if row["execution"] == name):
                # Beside each other, so that no bar hides another.
                x, (low, high) = sum(row["counts"]) / blocks + 0.008 * most * (number - 1), row["spread"]
                colour = COLOURS[number]
                axes.plot([x, x], [low, high], color=colour, linewidth=1, zorder=2)
                fill = "none" if row["where"] == "global" else "full"
                size = 8 if row["where"] == "global" else 4
                axes.plot(x, row["ratio"], MARKERS[number], color=colour, fillstyle=fill, markersize=size, zorder=3)
    axes.axhline(1.0, color="#777777", linewidth=1, zorder=1)
    top = max(row["spread"][1] for series in device["series"] for row in series["times"])
    axes.set(xlim=(0, 1.05 * most), ylim=(0, 1.1 * max(top, 1.0)))
    axes.set(xlabel="prompts per block after condensation (mean)", ylabel="time / bare backbone's")
    name = f"{device['name']}: {count(device['images'], 'image')} in a batch"
    axes.set_title(short(line(name), 60), fontsize=9)


def _legend() -> list[Line2D]:
    executions = [handle(name, COLOURS[number], MARKERS[number], size=4) for number, name in enumerate(EXECUTIONS)]
    ring = handle("global", marker="o", size=8, fill="none")
    return [*executions, ring, handle("bare backbone", "#777777", style="-")]


VIEW = View(title="What prompts cost in time", answer=answer, tables=tables, figure=figure, alt=alt)
