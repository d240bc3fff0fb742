"""Figures against slow references of their own, undefined ones, intervals, and temperatures."""

import itertools
import json
import math
import random

import pytest
import torch

from vprompt.tasks.base import bootstrapped, from_document, to_document
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.tasks.single_label import SingleLabel
from vprompt.tasks.views import alike_together
from vprompt.utils.errors import VPromptError


def ranked(scores, right):
    """AUROC over pairs, and average precision step by step, of plain lists; ties count half, and are one step."""
    positive = [s for s, r in zip(scores, right, strict=True) if r]
    negative = [s for s, r in zip(scores, right, strict=True) if not r]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    area, found = 0.0, 0
    for score in sorted(set(scores), reverse=True):
        above = [r for s, r in zip(scores, right, strict=True) if s >= score]
        area += (sum(above) - found) * sum(above) / len(above)
        found = sum(above)
    return sum(pairs) / len(pairs) if pairs else None, area / found if found else None


def counted(said, true):
    """Precision, recall and F1 of plain lists of 0 and 1; None where nothing is counted."""
    both = sum(s and t for s, t in zip(said, true, strict=True))
    precision = both / sum(said) if sum(said) else None
    if not sum(true):
        return precision, None, None
    return precision, both / sum(true), 2 * both / (sum(said) + sum(true))


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def tags(images=40, names=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (images, names), generator=generator).float()  # with ties
    targets = (torch.rand(images, names, generator=generator) < 0.4).float()
    targets[:, 0], targets[:, 1] = 0, 1  # on no image, and on all
    return MultiLabel(names=tuple("abcde"[:names])), logits, targets


def classes(images=60, names=4, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(names - 1, (images,), generator=generator)  # the last class has no image
    logits = torch.randn(images, names, generator=generator) * spread
    logits[torch.arange(images), targets] += spread
    return SingleLabel(names=tuple("abcdefgh"[:names])), logits, targets


@pytest.mark.parametrize("kind", [tags, classes])
def test_figures_of_each_name_are_those_counted_by_hand(kind):
    target, logits, targets = kind()
    figures = target.figures(logits, targets)
    single = targets.ndim == 1
    probabilities = logits.double().softmax(1) if single else logits.double().sigmoid()
    expected = {}
    for number, name in enumerate(target.names):
        said = [int(p) == number for p in logits.argmax(1)] if single else [p > 0 for p in logits[:, number].tolist()]
        true = [int(t) == number for t in targets] if single else [bool(t) for t in targets[:, number]]
        auroc, area = ranked(probabilities[:, number].tolist(), true)
        keys = ("precision", "recall", "f1", "average_precision", "auroc", "images")
        expected[name] = dict(zip(keys, (*counted(said, true), area, auroc, sum(true)), strict=True))
    rows = figures["per_class" if single else "per_tag"]
    assert rows.keys() == expected.keys()
    for name, row in expected.items():
        assert rows[name] == {key: pytest.approx(value, abs=7e-6) for key, value in row.items()}
    for key, name in {"macro_f1": "f1", "auroc": "auroc", "average_precision": "average_precision"}.items():
        assert figures[key] == pytest.approx(mean([row[name] for row in expected.values()]), abs=2e-6)
    if not single:
        assert figures["mean_ap"] == pytest.approx(figures["average_precision"])
    json.dumps(figures, allow_nan=False)


def test_the_error_of_calibration_is_the_mean_distance_over_bins():
    target, logits, targets = classes(200, seed=3, spread=2.0)
    confidence, said = logits.double().softmax(1).max(1)
    bins = {}
    for c, right in zip(confidence.tolist(), (said == targets).tolist(), strict=True):
        bins.setdefault(math.ceil(c * 15), []).append((c, right))
    gaps = [abs(sum(c for c, _ in of) - sum(r for _, r in of)) for of in bins.values()]
    assert target.figures(logits, targets)["ece"] == pytest.approx(sum(gaps) / 200, abs=1e-5)


def test_five_best_of_many_classes_and_not_of_few():
    target, logits, targets = classes(50, 8)
    best = [int(t) in row.topk(5).indices.tolist() for t, row in zip(targets, logits, strict=True)]
    assert target.figures(logits, targets)["top5_accuracy"] == pytest.approx(sum(best) / 50)
    assert "top5_accuracy" not in SingleLabel(names=tuple("abcd")).figures(logits[:, :4], targets % 4)


@pytest.mark.parametrize(
    ("target", "logits", "labels", "undefined"),
    [
        (SingleLabel(names=("a", "b")), torch.randn(3, 2), torch.zeros(3).long(), "auroc"),
        (SingleLabel(names=("a", "b")), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), "auroc"),
        (MultiLabel(names=("a", "b")), torch.randn(4, 2), torch.zeros(4, 2), "mean_ap"),
        (MultiLabel(names=("a", "b")), torch.randn(1, 2), torch.ones(1, 2), "auroc"),
        (Regression(names=("x",), mean=(0.0,), std=(1.0,)), torch.randn(4, 1), torch.ones(4, 1), "r2"),
        (Regression(names=("x",), mean=(0.0,), std=(1.0,)), torch.randn(1, 1), torch.ones(1, 1), "interval"),
    ],
)
def test_what_is_not_defined_is_none_and_the_rest_is_plain(target, logits, labels, undefined):
    figures = target.figures(logits, labels)
    assert figures[undefined] is None
    json.dumps(figures, allow_nan=False)
    if not isinstance(target, Regression):
        assert any("AUROC" in told or "no figures" in told for told in target.remarks(figures, labels, "test")) or (
            target.name == "multi-label" and bool(labels.any())
        )


