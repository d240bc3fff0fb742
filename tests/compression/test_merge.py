"""Prompts that count several times, removal scores, and merging: against repeated prompts, slow loops and bad input."""

import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import vprompt
from families import EACH_CLASS, attached, some_images
from reference import close, loss_weights
from vprompt.backbones.attention.functional import KeyValue, attend, attention_weights
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.cli.main import main
from vprompt.compression.merge import merge
from vprompt.experiments.settings import settings_from
from vprompt.methods.layers.prompts import Prompts
from vprompt.utils.errors import AdapterError, VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

LABELS = torch.tensor([0, 4, 2, 1])
COUNTS = [3, 0, 5]


def counted(name, *, execution="prefix", dtype=torch.float64):
    """A model whose prompts count once, twice, three times and so on, and the same with each written out as often."""
    plain = attached(name, vprompt.VPT(6), counts=COUNTS, dtype=dtype)
    copies = [list(range(1, count + 1)) for count in plain.prompt_counts]
    values = [p.detach().clone() for p in plain.prompts]
    several = plain.copy(prompts=Prompts(values, multiplicity=copies), execution=execution)
    out = [
        value.repeat_interleave(torch.tensor(number).long(), 0) for value, number in zip(values, copies, strict=True)
    ]
    return several.eval(), plain.copy(prompts=Prompts(out)).eval()


def pooled(gradient, copies):
    """Gradients of repeated prompts, added up for each that was repeated."""
    parts = gradient.split(copies) if copies else []
    return torch.stack([part.sum(0) for part in parts]) if parts else gradient


# ── a prompt that counts several times ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", EACH_CLASS)
def test_counting_is_repeating_in_every_execution_and_for_gradients(name):
    images = some_images(name, 3, dtype=torch.float64)
    for execution in ("prefix", "published"):
        several, repeated = counted(name, execution=execution)
        logits, wanted = several(images), repeated(images)
        close(logits, wanted, 1e-10)
        mine = torch.autograd.grad(loss_weights(logits).sum(), [p for p in several.prompts if len(p)])
        theirs = torch.autograd.grad(loss_weights(wanted).sum(), [p for p in repeated.prompts if len(p)])
        used = [numbers for numbers in several.prompts.multiplicity if numbers]
        for found, true, number in zip(mine, theirs, used, strict=True):
            close(found, pooled(true, number), 1e-9)
    close(several.fold()(images), wanted, 1e-10)
    assert several.fold().prompt_counts == several.prompt_counts


@pytest.mark.parametrize("name", ["eva-rope-unfused", "swin-padded"])
def test_counting_under_autocast_and_bfloat16_is_near(name):
    several, _ = counted(name, dtype=torch.float32)
    images = some_images(name, 3)
    wanted = several(images)
    with torch.autocast("cpu", torch.bfloat16):
        close(several(images).float(), wanted, 0.1)
    half = several.fold().bfloat16()
    close(half(images.bfloat16()).float(), wanted, 0.1)


def test_a_count_of_one_adds_nothing_to_what_runs():
    prompts = Prompts([torch.randn(3, 4)], multiplicity=[[1, 1, 1]])
    assert not prompts.merged
    assert prompts.bias(0) is None
    assert prompts.multiplicity == [[1, 1, 1]]
    assert prompts.num_tokens == [3]
    assert not list(prompts.buffers())


