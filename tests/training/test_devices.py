"""All that runs on a GPU runs on a device that is none: no tensor is made on the wrong one, and no step waits."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import TensorDataset

import families
import vprompt
from elsewhere import DEVICE, Elsewhere, OtherDevice
from families import BACKBONES, EACH_CLASS, some_images
from vprompt.compression.choices import PruneSettings
from vprompt.compression.criteria import CRITERIA
from vprompt.compression.merge import merge
from vprompt.methods.layers import starts
from vprompt.methods.registry import METHODS
from vprompt.model.model import PromptedModel
from vprompt.tasks.base import TARGETS
from vprompt.tasks.segmentation import Segmentation
from vprompt.training.checkpoint import load_tensors
from vprompt.training.loader import epoch_order
from vprompt.utils import devices
from vprompt.utils.errors import DivergedError

CLASSES = 3


@pytest.fixture
def device(monkeypatch):
    """The device that is none, as the one that trainings choose."""
    monkeypatch.setattr(Accelerator, "device", property(lambda self: DEVICE))
    monkeypatch.setattr(devices, "found_devices", lambda: [torch.device("cpu"), DEVICE])
    monkeypatch.setitem(devices.FAST_BF16, "cuda", False)
    with OtherDevice() as mode:
        yield mode


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def data(count=6, size=32):
    return TensorDataset(some_images("vit", count, size=(size, size)), torch.arange(count) % CLASSES)


def attached(method=None, backbone=None, **options):
    """On the CPU, with values that are not those of the start."""
    torch.manual_seed(0)
    model = vprompt.attach(
        families.vit() if backbone is None else backbone, method or vprompt.VPT(4), num_classes=CLASSES, **options
    )
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(torch.randn_like(value), alpha=0.2)
    return model


def held(values):
    return {name: value.detach().cpu() if isinstance(value, Elsewhere) else value for name, value in values.items()}


def recipe(**options):
    return vprompt.Recipe(**{"epochs": 1, "batch_size": 2, "lr": 0.01, "precision": "fp32", **options})


# ── the device itself ────────────────────────────────────────────────────────────────────────────────────────────────

OPERATIONS = {
    "add": lambda there, here: there + here,
    "matmul": lambda there, here: there @ here,
    "cat": lambda there, here: torch.cat([there, here]),
    "where": lambda there, here: torch.where(there > 0, there, here),
    "in place": lambda there, here: there.add_(here),
    "a number": lambda there, here: there + here[0, 0],
    "to a number": lambda there, here: there[0, 0] + here,
    "index on the CPU": lambda there, here: there[here[0].long().clamp(0, 1)],
    "copy": lambda there, here: there.copy_(here),
    "moved": lambda there, here: there + here.to(DEVICE),
    "linear": F.linear,
    "softmax": lambda there, here: there.softmax(1) + torch.arange(3),
    "one that is made there": lambda there, here: there + torch.arange(3, device=there.device),
    "a new one": lambda there, here: there + there.new_zeros(3) + torch.zeros_like(there),
    "attention": lambda there, here: F.scaled_dot_product_attention(there[None], here[None], there[None]),
    "embedding": lambda there, here: F.embedding(here.long().clamp(0, 1), there),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_an_error_is_one_among_fake_tensors_too(name):
    def fails(mode):
        with mode:
            try:
                OPERATIONS[name](torch.ones(3, 3, device=DEVICE), torch.ones(3, 3))
            except (RuntimeError, ValueError):
                return True
        return False

    assert fails(OtherDevice()) == fails(FakeTensorMode())


def test_an_index_on_the_device_is_none_into_a_tensor_on_the_cpu():
    """Fake tensors let it pass."""
    with OtherDevice(), pytest.raises(RuntimeError, match="on the CPU"):
        torch.ones(3)[torch.ones(1, device=DEVICE).long()]


def test_random_numbers_of_a_generator_on_the_cpu_are_none_of_the_device():
    with OtherDevice():
        torch.rand(3, generator=torch.Generator()).to(DEVICE)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=DEVICE)


def test_waiting_is_counted():
    with OtherDevice() as device:
        there = torch.ones(2, 2, device=DEVICE)
        there = (there * 2).softmax(1).detach()[0]
        assert device.waits == Counter()
        assert (float(there[0]), there.tolist(), bool(there.isfinite().all())) == (0.5, [0.5, 0.5], True)
        (
            torch.equal(there, there),
            there[there > 0],
            there.cpu(),
            torch.ones(2).to(DEVICE),
            torch.tensor([1.0]).to(DEVICE),
        )
    assert device.waits == {
        "aten._local_scalar_dense.default": 2,
        "copy to the CPU": 2,
        "aten.equal.default": 1,
        "mask as an index": 1,
        "copy to the device": 2,
    }


@pytest.mark.parametrize("place", ["as_held", "feature", "head"])
def test_a_tensor_made_without_a_device_is_found(device, monkeypatch, place):
    model = attached().to(DEVICE).eval()
    images = some_images("vit", 2).to(DEVICE)
    model(images), model.fold()(images)
    if place == "as_held":
        monkeypatch.setattr(PromptedModel, "as_held", lambda self, images: images + torch.arange(images.shape[-1]))
    elif place == "feature":
        monkeypatch.setattr(model.tuned, "finish", lambda x, images: x[torch.arange(2)] + torch.zeros(x.shape[1]))
    else:
        model.head.register_forward_hook(lambda module, inputs, out: torch.cat([out, torch.zeros(2, 1)], 1))
    with pytest.raises(RuntimeError, match="on the CPU"):
        model(images)


# ── every family, every method ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", EACH_CLASS)
def test_every_family(device, name):
    backbone = BACKBONES[name]().eval()
    images, labels = some_images(name, 2), torch.tensor([0, 2])
    model = attached(backbone=backbone)
    published = model.copy(execution="published")
    wanted = [each.eval()(images).detach() for each in (model, published, model.fold())]
    kept = [torch.tensor([0, 2])] * len(model.prompts)
    scores = vprompt.score(model, TensorDataset(images, labels), criterion="removal")
    merged = merge(model, kept)(images).detach()
    for each in (model, published):
        each.to(DEVICE)
    there, asked = images.to(DEVICE), labels.to(DEVICE)
    for each, before in zip((model, published, model.fold()), wanted, strict=True):
        logits = each(there)
        torch.testing.assert_close(logits.detach().cpu(), before, rtol=1e-4, atol=1e-5)
        if logits.requires_grad:
            F.cross_entropy(logits, asked).backward()
            assert all(p.grad.device == DEVICE for p in each.learned.values() if p.grad is not None)
    torch.testing.assert_close(
        vprompt.score(model, TensorDataset(images, labels), criterion="removal")[:], scores[:], rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(merge(model, kept)(there).detach().cpu(), merged, rtol=1e-4, atol=1e-5)
    bank = vprompt.Bank(backbone)
    bank.add("one", model)
    bank.add("few", model.keep(kept))
    mixed = bank(there, ["one", "few"])
    torch.testing.assert_close(mixed[0].cpu(), wanted[0][0], rtol=1e-4, atol=1e-5)
    starts.tokens(model.prompts, backbone, model.info, [there], clusters=True)
    if model.info.stages is None:
        starts.vipamin(model.prompts, backbone, model.info, [there])
    assert all(bool(p.isfinite().all()) for p in model.prompts)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_to_the_same_numbers(device, name):
    """By SGD: AdamW makes steps of full length of gradients that are rounding noise, such as those of key biases."""
    method = METHODS.get(name).make({"prompts": 4, "rank": 2, "dropout": 0.0})
    ours, theirs = (attached(method) for _ in range(2))
    history = {}
    for model, place in ((ours, "cpu"), (theirs, DEVICE)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Accelerator, "device", property(lambda self, place=place: torch.device(place)))
            options = {"optimizer": "sgd", "lr": 0.05, "ema": 0.9, "clip": 1.0}
            history[place] = vprompt.fit(model, data(4), data(3), recipe=recipe(**options)).rows
    assert theirs.device == DEVICE
    torch.testing.assert_close(held(theirs.values), held(ours.values), rtol=1e-3, atol=1e-4)
    for row, other in zip(history["cpu"], history[DEVICE], strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
    images = some_images("vit", 2)
    folded = theirs.fold()
    torch.testing.assert_close(folded(images.to(DEVICE)).detach().cpu(), ours(images).detach(), rtol=1e-3, atol=1e-3)
    bank = vprompt.Bank(theirs.backbone)
    bank.add("a", theirs)
    torch.testing.assert_close(bank(images, ["a", "a"])[0].cpu(), ours(images)[0].detach(), rtol=1e-3, atol=1e-3)
    assert theirs.state().keys() == ours.state().keys()
    theirs.restore(ours.state())


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "fp8"])
def test_a_backbone_in_few_bits(device, precision):
    images = some_images("vit", 2)
    model = attached(vprompt.LoRA(targets="all"), backbone_precision=precision)
    wanted = model.eval()(images).detach()
    model.to(DEVICE)
    torch.testing.assert_close(model(images.to(DEVICE)).detach().cpu(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.fold()(images.to(DEVICE)).cpu(), wanted, rtol=1e-4, atol=1e-4)
    vprompt.fit(model, data(4), recipe=recipe())
    assert all(bool(value.isfinite().all()) for value in model.values.values())


def test_prompts_that_move(device):
    model = attached(METHODS.get("pro-vpt").make({"prompts": 3}), families.vit(depth=2))
    vprompt.fit(model.to(DEVICE), data(), recipe=recipe(epochs=3, ema=0.9))
    assert sum(model.prompt_counts) == 6


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion(device, criterion):
    model = attached().eval()
    wanted = vprompt.score(model, data(), criterion=criterion)
    model.to(DEVICE)
    torch.testing.assert_close(vprompt.score(model, data(), criterion=criterion)[:], wanted[:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("merging", [False, True])
def test_condensing(device, merging):
    model = attached().to(DEVICE)
    small = vprompt.condense(model, data(), data(3), ratio=0.5, merge=merging, recipe=recipe())
    assert sum(small.prompt_counts) == 6
    assert small.device == DEVICE
    assert all(bool(p.isfinite().all()) for p in small.learned.values())


def test_pruning(device):
    model = attached()
    settings = PruneSettings(tokens=0.5, segments=0.25, num_segments=4)
    small = vprompt.prune(model, data(), settings=settings, recipe=recipe()).model
    assert sum(small.prompt_counts) == 6
    assert small.device == DEVICE


@pytest.mark.parametrize("head", ["linear", "multi", "conv"])
def test_pixels_with_labels(device, head):
    target = Segmentation(names=("ground", "sky")).with_head(head)
    backbone = families.vit().eval().to(DEVICE)
    model = vprompt.attach(backbone, vprompt.VPT(3), target=target)
    images, masks = some_images("vit", 4), torch.randint(-1, 2, (4, 32, 32))
    vprompt.fit(model, TensorDataset(images, masks), TensorDataset(images[:2], masks[:2]), recipe=recipe())
    vprompt.score(model, TensorDataset(images, masks), criterion="taylor")
    assert model.fold()(some_images("vit", 1, size=(40, 50)).to(DEVICE)).shape == (1, 2, 40, 50)
    model.predict((255 * torch.rand(1, 3, 20, 30)).byte())


@pytest.mark.parametrize("name", TARGETS.names())
def test_no_target_needs_float64_on_the_device(device, name):
    device.doubles = False
    target = TARGETS.get(name).called(["a", "b"])
    labels = {
        "single-label": torch.arange(4) % 2,
        "multi-label": torch.eye(2).repeat(2, 1),
        "regression": torch.linspace(-1, 2, 8).reshape(4, 2),
        "segmentation": torch.randint(-1, 2, (4, 32, 32)),
    }[name]
    images = TensorDataset(some_images("vit", 4), labels)
    with pytest.raises(TypeError, match="has no float64"):
        torch.ones(1, device=DEVICE).double()
    model = vprompt.attach(families.vit().eval().to(DEVICE), vprompt.VPT(2), target=target)
    vprompt.fit(model, images, images, recipe=recipe())
    assert vprompt.evaluate(model, images).images == 4


# ── no step waits ────────────────────────────────────────────────────────────────────────────────────────────────────

RECIPES = {
    "plain": {},
    "averaged and clipped": {"ema": 0.9, "clip": 1.0},
    "accumulated": {"accumulate": 2},
    "mixed": {"mixup": 0.3, "cutmix": 0.3},
    "balanced": {"balance": "loss", "label_smoothing": 0.1},
    "adjusted": {"balance": "logit-adjustment"},
    "sgd": {"optimizer": "sgd"},
    "checkpointed": {"grad_checkpointing": True},
}


def short(method=None, depth=1):
    return attached(method, families.vit(depth=depth))


def waits(device, model, images, chosen):
    """What waited in an epoch of a training after its first, and the number of its steps."""
    counts, steps = [], []

    def at_epoch(epoch):
        counts.append((device.waits.copy(), device.pinned))

    vprompt.fit(
        model, images, recipe=chosen, at_epoch=at_epoch, progress=lambda done, total, **figures: steps.append(done)
    )
    (before, pinned), (after, more) = counts[1:3]
    return after - before, more - pinned, max(steps) // 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_waits_only_where_it_reads(device, name):
    """Of 12 steps, which were read after the first, the third, the sixth ... of the epoch before."""
    images = data(24)
    found, pinned, steps = waits(device, short(), images, recipe(epochs=2, **RECIPES[name]))
    assert found.keys() == {"copy to the CPU"}
    assert found["copy to the CPU"] <= 3
    assert pinned == 2 * 12  # the images and the labels of each batch
    assert steps == (6 if name == "accumulated" else 12)


@pytest.mark.parametrize("method", [vprompt.Linear(), vprompt.MLP(), "condensed"])
def test_a_training_on_features_waits_only_where_it_reads(device, method):
    model = short(None if method == "condensed" else method, depth=2)
    if method == "condensed":
        model = model.keep([torch.arange(0), torch.arange(2)])
    found, pinned, _ = waits(device, model, data(24), recipe(epochs=2))
    assert found.keys() == {"copy to the CPU"}
    assert found["copy to the CPU"] <= 3
    assert pinned == 24


def test_the_cpu_has_figures_at_every_step():
    seen = []
    vprompt.fit(attached(), data(), recipe=recipe(), progress=lambda done, total, **figures: seen.append(figures))
    assert [("loss" in figures) for figures in seen] == [True] * 3


# ── and is as exact ──────────────────────────────────────────────────────────────────────────────────────────────────


def diverging():
    """Images of which one makes the loss no number, the step (from 0) that sees it first, and the sentence."""
    images, labels = data(24).tensors
    images = images.clone()
    images[epoch_order(24, seed=0, epoch=0)[9]] = 1e38
    return TensorDataset(images, labels), 4


@pytest.mark.filterwarnings("ignore:In the data set")
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(device, tmp_path, monkeypatch):
    images, step = diverging()
    assert step not in (0, 2, 5, 9, 11)  # after which the sums are read
    sentences = {}
    for place in ("cpu", DEVICE):
        model, file = short(), tmp_path / f"{torch.device(place).type}.safetensors"
        monkeypatch.setattr(Accelerator, "device", property(lambda self, place=place: torch.device(place)))
        seen = []
        with pytest.raises(DivergedError) as error:
            vprompt.fit(
                model,
                images,
                recipe=recipe(warmup=0.5),
                checkpoint=file,
                progress=lambda done, total, seen=seen, **figures: seen.append((done, figures)),
            )
        sentences[place] = str(error.value)
        assert all(math.isfinite(figures.get("loss", 0.0)) for _, figures in seen)
        if place == "cpu":
            assert len(seen) == step  # nothing was learned from it
        assert not file.exists()
    assert f"in epoch 1, step {step + 1}, at learning rate" in sentences["cpu"]
    assert sentences[DEVICE] == sentences["cpu"]


@pytest.mark.filterwarnings("ignore:In the data set")
def test_no_checkpoint_holds_what_came_after(device, tmp_path, monkeypatch):
    """Though it is written after every step, which reads what is to be read before."""
    monkeypatch.setattr("vprompt.training.trainer.SAVE_EVERY_SECONDS", -1.0)
    images, step = diverging()
    with pytest.raises(DivergedError, match=f"step {step + 1},"):
        vprompt.fit(short(), images, recipe=recipe(), checkpoint=tmp_path / "state.safetensors")
    tensors, facts = load_tensors(tmp_path / "state.safetensors", "")
    assert facts["state"]["step"] == step
    assert all(bool(value.isfinite().all()) for value in tensors.values())


class KilledError(Exception):
    pass


def test_a_resumed_training_ends_with_the_same_bits(device, tmp_path, monkeypatch):
    """Killed between two readings; neither that nor writing at every step changes a number."""
    whole = short()
    wanted = vprompt.fit(whole, data(12), data(3), recipe=recipe(epochs=2, ema=0.9))
    monkeypatch.setattr("vprompt.training.trainer.SAVE_EVERY_SECONDS", -1.0)

    def kill(done, total, **figures):
        if done == 9:
            raise KilledError

    options = {"recipe": recipe(epochs=2, ema=0.9), "checkpoint": tmp_path / "state.safetensors"}
    with pytest.raises(KilledError):
        vprompt.fit(short(), data(12), data(3), progress=kill, **options)
    again = short()
    resumed = vprompt.fit(again, data(12), data(3), resume=True, **options)
    assert resumed.rows == wanted.rows
    for name, value in held(again.values).items():
        assert torch.equal(value, held(whole.values)[name]), name
