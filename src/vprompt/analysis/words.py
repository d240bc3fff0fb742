"""Words, tables and points of charts that views of analyses share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from vprompt.analysis.study import MissingRun, StudySummary
from vprompt.report.document import Block, Bullets, Dot, Fold, Paragraph, Table, Warn, simple_table
from vprompt.utils.statistics import DOUBLED, FELL, UNKNOWN, Seeds
from vprompt.utils.text import count, line, listed, show

MOST_PROBLEMS = 20


def share_of(value: float | None, form: str = ".3g") -> str:
    """A share in percent, with no more digits than it has.

    Example:
        >>> share_of(0.3), share_of(1 / 3), share_of(None)
        ('30 %', '33.3 %', '–')
    """
    return show(value, form, factor=100, unit=" %")


def signed(value: float) -> str:
    """A share as points of percent with its sign; nothing is not negative.

    Example:
        >>> signed(0.012), signed(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


# ── words and tables of studies ──────────────────────────────────────────────────────────────────────────────────────


def accuracy(seeds: Seeds) -> str:
    """Mean ± standard deviation in percent; `*` where a training did not converge; how many seeds, where some lack.

    Example:
        >>> from vprompt.utils.statistics import seeds_of
        >>> accuracy(seeds_of([0.51, 0.49, None], unconverged=1))
        '50.0* ± 1.4 (2)'
    """
    if seeds.mean is None:
        return "–"
    return _with_spread(f"{100 * seeds.mean:.1f}{'*' if seeds.unconverged else ''}", seeds)


def change(seeds: Seeds | None) -> str:
    """A difference of accuracies in points, with its sign.

    Example:
        >>> from vprompt.utils.statistics import seeds_of
        >>> change(seeds_of([-0.012])), change(None)
        ('-1.2', '–')
    """
    return "–" if seeds is None or seeds.mean is None else _with_spread(signed(seeds.mean), seeds)


def _with_spread(mean: str, seeds: Seeds) -> str:
    finished = sum(value is not None for value in seeds.values)
    std = "" if seeds.std is None else f" ± {100 * seeds.std:.1f}"
    return f"{mean}{std}" + (f" ({finished})" if finished < len(seeds.values) else "")


def dots(points: Iterable[tuple[float, Seeds]]) -> list[Dot]:
    """Means with error bars, in percent; hollow where a training had not converged, a gap where there is no mean."""
    return [
        Dot(
            x=x,
            y=math.nan if seeds.mean is None else 100 * seeds.mean,
            error=None if seeds.std is None else 100 * seeds.std,
            hollow=bool(seeds.unconverged),
        )
        for x, seeds in points
    ]


def seed_table(
    about: StudySummary,
    title: str,
    rows: Iterable[tuple[str, Seeds]],
    *,
    what: str = "test accuracy",
    name: str = "",
) -> Table:
    """Every seed's value in percent: a row for each name and its seeds."""
    values = [[label, *(show(value, ".1f", factor=100) for value in seeds.values)] for label, seeds in rows]
    return simple_table(f"{title}: {what} (%)", [name, *(f"seed {seed}" for seed in about.seeds)], values)


def caveats(about: StudySummary) -> str:
    """Warnings before the numbers: what failed, lacks or had not converged; or nothing."""
    failed = sum(problem.why is not None for problem in about.problems)
    missing = len(about.problems) - failed
    remarks = [f"{failed} of {count(about.runs, 'run')} failed"] if failed else []
    if missing:
        remarks.append(f"{missing} of {count(about.runs, 'run')} {'is' if missing == 1 else 'are'} missing")
    if about.unconverged:
        rule = f" ({FELL})" if about.unknown is None else ""
        remarks.append(f"{about.unconverged} of {count(about.trainings, 'training')} had not converged{rule}")
    if about.changed_images:
        remarks.append("images changed between runs")
    return f" But {listed(remarks)}." if remarks else ""


def study_blocks(
    about: StudySummary, shown: Sequence[Block], tasks: Sequence[Block], seeds: Sequence[Block], *more: Block
) -> list[Block]:
    """All tables of a study: those to see at once, those of every task and seed on demand, and how they came about."""
    folds = [Fold(title, blocks) for title, blocks in (("Every task", tasks), ("Every seed", seeds)) if blocks]
    return [*shown, *folds, *more, *_origin(about)]


def _origin(about: StudySummary) -> list[Block]:
    size = f" at {about.img_size} pixels" if about.img_size else ""
    rates = ", ".join(f"{rate:g}" for rate in about.lrs)
    chosen = f" Learning rates were chosen from {rates} on validation images." if rates else ""
    unknown = f" Of {count(about.unknown, 'training')} it is not known whether {UNKNOWN}." if about.unknown else ""
    blocks: list[Block] = [
        Paragraph(
            f"{line(about.backbone)}{size}; {listed([about.title(each.task) for each in about.tasks], 20)}; "
            f"{count(about.epochs, 'epoch')} of training, {count(len(about.seeds), 'seed')}. Mean ± sample standard "
            "deviation over the seeds, in brackets how many of them where some lack. A star: a training had not "
            f"converged, {FELL if about.unknown is None else DOUBLED}.{unknown}{chosen}"
        )
    ]
    if about.changed_images:
        changed = listed([line(name) for name in about.changed_images])
        blocks.append(Warn(f"The images of {changed} are not the same in all runs, which cannot be compared."))
    if problems := about.problems:
        blocks.append(Warn(f"{len(problems)} of {count(about.runs, 'run')} have no result:"))
        more = [f"and {len(problems) - MOST_PROBLEMS:,} more"] if len(problems) > MOST_PROBLEMS else []
        blocks.append(Bullets([*(_problem(about, problem) for problem in problems[:MOST_PROBLEMS]), *more]))
    return blocks


def _problem(about: StudySummary, problem: MissingRun) -> str:
    why = "it was not done." if problem.why is None else line(problem.why, 300)
    return f"{line(problem.method, 60)} on {about.title(problem.task)}, seed {problem.seed}: {why}"
