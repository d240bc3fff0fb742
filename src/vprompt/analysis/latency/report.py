"""The report of the time that prompts and condensation take, by execution and device, beside the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vprompt.analysis.base import View
from vprompt.analysis.latency.measure import DeviceTimes, Latencies, Series, Timed
from vprompt.analysis.words import share_of
from vprompt.report import published
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Table, simple_table
from vprompt.utils.text import count, line, percent

EXECUTIONS = ("published", "prefix", "folded")

Places = dict[tuple[float, str], dict[str, Timed]]
"""Share and where -> execution -> time."""


def answer(latencies: Latencies) -> str:
    """By device: what prompts cost in time, what condensing them saves, and whether the paper's claims hold."""
    return " ".join(_of_device(device) for device in latencies.devices)


def _of_device(device: DeviceTimes) -> str:
    series = max(device.series, key=lambda series: series.original)
    # The global one, where there are both.
    places = {share: by_execution for (share, _), by_execution in _places(series).items()}
    least, most = min(places), max(places)
    small, full = places[least], places[most]
    kept = "all" if most == 1 else f"{share_of(most)} of the"
    words = ", ".join(f"{full[name].ratio:.2f} {name}" for name in EXECUTIONS)
    text = (
        f"On {line(device.name, 60)} ({device.device}, {count(device.images, 'image')} in a batch) "
        f"{kept} {count(series.original, 'prompt')} per block take this many times what the bare backbone takes: "
        f"{words}."
    )
    if least == most:
        return text
    saved = {name: 1 - small[name].ratio / full[name].ratio for name in ("published", "folded")}
    text += (
        f" Condensing them to {share_of(least)} saves {percent(saved['published'])} % of the time as published and "
        f"{percent(saved['folded'])} % when folded."
    )
    return f"{text} {_claims(device)}".strip()


def _claims(device: DeviceTimes) -> str:
    """Whether the paper's two claims about time hold for prompts as published; what noise can explain is open."""
    verdicts: list[int] = []
    gaps: list[float] = []
    for series in device.series:
        places = {place: by_execution["published"] for place, by_execution in _places(series).items()}
        full = places.get((1.0, "local"))
        for (share, where), row in places.items():
            if share < 1 and full is not None:
                verdicts.append((row.spread[1] < full.spread[0]) - (row.spread[0] > full.spread[1]))
            if where == "global" and (share, "local") in places:
                gaps.append(abs(row.ratio / places[share, "local"].ratio - 1))
    claims: list[str] = []
    if verdicts:
        claims.append(
            f"As published, condensation saves time in {verdicts.count(1)} of {len(verdicts)} configurations, costs it "
            f"in {verdicts.count(-1)}, and {verdicts.count(0)} are too close to tell; on the paper's GPUs all save it."
        )
    if gaps:
        claims.append(f"Local and global differ by at most {percent(max(gaps))} %, as published.")
    return " ".join(claims)


def _places(series: Series) -> Places:
    places: Places = {}
    for row in series.times:
        places.setdefault((row.share or 0.0, row.where), {})[row.execution] = row
    return places


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tables(latencies: Latencies) -> list[Block]:
    """Ratios to the bare backbone, the milliseconds behind them, and the paper's Table 4 as ratios."""
    blocks: list[Block] = []
    for device in latencies.devices:
        threads = "" if device.threads is None else f", {count(device.threads, 'thread')}"
        where = f"{line(device.name, 60)}{threads}, {count(device.rounds, 'round')}"
        blocks += [
            _times(
                series,
                f"Time over the bare backbone's, from {count(series.original, 'prompt')} per block: median and middle "
                f"half of the rounds; {where}",
                lambda row: f"{row.ratio:.2f} ({row.spread[0]:.2f}–{row.spread[1]:.2f})",
            )
            for series in device.series
        ]
        blocks += [
            _times(
                series,
                f"Milliseconds for a batch of {count(device.images, 'image')}, from {count(series.original, 'prompt')} "
                f"per block; the bare backbone takes {_ms(series.bare_milliseconds)}",
                lambda row: _ms(row.milliseconds),
            )
            for series in device.series
        ]
        blocks += [found for series in device.series if (found := _beside_paper(latencies, series))]
    return blocks


def _times(series: Series, caption: str, shown: Callable[[Timed], str]) -> Table:
    rows = [
        [share_of(share), where, *(shown(by_execution[name]) for name in EXECUTIONS)]
        for (share, where), by_execution in _places(series).items()
    ]
    return simple_table(caption, ["kept", "where", *EXECUTIONS], rows)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _beside_paper(latencies: Latencies, series: Series) -> Table | None:
    """The paper has no bare backbone, so that its times are over those with all prompts."""
    printed = published.condensed(published.measured_family(latencies.backbone, latencies.img_size))
    printed.pop("", None)  # multiply-accumulates
    places, original = _places(series), series.original
    full = places.pop((1.0, "local"), None)
    if full is None or not places or not any((original, 100, "local") in times for times in printed.values()):
        return None

    def there(times: dict[published.Condensed, str], share: float, where: str) -> str:
        whole, condensed = times.get((original, 100, "local")), times.get((original, round(100 * share), where))
        return "–" if whole is None or condensed is None else f"{float(condensed) / float(whole):.2f}"

    rows = [
        [
            share_of(share),
            where,
            *(f"{by_execution[name].ratio / full[name].ratio:.2f}" for name in EXECUTIONS),
            *(there(times, share, where) for times in printed.values()),
        ]
        for (share, where), by_execution in places.items()
    ]
    caption = f"Time over that with all {original} prompts: here, and as the paper printed it of its GPUs and 64 images"
    head = ["kept", "where", *EXECUTIONS, *(name.removeprefix("Quadro ") for name in printed)]
    return replace(simple_table(caption, head, rows), over=[("", 1), ("here", 3), ("paper", len(printed))])


# ── picture ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def figure(latencies: Latencies) -> Charts:
    """Time over the bare backbone's against the prompts that are left, a panel for each device."""
    charts = [
        Chart(
            title=line(f"{device.name}: {count(device.images, 'image')} in a batch", 60),
            x="prompts per block after condensation (mean)",
            y="time / bare backbone's",
            levels=[(1.0, "bare backbone")],
            curves=[_drawn(device, name, style, latencies.blocks) for style, name in enumerate(EXECUTIONS)],
            zero=True,
        )
        for device in latencies.devices
    ]
    return Charts(charts, list(enumerate(EXECUTIONS)), rings="global")


def _drawn(device: DeviceTimes, name: str, style: int, blocks: int) -> Curve:
    rows = [row for series in device.series for row in series.times if row.execution == name]
    dots = [
        Dot(
            x=sum(row.counts) / blocks,
            y=row.ratio,
            error=(row.ratio - row.spread[0], row.spread[1] - row.ratio),
            hollow=row.where == "global",
        )
        for row in rows
    ]
    return Curve(name=name, dots=dots, style=style)


VIEW = View(title="What prompts cost in time", answer=answer, tables=tables, figure=figure, result=Latencies)
