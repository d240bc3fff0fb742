"""Options of a training: each against an independent reference, and resumable bit for bit."""

import itertools
import json
import math
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_trainer import CLASSES, PLAIN, assert_identical, fresh, pixels_and_labels, recipe, tensors, values
from torch.utils.data import TensorDataset

import families
import vprompt
import vprompt.training.trainer as training
from conftest import run_command, write_classes, write_images
from reference import close, small_vit
from vprompt.data.augment import LEVELS
from vprompt.data.dataset import ImageDataset
from vprompt.data.threads import ahead
from vprompt.experiments.log import RunLog
from vprompt.experiments.settings import settings_from
from vprompt.model.records import Recipe, schedule_for
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.tasks.segmentation import Segmentation
from vprompt.tasks.single_label import SingleLabel
from vprompt.training.evaluate import evaluate
from vprompt.training.loader import TrainingEpoch, in_order, iterate
from vprompt.training.objective import Objective
from vprompt.training.settle import FACTORS, pace, settled
from vprompt.training.trainer import Interrupted, _rate_shares, fit
from vprompt.utils.errors import DataError, TrainingError, VPromptError
from vprompt.utils.serialization import flat

CPU = torch.device("cpu")


def uneven(counts=(12, 6, 2), seed=0):
    """Images of classes of different sizes, in an order without a pattern."""
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    pixels, _ = pixels_and_labels(len(labels), seed)
    return TensorDataset(PLAIN.normalise(pixels), labels)


def held(images=12, augment="none"):
    pixels, labels = pixels_and_labels(images)
    return ImageDataset(labels, PLAIN, pixels=pixels).with_augment(augment)


# ── a kill takes nothing but time ────────────────────────────────────────────────────────────────────────────────────


class Killed(Exception):  # noqa: N818
    """What stands for SIGKILL: nothing is written after it."""


def killed_after(steps):
    def report(done, total, **figures):
        if "loss" in figures and done == steps:
            raise Killed

    return report


