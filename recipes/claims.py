"""Which claims of the papers hold here: effects with intervals, by one rule for all, from committed files.

    python recipes/claims.py            # prints the tables of docs/results/claims.md
    python recipes/claims.py dense      # prints that of docs/results/dense.md

A comparison is a difference in points of accuracy, measured on each task with each seed. Its interval is that of the
mean over these tasks, for other seeds (Student's t, spread pooled over tasks). A claim that one thing is better holds
where the interval lies above 0 and is contradicted where it lies below; that nothing is lost holds where it lies above
-1 point, and is contradicted where it lies below. Else it is not shown, and the difference that would have been seen
with a chance of 80 % says what that means. Of several comparisons: all hold, in part, or none.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vprompt.utils.statistics import Paired, paired, ranks_of

RESULTS = Path(__file__).parent.parent / "docs" / "results"

MARGIN = 1.0
"""Points that may be lost where nothing is to be lost; the paper's own line between trivial and not."""

HOLDS, NOT_SHOWN, CONTRADICTED = "holds", "not shown", "contradicted"

Rows = Sequence[Sequence[float]]
"""Differences in points: for each task one of each seed."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison: what with what, where it was measured, and whether `more` or only `no less` is claimed."""

    what: str
    where: str
    rows: Rows
    more: bool = True

    @property
    def found(self) -> Paired:
        """Mean and interval."""
        return paired(self.rows)

    @property
    def verdict(self) -> str:
        """By the rule."""
        if self.found.interval is None:
            return NOT_SHOWN
        (low, high), line = self.found.interval, 0.0 if self.more else -MARGIN
        return HOLDS if low > line else CONTRADICTED if high < line else NOT_SHOWN

    @property
    def cells(self) -> list[str]:
        """Of a row."""
        found = self.found
        counts = "/".join(sorted({str(len(row)) for row in self.rows}))
        seen = "-" if found.detectable is None else f"{found.detectable:.1f}"
        ends = "" if found.interval is None else " [{:+.1f}, {:+.1f}]".format(*found.interval)
        effect = f"{found.mean:+.1f}{ends}"
        return [self.what, effect, self.verdict, seen, f"{len(self.rows)} x {counts}", self.where]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and the comparisons that it is judged by."""

    claim: str
    comparisons: list[Comparison]

    @property
    def verdict(self) -> str:
        """Of all comparisons together."""
        found = {comparison.verdict for comparison in self.comparisons if comparison.rows}
        if len(found) == 1:
            return found.pop()
        return "holds in part" if HOLDS in found else "not shown, contradicted in part"


def document(name: str, folder: str = "analyses") -> dict[str, Any]:
    """What an analysis found."""
    return json.loads((RESULTS / folder / name).read_text("utf-8"))["result"]


def points(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Differences seed by seed, in points."""
    return [100 * (a - b) for a, b in zip(first, second, strict=True)]


class Sweep:
    """Accuracies by kind and share, 20 prompts a block, of analyses/sweep.json."""

    where = "sweep.json"

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, float], list[float]] = {}
        for curve in document("sweep.json")["curves"]:
            if curve["task"] is not None:
                for point in curve["points"]:
                    self.values[curve["task"], curve["kind"], point["share"]] = point["accuracy"]["values"]
        self.tasks = sorted({task for task, _, _ in self.values})

    def rows(self, first: tuple[str, float], second: tuple[str, float]) -> Rows:
        """The difference of two kinds and shares."""
        return [points(self.values[task, *first], self.values[task, *second]) for task in self.tasks]

    def bend(self, share: float) -> Rows:
        """How far the accuracy from scratch lies above the straight line from no prompts to all."""

        def of(task: str) -> list[float]:
            none, some, every = (self.values[task, "scratch", at] for at in (0.0, share, 1.0))
            return points(some, [a + share * (b - a) for a, b in zip(none, every, strict=True)])

        return [of(task) for task in self.tasks]