@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_training_with_dropout_treats_copies_alike_in_both_executions(execution):
    several, _ = counted("beit-both", execution=execution)
    several.prompts.dropout = 0.5
    images = some_images("beit-both", 3, dtype=torch.float64)
    several.train()
    torch.manual_seed(3)
    logits = several(images)
    other = several.copy(execution="published").train()
    torch.manual_seed(3)
    close(logits, other(images), 1e-10)


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_bias_in_attend_is_a_softmax_with_weights(mask):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    keys, values = (torch.randn(1, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    times = torch.tensor([[2.0, 5.0], [1.0, 0.5]], dtype=torch.float64)
    seen = torch.rand(1, 1, 5, 5) > 0.3
    seen[..., 0] = True
    added = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    logits = q @ torch.cat([keys.expand(2, -1, -1, -1), k], 2).mT / 2
    weights = logits.exp()
    weights[..., :2] *= times[:, None, None]
    given = {"none": None, "bool": seen, "float": added, "causal": None}[mask]
    if mask == "bool":
        weights[..., 2:] *= seen
    if mask == "float":
        weights[..., 2:] *= added.exp()
    if mask == "causal":
        weights[..., 2:] *= torch.ones(5, 5).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    prefix = KeyValue(keys, values, times.log())
    found = attend(q, k, v, prefix, attn_mask=given, is_causal=mask == "causal")
    close(found, weights @ torch.cat([values.expand(2, -1, -1, -1), v], 2), 1e-12)
    if mask != "causal":
        close(attention_weights(q, k, prefix, attn_mask=given), weights, 1e-12)


def test_cost_is_counted_without_weights():
    from vprompt.model.cost import model_cost

    several, repeated = counted("beit-both", dtype=torch.float32)
    mine, theirs = model_cost(several), model_cost(repeated)
    assert mine.published_gmacs == theirs.published_gmacs
    assert mine.folded_gmacs < theirs.folded_gmacs


# ── saving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("segments", [False, True])
def test_saved_and_loaded_counts_are_the_same_bit_for_bit(segments, tmp_path):
    several, _ = counted("beit-both", dtype=torch.float32)
    if segments:
        masks = [
            torch.tensor([[True, False]] * count, dtype=torch.bool).reshape(-1, 2) for count in several.prompt_counts
        ]
        several = several.keep([torch.arange(count) for count in several.prompt_counts], masks).eval()
    images = some_images("beit-both", 3)
    several.save_pretrained(tmp_path / "a")
    again = vprompt.load(tmp_path / "a", backbone=several.backbone)
    assert again.prompts.multiplicity == several.prompts.multiplicity
    with torch.no_grad():
        assert torch.equal(again(images), several(images))
        assert torch.equal(again.fold()(images), several.fold()(images))


def test_adapters_without_counts_know_nothing_of_them(tmp_path):
    attached("beit-both", vprompt.VPT(2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["merged"], config["checksum"]  # as an earlier version wrote it
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert not vprompt.load(tmp_path, backbone=attached("beit-both", vprompt.VPT(2)).backbone).prompts.merged


@pytest.mark.parametrize("bad", [torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1, 2, 3])])
def test_counts_that_cannot_be_are_named(bad, tmp_path):
    from vprompt.model.tensors import check_values, tensors_of

    several, _ = counted("beit-both", dtype=torch.float32)
    several.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"copies\.0.*whole numbers from 1"):
        check_values({**tensors_of(several), "copies.0": bad}, "file")


def test_recorded_values_of_other_counts_are_refused():
    several, _ = counted("beit-both")
    state = several.state()
    other = several.copy(prompts=Prompts([p.detach() for p in several.prompts]))
    with pytest.raises(VPromptError, match="not those of this model"):
        other.restore(state)
    several.restore(state)


# ── scores by removal ────────────────────────────────────────────────────────────────────────────────────────────────


def losses(model, images):
    return F.cross_entropy(model(images), LABELS, reduction="none")


@pytest.mark.parametrize("name", EACH_CLASS)
def test_removal_is_the_change_for_a_prompt_that_counts_a_little_less(name):
    """Central differences of each image's loss in the number of times a prompt counts, at one."""
    model = attached(name, vprompt.VPT(6), counts=[2, 0, 1], dtype=torch.float64)
    images = some_images(name, 4, dtype=torch.float64)
    data = TensorDataset(images, LABELS)
    signed = vprompt.score(model, data, criterion="removal-signed", batch_size=3)
    absolute = vprompt.score(model, data, criterion="removal")
    folded, small = model.fold(), 1e-5
    for block, count in enumerate(model.prompt_counts):
        assert len(signed[block]) == len(absolute[block]) == count
        for prompt in range(count):
            found = []
            for times in (1 + small, 1 - small):
                bias = torch.zeros(1, count, dtype=torch.float64)
                bias[0, prompt] = math.log(times)
                folded.prefixes[block].bias = bias
                with torch.no_grad():
                    found.append(losses(folded, images))
            folded.prefixes[block].bias = None
            slope = -(found[0] - found[1]) / (2 * small)
            close(signed[block][prompt].double(), slope.mean(), 1e-5)
            close(absolute[block][prompt].double(), slope.abs().mean(), 1e-5)


def test_labels_are_not_read_without_labels():
    model = attached("beit-both", vprompt.VPT(3), dtype=torch.float64)
    images = some_images("beit-both", 4, dtype=torch.float64)
    for criterion in ("pseudo-label", "feature-change"):
        one, other = (
            vprompt.score(model, TensorDataset(images, labels), criterion=criterion) for labels in (LABELS, 4 - LABELS)
        )
        assert all(map(torch.equal, one, other))
    own = model(images).argmax(1)
    wanted = vprompt.score(model, TensorDataset(images, own), criterion="taylor")
    found = vprompt.score(model, TensorDataset(images, LABELS), criterion="pseudo-label")
    assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("name", ["class-of-its-own", "swin-padded"])
def test_feature_change_tends_to_the_length_of_the_change(name):
    """Against the whole Jacobian: the mean over images of |J d|, estimated by one direction for each image."""
    if name == "swin-padded":
        model = attached(name, vprompt.VPT(2), counts=[1, 2], dtype=torch.float64)
        image = some_images(name, 1, dtype=torch.float64)
    else:
        torch.manual_seed(0)
        model = vprompt.attach(
            timm.create_model("test_vit", img_size=32).double(), vprompt.VPT(2), head_init="paper", num_classes=5
        ).eval()
        image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    many = 600
    data = TensorDataset(image.expand(many, -1, -1, -1), torch.zeros(many, dtype=torch.int64))
    found = vprompt.score(model, data, criterion="feature-change", batch_size=50)
    again = vprompt.score(model, data, criterion="feature-change", batch_size=64)
    for block, count in enumerate(model.prompt_counts):
        close(found[block], again[block], 1e-5)
        for prompt in range(count):

            def features(times, block=block, prompt=prompt):
                values = [p.detach().clone() for p in model.prompts]
                values[block][prompt] *= times
                return model.copy(prompts=Prompts(values)).eval().features(image)[0].detach()

            small = 1e-4
            length = float(((features(1 + small) - features(1 - small)) / (2 * small)).norm())
            # One direction errs by 0.756 of the length: four standard errors of the mean of 600.
            assert abs(float(found[block][prompt]) - length) < 4 * 0.756 / math.sqrt(many) * length + 1e-9


@pytest.mark.parametrize("criterion", ["removal", "removal-signed"])
def test_what_removal_says_nothing_of(criterion):
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    backbone = timm.create_model("test_vit", img_size=32)
    shallow = vprompt.attach(backbone, vprompt.VPT(2, "shallow"), head_init="paper", num_classes=2)
    with pytest.raises(VPromptError, match="deep prompts"):
        vprompt.score(shallow, TensorDataset(images, labels), criterion=criterion)
    deep = vprompt.attach(backbone, vprompt.VPT(2), head_init="paper", num_classes=2)
    with pytest.raises(VPromptError, match="whole prompts"):
        vprompt.score(deep, TensorDataset(images, labels), criterion=criterion, segments=4)
    with pytest.raises(VPromptError, match="deep prompts"):
        settings_from({"backbone": "test_vit", "method": "vpt-shallow", "condense": 0.5, "criterion": criterion})


def test_scoring_leaves_no_trace():
    model = attached("beit-both", vprompt.VPT(3), dtype=torch.float64).train()
    images = some_images("beit-both", 4, dtype=torch.float64)
    before = model.eval()(images)
    model.train()
    for criterion in ("removal", "feature-change", "taylor"):
        vprompt.score(model, TensorDataset(images, LABELS), criterion=criterion)
        assert model.training
        assert model.prompts.recorded is None
        assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.eval()(images), before)


