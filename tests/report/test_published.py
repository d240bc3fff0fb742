"""Published numbers: the table against itself."""

import random
import statistics

import pytest

from studies import VTAB
from vprompt.report import published


def test_printed_means_are_those_of_the_printed_numbers():
    """A typing error in the table would show: every printed mean lies where its row puts it."""
    checked = 0
    tasks = [*(task for group in VTAB.values() for task in group), *published.FGVC]
    for family in (published.VIT, published.SWIN):
        for row in published.rows(family, tasks):
            for over, mean in row.means.items():
                if over <= row.numbers.keys():
                    checked += 1
                    assert statistics.fmean(row.numbers[task] for task in over) == pytest.approx(mean, abs=0.061)
    assert checked > 50


def test_published_families():
    assert published.family_of("timm/vit_base_patch16_224.augreg_in21k") == published.VIT
    assert published.family_of("swin_base_patch4_window7_224.ms_in22k") == published.SWIN
    assert published.family_of("vit_base_patch16_224.mae") == "ViT-B/16 MAE"
    assert published.family_of("vit_base_patch16_224.augreg_in1k") is None
    assert published.rows("no such family", ["svhn"]) == []
    chance = random.Random(0)
    for _ in range(20):
        tasks = set(chance.sample([t for g in VTAB.values() for t in g], 5))
        for row in published.rows(published.VIT, tasks):
            assert row.numbers.keys() <= tasks
            assert all(over <= tasks for over in row.means)
            assert row.group_mean is None
