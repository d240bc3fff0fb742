"""Prompts retained in each block, beside those that it had."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.experiments.report.study import Run, Study
from vprompt.report.document import Bar, Block, Chart, Charts, Fold, Paragraph, Section, Table, simple_table
from vprompt.utils.statistics import seeds_of
from vprompt.utils.text import count, percent

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompts of every block before and after."""


def section(study: Study) -> Section | None:
    """Prompts kept per block, for methods that remove some; None where none does."""
    charts: list[Chart] = []
    tables: list[Block] = []
    for method in study.methods:
        pairs = [pair for run in study.runs if run.method is method and (pair := _pair(run)) is not None]
        # Backbones may differ in how many blocks they have: each number of blocks has its own picture.
        for blocks in sorted({len(after) for _, after in pairs}):
            same = [pair for pair in pairs if len(pair[1]) == blocks]
            bars = [_bar([(a[block], b[block]) for a, b in same], method.style) for block in range(blocks)]
            total = sum(bar.before for bar in bars)
            share = percent(sum(bar.retained for bar in bars) / total) if total else "–"
            alt = f"{method.label}: prompts kept per block, mean over {count(len(same), 'run')}; {share} % in all"
            charts.append(Chart(title=method.label, x="block", y="prompts (mean)", alt=alt, bars=bars))
            tables.append(_table(alt, bars, same))
    if not charts:
        return None
    words = (
        "Solid: prompts that a block kept, mean over tasks and seeds, with their standard deviation. "
        "Pale: how many it had."
    )
    return Section(
        key="blocks", title="Prompts kept per block", blocks=[Paragraph(words), Charts(charts), Fold("Numbers", tables)]
    )


def _bar(pairs: Sequence[tuple[int, int]], style: int) -> Bar:
    before, after = (seeds_of(counts) for counts in zip(*pairs, strict=True))
    return Bar(before=before.mean or 0.0, retained=after.mean or 0.0, std=after.std, style=style)


def _pair(run: Run) -> Pair | None:
    before = None if run.before is None else run.before.prompt_counts
    after = None if run.model is None else run.model.prompt_counts
    if before is None or after is None or not after or len(before) != len(after) or before == after:
        return None
    return before, after


def _table(caption: str, bars: Sequence[Bar], pairs: Sequence[Pair]) -> Table:
    rows: list[list[str]] = []
    for block, bar in enumerate(bars):
        counts = [after[block] for _, after in pairs]
        std = "–" if bar.std is None else f"{bar.std:.1f}"
        rows.append([str(block), f"{bar.before:.1f}", f"{bar.retained:.1f}", std, str(min(counts)), str(max(counts))])
    return simple_table(caption, ["Block", "Before", "Kept", "Std", "Fewest", "Most"], rows)
