"""How many prompts every block kept, beside how many it had."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vprompt.experiments.report.study import Run, Study
from vprompt.report import charts
from vprompt.report.document import Block, Body, Fold, Paragraph, Pictures, Section, Table
from vprompt.report.html import Markup
from vprompt.utils.statistics import std
from vprompt.utils.text import count, percent

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompts of every block before and after."""


def section(study: Study) -> Section | None:
    """Prompts kept per block, for methods that remove some; None where none does."""
    svgs: list[Markup] = []
    tables: list[Block] = []
    for style, method in enumerate(study.methods):
        pairs = [pair for run in study.runs if run.method == method and (pair := _pair(run)) is not None]
        # Backbones may differ in how many blocks they have: each number of blocks has its own picture.
        for blocks in sorted({len(after) for _, after in pairs}):
            same = [pair for pair in pairs if len(pair[1]) == blocks]
            found = [bar_of([(before[b], after[b]) for before, after in same]) for b in range(blocks)]
            total = sum(bar.before for bar in found)
            kept = percent(sum(bar.kept for bar in found) / total) if total else "–"
            detail = f"{method.label}: prompts kept per block, mean over {count(len(same), 'run')}; {kept} % in all"
            y = "prompts (mean)"
            svgs.append(charts.bars(method.label, found, x="block", y=y, style=style, detail=detail))
            tables.append(_table(detail, found, same))
    if not svgs:
        return None
    words = (
        "Solid: prompts that a block kept, mean over tasks and seeds, with their standard deviation. "
        "Pale: how many it had."
    )
    return Section(
        key="blocks", title="Prompts kept per block", blocks=[Paragraph(words), Pictures(svgs), Fold("Numbers", tables)]
    )


def bar_of(pairs: Sequence[tuple[int, int]]) -> charts.Bar:
    """Means over runs of one block before and after."""
    after = [float(pair[1]) for pair in pairs]
    return charts.Bar(
        before=statistics.fmean(pair[0] for pair in pairs),
        kept=statistics.fmean(after),
        std=std(after),
    )


def _pair(run: Run) -> Pair | None:
    before = None if run.before is None else run.before.prompt_counts
    after = None if run.model is None else run.model.prompt_counts
    if before is None or after is None or not after or len(before) != len(after) or before == after:
        return None
    return before, after


def _table(caption: str, bars: Sequence[charts.Bar], pairs: Sequence[Pair]) -> Table:
    rows = [
        [
            str(block),
            f"{bar.before:.1f}",
            f"{bar.kept:.1f}",
            "–" if bar.std is None else f"{bar.std:.1f}",
            str(min(after[block] for _, after in pairs)),
            str(max(after[block] for _, after in pairs)),
        ]
        for block, bar in enumerate(bars)
    ]
    head = ["Block", "Before", "Kept", "Std", "Fewest", "Most"]
    return Table(caption=caption, head=head, bodies=[Body(rows=rows)])
