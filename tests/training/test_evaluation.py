"""What stands beside an accuracy: intervals against their definitions, balanced and majority figures, sentences."""

import math
import random
import statistics
import subprocess
import sys

import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import vprompt
from vprompt.compression.condense import SHARES, smallest_share
from vprompt.model.records import Recipe
from vprompt.tasks.single_label import SingleLabel
from vprompt.training.checkpoint import History
from vprompt.training.evaluate import Evaluation, difference, doubled, evaluate
from vprompt.training.precision import in_bf16
from vprompt.utils.devices import device_named, fast_bf16, found_devices, usable_threads
from vprompt.utils.errors import VPromptError
from vprompt.utils.statistics import Z_95, paired_interval, wilson


def evaluation(labels, right, classes=("a", "b", "c", "d")):
    """Of a model that is right where it is said, and else names the next class."""
    said = [label if hit else (label + 1) % len(classes) for label, hit in zip(labels, right, strict=True)]
    logits = torch.eye(len(classes))[said]
    return Evaluation(target=SingleLabel(names=tuple(classes)), loss=1.0, logits=logits, labels=torch.tensor(labels))


def test_a_longer_training_is_compared_image_by_image():
    chance = random.Random(0)
    pairs = [(chance.random(), chance.random()) for _ in range(17)]
    ends = [torch.tensor(losses) for losses in zip(*pairs, strict=True)]
    changes = [longer - shorter for shorter, longer in pairs]
    found = doubled(*ends, epochs=8)
    assert found is not None
    assert found.difference == pytest.approx(statistics.fmean(changes), abs=1e-7)
    assert found.standard_error == pytest.approx(statistics.stdev(changes) / math.sqrt(17), abs=1e-7)
    assert doubled(torch.zeros(1), torch.zeros(1), epochs=8) is None
    assert doubled(ends[0], evaluation([0] * 17, [1] * 17).losses, epochs=8) is None


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (40, 40), (8, 10), (769, 1000), (5, 13)])
def test_the_ends_of_wilsons_interval_are_as_many_deviations_from_the_share_as_it_says(right, images):
    """Its definition: the shares p from which the observed one is 1.96 standard deviations of p away."""
    low, high = wilson(right, images)
    share = right / images
    for end, side in ((low, 1), (high, -1)):
        if end in (0.0, 1.0):
            assert share == end
        else:
            assert side * (share - end) == pytest.approx(Z_95 * math.sqrt(end * (1 - end) / images), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_the_paired_interval_is_walds_for_many_images_and_is_never_empty_for_few():
    """150 and 86 of 1,600 changed their minds: 0.040 ± 0.0187, as textbooks have it."""
    low, high = paired_interval(150, 86, 1600)
    assert (low, high) == pytest.approx((0.0213, 0.0587), abs=2e-4)
    for gained, lost, images in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 50), (50, 0, 50)):
        low, high = paired_interval(gained, lost, images)
        assert -1 <= low < high <= 1
        assert [-end for end in reversed(paired_interval(lost, gained, images))] == pytest.approx([low, high])


def test_figures_are_those_counted_by_hand():
    chance = random.Random(0)
    labels = [chance.choice([0, 0, 0, 1, 3]) for _ in range(200)]  # no image of class 2
    right = [label != 3 and chance.random() < 0.7 for label in labels]
    found = evaluation(labels, right).figures
    recalls = [
        sum(hit for hit, label in zip(right, labels, strict=True) if label == wanted) / labels.count(wanted)
        for wanted in (0, 1, 3)
    ]
    assert found["accuracy"] == sum(right) / 200
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert found["majority_accuracy"] == labels.count(0) / 200
    assert found["never_right"] == ["d"]
    assert found["images"] == 200
    assert found["interval"] == list(wilson(sum(right), 200))