# ── planted prompts ──────────────────────────────────────────────────────────────────────────────────────────────────


def planted(seed):
    """A trained model in which one prompt of a block was made to do harm, and others to be seen by no query."""
    torch.manual_seed(seed)
    backbone = timm.create_model("test_vit", img_size=32, num_classes=0)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 4
    images += 0.7 * torch.nn.functional.interpolate(torch.randn(4, 3, 4, 4), 32)[labels]
    model = vprompt.attach(backbone, vprompt.VPT(5, dropout=0.0), num_classes=4, head_init="zero")
    data = TensorDataset(images, labels)
    vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=25, lr=0.01, batch_size=32, seed=seed))
    harmful, useless = (2, 1), [(0, 3), (4, 0)]
    own = model.copy().eval()
    pushed = alone(own, own.prompts[harmful[0]])
    optimizer = torch.optim.Adam([pushed], lr=0.05)
    rest = pushed.detach().clone()
    for _ in range(40):
        optimizer.zero_grad()
        (-F.cross_entropy(own(images), labels)).backward()
        optimizer.step()
        with torch.no_grad():
            others = [p for p in range(5) if p != harmful[1]]
            pushed[others] = rest[others]
    for block, prompt in useless:
        make_useless(own, block, prompt, images)
    own.prompts.requires_grad_(True)
    own.head.requires_grad_(True)
    return own.eval(), data, harmful, useless


