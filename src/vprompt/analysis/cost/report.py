"""The report of the cost of prompts by execution, before and after condensation, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.analysis.base import View
from vprompt.analysis.cost.measure import CondensedCost, Costs, Extra, PromptCost
from vprompt.analysis.words import share_of
from vprompt.report import published
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Paragraph, Table, simple_table
from vprompt.utils.text import amount, count, gmacs, line, percent

EXECUTIONS = ("published", "prefix", "folded")

PAPER = 6
"""Style of the paper's figures."""


def answer(costs: Costs) -> str:
    """Cost of the most prompts, and the point from which condensing pays."""
    bare, most = costs.bare_gmacs, max(costs.prompts, key=lambda row: row.prompts)
    verdicts = [_verdict(costs, key) for key in ("rule", "published", "folded")]
    return (
        f"With {_prompts(costs, most.prompts)} an image costs {gmacs(most.published_gmacs)} GMACs as published, "
        f"{most.published_gmacs / bare:.2f} times the bare {gmacs(bare)}; folded it costs {gmacs(most.folded_gmacs)}, "
        f"{most.folded_gmacs / bare:.2f} times. "
        f"Where {percent(costs.threshold)} % more is too much, condensing for its cost is worth it "
        f"{verdicts[0]} by the paper's rule, {verdicts[1]} as published, {verdicts[2]} when folded."
    )


def _prompts(costs: Costs, number: float) -> str:
    return f"{count(int(number), 'prompt')} {'per block' if costs.depth == 'deep' else 'in all'}"


def _verdict(costs: Costs, key: str) -> str:
    paying = [row.prompts for row in costs.prompts if getattr(row, key).condense]
    return f"from {count(int(min(paying)), 'prompt')} on" if paying else "at none of these numbers"


# ── what the paper prints ────────────────────────────────────────────────────────────────────────────────────────────


def printed_overheads(costs: Costs) -> dict[float, str]:
    """Its overheads by the number of prompts."""
    return {number: f"+{value} %" for number, value in published.overheads(_family(costs)).items()}


def _printed(costs: Costs) -> dict[float, str]:
    return {number: f"{value:.1f}" for number, value in published.gmacs(_family(costs))[0].items()}


def _printed_of(costs: Costs, row: CondensedCost) -> str | None:
    """Its figure for a row of its Table 5."""
    if row.share is None or row.original is None:
        return None
    return published.condensed(_family(costs)).get("", {}).get((row.original, round(100 * row.share), row.where))


def _family(costs: Costs) -> str | None:
    as_printed = costs.depth == "deep" and not costs.kv_prompts
    return published.measured_family(costs.backbone, costs.img_size) if as_printed else None


def lengths(costs: Costs) -> str:
    """Lengths of prompts by which E²VPT's published share of learned numbers is reached; empty without its prompts."""
    if not costs.kv_prompts:
        return ""
    first = costs.prompts[0]
    each = first.prompt_params / (first.prompts + costs.kv_prompts) / costs.backbone_params
    return (
        "E2VPT's paper reports 0.32 % (summary) and 0.39 % (VTAB-1k) learned of ViT-B/16. Of this backbone these are "
        f"{0.0032 / each:.0f} and {0.0039 / each:.0f} prompts per block, of both kinds together, without a head."
    )


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tables(costs: Costs) -> list[Block]:
    """The paper's Table 1, its rule, what is learned, and its Table 5."""
    blocks: list[Block] = [_by_prompts(costs), _overheads(costs), _learned(costs)]
    blocks += [Paragraph(words)] if (words := lengths(costs)) else []
    for original in dict.fromkeys(row.original for row in costs.condensed):
        condensed = [row for row in costs.condensed if row.original == original]
        blocks.append(_table5(costs, condensed, f"GMACs per image after condensing {_prompts(costs, original or 0)}"))
    if costs.given:
        counts = line(", ".join(map(str, costs.given[0].counts)), 400)
        caption = f"GMACs per image with {counts} prompts in the blocks, and with as many spread evenly"
        blocks.append(_table5(costs, costs.given, caption))
    if any(row.where == "global" for row in costs.condensed):
        words = (
            "Global counts depend on training. Here a profile stands in for them: counts in proportion to the "
            "place of the block, the first being number 1, for early blocks keep few."
        )
        blocks.append(Paragraph(words))
    return blocks


def _by_prompts(costs: Costs) -> Table:
    printed = _printed(costs)
    rows = [
        [
            f"{row.prompts:g}",
            *([printed.get(row.prompts, "–")] if printed else []),
            *_gmacs(row),
            f"{row.folded_gmacs / costs.bare_gmacs:.3f}",
        ]
        for row in costs.prompts
    ]
    head = ["prompts", *(["paper"] if printed else []), *EXECUTIONS, "folded / bare"]
    return simple_table(f"GMACs per image by {_axis(costs)}, {_title(costs)}", head, rows)


