"""Cached features: where a model is split, that both parts are the whole, when they are used."""

import json
import os
import resource
import signal
import tempfile
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import families
import vprompt
from reference import close, small_vit
from vprompt.data.dataset import ImageDataset
from vprompt.data.preprocessing import Preprocessing
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.folder import changed_settings
from vprompt.experiments.settings import settings_from
from vprompt.methods.adapter import Adapter
from vprompt.methods.e2vpt import E2VPT
from vprompt.methods.finetune import Bias, Full, Partial
from vprompt.methods.linear import MLP, Linear
from vprompt.methods.side import Side
from vprompt.methods.vpt import VPT
from vprompt.model.split import Split, first_learned
from vprompt.training import feature_cache
from vprompt.training.evaluate import evaluate
from vprompt.training.trainer import Interrupted, fit
from vprompt.utils.errors import DataError, VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

PLAIN = Preprocessing(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = 3


def pixels_and_labels(images=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    return torch.randint(0, 255, (images, 3, 32, 32), generator=generator).to(torch.uint8), labels


def tensors(images=16, seed=0):
    pixels, labels = pixels_and_labels(images, seed)
    return TensorDataset(PLAIN.normalise(pixels), labels)


def in_memory(images=16):
    pixels, labels = pixels_and_labels(images)
    return ImageDataset(labels, PLAIN, pixels=pixels)


def fresh(method=None, *, execution="prefix"):
    torch.manual_seed(0)
    return vprompt.attach(small_vit(), method or VPT(4), head_init="paper", num_classes=CLASSES, execution=execution)


def condensed(counts=(0, 0, 2), *, dropout=0.1, execution="prefix"):
    """A model with prompts in some blocks only; with two empty ones, the last block is all that learns."""
    return fresh(VPT(4, dropout=dropout), execution=execution).keep([torch.arange(count) for count in counts])


def recipe(**changes):
    return vprompt.Recipe(**{"epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": 1.0, "seed": 5, **changes})


def values(model):
    return {name: p.detach().clone() for name, p in model.learned.items()}


def assert_identical(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


def images_seen(model, block):
    """How many images come through a block of the backbone, which runs in every view of it; a list that grows."""
    seen = []
    model.backbone.blocks[block].mlp.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


# ── the two halves ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", families.BACKBONES)
def test_the_halves_are_the_whole_bit_for_bit(name):
    blocks = len(families.widths_of(families.BACKBONES[name]()))
    turn = list(families.BACKBONES).index(name)
    # As published, with windows, prompts ride beside the map of tokens, and blocks are called otherwise.
    execution, first = ("prefix", "published")[turn % 2], (1, blocks - 1)[turn // 2 % 2]
    counts = [0] * first + [2] * (blocks - first)
    model = families.attached(name, VPT(3), execution=execution, counts=counts)
    images = families.some_images(name, 3)
    split = Split(model, torch.zeros_like(images[:1]))
    assert split.blocks == first
    handed = split.trunk(images)
    assert (handed.shape[1:], handed.dtype) == (split.sample.shape[1:], split.sample.dtype)
    assert not handed.requires_grad
    assert torch.equal(split.trainable_part()(handed), model(images))


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("name", ["swin-three-stages", "swin-cr", "sam", "cait", "rope-mixed", "naflex-dinov3"])
def test_gradients_of_the_upper_half_are_those_of_the_whole(name, execution):
    blocks = len(families.widths_of(families.BACKBONES[name]()))
    model = families.attached(name, VPT(3, dropout=0.5), execution=execution, counts=[0] * (blocks - 1) + [2]).train()
    images, labels = families.some_images(name, 4), torch.tensor([0, 1, 2, 0])
    split = Split(model, images[:1])
    assert split.blocks == blocks - 1
    found = []
    for run, inputs in ((model, images), (split.trainable_part(), split.trunk(images))):
        torch.manual_seed(3)  # of dropout
        loss = torch.nn.functional.cross_entropy(run(inputs), labels)
        found.append(torch.autograd.grad(loss, list(model.learned.values())))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert any(float(gradient.abs().max()) > 0 for gradient in found[0])


FIRST = [
    (Linear(), 3),
    (MLP(), 3),
    (Side(8), 3),
    (Partial(1), 2),
    (Partial(2), 1),
    (Partial(3), 0),
    (Full(), 0),
    (Bias(), 0),
    (Adapter(), 0),
    (VPT(2), 0),
    (VPT(2, "shallow"), 0),
    (E2VPT(2, num_kv_prompts=2), 0),
]


@pytest.mark.parametrize(("method", "first"), FIRST, ids=[method.name + str(n) for n, (method, _) in enumerate(FIRST)])
def test_learning_starts_where_a_method_first_learns(method, first):
    model = fresh(method)
    assert first_learned(model) == first
    images = torch.randn(5, 3, 32, 32)
    split = Split(model, images[:1])
    if first:
        handed = split.trunk(images)
        logits = split.trainable_part()(handed, images) if split.needs_images else split.trainable_part()(handed)
        # Features of the whole backbone are computed without gradients, and so is the last block then.
        with torch.set_grad_enabled(not split.whole):
            assert torch.equal(logits, model(images))
    assert split.needs_images is isinstance(method, Side)


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 0, 1), (0, 3, 0), (2, 0, 0), (0, 1, 1)])
def test_empty_blocks_at_the_start_are_in_the_trunk(counts):
    wanted = next((block for block, count in enumerate(counts) if count), 3)
    assert first_learned(condensed(counts)) == wanted
    assert first_learned(condensed(counts, execution="published")) == wanted


def test_key_value_prompts_are_learned_where_no_others_are_left():
    model = fresh(E2VPT(2, num_kv_prompts=2)).keep([torch.arange(0)] * 3)
    assert first_learned(model) == 0


# ── training on cached features ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "precision"),
    [(None, "fp32"), (None, "bf16"), (Partial(1), "fp32"), (Side(8), "fp32")],
    ids=["condensed", "condensed-bf16", "partial", "side"],
)
def test_training_gives_the_same_numbers_as_without(method, precision):
    found = {}
    for gigabytes in (0, 1):
        model = condensed() if method is None else fresh(method)
        start, seen = values(model), images_seen(model, 0)
        # Higher rates let the side network's steps grow what differs by rounding alone.
        how = recipe(cache_gb=gigabytes, precision=precision, lr=0.01 if isinstance(method, Side) else 0.1)
        rows = fit(model, tensors(), tensors(6, seed=1), recipe=how).rows
        found[gigabytes] = ({name: p - start[name] for name, p in values(model).items()}, rows, sum(seen))
        assert rows[-1]["val_accuracy"] == evaluate(model, tensors(6, seed=1)).accuracy
    (plain, plain_rows, often), (moved, rows, once) = found[0], found[1]
    for name, wanted in plain.items():
        close(moved[name], wanted, 1e-5 if precision == "fp32" else 2**-7)
    for row, wanted in zip(rows, plain_rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5 if precision == "fp32" else 2**-7)
    # One blank image finds the place; validation looks at six images three times, and `evaluate` once.
    assert often - 16 * 3 == once - (1 + 16)


