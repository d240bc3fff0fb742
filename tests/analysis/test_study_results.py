"""Readings of studies against their results, made up or real; what is missing; how all of it is shown."""

import json
import statistics
from dataclasses import asdict, replace

import pytest
import scipy.stats

from study_runs import e2vpt_of, fill, made, plan_of, prompts_of, read, schedule_of, sweep_of
from vprompt.analysis.base import analyses
from vprompt.analysis.e2vpt.measure import PARTS
from vprompt.analysis.options import Training
from vprompt.analysis.page import write_analysis
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.jobs import to_plain_data
from vprompt.experiments.bench.scheduler import follow, preview
from vprompt.experiments.bench.store import open_store
from vprompt.experiments.bench.worker import Worker
from vprompt.report.document import Table
from vprompt.utils.statistics import difference, over_tasks, r_squared, seeds_of

TASKS = ("vtab:svhn", "synthetic:counting")
OPTIONS = {
    "sweep": lambda training: sweep_of(training, shares=(0.1, 0.5)),
    "schedule": lambda training: schedule_of(training, fine_tune_epochs=(0, 20, 40)),
    "e2vpt": lambda training: e2vpt_of(training, pruned=(0.5,), criteria=("random",), rewound=()),
}


def view_of(name):
    """How an analysis is shown."""
    return analyses.get(name).view()


def document(found):
    """The plain data of an analysis, as its JSON file has it."""
    return json.loads(json.dumps(asdict(found), allow_nan=False))


def by_label(plan, store, task):
    """Label -> results by seed, found cell by cell."""
    found = {}
    for cell in cells_of(plan, [task]):
        found.setdefault(cell.method, []).append(follow(cell, store)[1])
    return found


@pytest.fixture(scope="module", params=OPTIONS)
def filled(request, tmp_path_factory):
    """An analysis of two tasks and three seeds, of which all runs are there."""
    options = OPTIONS[request.param](Training(tasks=TASKS, lrs=(0.005, 0.02), epochs=60))
    store = open_store(str(tmp_path_factory.mktemp(request.param)))
    fill(plan_of(options), store)
    return request.param, plan_of(options), store, read(options, store)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_seeds_are_taken_together():
    one, other = seeds_of([0.1, None, 0.4, 0.7]), seeds_of([0.2, 0.2, None, 0.2])
    assert one.mean == pytest.approx(0.4)
    assert one.std == pytest.approx(0.3)
    assert over_tasks([one, other]).values == (pytest.approx(0.15), None, None, pytest.approx(0.45))
    assert difference(one, other).values == (pytest.approx(-0.1), None, None, pytest.approx(0.5))
    assert r_squared([0, 1, 2, 3], [0, 1, 0, 1]) == pytest.approx(0.2)


def test_a_sweep_reads_what_the_runs_say(tmp_path):
    options = sweep_of(Training(tasks=TASKS), shares=(0.1, 0.5))
    plan = plan_of(options)
    store = open_store(str(tmp_path))
    fill(plan, store)
    found = read(options, store)
    labels = {
        ("scratch", 0.0): "Linear",
        ("scratch", 0.1): "From scratch 10 %",
        ("scratch", 0.5): "From scratch 50 %",
        ("scratch", 1.0): "VPT-Deep",
        ("selected", 0.1): "PC 10 %, not fine-tuned",
        ("selected", 0.5): "PC 50 %, not fine-tuned",
        ("condensed", 0.1): "PC 10 %",
        ("condensed", 0.5): "PC 50 %",
    }
    tables = {task: by_label(plan, store, task) for task in TASKS}
    points = {(c.task, c.kind, p.share): p for c in found.curves for p in c.points}
    assert len(points) == 3 * len(labels)
    for (kind, share), label in labels.items():
        values = {task: [result["test_accuracy"] for result in tables[task][label]] for task in TASKS}
        full = {task: [result["test_accuracy"] for result in tables[task]["VPT-Deep"]] for task in TASKS}
        for task in TASKS:
            point = points[task, kind, share]
            assert point.accuracy.values == tuple(values[task])
            assert point.accuracy.std == pytest.approx(statistics.stdev(values[task]))
            changes = [a - b for a, b in zip(values[task], full[task], strict=True)]
            assert point.change.values == pytest.approx(changes)
            assert point.lr == 0.005
        means = [statistics.fmean(pair) for pair in zip(*values.values(), strict=True)]
        assert points[None, kind, share].accuracy.values == pytest.approx(means)
    assert [points["vtab:svhn", "scratch", share].prompts for share in (0.0, 0.1, 0.5, 1.0)] == [0, 2, 10, 20]
    assert found.about.runs == len(labels) * 2 * 3
    assert found.about.problems == ()