def alone(model, values):
    """Of all that the model learns, these values alone are to have gradients: others take time."""
    for parameter in model.learned.values():
        parameter.requires_grad_(False)
    return values.requires_grad_(True)


def make_useless(model, block, prompt, images):
    """Changes a prompt until the model says with it what it says without it."""
    left = [torch.arange(5) for _ in model.prompts]
    left[block] = left[block][left[block] != prompt]
    with torch.no_grad():
        wanted = model.keep(left).eval()(images)
    values = alone(model, model.prompts[block])
    optimizer = torch.optim.Adam([values], lr=0.03)
    rest = values.detach().clone()
    others = [p for p in range(5) if p != prompt]
    for _ in range(250):
        optimizer.zero_grad()
        (model(images) - wanted).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            values[others] = rest[others]


@pytest.fixture(scope="module")
def harmed():
    return planted(0)


def test_planted_harm_is_found_by_signed_scores(harmed):
    model, data, harmful, _ = harmed
    for criterion in ("removal-signed", "taylor-signed"):
        scores = vprompt.score(model, data, criterion=criterion)
        worst = min(((float(s), (b, p)) for b, block in enumerate(scores) for p, s in enumerate(block)))
        assert worst[0] < 0
        if criterion == "removal-signed":
            assert worst[1] == harmful
    size = vprompt.score(model, data, criterion="removal")
    assert max((float(s), (b, p)) for b, block in enumerate(size) for p, s in enumerate(block))[1] == harmful
    kept = vprompt.select(vprompt.score(model, data, criterion="removal-signed"), ratio=29 / 30)
    assert harmful[1] not in kept[harmful[0]].tolist()
    assert vprompt.evaluate(model.keep(kept), data).loss < vprompt.evaluate(model, data).loss


def test_planted_uselessness_is_found_by_removal(harmed):
    from vprompt.analysis.scores.measure import ablate

    model, data, _, useless = harmed
    exact = ablate(model, data)
    scores = vprompt.score(model, data, criterion="removal")
    order = sorted(((float(s), (b, p)) for b, block in enumerate(scores) for p, s in enumerate(block)))
    lowest = {place for _, place in order[: len(useless)]}
    truly = sorted(((c, (b, p)) for b, block in enumerate(exact.change) for p, c in enumerate(block)))
    assert {place for _, place in truly[: len(useless)]} == set(useless)
    assert lowest == set(useless)


def test_removal_does_not_mind_the_length_of_a_prompt_that_its_norm_undoes():
    torch.manual_seed(1)
    backbone = timm.create_model("test_vit", img_size=32).double()
    model = vprompt.attach(backbone, vprompt.VPT(3), head_init="paper", num_classes=4).eval()
    data = TensorDataset(torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.arange(6) % 4)
    longer = model.copy()
    with torch.no_grad():
        for prompts in longer.prompts:
            prompts[1] *= 30
    for criterion, the_same in (("removal", True), ("taylor", False)):
        one, other = (torch.cat(vprompt.score(each, data, criterion=criterion)) for each in (model, longer))
        assert torch.allclose(one, other, rtol=0.05, atol=0) == the_same
    assert bool((other.view(-1, 3)[:, 1] < 0.01 * one.view(-1, 3)[:, 1]).all())


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prompts_that_are_the_same_are_merged_exactly():
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", img_size=32).double()
    model = vprompt.attach(backbone, vprompt.VPT(3), head_init="paper", num_classes=4).eval()
    # Twice as long, and moved along all channels: the norm before attention sees the same prompt.
    values = [torch.cat([p, 2 * p + 0.3, p[:1]]).detach() for p in model.prompts]
    model = model.copy(prompts=Prompts(values))
    small = merge(model, [torch.arange(3)] * 6)
    assert small.prompt_counts == [3] * 6
    assert all(sorted(numbers) == [2, 2, 3] for numbers in small.prompts.multiplicity)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    close(small(images), model(images), 1e-3)  # up to the epsilon of the norm, which length does not leave alone
    assert not torch.allclose(model.keep([torch.arange(3)] * 6)(images), model(images), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [*EACH_CLASS[:4], "cait", "diff-qk-norm"])