def test_each_image_comes_through_the_start_once():
    model = condensed()
    lower, upper = images_seen(model, 1), images_seen(model, 2)
    fit(model, in_memory(21), recipe=recipe(epochs=7))
    assert sum(lower) == 21 + 1
    assert sum(upper) == 7 * 21 + 1


class Items(Dataset):
    """A data set of the user's own, which may give another view of an image every time."""

    def __init__(self, data):
        self.items = list(data)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        image, label = self.items[index]
        return image + torch.randn_like(image), int(label)


ROW = 17 * 32 * 4  # bytes of an image in front of a block
NOT_KEPT = {
    "augmented": ({}, lambda folder: in_files(folder).with_augment("crop-flip")),
    "of the user's own": ({}, lambda _: Items(tensors())),
    "one epoch": ({"epochs": 1}, lambda _: tensors()),
    "switched off": ({"cache_gb": 0.0}, lambda _: tensors()),
}


def in_files(folder):
    pixels, labels = pixels_and_labels()
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return ImageDataset(labels, replace(PLAIN, resize="crop"), root=folder, paths=[f"{n}.png" for n in range(16)])


@pytest.mark.parametrize("why", NOT_KEPT)
def test_nothing_is_kept_where_it_would_be_wrong_or_useless(why, tmp_path):
    changes, data = NOT_KEPT[why]
    model = condensed()
    seen = images_seen(model, 0)
    how = recipe(**changes)
    fit(model, data(tmp_path), recipe=how)
    assert sum(seen) == how.epochs * 16