def test_the_bend_is_nothing_on_a_straight_line_and_what_a_kink_is(tmp_path):
    line = {0: 0.2, 2: 0.3, 10: 0.5, 20: 0.75}
    kink = {0: 0.2, 2: 0.3, 10: 0.7, 20: 0.7}
    for name, table in (("line", line), ("kink", kink)):
        options = sweep_of(Training(seeds=2), shares=(0.1, 0.5))
        plan = plan_of(options)
        store = open_store(str(tmp_path / name))

        def make(job, table=table):
            prompts = prompts_of(job.settings)[0]
            return {**made(job), "test_accuracy": table[prompts]}

        fill(plan, store, make)
        [found] = read(options, store).linearity
        assert (found.half, found.low) == (0.5, 0.1)
        if name == "line":
            assert found.bend.mean == pytest.approx(0)
            assert found.r2 == pytest.approx(1)
            assert found.gain == pytest.approx(0.3 / 0.55)
        else:
            assert (found.first.mean, found.second.mean) == (pytest.approx(0.0), pytest.approx(0.4))
            assert found.bend.mean == pytest.approx(1.0)
            assert found.gain == pytest.approx(1)
            assert found.r2 < 0.8


def test_times_are_shares_of_the_training_before(tmp_path):
    options = schedule_of(Training(seeds=2), fine_tune_epochs=(0, 20))
    plan = plan_of(options)
    store = open_store(str(tmp_path))

    def make(job):
        result = {**made(job), "training_seconds": 40.0}
        if job.settings.condense is not None:
            tuned = 10.0 + 10.0 * job.settings.recipe.seed if job.settings.condense.fine_tune else 0.0
            result |= {"scoring_seconds": 1.0, "training_seconds": tuned}
            result["before"]["training_seconds"] = 40.0
        return result

    fill(plan, store, make)
    found = read(options, store)
    assert [(time.scoring, time.fine_tuning, time.runs) for time in found.times] == [
        (0.025, 0.0, 2),
        (0.025, pytest.approx(0.375), 2),
    ]
    assert (found.training_seconds, found.scoring_seconds) == (40.0, 1.0)
    assert "claim of less than 25 % does not hold" in view_of("schedule").answer(found)


def test_results_without_times_of_scoring_say_so(tmp_path):
    options = schedule_of(Training(seeds=1), fine_tune_epochs=(0, 20))
    plan = plan_of(options)
    store = open_store(str(tmp_path))
    fill(plan, store, lambda job: {key: value for key, value in made(job).items() if key != "scoring_seconds"})
    found = read(options, store)
    assert found.times[1].scoring is None
    assert "was not recorded" in view_of("schedule").answer(found)


