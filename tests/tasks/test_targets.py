"""Targets against slow references: how labels are read, losses, figures, intervals, answers, inverses, strata."""

import math
import random

import pytest
import torch
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from vprompt.data.notes import count_notes
from vprompt.experiments.bench.grid import Cell
from vprompt.experiments.bench.halving import steps
from vprompt.experiments.bench.plan import Search
from vprompt.tasks.base import CELLS, TARGETS, bootstrapped, from_document, kind_of, to_document
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.errors import VPromptError

TAGS = MultiLabel(names=("big", "red", "round"), separator=";")
SIZES = Regression(names=("age", "weight"), mean=(30.0, -5.0), std=(10.0, 0.5))
CLASSES = SingleLabel(names=("ant", "bee", "cow"))
ALL = [TAGS, SIZES, CLASSES]


def drawn(target, images=40, seed=0):
    """Logits, and labels as a tensor."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(target.names), generator=chance)
    if target is CLASSES:
        return logits, torch.randint(3, (images,), generator=chance)
    if target is TAGS:
        return logits, (torch.rand(images, 3, generator=chance) < 0.4).float()
    return logits, torch.tensor(target.mean) + torch.randn(images, 2, generator=chance) * torch.tensor([8.0, 1.0])


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("labels", "columns", "kind"),
    [
        (["red", "blue"], ["colour"], "single-label"),
        (["1", "2", "3"], ["class"], "single-label"),
        (["red;big", "big", "red", "blue;red"], ["tags"], "multi-label"),
        (["", "red;big", "red", "big"], ["tags"], "multi-label"),
        (['["red", "big"]', "[]", ""], ["tags"], "multi-label"),
        ([f"1{CELLS}0", f"0{CELLS}", f"true{CELLS} No "], ["red", "big"], "multi-label"),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["name"], "single-label"),
        (["0.5", "2", "n/a", *["1.5"] * 9], ["width"], "regression"),
        ([f"1{CELLS}200", f"3{CELLS}4"], ["x", "y"], "regression"),
        (["[0.5, 1]", "[2, 3]"], ["box"], "regression"),
        (["1,5", "2,5", "0,25"], ["width"], "regression"),  # which refuses them in a sentence
        (["3.5", "4.5"], [], "single-label"),  # names of folders
    ],
)
def test_labels_look_like_a_target(labels, columns, kind):
    assert kind_of(labels, columns).name == kind


def test_a_named_target_is_taken_whatever_labels_look_like():
    assert kind_of([], [], "regression").fit(["1", "2"], ["x"]).mean == (1.5,)
    assert kind_of([], [], "multi-label").fit(["a", "b"], ["x"]).names == ("a", "b")
    with pytest.raises(VPromptError, match="did you mean regression"):
        kind_of(["1"], [], "regresion")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("", "not a number"),
        ("n/a", "'n/a', not a number"),
        ("inf", "not a number"),
        ("nan", "not a number"),
        ("1e40", "not a number up to 1e"),
        ("-1e400", "not a number"),
        ("1,234", "without commas"),
        ("1.234,5", "not a number"),
        ("2,5", "without commas"),
        ("[1, 2", "not a number"),
        ("[1" + "0" * 400 + "]", "not a number"),
        ("[" * 100_000, "not a number"),
        ("[null]", "not a number"),
        ("[[1]]", "not a number"),
        ("1\x1b[2J", r"\\x1b"),
        (f"1{CELLS}2", "has 2 numbers, not 1"),
    ],
)
def test_cells_that_are_no_number_are_named(bad, why):
    target = Regression.fit(["1", "2", "4"], ["age"])
    problem = target.problem(bad)
    assert problem is not None
    assert why.replace(r"\\", "\\") in problem.replace("\\\\", "\\")
    assert "\x1b" not in problem
    assert target.problem(" 3e2 ") is None
    assert target.encode([" 3e2 ", "-7"]).tolist() == [[300.0], [-7.0]]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["1,5", "2,5"], r"one is '1,5'.*without commas"),
        (["x", ""], "no number"),
        ([], "no number"),
        (["7", "7"], "nothing to learn of age"),
        (["1", "1.00000000001"], "nothing to learn of age"),  # the same in single precision
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(labels, why):
    with pytest.raises(ValueError, match=why):
        Regression.fit(labels, ["age"])


def test_mean_and_deviation_are_those_of_the_training_images():
    chance = random.Random(0)
    rows = [[chance.uniform(-1e6, 1e6), chance.gauss(0, 1e-3)] for _ in range(50)]
    target = Regression.fit([CELLS.join(map(str, row)) for row in rows], ["a", "b"])
    for column in range(2):
        values = [row[column] for row in rows]
        mean = sum(values) / 50
        assert target.mean[column] == pytest.approx(mean, rel=1e-5, abs=1e-9)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 50)
        assert target.std[column] == pytest.approx(deviation, rel=1e-5)
    assert target.settled(["1\x1f2", "3\x1f4"]).mean == (2.0, 3.0)


def test_one_tag_has_one_spelling():
    target = MultiLabel.fit(["Red;big ", "red", " RED ;caf\u00e9", "red;cafe\u0301", "deep  blue;deep blue"], ["tags"])
    assert target.names == ("big", "caf\u00e9", "deep blue", "red")
    assert target.encode(["RED;Big", ";; ", "CAFE\u0301"]).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert target.problem("") is None
    assert target.problem("red;green") == "has tags that no training image has (green)"


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ('["red"', "no list of names"),
        ("[null]", "no list of names"),
        ('[["red"]]', "no list of names"),
        ("[" * 100_000, "no list of names"),
        ("red,big", "red,big"),
        (f"1{CELLS}0", "has 2 columns"),
        (f"1{CELLS}0{CELLS}maybe", "'maybe', not 0 or 1"),
    ],
)
def test_cells_that_are_no_tags_are_named(label, why):
    assert why in TAGS.problem(label)


def test_names_are_told_apart():
    for make in (lambda names: MultiLabel(names=names), lambda names: Regression(names=names, mean=(0, 0), std=(1, 1))):
        for names in (("a", "a"), ("a", "b\x1b[2J")):
            with pytest.raises(VPromptError, match="No output can be called"):
                make(names)


@pytest.mark.parametrize("name", ["multi-label", "regression"])
def test_data_without_anything_to_learn_are_refused(name):
    with pytest.raises(ValueError, match="no "):
        kind_of([], [], name).fit(["", ""], ["x"])


# ── documents ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_a_target_comes_back_from_its_document(target):
    assert from_document(to_document(target), target.names) == target


@pytest.mark.parametrize(
    "document",
    [
        {"name": "regression"},
        {"name": "regression", "mean": [0.0], "std": [0.0]},
        {"name": "regression", "mean": [0.0], "std": [-1.0]},
        {"name": "regression", "mean": [0.0], "std": [math.nan]},
        {"name": "regression", "mean": [math.inf], "std": [1.0]},
        {"name": "regression", "mean": [0.0, 1.0], "std": [1.0, 1.0]},
        {"name": "regression", "mean": "0", "std": [1.0]},
        {"name": "multi-label", "separator": 3},
        {"name": "no such"},
        {},
    ],
)
def test_documents_that_cannot_be_are_refused(document):
    with pytest.raises(VPromptError):
        from_document(document, ["age"])


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def slow_loss(target, logits, label):
    if target is CLASSES:
        return -math.log(math.exp(logits[int(label)]) / sum(map(math.exp, logits)))
    if target is TAGS:
        shares = [1 / (1 + math.exp(-logit)) for logit in logits]
        return -sum(math.log(p if wanted else 1 - p) for p, wanted in zip(shares, label, strict=True)) / len(logits)
    pairs = zip(logits, label, target.mean, target.std, strict=True)
    return sum((logit - (value - mean) / std) ** 2 for logit, value, mean, std in pairs) / len(logits)


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_losses(target):
    logits, labels = drawn(target)
    found = target.loss(logits.double(), labels)
    for row, label in enumerate(labels.tolist()):
        assert float(found[row]) == pytest.approx(slow_loss(target, logits[row].tolist(), label), rel=1e-5)


def test_smoothing_of_tags_is_that_of_their_labels():
    logits, labels = drawn(TAGS)
    smooth = 0.9 * TAGS.loss(logits, labels) + 0.1 * (TAGS.loss(logits, labels) + TAGS.loss(logits, 1 - labels)) / 2
    torch.testing.assert_close(TAGS.loss(logits, labels, smoothing=0.1), smooth)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def slow_average_precision(scores, labels):
    """Precision at each threshold times the recall that it adds; thresholds are the distinct scores."""
    total = before = 0.0
    for threshold in sorted({*scores}, reverse=True):
        taken = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        total += sum(taken) / len(taken) * (sum(taken) - before)
        before = sum(taken)
    return total / sum(labels)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_with_ties(seed):
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (25, 3), generator=chance).float()
    labels = (torch.rand(25, 3, generator=chance) < 0.3).float()
    each = [slow_average_precision(logits[:, k].tolist(), labels[:, k].tolist()) for k in range(3)]
    assert TAGS.score(logits, labels) == pytest.approx(sum(each) / 3)
    assert TAGS.score(logits, labels) == pytest.approx(
        float(multilabel_average_precision(logits, labels.long(), num_labels=3)), abs=1e-6
    )
    figures = TAGS.figures(logits, labels)
    for average in ("macro", "micro"):
        wanted = multilabel_f1_score(logits.sigmoid(), labels.long(), num_labels=3, average=average)
        assert figures[f"{average}_f1"] == pytest.approx(float(wanted), abs=1e-6)
    exact = [bool(((row > 0) == (label > 0)).all()) for row, label in zip(logits, labels, strict=True)]
    assert figures["exact"] == sum(exact) / 25


def test_tags_without_an_image_do_not_count():
    logits, labels = drawn(TAGS)
    labels[:, 1] = 0
    each = [slow_average_precision(logits[:, k].tolist(), labels[:, k].tolist()) for k in (0, 2)]
    assert TAGS.score(logits, labels) == pytest.approx(sum(each) / 2)
    labels[:] = 0
    assert math.isnan(TAGS.score(logits, labels))
    figures = TAGS.figures(logits, labels)
    assert (figures["mean_ap"], figures["interval"], figures["macro_f1"]) == (None, None, None)
    assert TAGS.cells(figures)["mean AP"] == "-"


def test_explained_variance_and_errors_in_the_units_of_the_labels():
    logits, labels = drawn(SIZES)
    figures, shares = SIZES.figures(logits, labels), []
    for k, name in enumerate(SIZES.names):
        said = [logit * SIZES.std[k] + SIZES.mean[k] for logit in logits[:, k].tolist()]
        pairs = list(zip(said, labels[:, k].tolist(), strict=True))
        mean = sum(value for _, value in pairs) / 40
        shares.append(1 - sum((s - v) ** 2 for s, v in pairs) / sum((v - mean) ** 2 for _, v in pairs))
        assert figures["mae"][name] == pytest.approx(sum(abs(s - v) for s, v in pairs) / 40)
        assert figures["rmse"][name] == pytest.approx(math.sqrt(sum((s - v) ** 2 for s, v in pairs) / 40))
        assert figures["constant_mae"][name] == pytest.approx(sum(abs(SIZES.mean[k] - v) for _, v in pairs) / 40)
    assert figures["r2"] == pytest.approx(sum(shares) / 2)
    assert "age " in SIZES.cells(figures)["mean error"]
    assert "always saying the mean errs by age " in SIZES.beside({**figures, "images": 40})
    labels[:, 1] = 0.1  # the same for all
    assert SIZES.score(logits, labels) == pytest.approx(shares[0])


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_one_image_has_figures(target):
    logits, labels = drawn(target, 1)
    figures = target.figures(logits, labels)
    assert all(value is None or value == value for value in figures.values())
    assert all(isinstance(cell, str) for cell in target.cells(figures).values())
    assert target.difference(logits, logits, labels)[0] == 0


@pytest.mark.parametrize("target", [TAGS, SIZES], ids=lambda target: target.name)
def test_logits_that_are_no_numbers_tell_nothing(target):
    logits, labels = drawn(target)
    figures = target.figures(torch.full_like(logits, math.nan), labels)
    assert (figures[target.headline], figures["interval"]) == (None, None)
    assert all(isinstance(cell, str) for cell in target.cells(figures).values())


def test_a_perfect_model_has_perfect_figures():
    for target in ALL:
        _, labels = drawn(target)
        logits = 30.0 * torch.eye(3)[labels] if target is CLASSES else labels * 60 - 30
        logits = target.inverse(labels) if target is SIZES else logits
        figures = target.figures(logits, labels)
        assert figures[target.headline] == pytest.approx(1)
        assert figures["interval"][1] <= 1 + 1e-9
        assert target.agreement(logits, logits) == pytest.approx(1)


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).double() / 10
    low, high = bootstrapped(lambda rows: float(values[rows].mean()), 400)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=half / 4)
    assert high == pytest.approx(float(values.mean()) + half, abs=half / 4)


def test_an_interval_of_many_images_is_as_wide_with_a_part_of_them():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(2)).double() / 10
    sizes = list[int]()

    def mean(rows):
        sizes.append(len(rows))
        return float(values[rows].mean())

    low, high = bootstrapped(mean, 20_000, size=100)
    assert min(sizes) == 1_000
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / math.sqrt(20_000), rel=0.25)
    assert low < float(values.mean()) < high


def test_the_paired_difference_of_tags():
    logits, labels = drawn(TAGS, 200)
    better = logits + 2 * (labels - 0.5)
    change, (low, high) = TAGS.difference(logits, better, labels)
    assert change == pytest.approx(TAGS.score(better, labels) - TAGS.score(logits, labels))
    assert 0 < low < change < high
    labels[:] = 0
    assert TAGS.difference(logits, better, labels) == (0.0, (0.0, 0.0))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_logits_come_back_from_outputs(target):
    logits, _ = drawn(target)
    outputs = target.activate(logits)
    torch.testing.assert_close(target.activate(target.inverse(outputs)), outputs)
    extreme = target.activate(torch.tensor([[300.0, -300.0, 0.0][: len(target.names)]]))
    assert bool(target.inverse(extreme).isfinite().all())


def test_answers():
    [tags] = TAGS.answers(torch.tensor([[0.6, 0.1, 0.9]]), 2)
    assert tags == {"tags": ["round", "big"], "top": (("round", pytest.approx(0.9)), ("big", pytest.approx(0.6)))}
    assert TAGS.row(tags) == {"tags": "round, big", "most probable": "round 90.0 %, big 60.0 %"}
    assert TAGS.row({"tags": [], "top": ()})["tags"] == "none"
    [sizes] = SIZES.answers(torch.tensor([[31.5, -4.25]]), 9)
    assert sizes == {"values": {"age": 31.5, "weight": -4.25}}
    assert SIZES.row(sizes) == {"age": "31.5", "weight": "-4.25"}
    [classes] = CLASSES.answers(torch.tensor([[0.25, 0.5, 0.125]]), 2)
    assert CLASSES.row(classes) == {"class": "bee", "probability": "50.0 %", "then": "ant 25.0 %"}


def test_agreement():
    one, two = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0]])
    assert TAGS.agreement(one, two) == pytest.approx(2 / 3)
    assert CLASSES.agreement(one, two) == 1
    assert SIZES.agreement(one[:, :2], two[:, :2]) == 0
    assert SIZES.agreement(one[:, :2], one[:, :2] + 0.25) == 0.75


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_wrong_batches_are_refused(target):
    _, labels = drawn(target)
    assert target.check(labels) is None
    wrong = [labels[..., None], labels.float() - 0.5] if target is CLASSES else [labels[:, :1], labels[0]]
    wrong += [] if target is CLASSES else [labels + math.nan] if target is SIZES else [labels + 0.5]
    for batch in wrong:
        assert target.check(batch).endswith(".")


def test_strata():
    assert TAGS.strata(["red;big", "red", "", "red;round"]) == ["big", "red", "", "round"]
    values = list(range(50))
    random.Random(0).shuffle(values)
    strata = Regression.fit([str(value) for value in values], ["x"]).strata([str(value) for value in values])
    sizes = {stratum: strata.count(stratum) for stratum in strata}
    assert sorted(sizes.values()) == [10] * 5
    assert SIZES.strata([]) == TAGS.strata([]) == []
    order = sorted(zip(values, strata, strict=True))
    assert [stratum for _, stratum in order] == sorted(strata)


def test_all_targets_are_tested():
    own_file = "segmentation"  # tests/tasks/test_segmentation.py
    assert {target.name for target in ALL} == {*TARGETS.names()} - {"counts", own_file}


# ── beside targets ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_search_takes_the_best_score_also_below_zero():
    values = {"backbone": "test_vit", "data": "t", "epochs": 20}
    going = steps(Cell(task="t", method="m", seed=0, values=values, search=Search(space={"lr": (0.1, 0.2, 0.3)})))
    jobs, scores = next(going), {0.1: -3.0, 0.2: -0.5, 0.3: None}
    while any(job.until for job in jobs):
        said = {job.name: scores[job.settings.recipe.lr] for job in jobs}
        jobs = going.send({name: {"target": "regression", "val_r2": r2, "val_loss": 1.0} for name, r2 in said.items()})
    assert [job.settings.recipe.lr for job in jobs] == [0.2]


def test_notes_on_tags():
    notes = count_notes(
        {"train": {"red": 40, "big": 40, "old": 2}, "val": {"red": 3, "big": 0, "old": 1}}, MultiLabel, 40
    )
    assert notes[0] == "Of tag big there is no image in val: mean AP there says nothing of it."
    assert notes[1] == "All training images are of tag red and big: nothing can be learned of that."
    assert notes[2].startswith("1 tag has fewer than 5 images")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_tags_may_be_whole_numbers(dtype):
    logits, targets = drawn(TAGS)
    assert TAGS.check(targets.to(dtype)) is None
    assert TAGS.figures(logits, targets.to(dtype)) == TAGS.figures(logits, targets)


def test_one_class_is_nothing_to_tell_apart():
    assert "one class" in SingleLabel(names=("ant",)).check(torch.zeros(2).long())