class Table:
    """Accuracies of a backbone by method, share and fine-tuning, of condensing.csv."""

    where = "condensing.csv"

    def __init__(self, backbone: str) -> None:
        with (RESULTS / self.where).open(encoding="utf-8", newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if row["backbone"] == backbone and row["test_accuracy"]]
        rows = [row for row in rows if row["part"] in ("main", "many")]
        self.values: dict[tuple[str, str, float, bool], dict[str, float]] = {}
        every = max(int(row["prompts"]) for row in rows if row["part"] == "main")
        for row in rows:
            share = float(row["share"]) * int(row["prompts"]) / every
            key = (row["task"], row["method"], round(share, 3), row["fine_tuned"] != "no")
            self.values.setdefault(key, {})[row["seed"]] = float(row["test_accuracy"])
        self.tasks = sorted({key[0] for key in self.values})

    def rows(
        self, first: tuple[str, float] | tuple[str, float, bool], second: tuple[str, float] | tuple[str, float, bool]
    ) -> Rows:
        """The difference of two methods at shares, over the seeds that have both."""

        def of(task: str) -> list[float]:
            ours, theirs = (
                self.values.get((task, *(key if len(key) == 3 else (*key, True))), {}) for key in (first, second)
            )
            both = sorted(ours.keys() & theirs.keys())
            return points([ours[seed] for seed in both], [theirs[seed] for seed in both])

        return [row for task in self.tasks if (row := of(task))]


def untuned(first: str, second: str, share: float) -> Rows:
    """What two criteria keep without fine-tuning, over all blocks, of analyses/scores.json."""
    kept: dict[str, tuple[list[float], list[float]]] = {}
    for model in document("scores.json")["models"]:
        of = {(row["criterion"], row["scope"], row["ratio"]): row["accuracy"] for row in model["kept"]}
        for side, criterion in zip(kept.setdefault(model["task"], ([], [])), (first, second), strict=True):
            side.append(of[criterion, "global", share])
    return [points(*sides) for sides in kept.values()]


def by_task(value: Callable[[dict[str, Any]], float]) -> Rows:
    """A figure of every adapter of analyses/blocks.json, by task."""
    rows: dict[str, list[float]] = {}
    for adapter in document("blocks.json")["adapters"]:
        rows.setdefault(adapter["task"], []).append(value(adapter))
    return list(rows.values())


def early_less(first: int) -> Rows:
    """How much larger a share of their prompts the later blocks keep than the first ones, at 10 %, in points."""

    def value(adapter: dict[str, Any]) -> float:
        counts = next(kept["counts"] for kept in adapter["kept"] if kept["ratio"] == 0.1)
        shares = [100 * some / every for some, every in zip(counts, adapter["ablation"]["prompts"], strict=True)]
        return fmean(shares[first:]) - fmean(shares[:first])

    return by_task(value)


def blocks_differ() -> str:
    """Whether blocks differ in what is lost without their prompts, by Friedman's test, as a sentence."""
    rows = []
    for adapter in document("blocks.json")["adapters"]:
        full = adapter["ablation"]["full"]["accuracy"]
        rows.append([full - without["accuracy"] for without in adapter["ablation"]["without"]])
    lost, found = [100 * fmean(column) for column in zip(*rows, strict=True)], ranks_of(rows)
    return (
        f"Without the prompts of one block the accuracy falls by {min(lost):.1f} to {max(lost):.1f} points, in the "
        f"mean of {len(rows)} adapters of four tasks, most without block {lost.index(max(lost))} (Friedman's "
        f"chi-squared {found.statistic:.0f}, {len(lost) - 1} degrees of freedom, p {'<' if found.p < 0.001 else '='} "
        f"{max(found.p, 0.001):.3f})."
    )


def e2vpt(first: str, second: str, folder: str) -> Rows:
    """The difference of two rows of a folder's e2vpt.json."""
    blocks = document("e2vpt.json", folder)["ablations"]
    rows = {row["label"]: row["entries"] for block in blocks for row in block["rows"]}
    pairs = zip(rows[first], rows[second], strict=True)
    return [points(ours["accuracy"]["values"], theirs["accuracy"]["values"]) for ours, theirs in pairs]


def schedule(epochs: int) -> Rows:
    """What is lost after so many epochs of fine-tuning, of analyses/schedule.json."""
    curves = document("schedule.json")["curves"]
    found = [(next(p for p in c["points"] if p["epochs"] == epochs)["test"], c["full_test"]) for c in curves]
    return [points(tuned["values"], full["values"]) for tuned, full in found]