def test_ablations_compare_with_the_default_seed_by_seed(tmp_path):
    options = e2vpt_of(Training(tasks=TASKS), pruned=(0.5,))
    plan = plan_of(options)
    store = open_store(str(tmp_path))
    fill(plan, store)
    found = read(options, store)
    assert [ablation.part for ablation in found.ablations] == list(PARTS)
    seen = [row.label for ablation in found.ablations for row in ablation.rows if not row.default]
    assert sorted(seen) == sorted(method.label for method in plan.methods[1:])
    table = by_label(plan, store, "vtab:svhn")
    default = [result["test_accuracy"] for result in table["E2VPT"]]
    for ablation in found.ablations:
        assert ablation.rows[0].default
        for row in ablation.rows:
            [entry] = [entry for entry in row.entries if entry.task == "vtab:svhn"]
            values = [result["test_accuracy"] for result in table[row.label]]
            assert entry.accuracy.values == tuple(values)
            assert entry.change.values == pytest.approx([a - b for a, b in zip(values, default, strict=True)])
            assert entry.learned == table[row.label][0]["learned_params"]


def test_lengths_are_ranked_over_tasks_as_scipy_does(tmp_path):
    tasks = (*TASKS, "synthetic:location")
    options = e2vpt_of(Training(tasks=tasks, seeds=2), parts=("lengths",), visual=(5, 20), key_value=(1,))
    store = open_store(str(tmp_path))
    fill(plan_of(options), store)
    labels = ["E2VPT", "5 visual", "20 visual", "1 key-value"]
    means = {}
    for task in tasks:
        table = by_label(plan_of(options), store, task)
        means[task] = [statistics.fmean(result["test_accuracy"] for result in table[label]) for label in labels]
    ranks = scipy.stats.rankdata([[-mean for mean in row] for row in means.values()], axis=1).mean(0)
    [said] = [block.text for block in view_of("e2vpt").tables(read(options, store)) if "mean ranks" in str(block)]
    for label, rank in zip(labels, ranks, strict=True):
        assert f"{label} {rank:.1f}" in said
    p = scipy.stats.friedmanchisquare(*zip(*means.values(), strict=True)).pvalue
    assert f"p = {p:.2g} by Friedman" in said
    for task, row in means.items():
        title = next(each.title for each in read(options, store).about.tasks if each.task == task)
        assert f"{title}: {labels[row.index(max(row))]}" in said
    # A task that lacks a result cannot be ranked.
    store = open_store(str(tmp_path / "other"))
    fill(plan_of(options), store, lambda job: made(job) if "location" not in job.settings.data else None)
    [said] = [block.text for block in view_of("e2vpt").tables(read(options, store)) if "mean ranks" in str(block)]
    assert "over 2 tasks" in said
    store = open_store(str(tmp_path / "third"))
    fill(plan_of(options), store, lambda job: made(job) if "svhn" in job.settings.data else None)
    texts = str(view_of("e2vpt").tables(read(options, store)))
    assert "cannot be compared" in texts