RESUMED = {
    "loss": ({"balance": "loss"}, uneven),
    "sampler": ({"balance": "sampler"}, uneven),
    "logit-adjustment": ({"balance": "logit-adjustment"}, uneven),
    "mixed": ({"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "batch_size": 5}, tensors),
    "average": ({"ema": 0.9}, tensors),
    "best": ({"best_epoch": True, "ema": 0.5, "lr": 0.5}, tensors),
    "stopped": ({"early_stopping": 2, "lr": 3.0, "epochs": 8}, tensors),
    "accumulated": ({"accumulate": 3, "batch_size": 3, "clip": 0.1}, tensors),
    "strong": ({}, lambda: held(augment="strong")),
    "cropped": ({}, lambda: held(augment="crop-flip")),
    "found": ({"lr": "auto", "epochs": 4, "batch_size": "auto"}, lambda: tensors(32)),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_training_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    changes, data = RESUMED[name]
    how, images, val = recipe(**changes), data(), tensors(9, seed=3)
    whole = fresh(vprompt.VPT(3, dropout=0.2))
    rows = fit(whole, images, val, recipe=how).rows
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    model, file = fresh(vprompt.VPT(3, dropout=0.2)), tmp_path / "state.safetensors"
    for steps in (2, 4, 5):  # in the middle of epochs, and in an epoch that was repeated
        with pytest.raises(Killed):
            fit(model, images, val, recipe=how, checkpoint=file, resume=True, progress=killed_after(steps))
        model = fresh(vprompt.VPT(3, dropout=0.2))
    assert fit(model, images, val, recipe=how, checkpoint=file, resume=True).rows == rows
    assert_identical(values(model), values(whole))
    assert model.recipe == whole.recipe
    again = fresh(vprompt.VPT(3, dropout=0.2))  # of a training that is done, the same weights
    assert fit(again, images, val, recipe=how, checkpoint=file, resume=True).rows == rows
    assert_identical(values(again), values(whole))


@pytest.mark.parametrize("name", ["best", "average"])
def test_a_stop_on_the_way_is_no_end(name, tmp_path):
    changes, data = RESUMED[name]
    how, images, val = recipe(**changes), data(), tensors(9, seed=3)
    whole, model, file = fresh(), fresh(), tmp_path / "state.safetensors"
    fit(whole, images, val, recipe=how)
    for until in (1, 2, 9):
        fit(model, images, val, recipe=how, checkpoint=file, resume=True, until=until)
    assert_identical(values(model), values(whole))


# ── balance ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_have_a_mean_of_one_over_the_images_and_weigh_classes_alike():
    data, model = uneven(), fresh()
    objective = Objective(model, data, recipe(balance="loss"))
    logits = torch.randn(len(data), CLASSES, generator=torch.Generator().manual_seed(1))
    labels = data.tensors[1]
    counts = [int((labels == label).sum()) for label in range(CLASSES)]
    weights = [len(labels) / CLASSES / counts[label] for label in labels.tolist()]
    assert sum(weights) / len(weights) == pytest.approx(1)
    wanted = [
        w * F.cross_entropy(row[None], label[None]) for w, row, label in zip(weights, logits, labels, strict=True)
    ]
    torch.testing.assert_close(objective.losses(logits, labels), torch.stack(wanted))


@pytest.mark.parametrize("label", [-1, CLASSES])
@pytest.mark.parametrize("balance", ["loss", "sampler", "logit-adjustment"])
def test_labels_that_cannot_be_counted_are_one_sentence(label, balance):
    images, labels = tensors().tensors
    labels = labels.clone()
    labels[1] = label
    with pytest.raises(DataError, match=f"A label is {label}, but the model has {CLASSES} classes"):
        fit(fresh(), TensorDataset(images, labels), recipe=recipe(balance=balance))


def test_logits_are_adjusted_in_training_only():
    data, model = uneven(), fresh(vprompt.Linear())
    objective = Objective(model, data, recipe(balance="logit-adjustment"))
    labels, logits = data.tensors[1], torch.randn(len(data), CLASSES)
    shares = torch.tensor([0.6, 0.3, 0.1])
    wanted = [
        -math.log(float(share * row[label].exp() / (shares * row.exp()).sum()))
        for row, label, share in zip(logits, labels, shares[labels], strict=True)
    ]
    torch.testing.assert_close(objective.losses(logits, labels), torch.tensor(wanted))
    rows = fit(model, data, data, recipe=recipe(balance="logit-adjustment", epochs=1)).rows
    assert rows[-1]["val_loss"] == pytest.approx(evaluate(model, data).loss)


def test_the_sampler_draws_classes_alike_by_seed_and_epoch_alone():
    data = uneven((150, 40, 10))
    labels = data.tensors[1]
    objective = Objective(fresh(), data, recipe(balance="sampler"))
    orders = [objective.order(len(data), epoch=epoch) for epoch in range(30)]
    assert all(len(order) == len(data) for order in orders)
    drawn = labels[torch.cat(orders)].bincount() / (30 * len(data))
    assert float((drawn - 1 / CLASSES).abs().max()) < 0.03
    torch.manual_seed(7)
    again = Objective(fresh(), data, recipe(balance="sampler"))
    assert torch.equal(again.order(len(data), epoch=3), orders[3])
    assert not torch.equal(orders[3], orders[4])
    other = Objective(fresh(), data, recipe(balance="sampler", seed=6))
    assert not torch.equal(other.order(len(data), epoch=3), orders[3])


@pytest.mark.parametrize("balance", ["loss", "sampler", "logit-adjustment"])
def test_classes_of_one_name_are_balanced_apart(balance):
    """ImageNet has two kinds of crane."""
    data = uneven()
    plain, twice = fresh(), fresh()
    twice.target = SingleLabel(names=("crane", "crane", "dog"))
    first, second = (Objective(model, data, recipe(balance=balance)) for model in (plain, twice))
    logits, labels = torch.randn(20, 3), data.tensors[1]
    assert torch.equal(first.order(20, epoch=0), second.order(20, epoch=0))
    assert torch.equal(first.losses(logits, labels), second.losses(logits, labels))


def test_balance_helps_the_rare_classes():
    data, test = uneven((40, 4, 4)), tensors(30, seed=9)
    plain = fresh(vprompt.Linear())
    fit(plain, data, recipe=recipe(epochs=4, lr=0.003))
    for balance in ("loss", "sampler", "logit-adjustment"):
        model = fresh(vprompt.Linear())
        fit(model, data, recipe=recipe(epochs=4, lr=0.003, balance=balance))
        assert evaluate(model, test).loss < 0.9 * evaluate(plain, test).loss


# ── mixing, smoothing, averages, clipping, rates ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_loss_of_mixed_images_is_that_of_mixed_labels(mixup, cutmix, images):
    objective = Objective(fresh(), tensors(), recipe(mixup=mixup, cutmix=cutmix, label_smoothing=0.1))
    before, labels = tensors(images).tensors
    state = torch.get_rng_state()
    mixed, shares = objective.mixed(before, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(before, tensors(images).tensors[0])
    even = images // 2 * 2
    assert torch.equal(mixed[even:], before[even:])
    assert shares[even:].tolist() == [1.0] * (images - even)
    for index in range(even):
        share, partner = float(shares[index]), before[even - 1 - index]
        if not cutmix:
            torch.testing.assert_close(mixed[index], share * before[index] + (1 - share) * partner)
        elif not mixup:
            own = (mixed[index] == before[index]).all(0)
            assert float(own.float().mean()) == pytest.approx(share, abs=0.01)
            assert torch.equal(mixed[index][:, ~own], partner[:, ~own])
    logits = torch.randn(images, CLASSES)
    soft = 0.9 * F.one_hot(labels, CLASSES) + 0.1 / CLASSES
    partners = torch.cat([soft[:even].flip(0), soft[even:]])
    soft = shares[:, None] * soft + (1 - shares[:, None]) * partners
    wanted = -(soft * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(objective.losses(logits, labels, shares), wanted)


def test_mixing_changes_what_is_learned_and_every_step_mixes_anew():
    first = fresh()
    fit(first, tensors(), recipe=recipe(mixup=1.0))
    other = fresh()
    fit(other, tensors(), recipe=recipe())
    assert not torch.equal(first.head.weight, other.head.weight)
    objective = Objective(first, tensors(), recipe(mixup=1.0))
    shares = {float(objective.mixed(tensors(4).tensors[0], seed=seed)[1][0]) for seed in range(5)}
    assert len(shares) == 5


def test_the_average_is_that_of_a_slow_loop():
    model, seen = fresh(vprompt.VPT(3, dropout=0)), []
    plain = fresh(vprompt.VPT(3, dropout=0))
    fit(plain, tensors(), recipe=recipe(), progress=lambda *_, **f: seen.append(values(plain)) if "loss" in f else None)
    fit(model, tensors(), recipe=recipe(ema=0.6))
    average = seen[0]
    for step, now in enumerate(seen[1:], 1):
        decay = min(0.6, 1 - (1 + step) ** (-2 / 3))
        average = {name: decay * value + (1 - decay) * now[name] for name, value in average.items()}
    for name, value in values(model).items():
        close(value, average[name], 1e-5)


def test_parts_of_a_step_add_up_to_the_whole():
    how = recipe(optimizer="sgd", lr=2.0)
    whole, parts = (fresh(vprompt.VPT(3, dropout=0)) for _ in range(2))
    rows = fit(whole, tensors(20), recipe=how).rows
    found = fit(parts, tensors(20), recipe=replace(how, batch_size=2, accumulate=4)).rows
    for name, value in values(parts).items():
        close(value, values(whole)[name], 1e-5)
    for row, wanted in zip(found, rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_a_clipped_step_has_its_length_at_most():
    how = recipe(optimizer="sgd", lr=256.0, momentum=0.0, weight_decay=0.0, batch_size=24, epochs=1, warmup=0.0)
    lengths = []
    for clip in (0.0, 0.01, 1000.0):
        model = fresh()
        before = values(model)
        fit(model, tensors(), recipe=replace(how, clip=clip))
        squares = [float(((values(model)[name] - before[name]) ** 2).sum()) for name in before]
        lengths.append(math.sqrt(sum(squares)))
    assert lengths[1] == pytest.approx(how.peak_lr * 0.01, rel=1e-4)
    assert lengths[0] == pytest.approx(lengths[2])
    assert lengths[0] > 2 * lengths[1]


def test_rates_fall_from_block_to_block():
    how = recipe(optimizer="sgd", lr=0.01, momentum=0.0, weight_decay=0.0, batch_size=24, epochs=1, warmup=0.0)
    moved = {}
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        model = fresh(vprompt.Full())
        torch.nn.init.normal_(model.head.weight)
        before = values(model)
        fit(model, tensors(), recipe=replace(how, layer_decay=decay))
        moved[decay] = {name: float((value - before[name]).norm()) for name, value in values(model).items()}
    shares = {name: moved[0.5][name] / moved[1.0][name] for name in moved[1.0] if moved[1.0][name] > 1e-5}
    wanted = {"head.weight": 1, "tuned.blocks.1.mlp.fc1.weight": 0.5, "tuned.blocks.0.mlp.fc1.weight": 0.25}
    wanted["tuned.patch_embed.proj.weight"] = 0.125
    for name, share in wanted.items():
        assert shares[name] == pytest.approx(share, rel=0.02), name
    with pytest.raises(TrainingError, match="vpt-deep learns no weights of the backbone"):
        fit(fresh(), tensors(), recipe=recipe(layer_decay=0.5))


@pytest.mark.parametrize("make", [families.vit, families.BACKBONES["swin"]])
def test_rates_do_not_depend_on_a_classifier_that_is_not_used(make):
    shares = []
    for classes in (7, 0):
        backbone = make()
        backbone.reset_classifier(classes)
        model = vprompt.attach(backbone, vprompt.Full(), num_classes=CLASSES)
        shares.append(_rate_shares(model.learned, model, 0.5))
    assert shares[0] == shares[1]
    assert shares[0]["head.weight"] == 1
    assert max(share for name, share in shares[0].items() if name.startswith("tuned.")) == 0.5


# ── which weights are kept ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_epoch_is_kept_and_patience_ends():
    data, val = tensors(), tensors(9, seed=3)
    how = recipe(epochs=8, lr=3.0, best_epoch=True, early_stopping=2)
    model = fresh()
    history = fit(model, data, val, recipe=how)
    rows = history.rows
    best = max(range(len(rows)), key=lambda n: (rows[n]["val_accuracy"], -rows[n]["val_loss"]))
    assert len(rows) == best + 1 + 2 < 8
    found = evaluate(model, val)
    assert (found.score, found.loss) == (rows[best]["val_accuracy"], pytest.approx(rows[best]["val_loss"]))
    assert history.rule(model.recipe) == (
        f"best epoch on the validation images, {best + 1}, stopped early after {len(rows)} of 8"
    )
    last = fresh()
    fit(last, data, val, recipe=replace(how, best_epoch=False))
    assert evaluate(last, val).loss == pytest.approx(rows[-1]["val_loss"])
    for change in ({"best_epoch": True}, {"early_stopping": 1}):
        with pytest.raises(TrainingError, match="no validation images"):
            fit(fresh(), data, recipe=recipe(**change))


# ── augmentation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def views(data, *, workers=0, size=5, epoch=1, seed=3):
    occasion = TrainingEpoch(seed=seed, epoch=epoch)
    batches = iterate(data, in_order(len(data), size), device=CPU, workers=workers, training=occasion)
    return torch.cat([images for images, _ in batches])


@pytest.mark.parametrize("level", LEVELS)
def test_views_depend_on_seed_epoch_and_image_alone(level, tmp_path):
    data = held(12, level)
    files = [f"{number}.png" for number in range(12)]
    for name, pixels in zip(files, data.pixels(torch.arange(12)), strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / name)
    on_disk = ImageDataset(data.labels, PLAIN, root=tmp_path, paths=files, augment=level)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    wanted = views(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert wanted.isfinite().all()
    for found in (views(data, workers=2, size=3), views(on_disk), views(on_disk, workers=1)):
        assert torch.equal(found, wanted)
    for other in (views(data, epoch=2), views(data, seed=4)):
        assert sum(torch.equal(a, b) for a, b in zip(other, wanted, strict=True)) < 3
    assert torch.equal(views(data.with_augment("none")), data.preprocessing.normalise(data.pixels(torch.arange(12))))
    assert data.fingerprint() == data.with_augment("none").fingerprint()


def test_the_next_batch_is_made_while_one_is_used_and_no_more():
    made = []

    def batches():
        for number in range(5):
            made.append(number)
            yield number
        raise DataError("The last one is broken.")

    following = ahead(batches())
    assert next(following) == 0
    assert list(itertools.islice(following, 2)) == [1, 2]
    assert len(made) <= 4
    with pytest.raises(DataError, match="broken"):
        list(following)


# ── numbers that are found ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_rate_that_is_found_is_as_if_it_had_been_given():
    data, val = tensors(), tensors(9, seed=3)
    model, given, labels = fresh(), fresh(), []
    how = recipe(epochs=4, lr="auto")
    _, facts = settled(fit, fresh(), data, val, how)
    tried = facts["lr_search"]
    assert [row["lr"] for row in tried] == [pytest.approx(0.005 * factor, rel=0.1) for factor in FACTORS]
    rows = fit(model, data, val, recipe=how).rows
    best = max(tried, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert model.recipe == replace(how, lr=best["lr"])
    assert fit(given, data, val, recipe=model.recipe).rows == rows
    assert_identical(values(model), values(given))
    with pytest.raises(TrainingError, match="validation images"):
        fit(fresh(), data, recipe=how)
    assert not labels


def test_numbers_that_are_left_to_the_data():
    data = tensors(170)
    found, facts = settled(fit, fresh(), data, None, recipe(epochs="auto", batch_size="auto"))
    assert (found.epochs, found.batch_size) == (schedule_for(11), 16)
    assert facts == {"num_epochs": 73, "batch_size": 16}  # 800 steps, 11 an epoch
    before = recipe()
    assert settled(fit, fresh(), data, None, before) == (before, {})
    for name in ("epochs", "batch_size"):
        with pytest.raises(VPromptError, match=r"a number|a batch size"):
            _ = replace(before, **{name: "auto"}).num_epochs * replace(before, **{name: "auto"}).batch


def test_what_was_found_stays_where_a_run_goes_on_with_more_workers(tmp_path, monkeypatch):
    data, file, how = tensors(), tmp_path / "found.json", recipe(epochs="auto", time="2s")
    first = settled(fit, fresh(), data, None, how, file=file)
    monkeypatch.setattr("vprompt.training.settle._pace_of", None)  # measured again, it would be another one
    again = settled(fit, fresh(), data, None, replace(how, workers=1, cache_gb=0.0), file=file, resume=True)
    assert again == (replace(first[0], workers=1, cache_gb=0.0), first[1])
    with pytest.raises(TypeError, match="NoneType"):  # as many other images: what was found does not hold for them
        settled(fit, fresh(), tensors(seed=5), None, how, file=file, resume=True)


def test_a_time_is_kept_to_in_epochs():
    data, val, how = tensors(), tensors(9, seed=3), recipe(epochs="auto", time="4s")
    found, _ = settled(fit, fresh(), data, val, how)
    assert found.time is None
    assert found.epochs > 5
    less, _ = settled(fit, fresh(), data, val, how, spent=3.5)
    assert less.epochs < found.epochs / 2
    least, _ = settled(fit, fresh(), data, val, replace(how, time="1s"), spent=100.0)
    assert least.epochs == 1


def test_a_time_beside_a_number_of_epochs_is_refused():
    with pytest.raises(VPromptError, match="a time stands instead of a number of epochs; give one of them"):
        recipe(epochs=3, time="4s")


@pytest.mark.parametrize("how", ["pace", "batch size", "time"])
def test_measuring_leaves_the_model_as_it_is(how):
    """Statistics of the head's batch norm as well."""
    model = vprompt.attach(families.vit(), vprompt.VPT(2), target=Segmentation.called(("a", "b")))
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.randint(2, (6, 32, 32)))
    before, training = {name: value.clone() for name, value in model.state_dict().items()}, model.training
    if how == "pace":
        pace(model, data, recipe())
    else:
        settled(
            fit,
            model,
            data,
            None,
            recipe(**{"batch_size": "auto"} if how == "batch size" else {"time": "1s", "epochs": "auto"}),
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training == training


def test_memory_is_counted():
    small, large = (pace(fresh(), tensors(), recipe(batch_size=size)).memory for size in (1, 2000))
    assert large - small > 1999 * 32 * 32 * 3 * 4
    kept = pace(fresh(), tensors(), recipe(batch_size=2000, grad_checkpointing=True)).memory
    assert kept - small < 0.95 * (large - small)


@pytest.mark.parametrize(
    ("value", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("5 m", 300), *[(bad, None) for bad in
    ("", "10", "m", "-5m", "0s", "1e9h", "10m5s", "٣m ", "nan", "9" * 400 + "h")]]
)  # fmt: skip
def test_times(value, seconds):
    if seconds is None:
        with pytest.raises(VPromptError, match="such as 90s"):
            Recipe(time=value)
    else:
        assert Recipe(time=value).budget == seconds


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("mixup", "cutmix", "clip", "ema") for value in (-0.1, math.nan, math.inf, "much")),
        {"ema": 1.0},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"early_stopping": -1},
        {"early_stopping": 1.5},
        {"accumulate": 0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
        {"balance": "all"},
        {"best_epoch": 2},
        {"epochs": "car"},
        {"lr": "car"},
        {"batch_size": "car"},
    ],
)
def test_values_out_of_range_are_one_sentence(change):
    with pytest.raises(VPromptError) as error:
        Recipe(**change)
    assert str(error.value).endswith(".")


def test_what_ran_before_has_the_names_it_had():
    old = (*("epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup", "momentum", "precision", "seed"),)
    assert tuple(flat(Recipe())) == (*old, "workers", "cache_gb", "grad_checkpointing")
    assert flat(Recipe(mixup=0.2))["mixup"] == 0.2
    assert "track" not in settings_from({"backbone": "test_vit"}).to_flat()


# ── the log and the trackers ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_has_every_epoch_once(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"stage": "other", "epoch": 1}\n{"stage": "training", "epoch": 1, "lo')
    file, calls = tmp_path / "state", itertools.count()

    def report(done, total, **figures):
        if "loss" in figures and next(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    log = RunLog(tmp_path, {}).stage("training")
    with pytest.raises(Interrupted):
        fit(fresh(), tensors(), recipe=recipe(), checkpoint=file, progress=report, log=log)
    log = RunLog(tmp_path, {}).stage("training")
    rows = fit(fresh(), tensors(), recipe=recipe(), checkpoint=file, resume=True, log=log).rows
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"stage": "other", "epoch": 1}, *({"stage": "training", **row} for row in rows)]


def test_trackers_see_every_epoch(colours, two_blocks, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    options = ["--backbone", two_blocks, "--prompts", 2, "--epochs", 3, "--batch-size", 8, "--balance", "sampler"]
    outcome = run_command("fit", colours, *options, "--track", "tensorboard", "--out", out, "--json")
    assert outcome.status == 0, outcome.err
    events = accumulator.EventAccumulator(str(out / "vprompt"))
    events.Reload()
    for name in ("loss", "accuracy", "lr", "val_accuracy"):
        found = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        assert found == [(n, pytest.approx(row[name])) for n, row in enumerate(outcome.document["epochs"], 1)]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [row["loss"] for row in outcome.document["epochs"]]
    assert outcome.document["settings"]["balance"] == "sampler"
    refused = run_command("fit", colours, *options, "--track", "wandb", "--out", tmp_path / "other")
    assert refused.status == 1
    assert "pip install wandb" in refused.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_a_balance_is_recommended_where_none_is_given(two_blocks, tmp_path, balance):
    data = write_classes(tmp_path / "data", 4)
    write_images(data / "red", (200, 40, 40), 40, start=4)
    options = ["--epochs", 1, "--backbone", two_blocks, "--method", "linear", "--balance", balance]
    outcome = run_command("fit", data, *options, "--out", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "are uneven" in said
    assert ("With --balance loss" in said) == (balance == "none")


def test_a_run_whose_numbers_are_found_says_them(colours, two_blocks, tmp_path):
    out = tmp_path / "run"
    options = ["--backbone", two_blocks, "--prompts", 2, "--epochs", 2, "--lr", "auto", "--batch-size", "auto"]
    outcome = run_command("fit", colours, *options, "--best-epoch", "--out", out, "--json")
    assert outcome.status == 0, outcome.err
    result = outcome.document
    assert len(result["lr_search"]) == len(FACTORS)
    assert all(f"lr {row['lr']:g}: " in outcome.err for row in result["lr_search"])
    assert result["batch_size"] == result["machine"]["batch_size"] == 8
    assert result["settings"]["lr"] == "auto"
    assert "best epoch" in result["provenance"]["epoch_rule"]
    taken = vprompt.load(out).recipe.lr
    assert taken in [row["lr"] for row in result["lr_search"]]
    assert sum(note.startswith(f"The learning rate is {taken:g}, the best on") for note in result["notes"]) == 1
    assert run_command("fit", colours, *options, "--best-epoch", "--out", out, "--resume", "--json").document == result
    other = run_command("fit", colours, *options, "--out", out, "--resume")
    assert "best_epoch" in other.err


# ── other targets ────────────────────────────────────────────────────────────────────────────────────────────────────


def tagged():
    images, _ = tensors(12).tensors
    tags = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).repeat(3, 1)
    tags[11] = torch.tensor([0.0, 0, 1])
    target = MultiLabel(names=("a", "b", "c"))
    return TensorDataset(images, tags), vprompt.attach(small_vit(depth=2), vprompt.VPT(2), target=target)


def test_of_several_tags_the_rarest_counts():
    data, model = tagged()
    objective = Objective(model, data, recipe(balance="loss"))
    labels, logits = data.tensors[1], torch.randn(12, 3)
    raw = [1 / 9, 1 / 3, 1 / 9, 1 / 2] * 3  # two images have no tag
    raw[11] = 1.0
    weights = torch.tensor(raw) * 12 / sum(raw)
    plain = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    torch.testing.assert_close(objective.losses(logits, labels), weights * plain)
    with pytest.raises(TrainingError, match="target multi-label has no classes, one for each image"):
        fit(model, data, recipe=recipe(balance="logit-adjustment"))


def test_numbers_are_mixed_and_not_balanced():
    images, _ = tensors(12).tensors
    data = TensorDataset(images, torch.randn(12, 2))
    target = Regression(names=("x", "y"), mean=(0.0, 0.0), std=(1.0, 1.0))
    for changes in ({"balance": "loss"}, {"balance": "sampler"}, {"label_smoothing": 0.1}):
        model = vprompt.attach(small_vit(depth=2), vprompt.VPT(2), target=target)
        with pytest.raises(TrainingError, match="target regression has no classes"):
            fit(model, data, recipe=recipe(**changes))
    how = recipe(mixup=0.3, ema=0.5, best_epoch=True, early_stopping=3, clip=1.0, lr="auto")
    history = fit(model, data, data, recipe=how)
    assert math.isfinite(history.rows[-1]["loss"])


def test_what_is_found_is_kept_beside_the_checkpoint_and_nothing_else_is_touched(tmp_path):
    mine = tmp_path / "run.json"
    mine.write_text("mine")
    how = recipe(epochs="auto", batch_size=24)
    fit(fresh(), tensors(), recipe=replace(how, time=None), checkpoint=tmp_path / "run.ckpt")
    assert mine.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "run.ckpt", "run.ckpt.settled.json"}


def test_what_was_found_for_another_method_counts_for_nothing(tmp_path):
    how = recipe(epochs="auto", time="3s", lr=0.01)
    found = []
    for method in (vprompt.Linear(), vprompt.Full()):
        settled(fit, fresh(method), tensors(), None, how, file=tmp_path / "s.json", resume=True)
        found.append(json.loads((tmp_path / "s.json").read_text())["given"]["method"])
    assert found[0] != found[1]