def test_merging_keeps_the_numbers_per_block_and_all_prompts(name):
    model = attached(name, vprompt.VPT(6), dtype=torch.float64)
    kept = [
        torch.tensor([5, 1, 3][: block % 4], dtype=torch.int64).sort().values for block in range(len(model.prompts))
    ]
    small = merge(model, kept)
    assert small.prompt_counts == [len(index) for index in kept]
    for block, index in enumerate(kept):
        assert sum(small.prompts.multiplicity[block]) == (6 if len(index) else 0)
        assert min(small.prompts.multiplicity[block], default=1) >= 1
    images = some_images(name, 2, dtype=torch.float64)
    close(small.copy(execution="published").eval()(images), small.eval()(images), 1e-10)
    close(small.fold()(images), small(images), 1e-10)
    again = merge(small, [torch.arange(len(index))[:1] for index in kept])
    assert again.prompts.num_tokens == [6 if len(i) else 0 for i in kept]


def test_keeping_all_merges_nothing():
    model = attached("beit-both", vprompt.VPT(4), dtype=torch.float64)
    small = merge(model, [torch.arange(4)] * len(model.prompts))
    assert not small.prompts.merged
    images = some_images("beit-both", 2, dtype=torch.float64)
    close(small(images), model(images), 1e-9)


def test_condense_merges_and_says_so(tmp_path):
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", img_size=32)
    model = vprompt.attach(backbone, vprompt.VPT(4), head_init="paper", num_classes=2)
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)
    recipe = vprompt.Recipe(epochs=2, batch_size=4)
    small = vprompt.condense(model, data, ratio=0.25, scope="local", merge=True, recipe=recipe)
    assert small.prompt_counts == [1] * 6
    assert small.prompts.multiplicity == [[4]] * 6
    assert small.condensation.merge
    small.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=backbone)
    assert again.condensation == small.condensation
    images = data.tensors[0]
    assert torch.equal(again(images), small(images))
    assert "merged" in (tmp_path / "README.md").read_text()


def test_what_cannot_be_merged_is_said_before_anything_is_run():
    backbone = timm.create_model("test_vit", img_size=32)
    shallow = vprompt.attach(backbone, vprompt.VPT(2, "shallow"), head_init="paper", num_classes=2)
    data = TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(VPromptError, match="Shallow prompts cannot be merged"):
        vprompt.condense(shallow, data, merge=True)
    with pytest.raises(VPromptError, match="Shallow prompts cannot be merged"):
        settings_from({"backbone": "test_vit", "method": "vpt-shallow", "condense": 0.5, "merge": True})
    deep = vprompt.attach(backbone, vprompt.VPT(2), head_init="paper", num_classes=2)
    halved = deep.keep([torch.arange(2)] * 6, [torch.tensor([[True, False]] * 2)] * 6)
    with pytest.raises(VPromptError, match="segments were pruned"):
        merge(halved, [torch.arange(1)] * 6)


def test_a_checkpoint_of_dropped_prompts_is_none_of_merged_ones(tmp_path):
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(4), head_init="paper", num_classes=2)
    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % 2)
    options = {"ratio": 0.5, "scope": "local", "criterion": "magnitude", "checkpoint": tmp_path / "tuning.safetensors"}
    recipe = vprompt.Recipe(epochs=1, batch_size=4)
    vprompt.condense(model, data, recipe=recipe, **options)
    with pytest.raises(VPromptError, match="copies"):
        vprompt.condense(model, data, recipe=recipe, merge=True, resume=True, **options)


def test_where_no_norm_stands_before_attention_a_merged_prompt_is_the_mean():
    model = attached("swin2", vprompt.VPT(4), dtype=torch.float64)
    small = merge(model, [torch.tensor([0])] * len(model.prompts))
    for before, after in zip(model.prompts, small.prompts, strict=True):
        close(after[0], before.mean(0), 1e-12)


def test_what_fit_and_condense_cannot_merge_is_said_before_images_are_read(tmp_path, capsys):
    where = ["--out", str(tmp_path / "run")]
    assert main(["fit", str(tmp_path), "--merge", *where]) == 2
    assert "--condense" in capsys.readouterr().err
    shallow = vprompt.attach(
        create_backbone(BUNDLED_BACKBONE), vprompt.VPT(2, "shallow"), head_init="paper", num_classes=2
    )
    shallow.save_pretrained(tmp_path / "shallow")
    for option, words in (["--merge"], "cannot be merged"), (["--criterion", "removal"], "deep prompts"):
        assert main(["condense", str(tmp_path / "shallow"), str(tmp_path), *option, *where]) == 1
        assert words in capsys.readouterr().err