def test_a_sweep_below_one_prompt_a_block_says_how_many_there_are(tmp_path):
    """From scratch there is at least one in each block; condensed, 1 % of 24 is one in all."""
    options = sweep_of(Training(seeds=1), prompts=2, shares=(0.01, 0.5))
    store = open_store(str(tmp_path))

    def make(job):
        result = made(job)
        if job.settings.condense is not None:
            total = max(1, round(job.settings.condense.ratio * 24))
            result["prompt_counts"] = [0] * 5 + [min(total, 2)] + [0] * 6 if total == 1 else [1] * 12
        return result

    fill(plan_of(options), store, make)
    table = view_of("sweep").tables(read(options, store))[0]
    rows = {row[0]: row[1] for body in table.bodies for row in body.rows}
    assert rows == {"none": "0", "1 %": f"1 / {1 / 12:.3g}", "50 %": "1", "100 %": "2"}


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_failed_is_missing_or_had_not_converged_is_counted(tmp_path):
    options = sweep_of(Training(), shares=(0.5,))
    plan = plan_of(options)
    store = open_store(str(tmp_path))

    def make(job):
        settings = job.settings
        if prompts_of(settings)[0] == 10 and settings.recipe.seed == 1:
            return "The loss is <b>no number</b>."
        if settings.condense is not None and settings.recipe.seed == 2:
            return None
        return made(job, converged=settings.method.name == "linear" or settings.condense is not None)

    fill(plan, store, make)
    found = read(options, store)
    half = next(
        point for curve in found.curves if curve.kind == "scratch" for point in curve.points if point.share == 0.5
    )
    assert (half.accuracy.failed, half.accuracy.missing, half.accuracy.values[1]) == (1, 0, None)
    assert half.accuracy.unconverged == 2
    tuned = next(curve for curve in found.curves if curve.kind == "condensed").points[0].accuracy
    assert (tuned.failed, tuned.missing, tuned.unconverged) == (0, 1, 0)
    whys = {(problem.method, problem.seed): problem.why for problem in found.about.problems}
    assert whys == {
        ("From scratch 50 %", 1): "The loss is <b>no number</b>.",
        ("PC 50 %, not fine-tuned", 2): None,
        ("PC 50 %", 2): None,
    }
    # The linear probe, all prompts, half of them twice, and two fine-tunings; what is not fine-tuned is no training.
    assert (found.about.trainings, found.about.unconverged) == (3 + 3 + 2 + 2, 3 + 2)
    old = replace(found, about=replace(found.about, unknown=None))  # a document of an earlier version
    assert "5 of 10 trainings had not converged (by the falling of the loss, an older rule" in view_of("sweep").answer(
        old
    )
    answer = view_of("sweep").answer(found)
    assert "1 of 15 runs failed, 2 of 15 runs are missing and 5 of 10 trainings had not converged" in answer
    page, _ = shown("sweep", document(found), tmp_path / "out")
    assert "<b>no" not in page
    assert "&lt;b&gt;no number" in page


def test_a_run_whose_training_before_had_not_converged_has_not():
    options = schedule_of(Training(seeds=1), fine_tune_epochs=(5,))
    plan = plan_of(options)

    class Memory:
        def paths(self):
            return {}

        def result(self, name):
            job = jobs[name]
            found = made(job)
            if job.settings.condense is not None:
                found["before"]["converged"] = False
            return found

    cells = cells_of(plan, tasks_of(plan)[0])
    jobs = {job.name: job for job in preview(cells, open_store("nowhere"))[0]}
    assert read(options, Memory()).curves[0].points[0].test.unconverged == 1


def test_images_that_changed_are_said(tmp_path):
    options = sweep_of(Training(seeds=2), shares=(0.5,))
    plan = plan_of(options)
    store = open_store(str(tmp_path))

    def make(job):
        found = made(job)
        found["provenance"]["data"]["fingerprint"] = str(job.settings.recipe.seed)
        return found

    fill(plan, store, make)
    found = read(options, store)
    assert found.about.changed_images == ("bundled:fashion-mnist",)
    assert "images changed" in view_of("sweep").answer(found)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_study_of_which_nothing_is_there_is_shown(name, tmp_path):
    found = document(read(OPTIONS[name](Training(tasks=TASKS)), open_store(str(tmp_path / "none"))))
    assert len(found["about"]["problems"]) == found["about"]["runs"]
    shown(name, found, tmp_path / "out")


# ── how it is shown ──────────────────────────────────────────────────────────────────────────────────────────────────


def shown(name, found, out):
    """Writes it; its pages."""
    write_analysis(out, name, found)
    assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return (out / "analyses.html").read_text(), (out / "analyses.md").read_text()


def test_views_show_every_number(filled, tmp_path):
    name, plan, _, found = filled
    result = document(found)
    html, markdown = shown(name, result, tmp_path)
    view = view_of(name)
    assert view.answer(found) in html.replace("&#39;", "'")
    blocks = list(view.tables(found))
    for block in blocks:
        if isinstance(block, Table):
            assert {len(row) for body in block.bodies for row in body.rows} == {len(block.head)}
    for cell in cells_of(plan, tasks_of(plan)[0]):
        value = f"{100 * follow(cell, filled[2])[1]['test_accuracy']:.1f}"
        assert value in html
        assert value in markdown