def condensation() -> list[Claim]:
    """The claims of Prompt Condensation, arXiv 2305.17223."""
    sweep, table, dino = Sweep(), Table("bundled"), Table("DINOv2-S, tuned")
    many, kept, first = "sweep.json", "condensing.csv", "taylor, global"

    def shares(claim: str, kind: str, other: Callable[[float], tuple[str, float]], *at: float, more: bool) -> Claim:
        rows = [
            Comparison(what=f"{100 * s:.0f} %", where=many, rows=sweep.rows((kind, s), other(s)), more=more) for s in at
        ]
        return Claim(claim=claim, comparisons=rows)

    def against(claim: str, label: str, more: bool = True) -> Claim:
        return Claim(
            claim=claim,
            comparisons=[
                Comparison(what=f"{100 * s:.0f} %", where=kept, rows=table.rows((first, s), (label, s)), more=more)
                for s in (0.3, 0.1)
            ],
        )

    def of_dino(share: float) -> Comparison:
        what = f"{100 * share:.0f} % of 50, DINOv2-S, tuned; against all, trained as long"
        return Comparison(what=what, where=kept, rows=dino.rows((first, share), ("all", 1.0)), more=False)

    every = ("scratch", 1.0)
    whole = [
        Comparison(what="30 % of 20 a block", where=many, rows=sweep.rows(("condensed", 0.3), every), more=False),
        Comparison(what="30 % of 50 a block", where=kept, rows=table.rows((first, 0.3), every), more=False),
        of_dino(0.3),
    ]
    tenth = [
        Comparison(what="10 % of 20 a block", where=many, rows=sweep.rows(("condensed", 0.1), every), more=False),
        Comparison(what="10 % of 50 a block", where=kept, rows=table.rows((first, 0.1), every), more=False),
        of_dino(0.1),
        Comparison(what="10 %, 20 epochs", where="schedule.json", rows=schedule(20), more=False),
    ]
    bent = [Comparison(what=f"at {100 * s:.0f} %", where=many, rows=sweep.bend(s)) for s in (0.1, 0.3, 0.5)]
    few = [
        Comparison(what=f"last {12 - n} over first {n} blocks", where="blocks.json", rows=early_less(n)) for n in (1, 4)
    ]
    signs = [
        Comparison(what=f"{100 * s:.0f} %, not tuned", where="scores.json", rows=untuned("taylor", "taylor-signed", s))
        for s in (0.3, 0.1)
    ]
    blind = [
        Comparison(
            what=f"{100 * s:.0f} %, not tuned",
            where="scores.json",
            rows=untuned("pseudo-label", "taylor", s),
            more=False,
        )
        for s in (0.3, 0.1)
    ]
    scratch = "Condensed prompts beat as many from scratch (Figs. 4-6)"
    return [
        Claim(claim="Accuracy is not linear in the number of prompts (Fig. 1): above the line", comparisons=bent),
        Claim(claim="30 % of the prompts keep the accuracy (Figs. 4-6, Table 3)", comparisons=whole),
        Claim(claim="10 % of the prompts, fine-tuned, keep it", comparisons=tenth),
        shares("Without fine-tuning, half keep it", "selected", lambda _: every, 0.5, more=False),
        shares(scratch, "condensed", lambda share: ("scratch", share), 0.5, 0.3, 0.1, more=True),
        against("Global choice beats local at equal numbers (Table 3)", "taylor, local"),
        against("Scores beat chance", "random, global"),
        Claim(claim="Early blocks keep fewer prompts (Fig. 7), in points of their share", comparisons=few),
        Claim(claim="Absolute scores beat signed ones (open question)", comparisons=signs),
        Claim(claim="Scores work without labels (open question)", comparisons=blind),
    ]


