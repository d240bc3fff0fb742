"""Training: against hand-written loops, repeatable, resumable after any kind of end, and clear about what is wrong."""

import json
import math
import os
import random
import re
import signal
import socket
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load, save, save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import vprompt
import vprompt.training.trainer as training
from processes import Script
from reference import close, small_vit
from vprompt.data.dataset import ImageDataset
from vprompt.data.preprocessing import Preprocessing
from vprompt.methods.pae import PAE
from vprompt.methods.pro_vpt import PROVPT
from vprompt.model.records import learning_rate
from vprompt.training.checkpoint import Doubled, History
from vprompt.training.evaluate import evaluate
from vprompt.training.loader import epoch_order
from vprompt.training.trainer import Interrupted, fit
from vprompt.utils.devices import FAST_BF16, found_devices
from vprompt.utils.errors import DataError, TrainingError, VPromptError

CLASSES = 3
PLAIN = Preprocessing(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def pixels_and_labels(images, seed=0):
    """uint8 noise, brighter in the channel that the label names."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    pixels = torch.randint(0, 120, (images, 3, 32, 32), generator=generator)
    pixels[torch.arange(images), labels] += 120
    return pixels.to(torch.uint8), labels


def tensors(images=24, seed=0):
    pixels, labels = pixels_and_labels(images, seed)
    return TensorDataset(PLAIN.normalise(pixels), labels)


def fresh(method=None, *, execution="prefix", num_classes=CLASSES, seed=0, **vit):
    torch.manual_seed(seed)
    backbone = small_vit(**{"depth": 2, **vit})
    return vprompt.attach(backbone, method or vprompt.VPT(4), num_classes=num_classes, execution=execution)


def recipe(**changes):
    return vprompt.Recipe(**{"epochs": 3, "batch_size": 8, "lr": 0.01, "seed": 5, **changes})


def values(model):
    return {name: p.detach().clone() for name, p in model.learned.items()}


def assert_identical(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), (name, float((found[name] - wanted[name]).abs().max()))


def assert_different(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(not torch.equal(found[name], wanted[name]) for name in wanted)


def trained(method=None, data=None, **options):
    model = fresh(method)
    history = fit(model, data or tensors(), **options)
    return values(model), history.rows


class Items(Dataset):
    """A data set of the user's own: fetched item by item; may do something when an item is fetched."""

    def __init__(self, data, before=None):
        self.items = list(data)
        self.before = before
        self.fetched = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.fetched += 1
        if self.before is not None:
            self.before(self.fetched)
        image, label = self.items[index]
        return image, int(label)


class Noisy(Items):
    """Random augmentation with torch's global generator, as torchvision's transforms do it."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.3 * torch.randn_like(image), label


# ── it learns, and does what it says ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.VPT(4, "shallow"), vprompt.Linear()])
def test_it_learns_what_can_be_learned(method, execution):
    model = fresh(method, execution=execution)
    test = tensors(30, seed=99)
    backbone = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    before = evaluate(model, test)
    how = recipe(epochs=40, lr=0.05) if method.name == "linear" else recipe(epochs=12, lr=0.02)
    history = fit(model, tensors(90 if method.name == "linear" else 30), test, recipe=how)
    after = evaluate(model, test)
    assert after.accuracy >= 0.9
    assert after.loss < before.loss
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert history.rows[-1]["val_accuracy"] == after.accuracy
    assert [row["epoch"] for row in history.rows] == list(range(1, how.epochs + 1))
    assert history.seconds > 0
    assert_identical(dict(model.backbone.state_dict()), backbone)
    assert not model.training
    assert model.recipe == how


def test_prompts_move_and_not_only_the_head():
    model = fresh()
    before = values(model)
    fit(model, tensors(), recipe=recipe(epochs=1))
    assert_different(values(model), before)


def test_linear_trains_the_head_only():
    model = fresh(vprompt.Linear())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, tensors(), recipe=recipe())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_no_epochs_leave_the_model_as_it_is():
    model = fresh()
    before = values(model)
    assert fit(model, tensors(), recipe=recipe(epochs=0)).rows == []
    assert_identical(values(model), before)


def by_hand(model, data, how):
    """The recipe as a plain loop over plain tensors: no optimizer class, no loop of ours."""
    images, labels = data.tensors
    learned = model.learned
    model.train()
    steps = math.ceil(len(images) / how.batch_size)
    memory = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in learned.items()}
    step = 0
    for epoch in range(how.epochs):
        order = epoch_order(len(images), seed=how.seed, epoch=epoch)
        assert sorted(order.tolist()) == list(range(len(images)))
        for start in range(0, len(images), how.batch_size):
            rows = order[start : start + how.batch_size]
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            gradients = torch.autograd.grad(loss, list(learned.values()))
            lr = learning_rate(step, how.epochs * steps, peak=how.peak_lr, warmup=how.warmup)
            step += 1
            with torch.no_grad():
                for (name, p), gradient in zip(learned.items(), gradients, strict=True):
                    decay = 0.0 if name == "head.bias" else how.weight_decay
                    first, second = memory[name]
                    if how.optimizer == "sgd":
                        g = gradient + decay * p
                        first.copy_(g if step == 1 else how.momentum * first + g)
                        p.sub_(lr * first)
                    else:
                        p.mul_(1 - lr * decay)
                        first.mul_(0.9).add_(0.1 * gradient)
                        second.mul_(0.999).add_(0.001 * gradient * gradient)
                        p.sub_(lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    model.eval()


@pytest.mark.parametrize(
    "how",
    [
        recipe(optimizer="sgd", lr=2.0, weight_decay=0.01),
        recipe(optimizer="sgd", lr=1.0, momentum=0.0, warmup=0.0, batch_size=24),
        recipe(optimizer="adamw", lr=0.003, weight_decay=0.1, batch_size=7),
        recipe(optimizer="adamw", lr=0.003, warmup=1.0, batch_size=100),
        recipe(optimizer="adamw", lr=0.003, batch_size=1, epochs=1),
    ],
    ids=["sgd", "sgd-one-batch", "adamw-uneven", "adamw-large-batch", "one-by-one"],
)
@pytest.mark.parametrize(
    "method",
    [vprompt.VPT(4, dropout=0), vprompt.VPT(4, "shallow"), vprompt.Linear()],
    ids=["deep", "shallow", "linear"],
)
def test_training_is_a_plain_loop(method, how):
    ours, theirs = fresh(method), fresh(method)
    start = values(ours)
    data = tensors(20)
    fit(ours, data, recipe=how)
    by_hand(theirs, data, how)
    for name, wanted in values(theirs).items():
        close(values(ours)[name] - start[name], wanted - start[name], 1e-3)


def test_the_history_holds_the_loss_and_accuracy_of_the_epoch():
    model = fresh(vprompt.VPT(4, dropout=0))
    torch.nn.init.normal_(model.head.weight)  # of a head of zeros, all classes are as likely, and ties go either way
    before = evaluate(model, tensors(20))
    rows = fit(model, tensors(20), recipe=recipe(lr=1e-30, batch_size=6)).rows
    for row in rows:
        assert row["loss"] == pytest.approx(before.loss, rel=1e-5)
        assert row["accuracy"] == before.accuracy
    assert [set(row) for row in rows] == [{"epoch", "loss", "accuracy", "lr"}] * 3
    how = recipe(lr=1e-30, batch_size=6)
    assert [row["lr"] for row in rows] == [learning_rate(s, 12, peak=1e-30, warmup=how.warmup) for s in (3, 7, 11)]


def test_validation_changes_nothing():
    plain, rows = trained(recipe=recipe())
    watched, seen = trained(recipe=recipe(), val=tensors(9, seed=3))
    assert_identical(watched, plain)
    assert [{k: v for k, v in row.items() if not k.startswith("val_")} for row in seen] == rows
    assert all("val_accuracy" in row for row in seen)


def test_validation_runs_about_ten_times_and_at_the_end():
    model = fresh(vprompt.Linear())
    rows = fit(model, tensors(6), tensors(6), recipe=recipe(epochs=43)).rows
    seen = [row["epoch"] for row in rows if "val_accuracy" in row]
    assert seen == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 43]


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()])
def test_a_training_that_stops_on_its_way_goes_on_as_if_it_had_not(method, tmp_path):
    whole, parts = fresh(method), fresh(method)
    history = fit(whole, tensors(), tensors(9, 1), recipe=recipe(epochs=5))
    state = tmp_path / "state.safetensors"
    for until in (1, 3, 3, 9):
        found = fit(
            parts, tensors(), tensors(9, 1), recipe=recipe(epochs=5), checkpoint=state, resume=True, until=until
        )
        assert len(found.rows) == min(until, 5)
        assert found.rows == history.rows[: len(found.rows)]
    assert_identical(values(parts), values(whole))


def test_prompt_dropout_acts_in_training_only():
    with_dropout, _ = trained(vprompt.VPT(4, dropout=0.5), recipe=recipe())
    without, _ = trained(vprompt.VPT(4, dropout=0.0), recipe=recipe())
    assert_different(with_dropout, without)
    model = fresh(vprompt.VPT(4, dropout=0.5)).train()
    plain = fresh(vprompt.VPT(4, dropout=0.0))
    assert evaluate(model, tensors()) == evaluate(plain, tensors())
    assert model.training


def test_bfloat16_trains_and_keeps_float32_prompts():
    model, exact = fresh(vprompt.VPT(4, dropout=0)), fresh(vprompt.VPT(4, dropout=0))
    start = values(model)
    history = fit(model, tensors(), recipe=recipe(precision="bf16", optimizer="sgd", lr=1.0))
    fit(exact, tensors(), recipe=recipe(optimizer="sgd", lr=1.0))
    assert {p.dtype for p in model.learned.values()} == {torch.float32}
    assert math.isfinite(history.rows[-1]["loss"])
    for name, wanted in values(exact).items():
        close(values(model)[name] - start[name], wanted - start[name], 0.2)
    assert_different(values(model), values(exact))


@pytest.mark.parametrize("losses", [[1.0, 0.9, 0.8, 0.7, 0.69], [9.0, 8.0, 7.0, 0.01, 0.01], [1.0] * 20, []])
def test_one_training_does_not_say_whether_it_had_converged(losses):
    assert History(rows=[{"epoch": n + 1.0, "loss": loss} for n, loss in enumerate(losses)]).converged is None


@pytest.mark.parametrize(("change", "answer"), [(0.0, True), (0.1, True), (-0.1, True), (0.11, False), (-0.11, False)])
def test_it_had_where_twice_the_epochs_change_no_more_than_the_standard_error(change, answer):
    history = History(doubled=Doubled(epochs=60, difference=change, standard_error=0.1))
    assert history.converged is answer
    assert not Doubled(epochs=60, difference=math.nan, standard_error=math.nan).converged


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_evaluate_is_accuracy_and_mean_loss(folded, batch_size):
    model = fresh()
    subject = model.fold() if folded else model.train()
    images, labels = tensors(17).tensors
    with torch.no_grad():
        logits = model.eval()(images)
    model.train()
    found = evaluate(subject, TensorDataset(images, labels), batch_size=batch_size)
    assert found.accuracy == float((logits.argmax(1) == labels).sum()) / 17
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found.images == 17
    assert model.training
    assert all(p.grad is None for p in subject.parameters())


# ── the same again ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_same_seed_same_bits_other_seed_other_bits():
    first, rows = trained(recipe=recipe())
    torch.manual_seed(12345)
    torch.randn(17)
    again, rows_again = trained(recipe=recipe())
    assert_identical(again, first)
    assert rows_again == rows
    other, _ = trained(recipe=recipe(seed=6))
    assert_different(other, first)


def test_the_seed_reaches_dropout_and_not_only_the_order():
    how = {"epochs": 2, "batch_size": 24, "optimizer": "sgd", "lr": 1.0}
    first, _ = trained(vprompt.VPT(4, dropout=0.5), recipe=recipe(seed=1, **how))
    other, _ = trained(vprompt.VPT(4, dropout=0.5), recipe=recipe(seed=2, **how))
    assert all(float((first[n] - other[n]).norm()) > 1e-3 * float(first[n].norm()) for n in first if "prompts" in n)


def test_all_data_sets_with_the_same_images_give_the_same_bits():
    pixels, labels = pixels_and_labels(24)
    wanted, rows = trained(recipe=recipe())
    for data in (ImageDataset(labels, PLAIN, pixels=pixels), Items(tensors()), list(Items(tensors()))):
        found, found_rows = trained(data=data, recipe=recipe())
        assert_identical(found, wanted)
        assert found_rows == rows
    subset = ImageDataset(labels.flip(0), PLAIN, pixels=pixels.flip(0)).subset(torch.arange(24).flip(0))
    assert_identical(trained(data=subset, recipe=recipe())[0], wanted)


def test_workers_change_nothing():
    wanted, _ = trained(recipe=recipe(epochs=1))
    found, _ = trained(data=Items(tensors()), recipe=recipe(epochs=1, workers=1))
    assert_identical(found, wanted)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
def test_any_integer_type_of_labels_will_do(dtype, method):
    images, labels = tensors().tensors
    wanted, rows = trained(method, recipe=recipe())
    found, found_rows = trained(method, data=TensorDataset(images, labels.to(dtype)), recipe=recipe())
    assert_identical(found, wanted)
    assert found_rows == rows
    model = fresh(method)
    assert evaluate(model, TensorDataset(images, labels.to(dtype))) == evaluate(model, tensors())


def random_states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
@pytest.mark.parametrize("kind", [tensors, lambda: Items(tensors())], ids=["tensors", "items"])
def test_training_and_evaluating_leave_the_global_generators_alone(kind, method):
    model = fresh(method)
    torch.manual_seed(31)
    torch.randn(3)
    before = random_states()
    fit(model, kind(), kind(), recipe=recipe())
    after = random_states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    evaluate(model, kind())
    assert torch.equal(before[0], torch.get_rng_state())


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
def test_same_seed_same_bits_under_random_augmentation(method):
    torch.manual_seed(1)
    first, _ = trained(method, data=Noisy(tensors()), recipe=recipe())
    model = fresh(method)
    torch.manual_seed(2)
    fit(model, Noisy(tensors()), recipe=recipe())
    assert_identical(values(model), first)


# ── random crops and flips of our own images ─────────────────────────────────────────────────────────────────────────


def in_files(folder, images=9, augment="crop-flip"):
    """Files of noise, a little larger than what is cut from them, brighter in the channel that the label names."""
    folder.mkdir(exist_ok=True)
    pixels, labels = pixels_and_labels(images)
    paths = [f"{number}.png" for number in range(images)]
    for image, path in zip(pixels, paths, strict=True):
        if not (folder / path).exists():
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((50, 40)).save(folder / path)
    dataset = ImageDataset(labels, replace(PLAIN, resize="crop"), root=folder, paths=paths)
    return dataset.with_augment(augment)


class Told(Dataset):
    """What `in_files` shows in each epoch, cut beforehand; the epoch follows from how many items were fetched."""

    def __init__(self, dataset, seed, epochs):
        every = torch.arange(len(dataset))
        self.labels, self.fetched = dataset.labels, 0
        self.epochs = [
            dataset.preprocessing.normalise(dataset.training_pixels(every, seed=seed, epoch=epoch))
            for epoch in range(epochs)
        ]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        epoch, self.fetched = self.fetched // len(self), self.fetched + 1
        return self.epochs[epoch][index], self.labels[index]


def test_every_epoch_trains_on_its_own_views(tmp_path):
    data = in_files(tmp_path)
    found, rows = trained(data=data, recipe=recipe(batch_size=4))
    wanted, wanted_rows = trained(data=Told(data, seed=5, epochs=3), recipe=recipe(batch_size=4))
    assert_identical(found, wanted)
    assert rows == wanted_rows
    assert_different(trained(data=data.with_augment("none"), recipe=recipe(batch_size=4))[0], found)


def test_a_head_alone_trains_on_every_epoch_s_views_too(tmp_path):
    data, how = in_files(tmp_path), recipe(batch_size=4, optimizer="sgd", lr=4.0, weight_decay=0.0)
    found, rows = trained(vprompt.Linear(), data=data, recipe=how)
    model = fresh(vprompt.Linear())
    told, losses = Told(data, seed=5, epochs=3), []
    with torch.no_grad():
        features = [model.features(images) for images in told.epochs]
    head = torch.nn.Linear(model.head.in_features, CLASSES)
    head.load_state_dict({"weight": model.head.weight, "bias": model.head.bias})
    optimizer, step = torch.optim.SGD(head.parameters(), momentum=how.momentum), 0
    for epoch in range(3):
        total = 0.0
        for batch in epoch_order(9, seed=5, epoch=epoch).split(4):
            optimizer.param_groups[0]["lr"] = learning_rate(step, 9, peak=how.peak_lr, warmup=how.warmup)
            loss = F.cross_entropy(head(features[epoch][batch]), told.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, step = total + loss.item() * len(batch), step + 1
        losses.append(total / 9)
    close(found["head.weight"], head.weight.detach(), 1e-5)
    close(found["head.bias"], head.bias.detach(), 1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
@pytest.mark.parametrize("step", [2, 5])
def test_resuming_under_crops_and_flips_is_uninterrupted(step, method, tmp_path):
    data, file = in_files(tmp_path / "files"), tmp_path / "state"
    wanted, rows = trained(method, data=data, recipe=recipe(batch_size=4))
    broken, steps = in_files(tmp_path / "files"), []
    cut = broken.training_pixels

    def fetch(index, **occasion):
        steps.append(occasion["epoch"])
        if len(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return cut(index, **occasion)

    broken.training_pixels = fetch
    with pytest.raises(Interrupted):
        fit(fresh(method), broken, recipe=recipe(batch_size=4), checkpoint=file)
    model = fresh(method, seed=1)
    found = fit(model, data, recipe=recipe(batch_size=4), checkpoint=file, resume=True).rows
    assert_identical(values(model), wanted)
    assert found == rows


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_checkpoint_is_of_one_augmentation(augment, tmp_path):
    file, data = tmp_path / "state", in_files(tmp_path / "files", augment=augment)
    fit(fresh(), data, recipe=recipe(epochs=2), checkpoint=file, until=1)
    other = data.with_augment("none" if augment == "crop-flip" else "crop-flip")
    with pytest.raises(TrainingError, match=r"other settings \(augment\)"):
        fit(fresh(), other, recipe=recipe(epochs=2), checkpoint=file, resume=True)


def test_validation_and_evaluation_see_images_as_they_are(tmp_path):
    augmented, plain = in_files(tmp_path), in_files(tmp_path, augment="none")
    model = fresh()
    assert evaluate(model, augmented) == evaluate(model, plain)
    _, rows = trained(val=augmented, recipe=recipe())
    assert rows == trained(val=plain, recipe=recipe())[1]


# ── interrupted and resumed ──────────────────────────────────────────────────────────────────────────────────────────

STEPS = 9  # 3 epochs of 3 batches of 8


def stop_at(step, number=signal.SIGINT):
    """Sends a signal while the batch of the given step (from 1) is fetched."""

    def before(fetched):
        if fetched == (step - 1) * 8 + 1:
            signal.raise_signal(number)

    return before


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_interrupted_at_any_step_and_resumed_is_uninterrupted(step, tmp_path):
    file = tmp_path / "run" / "state.safetensors"
    wanted, rows = trained(recipe=recipe(), val=tensors(6, seed=8))
    torch.manual_seed(7)
    states, handlers = random_states(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    model = fresh()
    torch.set_rng_state(states[0])
    with pytest.raises(Interrupted) as error:
        fit(model, Items(tensors(), stop_at(step)), tensors(6, seed=8), recipe=recipe(), checkpoint=file)
    assert f"epoch {(step - 1) // 3 + 1}" in str(error.value)
    assert file.exists()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), states[0])
    other = fresh(seed=1000)
    history = fit(other, Items(tensors()), tensors(6, seed=8), recipe=recipe(), checkpoint=file, resume=True)
    assert_identical(values(other), wanted)
    assert history.rows == rows
    assert os.listdir(file.parent) == [file.name]


def test_sigterm_is_like_ctrl_c(tmp_path):
    wanted, rows = trained(recipe=recipe())
    file = tmp_path / "state"
    with pytest.raises(Interrupted):
        fit(fresh(), Items(tensors(), stop_at(5, signal.SIGTERM)), recipe=recipe(), checkpoint=file)
    model = fresh(seed=1)
    assert fit(model, tensors(), recipe=recipe(), checkpoint=file, resume=True).rows == rows
    assert_identical(values(model), wanted)


@pytest.mark.parametrize("step", [1, 3, 6, 9])
def test_a_linear_probe_is_resumed_too(step, tmp_path):
    """Its features are computed once, so the signal comes from the schedule of the loop itself."""
    wanted, rows = trained(vprompt.Linear(), recipe=recipe())
    file = tmp_path / "state"
    count = 0
    rate = training.learning_rate

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGINT)
        return rate(*args, **kwargs)

    training.learning_rate = counted
    try:
        with pytest.raises(Interrupted):
            fit(fresh(vprompt.Linear()), tensors(), recipe=recipe(), checkpoint=file)
    finally:
        training.learning_rate = rate
    model = fresh(vprompt.Linear(), seed=1)
    assert fit(model, tensors(), recipe=recipe(), checkpoint=file, resume=True).rows == rows
    assert_identical(values(model), wanted)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_resuming_under_random_augmentation_is_uninterrupted(step, tmp_path):
    torch.manual_seed(1)
    model = fresh()
    torch.manual_seed(1)
    rows = fit(model, Noisy(tensors()), recipe=recipe()).rows
    broken, other = fresh(), fresh()
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        fit(broken, Noisy(tensors(), stop_at(step)), recipe=recipe(), checkpoint=tmp_path / "s")
    torch.manual_seed(1)
    found = fit(other, Noisy(tensors()), recipe=recipe(), checkpoint=tmp_path / "s", resume=True).rows
    assert_identical(values(other), values(model))
    assert found == rows


def test_without_a_checkpoint_ctrl_c_is_plain():
    with pytest.raises(KeyboardInterrupt) as error:
        fit(fresh(), Items(tensors(), stop_at(5)), recipe=recipe())
    assert not isinstance(error.value, Interrupted)


def test_a_finished_run_is_not_trained_again(tmp_path):
    file = tmp_path / "state"
    wanted, rows = trained(recipe=recipe(), checkpoint=file)
    data = Items(tensors())
    model = fresh(seed=1)
    history = fit(model, data, recipe=recipe(), checkpoint=file, resume=True)
    assert data.fetched == 0
    assert history.rows == rows
    assert_identical(values(model), wanted)
    assert not model.training


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_goes_on_in_the_precision_that_it_began_with(precision, tmp_path, monkeypatch):
    """Where a machine is near the limit, a busy moment may measure another."""
    kind = found_devices()[-1].type
    other = {"bf16": "fp32", "fp32": "bf16"}[precision]
    wanted, others = (trained(recipe=recipe(precision=name))[0] for name in (precision, other))
    assert_different(wanted, others)
    monkeypatch.setitem(FAST_BF16, kind, precision == "bf16")
    fit(fresh(), tensors(), recipe=recipe(precision="auto"), checkpoint=tmp_path / "state", until=1)
    monkeypatch.setitem(FAST_BF16, kind, precision != "bf16")
    model = fresh()
    fit(model, tensors(), recipe=recipe(precision="auto"), checkpoint=tmp_path / "state", resume=True)
    assert_identical(values(model), wanted)
    assert FAST_BF16[kind] is (precision == "bf16")
    assert_identical(trained(recipe=recipe(precision="auto"))[0], wanted)  # of the next stage, too


def test_resume_without_a_file_starts_and_a_new_run_overwrites_the_old(tmp_path):
    file = tmp_path / "state"
    wanted, _ = trained(recipe=recipe(), checkpoint=file, resume=True)
    other, rows = trained(recipe=recipe(seed=6), checkpoint=file)
    assert_different(other, wanted)
    model = fresh(seed=1)
    assert fit(model, tensors(), recipe=recipe(seed=6), checkpoint=file, resume=True).rows == rows
    assert_identical(values(model), other)


def images_in_memory(seed=0, images=24):
    pixels, labels = pixels_and_labels(images, seed)
    return ImageDataset(labels, PLAIN, pixels=pixels)


def other_backbone():
    model = fresh()
    with torch.no_grad():
        model.backbone.blocks[0].attn.qkv.weight.mul_(1.5)
    return model


OTHER_RUNS = {
    "rate": {"recipe": recipe(lr=0.02)},
    "epochs": {"recipe": recipe(epochs=4)},
    "seed": {"recipe": recipe(seed=6)},
    "batch-size": {"recipe": recipe(batch_size=4)},
    "optimizer": {"recipe": recipe(optimizer="sgd")},
    "precision": {"recipe": recipe(precision="bf16")},
    "number-of-images": {"data": lambda: images_in_memory(images=23)},
    "other-pixels": {"data": lambda: images_in_memory(seed=1)},
    "number-of-prompts": {"model": lambda: fresh(vprompt.VPT(5))},
    "number-of-classes": {"model": lambda: fresh(num_classes=4)},
    "shallow": {"model": lambda: fresh(vprompt.VPT(8, "shallow"))},
    "linear": {"model": lambda: fresh(vprompt.Linear())},
    "prompt-dropout": {"model": lambda: fresh(vprompt.VPT(4, dropout=0.7))},
    "other-backbone-weights": {"model": other_backbone},
    "other-backbone-depth": {"model": lambda: fresh(depth=3)},
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(change, tmp_path):
    file = tmp_path / "state"
    with pytest.raises(Interrupted):
        interrupted_in_memory(file)
    content = file.read_bytes()
    other = OTHER_RUNS[change]
    model = other.get("model", fresh)()
    before = values(model)
    with pytest.raises(TrainingError) as error:
        fit(
            model,
            other.get("data", images_in_memory)(),
            recipe=other.get("recipe", recipe()),
            checkpoint=file,
            resume=True,
        )
    assert str(file) in str(error.value)
    assert_identical(values(model), before)
    assert file.read_bytes() == content


def interrupted_in_memory(file):
    data = images_in_memory()
    pixels = data.pixels

    def fetch(index):
        signal.raise_signal(signal.SIGINT)
        return pixels(index)

    data.pixels = fetch
    fit(fresh(), data, recipe=recipe(), checkpoint=file)


def restated(change):
    """A checkpoint without a checksum, as earlier versions wrote it, with other facts in it or other tensors."""

    def damaged(content):
        tensors = load(content)
        facts = json.loads(content[8:][: int.from_bytes(content[:8], "little")])["__metadata__"]["vprompt"]
        facts = change(json.loads(facts), tensors)
        return save(tensors, {"vprompt": facts if isinstance(facts, str) else json.dumps(facts)})

    return damaged


def with_state(**changed):
    return restated(lambda facts, tensors: {**facts, "state": {**facts["state"], **changed}})


def without_one_slot(facts, tensors):
    del tensors[next(name for name in tensors if name.startswith("optimizer.exp_avg."))]
    return facts


DAMAGE = {
    "a-list-of-facts": restated(lambda facts, tensors: [facts]),
    "nested-deeply": restated(lambda facts, tensors: "[" * 100_000 + "]" * 100_000),
    "no-facts": restated(lambda facts, tensors: {}),
    "state-of-words": restated(lambda facts, tensors: {**facts, "state": "done"}),
    "step-beyond-the-end": with_state(step=10**12),
    "step-before-the-start": with_state(step=-1),
    "step-as-text": with_state(step="3"),
    "one-sum": with_state(sums=[1.0]),
    "sums-beyond-floats": with_state(sums=[10**400, 1.0]),
    "rows-are-a-number": with_state(history={"rows": 3, "seconds": 1.0}),
    "rows-without-end": with_state(history={"rows": [{"loss": 1.0}] * 99, "seconds": 1.0}),
    "no-history": with_state(history={}),
    "half-an-optimiser": restated(without_one_slot),
    "one-bit-of-a-tensor": lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:],
    "half": lambda b: b[: len(b) // 2],
    "one-byte-short": lambda b: b[:-1],
    "header-only": lambda b: b[:8],
    "empty": lambda b: b"",
    "noise": lambda b: bytes(random.Random(0).randbytes(len(b))),
    "zeros": lambda b: bytes(len(b)),
    "text": lambda b: b"not a checkpoint\n",
    "broken-facts": lambda b: b.replace(b'\\"step\\"', b'\\"stEp\\"'),
    "broken-json": lambda b: b.replace(b'{\\"run\\"', b'[\\"run\\"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    file = tmp_path / "state.safetensors"
    trained(recipe=recipe(), checkpoint=file)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert file.read_bytes() != whole
    model = fresh()
    before = values(model)
    with pytest.raises(TrainingError) as error:
        fit(model, tensors(), recipe=recipe(), checkpoint=file, resume=True)
    assert str(file) in str(error.value)
    assert_identical(values(model), before)


def test_someone_elses_safetensors_file_is_refused(tmp_path):
    file = tmp_path / "state"
    save_file({"x": torch.zeros(3)}, file)
    with pytest.raises(TrainingError) as error:
        fit(fresh(), tensors(), recipe=recipe(), checkpoint=file, resume=True)
    assert str(file) in str(error.value)


# A run of many short steps that saves after nearly every one, killed again and again; each child is a process of its
# own, forked from one that has imported torch and not used it.
KILLED = """
import os, random, signal, sys, time
import torch
import vprompt.training.trainer as training
sys.path.insert(0, sys.path[0] + "/training")
from test_trainer import Items, fit, fresh, recipe, tensors, values

training.SAVE_EVERY_SECONDS = -1.0
out = sys.argv[1]

def child(file, before, resume=True):
    pid = os.fork()
    if pid:
        return pid
    try:
        model = fresh(seed=os.getpid())  # another start: all must come from the file
        if not os.path.exists(file):
            model = fresh()
        history = fit(model, Items(tensors(), before), recipe=recipe(epochs=8), checkpoint=file, resume=resume)
        torch.save((values(model), history.rows), file + ".result")
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def kill_at(item):
    return lambda fetched: os.kill(os.getpid(), signal.SIGKILL) if fetched == item else None

# At chosen moments: first step, mid-epoch, the first step of an epoch, and so on, always from a fresh process.
file = out + "/chosen"
for item in (9, 2, 30, 17, 24, 25):
    _, status = os.waitpid(child(file, kill_at(item)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
_, status = os.waitpid(child(file, None), 0)
assert status == 0, status

# At moments that nobody chose, also in the middle of writing the file.
file, draw, killed = out + "/random", random.Random(0), 0
for _ in range(60):
    pid = child(file, lambda fetched: time.sleep(0.003))
    time.sleep(draw.uniform(0.03, 0.3))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), status
    killed += os.WIFSIGNALED(status)
    if os.WIFEXITED(status) or killed >= 12:
        break
_, status = os.waitpid(child(file, None), 0)
assert status == 0, status

# What an uninterrupted run gives, in a process like the others (the number of threads changes the last bit of a sum).
_, status = os.waitpid(child(out + "/plain", None, resume=False), 0)
assert status == 0, status
print(killed)
"""


def test_killed_at_any_moment_and_resumed_is_uninterrupted(tmp_path):
    status, printed, errors = Script(KILLED, tmp_path, folder=tmp_path).end()
    assert status == 0, errors
    killed = int(printed)
    wanted, rows = torch.load(tmp_path / "plain.result", weights_only=True)
    assert len(rows) == 8
    for name in ("chosen", "random"):
        found, found_rows = torch.load(tmp_path / f"{name}.result", weights_only=True)
        assert_identical(found, wanted)
        assert found_rows == rows
    assert killed >= 3


def test_the_state_is_saved_on_the_way(tmp_path):
    """Without a signal too, every SAVE_EVERY_SECONDS."""
    file = tmp_path / "state"
    seen = []
    saved_every = training.SAVE_EVERY_SECONDS
    training.SAVE_EVERY_SECONDS = 0.02
    try:
        data = Items(tensors(), lambda fetched: (seen.append(file.exists()), time.sleep(0.005)))
        fit(fresh(), data, recipe=recipe(), checkpoint=file)
    finally:
        training.SAVE_EVERY_SECONDS = saved_every
    assert not seen[0]
    assert seen[-1]
    assert sum(seen) > len(seen) / 2


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────

TWO = """
import sys
import torch
import torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.path[0] + "/training")
from test_trainer import RUNS, data_of_run, fit, fresh, tensors, values

out = sys.argv[1]
for name, (method, how, images) in RUNS.items():
    model = fresh(method)
    data = data_of_run(images, Path(out))
    history = fit(model, data, tensors(7, seed=4), recipe=how, checkpoint=out + "/" + name + ".state")
    rank = dist.get_rank()
    assert dist.get_world_size() == 2
    torch.save((values(model), history.rows), out + f"/{name}.{rank}")
dist.destroy_process_group()
"""

RUNS = {
    # 9 images in batches of 4: the last batch has one image for two processes.
    "uneven": (vprompt.VPT(3, dropout=0), recipe(batch_size=4, optimizer="sgd", lr=4.0), 9),
    "odd-batches": (vprompt.VPT(3, dropout=0), recipe(batch_size=5, optimizer="adamw", lr=0.003), 13),
    "shallow": (vprompt.VPT(3, "shallow"), recipe(batch_size=8, optimizer="sgd", lr=4.0), 17),
    "one-image-a-step": (vprompt.VPT(3, dropout=0), recipe(batch_size=1, optimizer="sgd", lr=4.0, epochs=1), 5),
    "linear": (vprompt.Linear(), recipe(batch_size=4, optimizer="sgd", lr=4.0), 9),
    "augmented": (vprompt.VPT(3, dropout=0), recipe(batch_size=4, optimizer="sgd", lr=4.0), "files"),
    "options": (
        vprompt.VPT(3, dropout=0),
        recipe(batch_size=3, accumulate=2, optimizer="sgd", lr=4.0, balance="loss", ema=0.8, clip=0.5, best_epoch=True),
        14,
    ),
    "penalty": (PAE(3, dropout=0), recipe(batch_size=2, accumulate=2, optimizer="sgd", lr=0.5), 9),
    "moving": (PROVPT(4, dropout=0, moved=3), recipe(batch_size=4, optimizer="sgd", lr=1.0, epochs=4, ema=0.8), 9),
    "drawn": (vprompt.VPT(3, dropout=0), recipe(batch_size=4, optimizer="sgd", lr=4.0, balance="sampler"), 9),
}


def data_of_run(images, folder):
    return in_files(folder / "files") if images == "files" else tensors(images)


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    in_files(tmp_path / "files")
    two = []
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.getsockname()[1]), "WORLD_SIZE": "2"}
    for rank in ("0", "1"):  # as torchrun starts them
        (tmp_path / rank).mkdir()
        environment = {**address, "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
        two.append(Script(TWO, tmp_path, folder=tmp_path / rank, environment=environment))
    for process in two:
        status, _, errors = process.end()
        assert status == 0, errors
    for name, (method, how, images) in RUNS.items():
        model = fresh(method)
        start = values(model)
        rows = fit(model, data_of_run(images, tmp_path), tensors(7, seed=4), recipe=how).rows
        ranks = [torch.load(tmp_path / f"{name}.{rank}", weights_only=True) for rank in (0, 1)]
        assert_identical(ranks[0][0], ranks[1][0])
        for found, found_rows in ranks:
            for parameter, wanted in values(model).items():
                assert wanted.shape != start[parameter].shape or not torch.equal(wanted, start[parameter]), name
                close(found[parameter], wanted, 1e-5)
            for row, true in zip(found_rows, rows, strict=True):
                assert row == pytest.approx(true, rel=1e-4), name
        assert (tmp_path / f"{name}.state").exists()


# ── what is wrong, in a sentence ─────────────────────────────────────────────────────────────────────────────────────


def a_sentence(error):
    text = str(error.value)
    assert len(text.split()) >= 4, text
    assert text[0].isupper(), text
    assert text.endswith("."), text
    return text


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.VPT(4, "shallow"), vprompt.Linear()])
def test_a_loss_that_is_no_number_is_reported_with_its_place(method, tmp_path):
    how = recipe(optimizer="sgd", lr=1e30)
    file = tmp_path / "state"
    with pytest.raises(TrainingError) as error:
        fit(fresh(method), tensors(), recipe=how, checkpoint=file)
    found = re.search(r"epoch (\d+), step (\d+)", a_sentence(error))
    assert found
    assert found.group(1) == "1"
    assert found.group(2) in ("2", "3")
    assert not file.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
def test_an_image_with_values_that_are_no_numbers_is_named(method, value):
    """By its number in the data set, whatever the order of the epoch, and not as a rate that is too high."""
    images, labels = tensors().tensors
    images[17, 2, 3, 4] = value
    broken = TensorDataset(images, labels)
    for call in (
        lambda: fit(fresh(method), broken, recipe=recipe()),
        lambda: fit(fresh(method), Items(broken), recipe=recipe(workers=1)),
        lambda: fit(fresh(method), tensors(), broken, recipe=recipe()),
        lambda: evaluate(fresh(method), DataLoader(broken)),
    ):
        with pytest.raises(DataError) as error:
            call()
        assert "image 17 " in a_sentence(error)


def test_images_that_were_not_normalised_are_a_warning_once():
    images, labels = tensors().tensors
    images[5] = images[5] * 60 + 128
    with pytest.warns(UserWarning, match=r"image 5 .* normalised") as said:
        fit(fresh(), TensorDataset(images, labels), recipe=recipe(epochs=3, cache_gb=0))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(fresh(), TensorDataset(torch.full_like(images, 2.64), labels), recipe=recipe())


def test_a_data_loader_stands_for_its_data_set():
    loader = DataLoader(tensors(), batch_size=2, shuffle=True, num_workers=2)
    mine, there = fresh(), fresh()
    rows = fit(mine, loader, loader, recipe=recipe()).rows
    assert rows == fit(there, tensors(), tensors(), recipe=recipe()).rows
    found, wanted = evaluate(mine, loader), evaluate(there, tensors())
    assert (found.accuracy, found.loss, found.images) == (wanted.accuracy, wanted.loss, wanted.images)
    torch.testing.assert_close(vprompt.score(mine, loader), vprompt.score(there, tensors()))


def test_a_data_loader_with_a_will_of_its_own_is_refused():
    """Its sampler, or how it joins images, would silently not be followed."""

    def mixed_up(items):
        return torch.stack([image for image, _ in items]).flip(0), torch.tensor([label for _, label in items])

    data = tensors()
    for loader, kind in (
        (DataLoader(data, sampler=WeightedRandomSampler([1.0] * 24, 24)), "WeightedRandomSampler"),
        (DataLoader(data, batch_sampler=[[0, 1], [2, 3]]), "list"),
        (DataLoader(data, collate_fn=mixed_up), "mixed_up"),
    ):
        with pytest.raises(DataError) as error:
            fit(fresh(), loader, recipe=recipe())
        assert kind in a_sentence(error)


def test_a_process_that_loads_images_and_is_killed_is_a_data_error():
    def before(fetched):
        if fetched == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError) as error:
        fit(fresh(), Items(tensors(), before), recipe=recipe(workers=1))
    assert "killed" in a_sentence(error)


@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.Linear()], ids=["vpt", "linear"])
def test_a_label_out_of_range_is_named(method, label):
    images, labels = tensors().tensors
    labels = labels.clone()
    labels[7] = label
    data = TensorDataset(images, labels)
    with pytest.raises(DataError) as error:
        fit(fresh(method), data, recipe=recipe())
    assert str(label) in a_sentence(error)
    assert str(CLASSES) in str(error.value)
    with pytest.raises(DataError) as error:
        evaluate(fresh(method), data)
    assert str(label) in a_sentence(error)


IMAGE = torch.zeros(3, 32, 32)
WRONG = {
    "dictionaries": [{"image": IMAGE, "label": 0}] * 4,
    "no-label": [IMAGE] * 4,
    "tuple-of-one": [(IMAGE,)] * 4,
    "three-things": [(IMAGE, 0, 1)] * 4,
    "text-label": [(IMAGE, "cat")] * 4,
    "float-label": [(IMAGE, 1.0)] * 4,
    "label-vector": [(IMAGE, torch.tensor([0, 1]))] * 4,
    "no-thing": [None] * 4,
    "missing-label": [(IMAGE, None)] * 4,
    "pil-image": [(Image.new("RGB", (32, 32)), 0)] * 4,
    "uint8-image": [(IMAGE.to(torch.uint8), 0)] * 4,
    "several-sizes": [(IMAGE, 0), (torch.zeros(3, 40, 32), 1)] * 2,
    "wrong-size": [(torch.zeros(3, 16, 16), 0)] * 4,
    "one-channel": [(torch.zeros(1, 32, 32), 0)] * 4,
    "no-channels": [(torch.zeros(32, 32), 0)] * 4,
    "uint8-tensors": TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)),
    "float-label-tensors": TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4)),
    "one-hot-tensors": TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4, 3, dtype=torch.int64)),
    "images-only": TensorDataset(torch.zeros(4, 3, 32, 32)),
    "wrong-size-tensors": TensorDataset(torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)),
    "empty": TensorDataset(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)),
    "empty-list": [],
    "dictionary-of-data-sets": {"train": tensors()},
    "path": "photos/",
    "one-tensor": torch.zeros(4, 3, 32, 32),
    "images-and-labels": (torch.zeros(4, 3, 32, 32), torch.zeros(4)),
    "generator": (pair for pair in [(IMAGE, 0)]),
    "nothing": None,
    "huge-label": [(IMAGE, 2**70)] * 4,
    "labels-of-several-lengths": [(IMAGE, torch.zeros(1).long()), (IMAGE, torch.zeros(2).long())] * 2,
    "half": [(IMAGE.half(), 0)] * 4,
    "double": TensorDataset(torch.zeros(4, 3, 32, 32, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)),
    "loader-of-dictionaries": DataLoader([{"image": IMAGE, "label": 0}] * 4),
}


@pytest.mark.parametrize("kind", WRONG)
def test_data_that_does_not_fit_is_a_data_error(kind):
    with pytest.raises(DataError) as error:
        fit(fresh(), WRONG[kind], recipe=recipe(batch_size=4))
    a_sentence(error)
    with pytest.raises(DataError) as error:
        evaluate(fresh(), WRONG[kind])
    a_sentence(error)


def test_arguments_in_each_other_s_place_are_named_before_anything_is_trained():
    model, data, never = fresh(), tensors(), Items(tensors(), lambda fetched: pytest.fail("it was read"))
    calls = [
        (lambda: fit(model.backbone, data), "VisionTransformer"),
        (lambda: fit(model, never, recipe()), "Recipe"),
        (lambda: fit(model, never, recipe={"epochs": 1}), "dict"),
        (lambda: fit(model, never, (data for _ in "a")), "generator"),
        (lambda: evaluate(model.backbone, data), "VisionTransformer"),
        (lambda: evaluate(data, model), "PromptedModel"),
    ]
    for call, name in calls:
        with pytest.raises(VPromptError) as error:
            call()
        assert f"not {name}." in a_sentence(error)


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield IMAGE, 0

    for stream in (Stream(), DataLoader(Stream())):
        with pytest.raises(DataError) as error:
            fit(fresh(), stream, recipe=recipe())
        assert "length" in a_sentence(error)


def test_an_error_of_the_users_own_data_set_comes_through():
    def before(fetched):
        if fetched == 10:
            raise OSError("disk on fire")

    torch.manual_seed(4)
    model = fresh()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    with pytest.raises((OSError, VPromptError), match="disk on fire"):
        fit(model, Items(tensors(), before), recipe=recipe())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_history_is_plain_data(tmp_path):
    _, rows = trained(recipe=recipe(epochs=1), val=tensors(5))
    assert json.loads(json.dumps(rows)) == rows
