"""Probes of features, against slow references and planted copies and errors."""

import math

import pytest
import torch

from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.tasks.single_label import SingleLabel
from vprompt.training.probe import (
    FOLDS,
    doubtful_labels,
    fit_probe,
    fold_numbers,
    near_copies,
    neighbour_means,
    out_of_fold,
)


def classes(number):
    return SingleLabel(names=tuple(map(str, range(number))))


def clusters(classes, each, width=16, noise=0.6, seed=0):
    """Features around a centre for each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + noise * torch.randn(len(labels), width, generator=generator), labels


@pytest.mark.parametrize("k", [1, 5, 100])
def test_neighbours_vote_as_in_a_loop(k):
    features, labels = clusters(3, 10)
    queries, _ = clusters(3, 4, seed=1)
    shares = neighbour_means(features, torch.nn.functional.one_hot(labels, 4).float(), queries, k=k)
    for query, row in zip(queries, shares, strict=True):
        cosines = [float(torch.cosine_similarity(query, feature, dim=0)) for feature in features]
        nearest = sorted(range(len(features)), key=lambda number: -cosines[number])[:k]
        votes = [sum(math.exp(cosines[n] / 0.07) for n in nearest if labels[n] == c) for c in range(4)]
        assert row.tolist() == pytest.approx([vote / sum(votes) for vote in votes], abs=1e-5)


def test_numbers_are_the_mean_of_those_of_the_neighbours():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    means = neighbour_means(features, torch.tensor([[1.0, 10], [3, 30], [100, 0]]), features[:1], k=2)
    assert means.tolist() == [[pytest.approx(2), pytest.approx(20)]]


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_a_probe_learns_any_target_by_its_own_loss(kind):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator)
    values = features @ torch.randn(6, 2, generator=generator) + torch.tensor([3.0, -1.0])
    names, labels = ("a", "b"), (values if kind == "regression" else (values > 1).float())
    regression = Regression(names=names, mean=tuple(values.mean(0).tolist()), std=tuple(values.std(0).tolist()))
    target = regression if kind == "regression" else MultiLabel(names=names)
    probe, strength = fit_probe(features[:200], labels[:200], target, held_out=(features[200:250], labels[200:250]))
    assert strength < 1e-2
    assert target.score(probe(features[250:]), labels[250:]) > 0.97
    if kind == "regression":  # least squares, in closed form, but for the little that is left of the regularisation
        known = torch.cat([features[:200], torch.ones(200, 1)], 1)
        solved = torch.linalg.lstsq(known, labels[:200]).solution
        expected = torch.cat([features[250:], torch.ones(50, 1)], 1) @ solved
        assert torch.allclose(target.activate(probe(features[250:])), expected, atol=0.02)


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_the_probe_is_at_the_minimum_of_its_loss(strength):
    features, labels = clusters(4, 20)
    features = features * torch.linspace(0.01, 100, 16) + 7  # units must not matter
    probe, _ = fit_probe(features, labels, classes(4), strengths=[strength])
    mean, scale = features.mean(0), features.std(0, correction=0) * 16**0.5

    def loss(weight, bias):
        logits = (features - mean) / scale @ weight + bias
        return torch.nn.functional.cross_entropy(logits, labels) + strength / 2 * weight.square().sum()

    weight = (probe(torch.eye(16)) - probe(torch.zeros(1, 16))) * scale[:, None]
    bias = probe(mean[None])[0]
    least, generator = float(loss(weight, bias)), torch.Generator().manual_seed(0)
    for _ in range(50):
        step = torch.randn(weight.shape, generator=generator)
        assert float(loss(weight + 0.02 * step, bias)) > least - 1e-5
    start = torch.zeros(16, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam(start, lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        loss(*start).backward()
        optimizer.step()
    assert least == pytest.approx(float(loss(*start).detach()), abs=2e-3)


def test_the_strength_is_the_one_that_is_best_on_other_images():
    features, labels = clusters(3, 15, noise=3)
    other, answers = clusters(3, 60, noise=3, seed=0)
    chosen, _ = fit_probe(features, labels, classes(3), held_out=(other, answers))

    def loss(probe):
        return float(torch.nn.functional.cross_entropy(probe(other), answers))

    assert all(
        loss(chosen) <= loss(fit_probe(features, labels, classes(3), strengths=[s])[0]) + 1e-3 for s in (1e-1, 1e-4)
    )


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_features_that_never_change_are_no_trouble(value):
    features, labels = clusters(2, 10)
    features[:, 3] = value
    probe, _ = fit_probe(features, labels, classes(2))
    assert bool(probe(features).isfinite().all())
    assert bool((probe(features).argmax(1) == labels).all())


def test_folds_keep_copies_together_and_classes_even():
    labels = torch.tensor([0] * 50 + [1] * 13 + [2])
    pairs = [(0, 7), (7, 20), (55, 1)]
    folds = fold_numbers(labels, pairs)
    assert folds[0] == folds[7] == folds[20]
    assert folds[55] == folds[1]
    alone = fold_numbers(labels)
    assert alone[:50].bincount(minlength=FOLDS).tolist() == [10] * 5
    assert set(alone[50:63].bincount(minlength=FOLDS).tolist()) == {2, 3}


def test_wrong_labels_are_found_and_named():
    features, labels = clusters(5, 40, noise=0.5)
    given = labels.clone()
    wrong = [3, 50, 101, 150, 199]
    given[wrong] = (labels[wrong] + 2) % 5
    shares = out_of_fold(features, given, fold_numbers(given), classes(5), 1e-3)
    found = dict(doubtful_labels(shares, given))
    assert set(wrong) <= set(found)
    assert all(found[row] == int(labels[row]) for row in wrong)
    assert len(found) <= len(wrong) + 3
    assert doubtful_labels(out_of_fold(features, labels, fold_numbers(labels), classes(5), 1e-3), labels)[2:] == []


def test_no_label_is_doubted_where_features_say_nothing():
    features = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 4
    shares = out_of_fold(features, labels, fold_numbers(labels), classes(4), 1e-1)
    assert doubtful_labels(shares, labels) == []


def test_near_copies_are_found_by_both_sides_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 32, generator=generator) + 5  # what all have in common must not make them alike
    copies = features[:4] + 0.1 * torch.randn(4, 32, generator=generator)
    pairs = near_copies(torch.cat([features, copies]))
    assert {pair[:2] for pair in pairs} == {(0, 60), (1, 61), (2, 62), (3, 63)}
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)
    assert near_copies(features) == []


def test_the_same_image_many_times_is_found():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    features[5:14] = features[5]
    linked = {row for pair in near_copies(features) for row in pair[:2]}
    assert linked == set(range(5, 14))


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images_are_no_trouble(images):
    assert len(near_copies(torch.eye(4)[:images])) <= 1