def _overheads(costs: Costs) -> Table:
    paper = printed_overheads(costs)
    rows = [
        [
            f"{row.prompts:g}",
            *([paper.get(row.prompts, "–")] if paper else []),
            *map(_extra, (row.rule, row.published, row.folded)),
        ]
        for row in costs.prompts
    ]
    return simple_table(
        f"What prompts add, and whether to condense them for it (above {percent(costs.threshold)} %); by the "
        f"paper's rule with N = {costs.tokens} tokens, and by GMACs over the bare backbone's",
        ["prompts", *(["paper"] if paper else []), "(N+P)/N - 1", "published", "folded"],
        rows,
    )


def _learned(costs: Costs) -> Table:
    rows = [
        [
            f"{row.prompts:g}",
            amount(row.prompt_params),
            amount(row.head_params),
            f"{100 * (row.prompt_params + row.head_params) / costs.backbone_params:.3f}",
            amount(row.adapter_bytes),
        ]
        for row in costs.prompts
    ]
    caption = f"Learned numbers, classes in the head: {amount(costs.num_classes)}; the adapter's file in 32 bits"
    return simple_table(caption, ["prompts", "in prompts", "in head", "% of backbone", "bytes"], rows)


def _title(costs: Costs) -> str:
    return f"{line(costs.backbone, 60)}, {'×'.join(map(str, costs.img_size))} pixels"


def _axis(costs: Costs) -> str:
    more = f" beside {count(costs.kv_prompts, 'key-value prompt')}" if costs.kv_prompts else ""
    return f"prompts per block{more}" if costs.depth == "deep" else "prompts in all"


def _gmacs(row: PromptCost | CondensedCost) -> list[str]:
    return [gmacs(value) for value in (row.published_gmacs, row.prefix_gmacs, row.folded_gmacs)]


def _extra(extra: Extra) -> str:
    return f"{100 * extra.overhead:+.1f} % {'condense' if extra.condense else 'leave'}"


def _table5(costs: Costs, rows: Sequence[CondensedCost], caption: str) -> Table:
    paper = [_printed_of(costs, row) for row in rows]
    known = any(paper)
    cells = [
        [
            share_of(row.share),
            row.where,
            amount(sum(row.counts)),
            *([printed or "–"] if known else []),
            gmacs(row.published_gmacs_with_biases),
            *_gmacs(row),
        ]
        for row, printed in zip(rows, paper, strict=True)
    ]
    head = ["kept", "where", "prompts", *(["paper"] if known else []), "+ biases", *EXECUTIONS]
    return simple_table(f"{caption}; + biases: as published, each bias counted", head, cells)


# ── picture ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def figure(costs: Costs) -> Charts:
    """GMACs against prompts per block; beside it, against the share that condensation keeps."""
    rows, printed = sorted(costs.prompts, key=lambda row: row.prompts), _printed(costs)
    by_prompts = [
        Curve(name=name, dots=[Dot(x=r.prompts, y=getattr(r, f"{name}_gmacs")) for r in rows], style=style, line="-")
        for style, name in enumerate(EXECUTIONS)
    ]
    known = [Dot(x=row.prompts, y=float(printed[row.prompts])) for row in rows if row.prompts in printed]
    by_prompts.append(Curve(name="paper", dots=known, style=PAPER))
    panels = {(_title(costs), _axis(costs)): by_prompts}
    originals = list(dict.fromkeys(row.original for row in costs.condensed))
    if originals:
        title = f"Condensed from {', '.join(map(str, originals))} {_axis(costs)}"
        by_share = [series for original in originals for series in _by_share(costs, original)]
        panels[title, "prompts kept (%), as published with biases and folded"] = by_share
    charts = [
        Chart(title=title, x=x, y="GMACs per image", levels=[(costs.bare_gmacs, "bare backbone")], curves=s, zero=True)
        for (title, x), s in panels.items()
    ]
    legend = [*enumerate(EXECUTIONS), *([(PAPER, "paper")] if printed else [])]
    return Charts(charts, legend, rings="global")


def _by_share(costs: Costs, original: int | None) -> list[Curve]:
    places = [(100 * (row.share or 0.0), row.where, row) for row in costs.condensed if row.original == original]
    rows = sorted(places, key=lambda place: place[0])
    printed = [Dot(x=x, y=float(text)) for x, _, row in rows if (text := _printed_of(costs, row))]
    series = [Curve(name="paper", dots=printed, style=PAPER)]
    for style, key in ((0, "published_gmacs_with_biases"), (2, "folded_gmacs")):
        for where in ("local", "global"):
            hollow, name = where == "global", f"of {original}, {where}"
            dots = [Dot(x=x, y=getattr(row, key), hollow=hollow) for x, place, row in rows if place == where]
            series.append(Curve(name=name, dots=dots, style=style, line="" if hollow else "-"))
    return series


VIEW = View(title="What prompts cost", answer=answer, tables=tables, figure=figure, result=Costs)