@pytest.mark.parametrize("target", [SingleLabel(names=("a", "b")), MultiLabel(names=("a", "b"))])
def test_a_model_that_has_no_numbers_still_gets_its_figures(target):
    labels = torch.tensor([0, 1]) if target.grouped else torch.eye(2)
    figures = target.figures(torch.full((2, 2), math.nan), labels)
    json.dumps(figures, allow_nan=False)


def test_intervals_hold_the_figure_and_shrink_with_images():
    widths = []
    for images in (40, 640):
        target, logits, targets = classes(images, spread=1.5)
        figures = target.figures(logits, targets)
        for key, (low, high) in figures["intervals"].items():
            assert low <= figures[key] <= high
        low, high = figures["intervals"]["macro_f1"]
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6  # fourfold by the root of 16


def test_intervals_of_means_are_those_of_the_normal_distribution_and_the_same_each_time():
    values = 100 * torch.rand(50, generator=torch.Generator().manual_seed(0))

    def figure(rows):
        return float(values[rows].mean())

    whole = bootstrapped(figure, 50, most=math.inf)
    assert whole == bootstrapped(figure, 50, most=math.inf)
    half = 1.96 * float(values.std()) / 50**0.5
    assert whole == pytest.approx([float(values.mean()) + side * half for side in (-1, 1)], abs=2)
    assert bootstrapped(lambda rows: math.nan, 5) is None


def test_a_mean_error_may_be_above_1():
    target = Regression(names=("x",), mean=(0.0,), std=(100.0,))
    figures = target.figures(torch.zeros(20, 1), torch.linspace(100, 200, 20)[:, None])
    low, high = figures["intervals"]["mae"]["x"]
    assert figures["mae"]["x"] == pytest.approx(150)
    assert low < 150 < high


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_temperature_undoes_what_logits_were_multiplied_by(factor):
    """Labels are drawn from the probabilities themselves, so that a temperature of 1 is right for them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4000, 5, generator=generator) * 2
    for target, labels in (
        (SingleLabel(names=tuple("abcde")), logits.softmax(1).multinomial(1, generator=generator).flatten()),
        (MultiLabel(names=tuple("abcde")), torch.bernoulli(logits.sigmoid(), generator=generator)),
    ):
        fitted = target.calibrated(factor * logits, labels)
        assert fitted.temperature == pytest.approx(factor, rel=0.06)
        before, after = (t.trust(factor * logits, labels) for t in (target, fitted))
        assert after["loss"] <= before["loss"]
        assert after["ece"] < 0.03
        if factor != 1:
            assert after["ece"] < before["ece"] / 2
        assert torch.equal(fitted.pseudo(logits), target.pseudo(logits))
        expected = target.activate(factor * logits / fitted.temperature)
        assert torch.allclose(fitted.activate(factor * logits), expected, atol=1e-6)
        near = [float(target.loss(factor * logits / (fitted.temperature * s), labels).mean()) for s in (0.98, 1, 1.02)]
        assert near[1] == min(near)


def test_a_model_that_is_never_wrong_gets_a_bounded_temperature():
    labels = torch.tensor([0, 1, 0])
    assert SingleLabel(names=("a", "b")).calibrated(torch.eye(2)[labels], labels).temperature == pytest.approx(0.1)


@pytest.mark.parametrize(
    "target", [SingleLabel(names=("a", "b"), temperature=3), MultiLabel(names=("a", "b"), temperature=0.4)]
)
def test_the_inverse_knows_the_temperature(target):
    outputs = target.activate(torch.tensor([[2.0, -1.0], [0.3, 0.4]], dtype=torch.float64))
    assert torch.allclose(target.activate(target.inverse(outputs)), outputs)


def test_files_have_a_temperature_only_where_there_is_one():
    plain, tagged = SingleLabel(names=("a", "b")), MultiLabel(names=("a", "b"), separator=";")
    assert to_document(plain) is None
    assert to_document(tagged) == {"name": "multi-label", "separator": ";"}
    for target in (SingleLabel(names=("a", "b"), temperature=2.5), MultiLabel(names=("a", "b"), temperature=0.5)):
        document = json.loads(json.dumps(to_document(target)))
        read = from_document(document, target.names)
        assert (read, read.temperature) == (target, target.temperature)
    assert from_document({"name": "single-label", "temperature": 2.5}, ("a", "b")) == plain  # the same labels


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "hot", None])
def test_a_temperature_from_a_file_must_be_one(temperature):
    with pytest.raises(VPromptError, match="single-label"):
        from_document({"name": "single-label", "temperature": temperature}, ("a", "b"))


def test_classes_that_are_confused_stand_together():
    groups = list(range(12))
    random.Random(0).shuffle(groups)
    groups = [groups[i : i + 4] for i in range(0, 12, 4)]
    alike = torch.eye(12) + 0.01
    for group in groups:
        for a, b in itertools.permutations(group, 2):
            alike[a, b] = 0.4
    order = alike_together(alike)
    assert sorted(order) == list(range(12))
    assert {frozenset(order[i : i + 4]) for i in range(0, 12, 4)} == set(map(frozenset, groups))
