"""Dense models: how they run, their heads and windows, saving, training, scoring, compression, export and service."""

import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from fastapi.testclient import TestClient
from PIL import Image
from torch.utils.data import TensorDataset

import families
import vprompt
from reference import close
from vprompt.compression.choices import PruneSettings
from vprompt.compression.score import score
from vprompt.data.masks import read_mask
from vprompt.exporters.export import export
from vprompt.model.windows import by_windows, starts
from vprompt.serving.app import create_app
from vprompt.serving.bank.bank import Bank
from vprompt.serving.predict import predict_each, write_mask
from vprompt.serving.service import Limits, Service
from vprompt.tasks.segmentation import COLOUR, Segmentation
from vprompt.utils.errors import VPromptError

NAMES = ("ground", "tree", "sky")
METHODS = {
    "deep": vprompt.VPT(4),
    "shallow": vprompt.VPT(3, "shallow"),
    "linear": vprompt.Linear(),
    "lora": vprompt.LoRA(),
    "e2vpt": vprompt.E2VPT(),
    "adapter": vprompt.Adapter(),
    "mlp": vprompt.MLP(),
    "full": vprompt.Full(),
}
BACKBONES = {
    "vit": lambda: timm.create_model("test_vit", img_size=48),
    "registers": lambda: timm.create_model("test_vit", img_size=48, reg_tokens=3),
    "eva": families.BACKBONES["eva-rope-unfused"],
    "swin": families.BACKBONES["swin-padded"],
}