def efficient() -> list[Claim]:
    """The claims of E²VPT, arXiv 2307.13770."""

    def one(what: str, first: str, second: str, *, more: bool = True, folder: str = "analyses") -> Comparison:
        where = "e2vpt.json" if folder == "analyses" else f"{folder}/e2vpt.json"
        return Comparison(what=what, where=where, rows=e2vpt(first, second, folder), more=more)

    def halved(kind: str) -> Comparison:
        what = "-50 %, where prompts matter (location)"
        return one(what, f"{kind} -50 %, taylor", "E2VPT", more=False, folder="analyses-e2vpt")

    def rewound(kind: str, other: str) -> Comparison:
        first, second = (f"{kind} -50 %, {where}" for where in ("rewound to the start", other))
        return one(f"{kind.lower()} -50 %, over {other}", first, second, folder="analyses-e2vpt")

    def chosen(kind: str, other: str) -> Comparison:
        first, second = (f"{kind} -50 %, {criterion}" for criterion in ("taylor", other))
        return one(f"{kind.lower()} -50 %, over {other}", first, second, folder="analyses-e2vpt")

    return [
        Claim(
            claim="Key-value prompts add to visual ones",
            comparisons=[one("10 + 5 over 10 visual", "E2VPT", "Visual only")],
        ),
        Claim(
            claim="Key-value prompts alone add to a linear probe",
            comparisons=[one("5 over none", "Key-value only", "Linear")],
        ),
        Claim(
            claim="It beats VPT-Deep with as many learned numbers",
            comparisons=[one("10 + 5 over 15 visual", "E2VPT", "VPT-Deep, 15 prompts")],
        ),
        Claim(
            claim="Sharing key-value prompts loses nothing",
            comparisons=[
                one("keys = values over nothing shared", "E2VPT", "Nothing shared", more=False),
                one("heads too", "Heads share", "Nothing shared", more=False),
            ],
        ),
        Claim(
            claim="Prompts can be pruned and rewound at no loss",
            comparisons=[
                *(one(f"-{n} %", f"Prompts -{n} %", "E2VPT", more=False) for n in (10, 30, 50)),
                halved("Prompts"),
            ],
        ),
        Claim(
            claim="So can segments",
            comparisons=[
                *(one(f"-{n} %", f"Segments -{n} %", "E2VPT", more=False) for n in (10, 30, 50)),
                halved("Segments"),
            ],
        ),
        Claim(
            claim="Rewinding to the start is better than going on or starting anew (its ablation)",
            comparisons=[
                *(rewound(kind, other) for kind in ("Prompts", "Segments") for other in ("not rewound", "fresh start")),
                Comparison(
                    what="half of both, over not rewound",
                    where="rewinding.csv",
                    rows=of_methods("rewinding.csv", "the start", "the end", "test_accuracy"),
                ),
            ],
        ),
        Claim(
            claim="What is pruned is chosen well by gradients (open question)",
            comparisons=[chosen(kind, other) for kind in ("Prompts", "Segments") for other in ("magnitude", "random")],
        ),
    ]


def of_methods(file: str, first: str, second: str, score: str, *, least: int = 1, **others: str) -> Rows:
    """The difference of two methods in a table of runs, on each task over the seeds that have both.

    Args:
        file: In `RESULTS`, with the columns task, method and seed.
        first: One method.
        second: The other.
        score: Column of the score.
        least: Seeds of a task that counts.
        others: What further columns must say.
    """
    values: dict[str, dict[str, dict[str, float]]] = {}
    with (RESULTS / file).open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            if others.items() <= row.items():
                values.setdefault(row["task"], {}).setdefault(row["method"], {})[row["seed"]] = float(row[score])
    rows: list[list[float]] = []
    for of in values.values():
        ours, theirs = of.get(first, {}), of.get(second, {})
        both = sorted(ours.keys() & theirs.keys())
        if len(both) >= least:
            rows.append(points([ours[seed] for seed in both], [theirs[seed] for seed in both]))
    return rows


def dense() -> list[Claim]:
    """The same questions where every pixel has a label: mean IoU, of tasks with two seeds or more of dense.csv."""

    def one(claim: str, first: str, second: str, *, more: bool = True) -> Claim:
        rows = {
            backbone: of_methods("dense.csv", first, second, "test_mean_iou", least=2, backbone=backbone)
            for backbone in ("bundled", "DINOv2-S, tuned")
        }
        comparisons = [
            Comparison(what=f"{first} over {second}; {backbone}", where="dense.csv", rows=found, more=more)
            for backbone, found in rows.items()
            if found
        ]
        return Claim(claim=claim, comparisons=comparisons)

    every, few, none = "VPT-Deep 50", "VPT-Deep 10", "linear head"
    return [
        one("Prompts add to a frozen backbone", few, none),
        one("More prompts add to few", every, few),
        *(
            one(f"{n} % keep it, fine-tuned", f"condensed to {n} %, fine-tuned", every, more=False)
            for n in (50, 30, 10)
        ),
        one("30 % do without fine-tuning", "condensed to 30 %, not tuned", every, more=False),
        one("E²VPT's prompts can be pruned", "E2VPT, pruned", few, more=False),
        one("LoRA is better than prompts", "LoRA", few),
        one("Adapters are better than prompts", "Adapter", few),
        one("Tuning all weights is better than prompts", "full", few),
    ]


