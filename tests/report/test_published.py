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
            numbers = {
                min(group): value for (group, *more), value in row.printed.items() if len(group) == 1 and not more
            }
            for groups, mean in row.printed.items():
                if frozenset().union(*groups) <= numbers.keys():
                    checked += len(groups) > 1 or len(min(groups)) > 1
                    of_groups = [statistics.fmean(numbers[task] for task in group) for group in groups]
                    assert statistics.fmean(of_groups) == pytest.approx(mean, abs=0.061)
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
            assert all(group <= tasks for groups in row.printed for group in groups)
            assert not any(len(groups) > 1 for groups in row.printed)  # VTAB's groups are more than five tasks