def shaken(model, seed=3):
    """Everything that is learned, and the statistics of batch norm, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.values.items():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            moved = 0.5 + drawn.abs() if "running_var" in name else value.double() + 0.2 * drawn
            value.copy_(moved)
    return model


def dense(backbone="vit", method="deep", head="linear", *, execution="prefix", dtype=torch.float64, **options):
    torch.manual_seed(0)
    target = Segmentation(names=NAMES, head=head, **options)
    method = METHODS.get(method, method)
    model = vprompt.attach(BACKBONES[backbone](), method, target=target, execution=execution)
    return shaken(model).to(dtype).eval()


def some(model, count=2, size=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, *(size or model.preprocessing.size))
    return torch.randn(shape, generator=generator).to(model.head.weight.dtype)


def labelled(model, count=4, size=None, seed=1):
    """Images whose colour tells the class of each of their quarters, more or less; some pixels count for nothing."""
    size = size or model.preprocessing.size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(len(NAMES), (count, 2, 2), generator=generator)
    masks = F.interpolate(coarse[:, None].float(), size=size, mode="nearest")[:, 0].long()
    images = F.one_hot(masks, len(NAMES)).movedim(3, 1) + 0.3 * torch.randn(count, 3, *size, generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = -1
    return TensorDataset(images.to(model.head.weight.dtype), masks)


# ── how they run ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", ["linear", "multi", "conv"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_executions_give_the_same_logits(backbone, method, head):
    model = dense(backbone, method, head)
    images = some(model)
    with torch.no_grad():
        found = model(images)
        assert found.shape == (2, 3, *model.preprocessing.size)
        close(model.fold()(images), found, 1e-9)
        if METHODS[method].riding != "nothing":
            close(model.copy(execution="published").eval()(images), found, 1e-9)
            assert not torch.allclose(model.copy(prompts=model.prompts.constants()).eval()(images) * 0, found)


def upright(x, size):
    """Bilinear, by two matrices."""
    for dim, wanted in ((2, size[0]), (3, size[1])):
        have = x.shape[dim]
        weights = torch.zeros(wanted, have, dtype=x.dtype)
        for row in range(wanted):
            place = max(0.0, (row + 0.5) * have / wanted - 0.5)
            low = min(int(place), have - 1)
            high, share = min(low + 1, have - 1), place - low
            weights[row, low] += 1 - share
            weights[row, high] += share
        x = torch.tensordot(x, weights, dims=([dim], [1])).movedim(3, dim)
    return x


def normed(x, norm):
    shape = (1, -1, 1, 1)
    centred = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return centred * norm.weight.view(shape) + norm.bias.view(shape)


def convolved(x, conv):
    """As a sum over the places of the kernel."""
    size, (height, width) = conv.kernel_size[0], x.shape[2:]
    padded = F.pad(x, [size // 2] * 4)
    total = sum(
        torch.einsum("bchw,dc->bdhw", padded[:, :, v : v + height, u : u + width], conv.weight[:, :, v, u])
        for v in range(size)
        for u in range(size)
    )
    return total if conv.bias is None else total + conv.bias.view(1, -1, 1, 1)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("head", ["linear", "multi", "conv"])
@pytest.mark.parametrize("method", ["linear", "mlp"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_prompts_heads_are_on_timms_maps(backbone, method, head):
    model = dense(backbone, method, head)
    images, plain = some(model), model.backbone
    with torch.no_grad():
        if backbone == "swin":  # timm gives the end of each stage only
            ends = torch.tensor([len(stage.blocks) for stage in plain.layers]).cumsum(0).tolist()
            given = dict(zip((end - 1 for end in ends), plain.forward_intermediates(images)[1], strict=True))
            maps = [given[block] for block in model.head.blocks]
        else:
            given = plain.forward_intermediates(images, norm=True)[1]
            maps = [given[block] for block in model.head.blocks]
        assert len(maps) == (1 if head != "multi" else min(4, len(given)))
        size = max(each.shape[2] for each in maps), max(each.shape[3] for each in maps)
        x = torch.cat([upright(each, size) for each in maps], 1)
        x = x if head == "conv" else normed(x, model.head.norm)
        for conv, norm, _ in model.head.growing:
            x = gelu(normed(convolved(x, conv), norm))
            x = upright(x, (2 * x.shape[2], 2 * x.shape[3]))
        for layer in model.head.hidden:
            x = gelu(convolved(x, layer))
        assert len(model.head.hidden) == METHODS[method].head_layers - 1
        expected = upright(convolved(x, model.head.classifier), images.shape[2:])
        close(model(images), expected, 1e-9)


def test_what_has_no_maps_is_refused():
    target = Segmentation(names=NAMES)
    with pytest.raises(VPromptError, match=r"side.*pooled features; take another method"):
        vprompt.attach(BACKBONES["vit"](), vprompt.Side(), target=target)
    with pytest.raises(VPromptError, match="linear, multi, conv, not 'huge'"):
        vprompt.attach(BACKBONES["vit"](), target=target, head="huge")
    with pytest.raises(VPromptError, match="needs a target whose pixels have labels"):
        vprompt.attach(BACKBONES["vit"](), num_classes=2, head="multi")


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (7, 5), (20, 71), (100, 31), (65, 130), (1, 1)])
def test_windows_are_those_of_a_loop(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    gain = torch.randn(32, 32, generator=generator, dtype=torch.float64)  # so that the place in the window counts

    def model(windows):
        assert windows.shape[1:] == (3, 32, 32)
        return torch.stack([(windows * gain).sum(1), windows[:, 0] ** 2], 1) + windows.mean((1, 2, 3), keepdim=True)

    padded = torch.zeros(2, 3, max(32, size[0]), max(32, size[1]), dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = images
    total, counts = torch.zeros(2, 2, *padded.shape[2:]).double(), torch.zeros(padded.shape[2:]).double()
    for top in starts(size[0], 32):
        for left in starts(size[1], 32):
            here = (slice(None), slice(None), slice(top, top + 32), slice(left, left + 32))
            total[here] += torch.stack([model(padded[here][n : n + 1])[0] for n in range(2)])
            counts[here[2:]] += 1
    assert counts.min() >= 1
    expected = (total / counts)[:, :, : size[0], : size[1]]
    close(by_windows(model, images, (32, 32)), expected, 1e-12)
    with torch.no_grad():
        close(by_windows(model, images, (32, 32)), expected, 1e-12)


def test_windows_cover_every_length():
    for window in (1, 2, 3, 4, 5, 16, 31):
        for length in range(1, 140):
            places = starts(length, window)
            assert places[0] == 0
            assert places[-1] == max(0, length - window)
            steps = [after - before for before, after in itertools.pairwise(places)]
            assert all(0 < step <= max(1, math.ceil(window * 3 / 4)) for step in steps)


# ── saving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "head"), [("deep", "conv"), ("e2vpt", "multi"), ("full", "linear"), ("mlp", "multi")]
)
def test_saved_models_are_the_same_bit_for_bit(tmp_path, method, head):
    model = dense("vit", method, head, dtype=torch.float32, codes=(0, 7, COLOUR | 9), ignored=(3,), dice=True)
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = vprompt.load(tmp_path, backbone=model.backbone if method != "full" else plain_of(model)).eval()
    assert again.target == model.target
    assert again.values.keys() == model.values.keys()
    assert any("running_mean" in name for name in again.values)
    for name, value in model.values.items():
        assert torch.equal(again.values[name], value), name
    images = some(model, size=(70, 50))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def plain_of(model):
    torch.manual_seed(0)
    return BACKBONES["vit"]()


def test_state_and_restore_are_of_batch_norm_as_well():
    model = dense("vit", "deep", "conv", dtype=torch.float32)
    before, images = model.state(), some(model)
    with torch.no_grad():
        said = model(images)
        model.train()(images)
        assert not torch.equal(model.eval()(images), said)
        model.restore(before)
        assert torch.equal(model(images), said)
    with pytest.raises(VPromptError, match="not those of this model"):
        model.restore({name: value for name, value in before.items() if "running" not in name})


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SHORT = vprompt.Recipe(epochs=3, batch_size=2, lr=0.01)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"best_epoch": True}], ids=["plain", "ema", "best"])
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_resumed_trainings_are_the_same_bit_for_bit(tmp_path, head, options):
    recipe, states = replace(SHORT, **options), []
    for stops in ((None,), (1, 2, None)):
        model = dense("vit", "deep", head, dtype=torch.float32)
        data, path = labelled(model), tmp_path / f"{len(stops)}.safetensors"
        for until in stops:
            if until != stops[0]:
                model = dense("vit", "deep", head, dtype=torch.float32)
            history = vprompt.fit(model, data, data, recipe=recipe, checkpoint=path, resume=True, until=until)
        states.append((model.state(), [row["loss"] for row in history.rows], model.eval()(data[0][0][None])))
    (one, losses, said), (two, again, same) = states
    assert len(losses) == 3
    assert losses == again
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert torch.equal(said, same)
    fresh = dense("vit", "deep", head, dtype=torch.float32).state()
    moved = [name for name in one if "running" in name]
    assert moved
    assert not any(torch.equal(one[name], fresh[name]) for name in moved)


def test_the_best_epoch_has_its_own_statistics():
    model = dense("vit", "deep", "conv", dtype=torch.float32)
    data, seen = labelled(model), {}
    recipe = replace(SHORT, best_epoch=True, epochs=4, lr=0.5)
    history = vprompt.fit(model, data, data, recipe=recipe, at_epoch=lambda epoch: seen.update({epoch: model.state()}))
    scores = [row["val_mean_iou"] for row in history.rows]
    losses = [row["val_loss"] for row in history.rows]
    evaluation = vprompt.evaluate(model, data)
    assert evaluation.loss in [pytest.approx(loss, rel=1e-5) for loss in losses]
    assert evaluation.score == pytest.approx(max(scores), rel=1e-6)


def test_training_learns_what_pixels_are():
    model = dense("vit", "linear", "linear", dtype=torch.float32)
    data = labelled(model, 12)
    before = vprompt.evaluate(model, data)
    vprompt.fit(model, data, recipe=replace(SHORT, epochs=8))
    after = vprompt.evaluate(model, data)
    assert after.loss < before.loss
    assert after.score > max(0.5, before.score)
    for options in ({"balance": "loss"}, {"mixup": 0.2}, {"cutmix": 1.0}):
        with pytest.raises(VPromptError, match="not balanced or mixed"):
            vprompt.fit(model, data, recipe=replace(SHORT, **options))


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def losses_with(model, images, masks, scale=None, bias=None):
    """The mean pixel loss of each image, with prompt (block, number) scaled, or more of it in attention."""
    changed = model.copy()
    with torch.no_grad():
        if scale is not None:
            (block, number), factor = scale
            changed.prompts[block][number] *= factor
        if bias is not None:
            (block, number), more = bias
            changed.prompts.merged = True
            for other, count in enumerate(changed.prompts.counts):
                numbers = torch.ones(count, dtype=torch.float64)
                numbers[[number] if other == block else []] = math.exp(more)
                changed.prompts.register_buffer(f"multiplicity_{other}", numbers)
        logits = changed.eval()(images)
    found = []
    for said, mask in zip(logits.log_softmax(1), masks, strict=True):
        counted = [(y, x) for y, x in (mask >= 0).nonzero().tolist()]
        found.append(-sum(float(said[mask[y, x], y, x]) for y, x in counted) / len(counted))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("size", [None, (48, 60), (30, 41)])
@pytest.mark.parametrize("criterion", ["taylor", "removal"])
def test_scores_are_finite_differences_of_each_images_loss(criterion, size):
    model = dense("vit", vprompt.VPT(2))
    model = model.keep([torch.arange(count) for count in (2, 0, 0, 1, 0, 0)]).eval()
    with torch.no_grad():  # so short that norms do not undo their lengths
        for prompts in model.prompts:
            prompts.mul_(0.003)
    data = labelled(model, 3, size)
    images, masks = data.tensors
    found = score(model, data, criterion=criterion, batch_size=3)
    for one in (1, 2):
        for part, whole in zip(score(model, data, criterion=criterion, batch_size=one), found, strict=True):
            close(part, whole, 1e-9)
    step = 1e-4
    for place in ((0, 0), (0, 1), (3, 0)):
        if criterion == "taylor":
            ends = [losses_with(model, images, masks, scale=(place, 1 + sign * step)) for sign in (1, -1)]
        else:
            ends = [losses_with(model, images, masks, bias=(place, sign * step)) for sign in (1, -1)]
        wanted = ((ends[0] - ends[1]) / (2 * step)).abs().mean()
        assert wanted > 1e-6
        assert float(found[place[0]].reshape(-1)[place[1]]) == pytest.approx(float(wanted), rel=1e-4)


def test_other_criteria_run_or_refuse():
    model = dense("vit", vprompt.VPT(2), dtype=torch.float32)
    data = labelled(model, 2, (48, 60))
    with pytest.raises(VPromptError, match="say nothing of pixels"):
        score(model, data, criterion="feature-change")
    for criterion in ("pseudo-label", "removal-signed", "cls-similarity"):
        whole, single = (score(model, data, criterion=criterion, batch_size=size) for size in (2, 1))
        for one, other in zip(whole, single, strict=True):
            close(one, other, 1e-4)


# ── compression ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"scope": "local"}, {"merge": True}], ids=["global", "local", "merged"])
def test_condensed_models_are_smaller_and_run_alike(options, tmp_path):
    model = dense("vit", "deep", dtype=torch.float32)
    data = labelled(model)
    small = vprompt.condense(model, data, ratio=0.5, recipe=replace(SHORT, epochs=1), **options).eval()
    assert sum(small.prompt_counts) == sum(model.prompt_counts) // 2
    images = some(small, size=(60, 48))
    small.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=small.backbone).eval()
    with torch.no_grad():
        assert torch.equal(again(images), small(images))
        close(small.fold()(images), small(images), 1e-3)
        close(small.copy(execution="published").eval()(images), small(images), 1e-3)


def test_pruned_models_begin_again_with_their_statistics():
    model = dense("vit", "deep", dtype=torch.float32)
    data, early = labelled(model), model.state()
    vprompt.fit(model, data, recipe=replace(SHORT, epochs=1))
    settings = PruneSettings(tokens=0.5, segments=0.5, num_segments=4)
    pruned = vprompt.prune(model, data, early=early, settings=settings, recipe=replace(SHORT, epochs=1)).model.eval()
    assert sum(pruned.prompt_counts) == sum(model.prompt_counts) // 2
    with torch.no_grad():
        close(pruned.fold()(some(pruned)), pruned(some(pruned)), 1e-3)


# ── export, service, masks in files ──────────────────────────────────────────────────────────────────────────────────


def photo(path, number=0, size=(61, 50)):
    colours = np.random.default_rng(number).integers(0, 255, (3, 3, 3)).astype(np.uint8)
    picture = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    picture.save(path)
    return picture


@pytest.mark.parametrize(("suffix", "whole"), [(".pt2", True), (".onnx", False), (".xml", True)])
def test_exported_models_give_the_same_masks(tmp_path, suffix, whole):
    model = dense("vit", "deep", "multi", dtype=torch.float32)
    photo(tmp_path / "a.png")
    file = export(model, tmp_path / f"model{suffix}", include_preprocessing=whole)
    assert file.target == model.target
    expected, found = model.predict(tmp_path / "a.png").masks[0], file.predict(tmp_path / "a.png").masks[0]
    assert expected.shape == (50, 61)
    assert len(expected.unique()) > 1
    assert (found == expected).float().mean() > 0.999
    images = some(model, size=(70, 48))
    if not whole:
        with torch.no_grad():
            close(file(images), model(images), 1e-3)


@pytest.mark.parametrize("codes", [(), (0, 255, 9), (0, 300, 65535), (0, COLOUR | 0xFF0000, COLOUR | 0xFF)])
def test_predicted_masks_read_back_equal(tmp_path, codes):
    model = dense("vit", "deep", dtype=torch.float32, codes=codes, ignored=())
    for place, name in enumerate(("one/a.png", "two/a.png", "b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(tmp_path / name, place, (40 + place, 30))
    paths, taken = [str(tmp_path / name) for name in ("one/a.png", "two/a.png", "b.png")], set()
    for found in (found for batch in predict_each(model, paths) for found in batch):
        write_mask(found, model, tmp_path / "out", taken)
    expected = model.predict(paths).masks
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-2-overlay.jpg", "a-2.png", "a-overlay.jpg", "a.png", "b-overlay.jpg", "b.png"]
    for name, mask in zip(("a", "a-2", "b"), expected, strict=True):
        assert torch.equal(read_mask(tmp_path / "out" / f"{name}.png", model.target), mask)
        assert Image.open(tmp_path / "out" / f"{name}-overlay.jpg").size == mask.shape[::-1]


@pytest.mark.parametrize("channels", [1, 4])
def test_masks_of_other_channels_are_written(tmp_path, channels):
    backbone = timm.create_model("test_vit", img_size=48, in_chans=channels)
    model = vprompt.attach(backbone, METHODS["deep"], target=Segmentation(names=NAMES)).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, channels)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.png")
    [[found]] = predict_each(model, [str(tmp_path / "a.png")])
    write_mask(found, model, tmp_path / "out", set())
    assert Image.open(tmp_path / "out/a-overlay.jpg").size == (40, 30)


@pytest.mark.parametrize("resize", ["keep", "fit", "squash"])
def test_bank_and_service_answer_as_predict(tmp_path, resize):
    torch.manual_seed(0)
    backbone = BACKBONES["vit"]()
    target = Segmentation(names=NAMES, codes=(0, 100, 200))
    models = {
        "deep": shaken(vprompt.attach(backbone, METHODS["deep"], target=target)).eval(),
        "shallow": shaken(vprompt.attach(backbone, METHODS["shallow"], target=target, head="conv")).eval(),
        "classes": vprompt.attach(backbone, METHODS["deep"], num_classes=2).eval(),
    }
    bank = Bank(backbone)
    for name, model in models.items():
        if model.target.dense:
            model.preprocessing = replace(model.preprocessing, resize=resize)
        bank.add(name, model)
    images = some(models["deep"], 2, (60, 48))
    answers = bank(images, ["deep", "shallow", "deep"], rows=[0, 1, 1])
    with torch.no_grad():
        for logits, (name, row) in zip(answers, (("deep", 0), ("shallow", 1), ("deep", 1)), strict=True):
            close(logits, models[name](images[row : row + 1])[0], 1e-4)
    photo(tmp_path / "a.png")
    body = (tmp_path / "a.png").read_bytes()
    with TestClient(create_app(Service(bank, Limits(timeout=120)))) as client:
        for name in ("deep", "shallow"):
            expected = models[name].predict(tmp_path / "a.png")
            answer = client.post(f"/v1/predict/{name}", content=body).json()
            assert answer["size"] == [50, 61]
            mask = [number for number, length in answer["runs"] for _ in range(length)]
            assert (torch.tensor(mask).view(50, 61) == expected.masks[0]).float().mean() > 0.999
            picture = client.post(f"/v1/predict/{name}", content=body, headers={"accept": "image/png"})
            assert picture.headers["content-type"] == "image/png"
            (tmp_path / "said.png").write_bytes(picture.content)
            assert read_mask(tmp_path / "said.png", target).flatten().tolist() == mask
            assert set(np.unique(np.array(Image.open(io.BytesIO(picture.content))))) <= {0, 100, 200}
