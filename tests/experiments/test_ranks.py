"""Ranks over tasks against scipy and slow references; fronts; what a report says and draws of both."""

import itertools
import math
import random

import numpy as np
import pytest

from studies import make_study
from vprompt.experiments.report import cost, ranks
from vprompt.experiments.report.aggregate import on_task
from vprompt.experiments.report.study import read
from vprompt.report.document import Charts, Curve, Dot, pareto
from vprompt.report.plots import png, svg
from vprompt.utils.statistics import chi_squared, front, paired, ranks_of, student_t, studentized_range

stats = pytest.importorskip("scipy.stats")


def table(seed, tasks, methods, grid):
    chance = random.Random(seed)
    return [[chance.randrange(grid) / grid for _ in range(methods)] for _ in range(tasks)]


@pytest.mark.parametrize(
    ("seed", "tasks", "methods", "grid"),
    [(0, 8, 10, 10**6), (1, 5, 3, 3), (2, 19, 8, 6), (3, 2, 4, 100), (4, 40, 3, 10**6), (5, 8, 12, 20)],
)
def test_ranks_and_friedmans_test_are_scipys(seed, tasks, methods, grid):
    rows = table(seed, tasks, methods, grid)
    found = ranks_of(rows)
    ranked = [stats.rankdata([-score for score in row]) for row in rows]
    assert found.means == pytest.approx([sum(column) / tasks for column in zip(*ranked, strict=True)])
    test = stats.friedmanchisquare(*zip(*rows, strict=True))
    assert (found.statistic, found.p) == pytest.approx((test.statistic, test.pvalue), rel=1e-9)
    q = stats.studentized_range.ppf(0.95, methods, math.inf) / math.sqrt(2)
    assert found.critical == pytest.approx(q * math.sqrt(methods * (methods + 1) / 6 / tasks), rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_cliques_are_the_largest_sets_without_a_difference(seed):
    found = ranks_of(table(seed, 30, 7, 1000) if seed else [[5, 4, 3, 2, 1, 0, -1]] * 12)
    alike = [
        set(some)
        for size in range(2, 8)
        for some in itertools.combinations(range(7), size)
        if max(found.means[m] for m in some) - min(found.means[m] for m in some) <= found.critical
    ]
    largest = [some for some in alike if not any(some < other for other in alike)]
    assert sorted(map(sorted, largest)) == sorted(map(sorted, found.cliques))
    assert all(list(c) == sorted(c, key=found.means.__getitem__) for c in found.cliques)


def test_methods_that_are_all_alike_are_one_clique():
    found = ranks_of([[0.5, 0.5, 0.5]] * 4)
    assert (found.means, found.statistic, found.p) == ((2.0, 2.0, 2.0), 0.0, 1.0)
    assert found.cliques == ((0, 1, 2),)


def test_the_published_constants():
    """Demšar (2006), Table 5, two-tailed Nemenyi test at 5 %."""
    published = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    assert [studentized_range(many) / math.sqrt(2) for many in range(2, 11)] == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("freedom", range(1, 16))
def test_chi_squared_is_scipys(freedom):
    for value in (0.0, 0.3, 4.0, 25.0, 120.0):
        assert chi_squared(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("seed", range(20))
def test_a_front_is_what_none_beats(seed):
    chance = random.Random(seed)
    points = [(chance.randrange(8), chance.randrange(8)) for _ in range(chance.randrange(14))]

    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    assert front(points) == sorted({p for p in points if not any(beats(other, p) for other in points)})


def test_a_front_is_drawn_as_steps_through_the_best():
    dots = [(1, 5), (2, 4), (3, 7), (4, 9), (5, 9)]
    (curve,) = pareto([Curve(name=str(dot), dots=[Dot(x=dot[0], y=dot[1])]) for dot in dots])
    assert [(dot.x, dot.y) for dot in curve.dots] == [(1, 5), (3, 5), (3, 7), (4, 7), (4, 9)]
    assert pareto([Curve(name="", dots=[Dot(x=1, y=5), Dot(x=2, y=4)])]) == []


def test_the_report_ranks_methods_over_the_tasks_that_all_have():
    study = read(make_study(missing=0.3, failing=0.1))
    section = ranks.section(study)
    scores = [[on_task(study, method, task).mean for method in study.methods] for task in study.tasks]
    complete = [row for row in scores if None not in row]
    assert len(complete) >= 2
    found = ranks_of(complete)
    words, charts, numbers = section.blocks
    assert f"over {len(complete)} of {len(study.tasks)} tasks" in words.text
    assert f"{found.critical:.2f} apart" in words.text
    shown = {row[0]: row[1] for row in numbers.texts}
    assert shown == {m.label: f"{mean:.2f}" for m, mean in zip(study.methods, found.means, strict=True)}
    (chart,) = charts.charts
    assert list(chart.rows) == [row[0] for row in numbers.texts]
    assert sum(curve.name.startswith("not told apart") for curve in chart.curves) == len(found.cliques)
    assert png(charts)[:4] == b"\x89PNG"
    assert all(name in svg(chart) for name in chart.rows)


def test_one_task_or_one_method_has_no_ranks():
    assert ranks.section(read(make_study(tasks=["vtab:svhn"]))) is None
    assert ranks.section(read(make_study(methods=["Linear"]))) is None


def test_fronts_are_in_the_pictures_of_cost_but_not_of_prompts():
    section = cost.section(read(make_study()))
    charts = next(block for block in section.blocks if isinstance(block, Charts)).charts
    fronts = {chart.x: any(curve.name == "Pareto front" for curve in chart.curves) for chart in charts}
    assert fronts == {"prompts in all blocks": False, "learned parameters": True, "GMACs per image, folded": True}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 50])
def test_students_t_is_scipys(freedom):
    shares = (0.1, 0.5, 0.6, 0.95, 0.999)
    assert [student_t(share, freedom) for share in shares] == pytest.approx(
        [stats.t.ppf((1 + share) / 2, freedom) for share in shares], rel=1e-6
    )


def test_paired_differences_are_those_of_one_task_and_of_a_pooled_spread():
    values = [0.3, 1.1, -0.4, 2.0]
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert paired([values]).interval == pytest.approx((interval.low, interval.high))
    # Tasks as a factor: least squares by hand, whose mean of the tasks' means has this error.
    tasks = [[0.3, 1.1, -0.4], [5.0, 6.0], [-2.0]]
    pooled = sum(float(np.var(row, ddof=1)) * (len(row) - 1) for row in tasks[:2]) / 3
    half = stats.t.ppf(0.975, 3) * math.sqrt(pooled * (1 / 3 + 1 / 2 + 1)) / 3
    found = paired(tasks)
    assert found.mean == pytest.approx(float(np.mean([np.mean(row) for row in tasks])))
    assert found.interval == pytest.approx((found.mean - half, found.mean + half))
    assert found.detectable == pytest.approx(half * (1 + stats.t.ppf(0.8, 3) / stats.t.ppf(0.975, 3)))
    assert paired([[1.0], [3.0]]).interval is None


def test_a_difference_that_can_be_seen_is_seen_four_times_in_five():
    generator = np.random.default_rng(0)
    error = math.sqrt(2 * 1 / 3) / 2
    effect = (stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)) * error
    seen = [paired(generator.normal(effect, 1, (2, 3)).tolist()).interval[0] > 0 for _ in range(4000)]
    assert 0.76 < float(np.mean(seen)) < 0.84