def test_an_accuracy_that_only_says_the_commonest_class_is_said_to_be_worth_nothing():
    labels = [0] * 100 + [1] * 10 + [2] * 10 + [3] * 10
    names = ["cat", "dog", "lynx", "ox"]
    lazy = evaluation(labels, [label == 0 for label in labels], names)
    assert lazy.accuracy == pytest.approx(0.769, abs=1e-3)
    assert lazy.figures["balanced_accuracy"] == 0.25
    worth, never = lazy.remarks("test")
    assert "not above" in worth
    assert "cat (76.9 %)" in worth
    assert all(f"{name} (10 images)" in never for name in ("dog", "lynx", "ox"))
    assert "cat" not in never
    perfect = evaluation(labels, [True] * 130, names)
    assert perfect.remarks("test") == []
    above = evaluation(labels, [label == 0 or place % 5 == 0 for place, label in enumerate(labels)], names)
    [sentence] = above.remarks("test")
    assert "not clearly above" in sentence


def test_evaluate_counts_what_the_model_says():
    torch.manual_seed(0)
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=3, head_init="paper")
    images, labels = torch.randn(20, 3, 32, 32), torch.randint(3, (20,))
    found = evaluate(model, TensorDataset(images, labels), batch_size=7)
    with torch.inference_mode():
        logits = model.eval()(images)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert found.accuracy == float((logits.argmax(1) == labels).double().mean())
    assert torch.equal(found.labels, labels)
    assert "accuracy" in repr(found)
    assert len(repr(found).splitlines()) == 1


def test_a_difference_is_between_the_same_images():
    labels = [0] * 50
    before = evaluation(labels, [place < 45 for place in range(50)])
    after = evaluation(labels, [place >= 10 for place in range(50)])
    change, interval = difference(before, after)
    assert change == pytest.approx(-0.1)
    assert interval == paired_interval(5, 10, 50)
    assert difference(before, before)[0] == 0


@pytest.mark.parametrize(("until", "kept"), [(0.0, SHARES[-1]), (0.25, 0.3), (0.9, None)])
def test_the_smallest_share_is_the_last_before_one_that_is_worse(until, kept):
    before = evaluation([0] * 100, [True] * 90 + [False] * 10)
    worse = evaluation([0] * 100, [True] * 60 + [False] * 40)
    asked = []

    def attempt(share):
        asked.append(share)
        return share, before if share > until else worse

    best, trials = smallest_share(before, attempt)
    assert best == kept
    assert [trial["ratio"] for trial in trials] == asked == list(SHARES[: len(asked)])
    assert [trial["interval"][1] < 0 for trial in trials[:-1]] == [False] * (len(trials) - 1)
    assert (trials[-1]["interval"][1] < 0) is (kept != SHARES[-1])
    assert [trial["difference"] for trial in trials] == [0.0 if share > until else -0.3 for share in asked]


def test_auto_is_what_the_machine_has_and_is_fast_in():
    assert device_named("auto") == found_devices()[-1]
    cpu = torch.device("cpu")
    assert in_bf16("auto", cpu) is fast_bf16("cpu")
    assert (in_bf16("bf16", cpu), in_bf16("fp32", cpu)) == (True, False)
    assert Recipe(precision="auto").precision == "auto"
    with pytest.raises(VPromptError, match="precision"):
        Recipe(precision="fp8")


def test_a_processor_without_instructions_for_bf16_is_found_out():
    """The library for matrices is held to older instructions, as on a processor that has no newer ones."""
    code = "from vprompt.utils.devices import fast_bf16; print(fast_bf16('cpu'))"
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


@pytest.mark.parametrize(
    ("text", "most"), [("50000 100000", 1), ("max 100000", None), ("", None), ("x y", None), ("900000000 100000", None)]
)
def test_a_container_has_as_many_threads_as_it_has_processors(tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert usable_threads(tmp_path / "cpu.max") == (most or 2)
        assert usable_threads(tmp_path / "none") == 2
    finally:
        torch.set_num_threads(before)


def test_a_model_overfits_when_its_loss_on_other_images_rises():
    def history(losses):
        return History(rows=[{"epoch": n, "loss": 1 / (n + 1), "val_loss": loss} for n, loss in enumerate(losses)])

    assert history([1.0, 0.5, 0.8]).overfits
    assert not history([1.0, 0.5, 0.51]).overfits
    assert not history([1.0, 0.8, 0.5]).overfits
    assert not History(rows=[{"epoch": 1, "loss": 1.0}]).overfits