def costs() -> Iterator[str]:
    """Sentences about counts and time, of cost.json, latency.json and schedule.json."""
    found = document("rank.json", "analyses-rank")
    none, last = (found["points"][at]["ranks"] for at in (0, -1))
    grown = [f"{none[key]:.1f} to {last[key]:.1f}" for key in ("0.1 live", "0.1")]
    better = [law for law in found["laws"].values() if law["log_r2"] > law["linear_r2"]]
    well = sum(law["log_r2"] >= 0.9 for law in better)
    yield (
        "- **The rank of attention grows as the logarithm of the number of prompts (Prop. 1, Fig. 2): holds in part.** "
        f"In the rows of tokens it goes from {grown[0]} with 0 to {found['points'][-1]['prompts']:.0f} prompts "
        f"beside 17 tokens, and from {grown[1]} with the rows of prompts, whose output is thrown away (ε = 0.1). The "
        f"logarithm fits better than a line in {len(better)} of {len(found['laws'])} cases, and well (R² of 0.9 or "
        f"more) in {well} (analyses-rank/rank.json). With any number of prompts the rank of the rows "
        "of tokens is at most their number ([proof](../analyses.md))."
    )
    found, kinds = document("cost.json"), ("published", "prefix", "folded")
    many = found["prompts"][-1]
    times = [f"{many[f'{kind}_gmacs'] / found['bare_gmacs']:.2f}" for kind in kinds]
    yield (
        f"- **Prompts are costly (Table 1): holds as published, not when folded.** With {many['prompts']} prompts a "
        f"block, ViT-B/16 takes {times[0]} times the multiply-accumulates of the bare backbone as published, "
        f"{times[1]} times as a prefix, {times[2]} times folded (counted; cost.json)."
    )
    rows = document("latency.json")["devices"][0]["series"][0]["times"]
    time = {(row["share"], row["execution"]): row["ratio"] for row in rows if row["where"] == "local"}
    whole, saved = (
        [time[1.0, kind] for kind in kinds],
        [100 * (1 - time[0.1, kind] / time[1.0, kind]) for kind in kinds],
    )
    yield (
        "- **Condensing saves time (Table 4): holds as published, nothing is left to save when folded.** One image, "
        f"one thread: {whole[0]:.2f} times the bare backbone's time as published, {whole[1]:.2f} as a prefix, "
        f"{whole[2]:.2f} folded. A tenth of the prompts saves {saved[0]:.0f} %, {saved[1]:.0f} % and "
        f"{saved[2]:.0f} % (latency.json)."
    )
    found = document("schedule.json")
    last, epochs = found["times"][-1], found["about"]["epochs"]
    tuning = 100 * last["fine_tuning"]
    yield (
        "- **Condensing takes less than 25 % of the training (Fig. 8b): holds for schedules as long as the paper's.** "
        f"Scoring takes {100 * last['scoring']:.0f} %, {last['epochs']} epochs of fine-tuning {tuning:.0f} % of a "
        f"training of {epochs} epochs, which is {tuning * epochs / 100:.0f} % of one of 100 (schedule.json)."
    )


def table(claims: list[Claim]) -> Iterator[str]:
    """The lines of a table."""
    heads = ("claim", "comparison", "points [95 %]", "verdict", "seen from", "tasks x seeds", "file")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for claim in claims:
        known = [comparison for comparison in claim.comparisons if comparison.rows]
        for number, comparison in enumerate(known):
            first = f"**{claim.verdict}**: {claim.claim}" if number == 0 else ""
            yield f"| {' | '.join([first, *comparison.cells])} |"


def tables() -> Iterator[str]:
    """The lines of the page."""
    for title, claims in (("Prompt Condensation", condensation()), ("E²VPT", efficient())):
        yield f"**{title}**"
        yield ""
        yield from table(claims)
        yield ""
    yield "- **Blocks contribute differently (Fig. 3): holds.** " + blocks_differ()
    yield from costs()


if __name__ == "__main__":
    print("\n".join(table(dense()) if sys.argv[1:] == ["dense"] else tables()))