def test_images_in_files_are_read_once(tmp_path):
    kept_once, anew = condensed(), condensed()
    seen = images_seen(kept_once, 0)
    fit(kept_once, in_files(tmp_path), recipe=recipe(optimizer="adamw", lr=0.01))
    assert sum(seen) == 16 + 1
    fit(anew, in_files(tmp_path), recipe=recipe(optimizer="adamw", lr=0.01, cache_gb=0))
    for name, wanted in values(anew).items():
        close(values(kept_once)[name], wanted, 1e-5)


def test_nothing_is_kept_where_the_first_block_learns():
    model = condensed((1, 0, 1))
    seen = images_seen(model, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, tensors(), recipe=recipe())
    assert sum(seen) == 3 * 16 + 1


def test_the_bound_is_a_bound():
    exactly = 16 * ROW / 1e9
    model = condensed()
    seen = images_seen(model, 0)
    fit(model, tensors(), recipe=recipe(cache_gb=exactly))
    assert sum(seen) == 16 + 1
    model = condensed()
    seen = images_seen(model, 0)
    with pytest.warns(UserWarning, match=r"first 2 blocks learn nothing.*GB would have.*cache_gb"):
        fit(model, tensors(), recipe=recipe(cache_gb=exactly * 0.999))
    assert sum(seen) == 3 * 16 + 1


def test_pooled_features_are_kept_whatever_the_bound():
    model = fresh(Linear())
    seen = images_seen(model, 0)
    fit(model, Items(tensors()), recipe=recipe(cache_gb=0))
    assert sum(seen) == 16 + 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])), "label is 3"),
        (lambda: TensorDataset(torch.randn(4, 3, 32, 40), torch.tensor([0, 1, 2, 0])), r"must be \(3, 32, 32\)"),
        (lambda: TensorDataset(torch.randn(4, 4, 32, 32), torch.tensor([0, 1, 2, 0])), r"must be \(3, 32, 32\)"),
        (lambda: TensorDataset(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), r"must be \(3, 32, 32\)"),
        (lambda: TensorDataset(torch.randint(9, (4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])), "float"),
        (lambda: TensorDataset(torch.randn(4, 3, 32, 32)), "two tensors"),
    ],
)
def test_data_that_does_not_fit_is_told_as_ever(data, sentence):
    with pytest.raises(DataError, match=sentence):
        fit(condensed(), data(), recipe=recipe())


# ── the same bits, however a run came to its end ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [condensed, lambda: fresh(Side(8))], ids=["condensed", "side"])
def test_a_run_in_parts_ends_with_the_same_bits(model, tmp_path):
    whole, parts = model(), model()
    how = recipe(epochs=4, optimizer="adamw", lr=0.01)
    history = fit(whole, tensors(21), recipe=how)
    for until in (1, 3, 4):  # the last part is one epoch only
        found = fit(parts, tensors(21), recipe=how, checkpoint=tmp_path / "state", resume=True, until=until)
    assert found.rows == history.rows
    assert_identical(values(parts), values(whole))