@pytest.mark.parametrize("name", OPTIONS)
def test_one_seed_one_task_and_one_of_everything(name, tmp_path):
    kinds = {
        "sweep": lambda training: sweep_of(training, shares=(1.0,)),
        "schedule": lambda training: schedule_of(training, fine_tune_epochs=(0,)),
        "e2vpt": lambda training: e2vpt_of(training, parts=("lengths",), visual=(10,), key_value=(1,)),
    }
    options = kinds[name](Training(seeds=1))
    store = open_store(str(tmp_path / "runs"))
    fill(plan_of(options), store)
    _, markdown = shown(name, document(read(options, store)), tmp_path / "out")
    assert "nan" not in markdown.lower()
    assert markdown.count("±") == 1  # where it is explained


@pytest.mark.parametrize("name", OPTIONS)
def test_names_from_data_are_never_markup(name, tmp_path):
    folder = tmp_path / "<i>$x_1$ & | *b*\\alpha"
    options = OPTIONS[name](Training(tasks=(str(folder), "synthetic:counting"), seeds=1))
    store = open_store(str(tmp_path / "runs"))
    fill(plan_of(options), store)
    html, markdown = shown(name, document(read(options, store)), tmp_path / "out")
    assert "<i>$x" not in html
    assert "<i>" not in markdown


def test_equal_accuracies_have_no_line_and_no_gain(tmp_path):
    options = sweep_of(Training(seeds=2), shares=(0.1, 0.5))
    plan = plan_of(options)
    store = open_store(str(tmp_path / "runs"))
    fill(plan, store, lambda job: {**made(job), "test_accuracy": 0.5})
    found = read(options, store)
    assert (found.linearity[0].r2, found.linearity[0].gain) == (None, None)
    html, _ = shown("sweep", document(found), tmp_path / "out")
    assert "no clear bend" in html


# ── real runs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_real_runs_are_read(split_colours, tiny_weights, tmp_path):
    own = {"backbone": "test_vit", "weights": tiny_weights, "img_size": 32}
    training = Training(tasks=(str(split_colours),), **own, seeds=1, epochs=2, batch_size=6)
    store = open_store(str(tmp_path / "runs"))
    worker = Worker(str(tmp_path / "runs"), "w")

    def really(job):
        answer = worker.do(to_plain_data(job))
        assert answer["state"] == "finished", answer
        return store.result(job.name)

    kinds = {
        "schedule": schedule_of(training, prompts=2, ratio=0.5, fine_tune_epochs=(0, 1)),
        "e2vpt": e2vpt_of(training, prompts=2, kv_prompts=1, parts=("parts", "pruning"), pruned=(0.25,)),
    }
    found = {}
    for name, options in kinds.items():
        fill(plan_of(options), store, really)
        found[name] = read(options, store)
        assert found[name].about.problems == ()
    [curve] = found["schedule"].curves
    assert curve.points[0].validation.mean is not None
    assert found["schedule"].scoring_seconds > 0
    rows = {row.label: row.entries[0] for ablation in found["e2vpt"].ablations for row in ablation.rows}
    # One key-value prompt has as many numbers as a visual one, and pruning removes what it says.
    assert rows["VPT-Deep, 3 prompts"].learned == rows["E2VPT"].learned
    head = rows["Linear"].learned
    prompts = {label: entry.learned - head for label, entry in rows.items()}
    assert prompts["Visual only"] == 2 * prompts["Key-value only"]
    assert prompts["Prompts -25 %"] == prompts["E2VPT"] - prompts["Visual only"] / 4
    assert prompts["Segments -25 %"] == prompts["E2VPT"] - prompts["Visual only"] / 4