@pytest.mark.parametrize("fetch", [1, 2, 3, 4, 6, 9])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(fetch, tmp_path):
    """The first fetches fill the cache: batches of 8, 8 and 5 images."""
    whole, stopped = condensed(), condensed()
    history = fit(whole, in_memory(21), recipe=recipe())
    data, count = in_memory(21), 0
    pixels = data.pixels

    def pixels_and_signal(index):
        nonlocal count
        count += 1
        if count == min(fetch, 3):
            signal.raise_signal(signal.SIGINT)
        return pixels(index)

    def report(done, total, **figures):
        if done == fetch - 3 and "loss" in figures:
            signal.raise_signal(signal.SIGINT)

    if fetch <= 3:
        data.pixels = pixels_and_signal
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="the state was saved"):
        fit(stopped, data, recipe=recipe(), checkpoint=tmp_path / "state", progress=report)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    other_means = recipe(workers=0, grad_checkpointing=True)
    found = fit(stopped, in_memory(21), recipe=other_means, checkpoint=tmp_path / "state", resume=True)
    assert found.rows == history.rows
    assert_identical(values(stopped), values(whole))


def test_means_are_no_part_of_a_run():
    plain = settings_from({"backbone": "x"})
    other = settings_from({"backbone": "x", "cache_gb": 7, "grad_checkpointing": True, "workers": 2})
    assert (other.recipe.cache_gb, other.recipe.grad_checkpointing) == (7.0, True)
    assert Job(settings=plain).identity == Job(settings=other).identity
    before, now = {"backbone": "x", "prompts": 20, "recipe": asdict(plain.recipe)}, other.to_flat()
    assert changed_settings(json.loads(json.dumps(before)), now) == []
    del before["recipe"]["cache_gb"]  # as runs of earlier versions
    assert changed_settings(before, now) == []


@pytest.mark.parametrize("gigabytes", [-1.0, float("nan"), float("inf")])
def test_a_cache_of_no_size_is_refused(gigabytes):
    with pytest.raises(VPromptError, match="gigabytes"):
        recipe(cache_gb=gigabytes)


# ── where they are kept ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_memory(monkeypatch, tmp_path):
    """As if the machine had no memory left; the folder in which files then lie."""
    monkeypatch.setattr(feature_cache, "free_memory", lambda: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_memory_and_file_give_the_same_bits(no_memory, monkeypatch):
    on_disk = condensed()
    rows = fit(on_disk, tensors(), recipe=recipe()).rows
    assert os.listdir(no_memory) == []
    monkeypatch.undo()
    in_ram = condensed()
    assert fit(in_ram, tensors(), recipe=recipe()).rows == rows
    assert_identical(values(in_ram), values(on_disk))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_file_holds_what_is_written_and_has_no_name(no_memory, dtype):
    rows = feature_cache.empty_rows(50, (7, 3), dtype)
    wanted = torch.randn(50, 7, 3).to(dtype)
    rows[:20], rows[20:] = wanted[:20], wanted[20:]
    assert os.listdir(no_memory) == []
    assert torch.equal(rows[torch.tensor([49, 3, 3])], wanted[[49, 3, 3]])


def test_a_full_disk_is_noticed_before_anything_is_written(no_memory):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        assert feature_cache.empty_rows(2**10, (2**10,), torch.float32) is None
        model, wanted = condensed(), condensed()
        with pytest.warns(UserWarning, match="no room"):
            found = fit(model, tensors(64), recipe=recipe(epochs=2)).rows
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == fit(wanted, tensors(64), recipe=recipe(epochs=2, cache_gb=0)).rows
    assert feature_cache.empty_rows(2**40, (2**10,), torch.float32) is None


def test_free_memory_is_between_nothing_and_all():
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert 0 <= feature_cache.free_memory() <= pages * size


def test_a_model_is_left_as_it_was():
    model = condensed()
    view = model.view
    fit(model, tensors(), recipe=recipe(grad_checkpointing=True))
    assert model.view is view
    assert not any(hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))
    assert replace(recipe(), grad_checkpointing=True) == model.recipe


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("multi-label", (torch.arange(32).reshape(16, 2) % 3 == 0).float()),
        ("regression", torch.linspace(-1, 1, 32).reshape(16, 2)),
    ],
)
def test_features_of_tags_and_numbers_are_computed_once(target, labels):
    model = vprompt.attach(families.vit(), Linear(), target=target, num_classes=2)
    seen = images_seen(model, 0)
    fit(model, TensorDataset(tensors().tensors[0], labels), recipe=recipe())
    assert sum(seen) == 16 + 1
