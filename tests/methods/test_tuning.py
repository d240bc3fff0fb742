"""Methods that learn in the backbone or beside it: what they compute, what they learn, and that the backbone stays."""

import copy
import functools
import hashlib
import json
import signal

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import families
import vprompt
from families import blocks_of, some_images
from vprompt.model.cost import model_cost
from vprompt.training.trainer import Interrupted
from vprompt.utils.errors import AdapterError, BackboneError, VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

BACKBONES = {
    "vit": families.vit,
    "vit-avg": lambda: families.vit(global_pool="avg", reg_tokens=2, init_values=1e-5),
    **{name: families.BACKBONES[name] for name in ("beit", "eva", "eva-rope-unfused", "swin", "swin2", "cait", "sam")},
    **{name: families.BACKBONES[name] for name in ("dinov3", "gqa", "swin-cr", "qwen3", "diff", "relpos-bias-token")},
}
"""Projections in one and in three, with biases in them, beside them and none; sequences and windows."""
METHODS = {
    "full": vprompt.Full(),
    "partial": vprompt.Partial(2),
    "bias": vprompt.Bias(),
    "adapter": vprompt.Adapter(reduction=5),
    "adapter-plus": vprompt.AdapterPlus(rank=5),
    "lora": vprompt.LoRA(rank=3, alpha=4.5),
    "lora-all": vprompt.LoRA(rank=3, alpha=4.5, targets="all"),
    "side": vprompt.Side(width=4),
    "mlp": vprompt.MLP(layers=3),
}
CLASSES = 5
CLASSIFIERS = ("head.weight", "head.bias", "head.fc.weight", "head.fc.bias")
AFTER = {"cait": ("blocks_token_only.", "norm."), "sam": ("neck.", "head.")}
"""What stands after the last block, where it is more than norms."""
EVERY = [(name, method) for name in BACKBONES for method in METHODS]
every_pair = pytest.mark.parametrize(("name", "method"), EVERY)


def shaken(model, seed=0):
    """The model with random numbers added to all that is learned, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.learned.values():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return model


def attached(name, method):
    """A model of its own each time; attaching finds out what reaches the features, which takes longer than copying."""
    model, generator = _attached(name, method)
    torch.set_rng_state(generator)
    return copy.deepcopy(model)


@functools.cache
def _attached(name, method):
    torch.manual_seed(3)
    model = vprompt.attach(BACKBONES[name](), METHODS[method], head_init="paper", num_classes=CLASSES)
    return model, torch.get_rng_state()


def images(name, batch=2):
    return some_images(name, batch, dtype=torch.float64, size=families.IMAGE_SIZES.get(name))


def plain(backbone, x):
    return backbone.forward_head(backbone.forward_features(x), pre_logits=True)


def state(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def near(found, wanted, tolerance=1e-10):
    assert found.shape == wanted.shape
    found = found.detach()
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


# ── slow, independent references ─────────────────────────────────────────────────────────────────────────────────────


def bottleneck(values, path):
    def hook(module, inputs, output):
        hidden = F.linear(output, values[f"{path}.down.weight"], values[f"{path}.down.bias"])
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        return output + F.linear(hidden, values[f"{path}.up.weight"], values[f"{path}.up.bias"])

    return hook


def scaled_bottleneck(values, path):
    def hook(module, inputs, output):
        v = {name: values[f"{path}.adapter.{name}"] for name in ("scale", "down.weight", "down.bias")}
        hidden = output @ v["down.weight"].T + v["down.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        up = hidden @ values[f"{path}.adapter.up.weight"].T + values[f"{path}.adapter.up.bias"]
        return output + v["scale"] * up

    return hook


def beside(values, x):
    for number, groups in enumerate((4, 8, 8, 8)):
        at = f"side.layers.{number}"
        x = F.conv2d(x, values[f"{at}.0.weight"], values[f"{at}.0.bias"], stride=2, padding=1)
        x = F.gelu(F.group_norm(x, groups, values[f"{at}.1.weight"], values[f"{at}.1.bias"]))
    return F.linear(x.flatten(2).mean(-1), values["side.out.weight"], values["side.out.bias"])


def reference(model, x):
    """Logits of the same model: timm's own forward of a copy of the backbone, with the values put in by hand."""
    values = {name: p.detach() for name, p in model.tuned.named_parameters()}
    twin, method = copy.deepcopy(model.backbone), model.method
    if method.name in ("full", "partial", "bias"):
        assert not twin.load_state_dict(values, strict=False).unexpected_keys
    elif method.name == "lora":
        for path in {name.rpartition(".")[0] for name in values}:
            twin.get_submodule(path).weight += 1.5 * values[f"{path}.lora_B"] @ values[f"{path}.lora_A"]
    elif method.name == "adapter":
        paths = {id(module): path for path, module in twin.named_modules()}
        for block in blocks_of(twin):
            block.mlp.register_forward_hook(bottleneck(values, paths[id(block.mlp)]))
    elif method.name == "adapter-plus":
        paths = {id(module): path for path, module in twin.named_modules()}
        for block in blocks_of(twin):
            block.register_forward_hook(scaled_bottleneck(values, paths[id(block)]))
    features = plain(twin, x)
    if method.name == "side":
        share = 1 / (1 + torch.exp(-values["side.mixing"]))
        features = share * features + (1 - share) * beside(values, x)
    if method.name == "mlp":
        for layer in model.head.hidden:
            features = F.gelu(features @ layer.weight.T + layer.bias)
        return features @ model.head.classifier.weight.T + model.head.classifier.bias
    return features @ model.head.weight.T + model.head.bias


@every_pair
@torch.no_grad()
def test_a_learned_model_is_timms_own_with_the_values_put_in(name, method):
    model, x = shaken(attached(name, method)), images(name)
    wanted = reference(model, x)
    near(model(x), wanted)
    near(model.copy(execution="published").eval()(x), wanted)
    near(model.fold()(x), wanted)
    assert float((wanted - model.head(plain(model.backbone, x))).abs().max()) > 1e-3 or method == "mlp"


@every_pair
@torch.no_grad()
def test_training_starts_at_the_backbones_function(name, method):
    model, x = attached(name, method).double(), images(name)
    if method == "adapter-plus":  # starts near it, with weights of about 0.01
        near(model.eval().features(x), plain(model.backbone, x), 0.2)
        return
    near(model.eval().features(x), plain(model.backbone, x) * (0.5 if method == "side" else 1))


# ── what is learned ──────────────────────────────────────────────────────────────────────────────────────────────────


def projections(attention):
    """Inputs and outputs of the projections to queries, keys and values."""
    if getattr(attention, "qkv", None) is not None:
        return [tuple(reversed(attention.qkv.weight.shape))]
    return [tuple(reversed(p.weight.shape)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]


def linear_layers(block):
    """Those of attention and MLP, without tables of positions that attention computes by some of its own."""
    names = ("qkv", "q_proj", "k_proj", "v_proj", "proj")
    inside = [m for name, m in block.attn.named_children() if name in names and type(m) is nn.Linear]
    return inside + [m for m in block.mlp.modules() if type(m) is nn.Linear]


def biases(backbone):
    """All biases that modules of torch and timm have; those of attention whose projection has none of its own."""
    found = 0
    for module in backbone.modules():
        own = dict(module.named_parameters(recurse=False))
        found += sum(own[key].numel() for key in ("bias", "q_bias", "v_bias") if key in own)
    return found - 7  # the classifier's


def expected_count(name, method, backbone, features):
    sizes = {key: p.numel() for key, p in backbone.named_parameters() if key not in CLASSIFIERS}
    widths = families.widths_of(backbone)
    if method == "full":
        return sum(sizes.values())
    if method == "partial":
        paths = {id(module): path for path, module in backbone.named_modules()}
        inside = tuple(f"{paths[id(block)]}." for block in blocks_of(backbone)[-2:])
        after = AFTER.get(name, ("norm.", "fc_norm.", "encoder.norm."))
        return sum(size for key, size in sizes.items() if key.startswith((*inside, *after)))
    if method == "bias":
        return biases(backbone)
    if method == "adapter":
        return sum(2 * d * (d // 5) + d // 5 + d for d in widths)
    if method == "adapter-plus":
        return sum(2 * d * 5 + 5 + 2 * d for d in widths)
    if method == "lora-all":
        found = [(m.in_features, m.out_features) for block in blocks_of(backbone) for m in linear_layers(block)]
        return sum(3 * (i + o) for i, o in found)
    if method == "lora":
        return sum(3 * (i + o) for block in blocks_of(backbone) for i, o in projections(block.attn))
    if method == "side":
        convolutions = sum(9 * a * b + 3 * b for a, b in ((3, 4), (4, 8), (8, 16), (16, 32)))
        return convolutions + 32 * features + features + 1
    return 2 * (features**2 + features)  # mlp


@every_pair
def test_as_many_numbers_are_learned_as_the_formulas_say(name, method):
    model = attached(name, method)
    features = model.info.num_features
    assert model.num_learned == expected_count(name, method, BACKBONES[name](), features) + CLASSES * (features + 1)
    assert {n.split(".")[0] for n in model.learned} == ({"head"} if method == "mlp" else {"tuned", "head"})


def test_a_vit_has_the_counts_of_the_textbook():
    d, f, blocks = 32, 128, 3
    block = (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    one = vprompt.attach(families.vit(), vprompt.Partial(1), head_init="paper", num_classes=2)
    assert one.num_learned == block + 2 * d + 2 * (d + 1)
    bias = vprompt.attach(families.vit(), vprompt.Bias(), head_init="paper", num_classes=2)
    assert bias.num_learned == d + blocks * (3 * d + d + f + d + 2 * d) + d + 2 * (d + 1)
    assert {"tuned.blocks.0.attn.qkv.bias", "tuned.norm.bias"} <= set(bias.learned)


def test_tables_of_relative_positions_are_no_biases():
    names = attached("beit", "bias").learned
    assert not any("table" in name for name in names)
    assert {"tuned.blocks.0.attn.q_bias", "tuned.blocks.0.attn.v_bias"} <= set(names)


def test_parameters_that_reach_no_feature_are_not_learned():
    """timm registers them all the same; data-parallel training would wait for their gradients."""
    backbone = families.vit()
    backbone.unused = nn.Linear(3, 3)
    wanted = attached("vit", "full").num_learned
    for method in (vprompt.Full(), vprompt.Bias(), vprompt.Partial(3)):
        model = vprompt.attach(backbone, method, head_init="paper", num_classes=CLASSES)
        assert not any("unused" in name or name.startswith("tuned.head") for name in model.learned)
    assert vprompt.attach(backbone, vprompt.Full(), num_classes=CLASSES).num_learned == wanted


@torch.no_grad()
def test_a_parameter_in_two_places_is_one_and_changes_in_both():
    backbone = families.vit()
    backbone.blocks[2].mlp = backbone.blocks[0].mlp
    model = shaken(vprompt.attach(backbone, vprompt.Full(), head_init="paper", num_classes=CLASSES))
    shared = sum(p.numel() for p in backbone.blocks[0].mlp.parameters())
    assert model.num_learned == attached("vit", "full").num_learned - shared
    x = images("vit")
    twin = copy.deepcopy(backbone)
    for name, p in model.tuned.named_parameters():
        twin.get_parameter(name).copy_(p)
    near(model.features(x), plain(twin, x))


@every_pair
def test_gradients_reach_all_that_is_learned(name, method):
    for execution in ("prefix", "published"):
        model = shaken(attached(name, method).copy(execution=execution))
        F.cross_entropy(model(images(name, 3)), torch.tensor([0, 1, 4])).backward()
        still = {n for n, p in model.learned.items() if p.grad is None or not bool(p.grad.any())}
        assert still == set()
        assert all(p.grad is None for p in model.backbone.parameters())


# ── the backbone stays ───────────────────────────────────────────────────────────────────────────────────────────────


def steps(model, count=3, name="vit"):
    optimizer = torch.optim.SGD(model.learned.values(), lr=0.1)
    for seed in range(count):
        optimizer.zero_grad()
        x = some_images(name, 3, seed=seed, size=families.IMAGE_SIZES.get(name))
        F.cross_entropy(model(x.to(model.head.weight.dtype)), torch.tensor([0, 1, 4])).backward()
        optimizer.step()


@every_pair
def test_training_leaves_the_backbone_as_it_was_and_detach_gives_it_back(name, method):
    backbone = BACKBONES[name]().train()
    next(backbone.parameters()).requires_grad_(False)
    before = state(backbone)
    tree = {path: (type(m), m.training, set(vars(m))) for path, m in backbone.named_modules()}
    wanted = {path: p.requires_grad for path, p in backbone.named_parameters()}
    model = vprompt.attach(backbone, METHODS[method], head_init="paper", num_classes=CLASSES)
    start = {n: p.detach().clone() for n, p in model.learned.items()}
    steps(model, name=name)
    moved = {n for n, p in model.learned.items() if not torch.equal(p, start[n])}
    assert any(n.startswith("head.hidden" if method == "mlp" else "tuned") for n in moved)
    assert same(state(backbone), before)
    assert model.detach() is backbone
    assert {path: (type(m), m.training, set(vars(m))) for path, m in backbone.named_modules()} == tree
    assert {path: p.requires_grad for path, p in backbone.named_parameters()} == wanted


def test_models_over_one_backbone_do_not_see_each_other():
    backbone, x = families.vit().double(), images("vit")
    models = {
        key: vprompt.attach(backbone, method, head_init="paper", num_classes=CLASSES) for key, method in METHODS.items()
    }
    models["vpt"] = vprompt.attach(backbone, vprompt.VPT(3), head_init="paper", num_classes=CLASSES)
    with torch.no_grad():
        before = {key: model.eval()(x) for key, model in models.items()}
    for changed in METHODS:
        steps(models[changed].train())
        with torch.no_grad():
            after = {key: model.eval()(x) for key, model in models.items()}
        assert [key for key in models if not torch.equal(after[key], before[key])] == [changed]
        before = after


@pytest.mark.parametrize("method", METHODS)
def test_a_model_moves_between_types(method):
    model, x = attached("vit", method), some_images("vit", 2)
    shaken(model)
    wanted = model(x.double()).detach()
    assert model.float()(x).dtype == torch.float32
    near(model(x).double(), wanted, 1e-4)
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert {p.dtype for p in model.view.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_in_half_a_type_from_the_start(method):
    model = vprompt.attach(families.vit().bfloat16(), METHODS[method], head_init="paper", num_classes=CLASSES)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    steps(model)


# ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", [lambda model: model.copy(), copy.deepcopy])
def test_a_copy_is_equal_and_independent(method, copied):
    model, x = shaken(attached("swin2", method)), images("swin2")
    generator = torch.get_rng_state()
    twin = copied(model)
    assert torch.equal(torch.get_rng_state(), generator)
    wanted = model(x)
    assert torch.equal(twin(x), wanted)
    assert not {id(p) for p in twin.learned.values()} & {id(p) for p in model.learned.values()}
    steps(twin.train(), name="swin2")
    assert torch.equal(model(x), wanted)
    assert not torch.equal(twin.eval()(x), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_folded_model_learns_nothing_and_outlives_its_source(method):
    model, x = shaken(attached("eva", method)), images("eva")
    folded = model.fold()
    wanted = folded(x)
    assert not any(p.requires_grad for p in folded.parameters())
    steps(model.train(), name="eva")
    assert torch.equal(folded(x), wanted)


@pytest.mark.parametrize("name", ["vit", "eva", "gqa", "swin2", "cait"])
def test_folded_low_rank_updates_are_plain_weights_and_cost_nothing(name):
    model = shaken(attached(name, "lora"))
    folded = model.fold()
    bare = vprompt.attach(BACKBONES[name](), vprompt.Linear(), head_init="paper", num_classes=CLASSES)
    assert model_cost(model).folded_gmacs == model_cost(bare).folded_gmacs
    assert model_cost(model).prefix_gmacs > model_cost(bare).prefix_gmacs
    assert {type(m) for m in folded.view.modules()} == {type(m) for m in bare.fold().view.modules()}


def test_low_rank_updates_stay_out_of_the_backbone():
    backbone = families.vit()
    model = vprompt.attach(backbone, vprompt.LoRA(), head_init="paper", num_classes=2)
    assert type(backbone.blocks[0].attn.qkv) is nn.Linear
    assert type(model.view.get_submodule("blocks.0.attn.attention.qkv")) is not nn.Linear
    assert not any("lora" in name for name in backbone.state_dict())


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_costs_follow_closed_formulas():
    """A ViT of 3 blocks of width 32 over 16 patches of 8x8 and a class token; the last block is cut to that."""
    bare = model_cost(vprompt.attach(families.vit(), vprompt.Linear(), head_init="paper", num_classes=2))
    tokens, h, d = 17, 32 // 5, 32
    added = {
        "full": (0, 0),
        "bias": (0, 0),
        "adapter": (3 * tokens * 2 * d * h, (2 * tokens + 1) * 2 * d * h),
        "side": (_side_macs(4, d),) * 2,
        "mlp": (2 * d * d,) * 2,
    }
    for method, (published, folded) in added.items():
        found = model_cost(vprompt.attach(families.vit(), METHODS[method], head_init="paper", num_classes=2))
        assert found.published_gmacs == pytest.approx(bare.published_gmacs + published / 1e9, rel=1e-12)
        assert found.folded_gmacs == pytest.approx(bare.folded_gmacs + folded / 1e9, rel=1e-12)
        assert found.prompt_params == 0


def _side_macs(width, features):
    channels, sides = (3, width, 2 * width, 4 * width, 8 * width), (16, 8, 4, 2)
    total = sum(9 * a * b * s * s for a, b, s in zip(channels, channels[1:], sides, strict=False))
    return total + channels[-1] * features


# ── saved and loaded ─────────────────────────────────────────────────────────────────────────────────────────────────


@every_pair
@torch.no_grad()
def test_saved_and_loaded_is_the_same_bit_for_bit(name, method, tmp_path):
    model, x = shaken(attached(name, method)), images(name)
    model.save_pretrained(tmp_path)
    generator = torch.get_rng_state()
    again = vprompt.load(tmp_path, model.backbone)
    assert torch.equal(torch.get_rng_state(), generator)
    assert again.method == METHODS[method]
    assert again.learned.keys() == model.learned.keys()
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(model.learned)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("method", METHODS)
def test_the_card_says_what_was_learned(method, tmp_path):
    model = attached("vit", method)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"| Learned | {model.num_learned:,} numbers in all |" in text
    assert "prompt" not in text.lower().replace("vprompt", "")
    assert METHODS[method].name in text


def forge(folder, change):
    """Changes the tensors and makes the configuration vouch for them."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    document = json.loads(config.read_text(encoding="utf-8"))
    del document["checksum"]
    document["tensors_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    config.write_text(json.dumps(document), encoding="utf-8")


BIAS = "tuned.blocks.1.attn.qkv.bias"
FORGED = {
    "missing": ("bias", lambda t: t.pop(BIAS), f"lacks the tensor '{BIAS}' that adapter_config.json calls for"),
    "of another method": (
        "bias",
        lambda t: t.update({"tuned.blocks.1.attn.qkv.weight": torch.zeros(96, 32)}),
        "has a tensor 'tuned.blocks.1.attn.qkv.weight' that adapter_config.json does not call for",
    ),
    "classifier": ("full", lambda t: t.update({"tuned.head.bias": torch.zeros(7)}), "'tuned.head.bias'"),
    "for a probe": ("mlp", lambda t: t.update({"tuned.norm.bias": torch.zeros(32)}), "'tuned.norm.bias'"),
    "too long": ("bias", lambda t: t.update({BIAS: torch.zeros(97)}), "shape 97, not 96"),
    "too deep": ("bias", lambda t: t.update({BIAS: torch.zeros(96, 1)}), "shape 96×1, not 96"),
    "rank": ("lora", lambda t: t.update({"tuned.blocks.0.attn.qkv.lora_A": torch.zeros(2, 32)}), "2×32, not 3×32"),
    "not finite": ("bias", lambda t: t[BIAS].fill_(torch.nan), f"'{BIAS}' .*NaN or infinite"),
    "whole numbers": ("bias", lambda t: t.update({BIAS: torch.zeros(96).long()}), "not floating point"),
    "hidden layer missing": ("mlp", lambda t: t.pop("head.hidden.1.bias"), "lacks the tensor 'head.hidden.1.bias'"),
    "hidden layer more": ("mlp", lambda t: t.update({"head.hidden.2.bias": torch.zeros(32)}), "'head.hidden.2.bias'"),
    "hidden layer wide": ("mlp", lambda t: t.update({"head.hidden.0.weight": torch.zeros(33, 32)}), "33×32, not 32×32"),
    "hidden layer long": (
        "mlp",
        lambda t: t.update({"head.hidden.0.weight": torch.zeros(32, 33)}),
        "has the shape 32×33, not 32×32",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_tensors_that_do_not_fit_are_named(case, tmp_path):
    method, change, match = FORGED[case]
    model = attached("vit", method)
    model.save_pretrained(tmp_path)
    forge(tmp_path, change)
    before = state(model.backbone)
    with pytest.raises(AdapterError, match=match) as error:
        vprompt.load(tmp_path, model.detach())
    assert str(error.value).endswith(".")
    assert same(state(model.backbone), before)


@pytest.mark.parametrize(("method", "field"), [("lora", "rank"), ("side", "width"), ("mlp", "layers")])
def test_a_forged_size_is_refused_before_memory_is_asked_for(method, field, tmp_path):
    model = attached("vit", method)
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    document = json.loads(config.read_text(encoding="utf-8"))
    del document["checksum"]
    document["method"][field] = 10**15
    config.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(AdapterError, match=str(10**15)):
        vprompt.load(tmp_path, model.detach())


# ── trained, stopped, resumed ────────────────────────────────────────────────────────────────────────────────────────


class Signalling(Dataset):
    """Ten images; sends Ctrl-C while an item is fetched for the given time, never with 0."""

    def __init__(self, at=0):
        self.images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(4))
        self.at, self.fetched = at, 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.fetched += 1
        if self.fetched == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.images[index], int(index) % CLASSES


@pytest.mark.parametrize("method", [method for method in METHODS if method != "mlp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stopped_and_resumed_is_uninterrupted(method, optimizer, tmp_path):
    recipe = vprompt.Recipe(epochs=2, batch_size=4, seed=2, optimizer=optimizer)
    whole = attached("vit", method)
    history = vprompt.fit(whole, Signalling(), recipe=recipe)
    file = tmp_path / "state"
    with pytest.raises(Interrupted):
        vprompt.fit(attached("vit", method), Signalling(at=14), recipe=recipe, checkpoint=file)
    torch.manual_seed(99)
    other = vprompt.attach(BACKBONES["vit"](), METHODS[method], head_init="paper", num_classes=CLASSES)
    assert vprompt.fit(other, Signalling(), recipe=recipe, checkpoint=file, resume=True).rows == history.rows
    assert same(dict(other.learned), dict(whole.learned))
    for model, folder in ((whole, "whole"), (other, "other")):
        model.save_pretrained(tmp_path / folder)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_deeper_head_trains_on_features_computed_once():
    data = Signalling()
    model = attached("vit", "mlp")
    start = {n: p.detach().clone() for n, p in model.learned.items()}
    vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=5, batch_size=4))
    assert data.fetched == 10
    assert all(not torch.equal(p, start[n]) for n, p in model.learned.items())


@pytest.mark.parametrize(
    ("method", "share"),
    [*((METHODS[m], s) for m, s in (("full", 0.04), ("partial", 0.2), ("bias", 1.0), ("mlp", 0.2))), (None, 1.0)],
)
def test_the_rate_that_a_method_takes_is_recorded(method, share):
    for optimizer, default in (("adamw", 0.005), ("sgd", 5.0)):
        model = vprompt.attach(families.vit(), method or vprompt.VPT(2), head_init="paper", num_classes=CLASSES)
        vprompt.fit(model, Signalling(), recipe=vprompt.Recipe(epochs=0, optimizer=optimizer))
        assert model.recipe.lr == pytest.approx(default * share, rel=1e-12)
        vprompt.fit(model, Signalling(), recipe=vprompt.Recipe(epochs=0, optimizer=optimizer, lr=0.3))
        assert model.recipe.lr == 0.3


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_what_can_be_learned(method):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    bright = torch.randn(24, 3, 32, 32, generator=generator) + 1.5 * (labels - 0.5).view(-1, 1, 1, 1)
    torch.manual_seed(0)
    model = vprompt.attach(families.vit(), METHODS[method], num_classes=2, head_init="zero")
    history = vprompt.fit(
        model, TensorDataset(bright, labels), recipe=vprompt.Recipe(epochs=30, batch_size=8, lr=0.005)
    )
    assert history.rows[-1]["accuracy"] == 1
    assert history.rows[-1]["loss"] < 0.1 * history.rows[0]["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_trains(method):
    model = attached("vit", method)
    vprompt.fit(model, Signalling(), recipe=vprompt.Recipe(epochs=1, batch_size=4, precision="bf16"))
    assert {p.dtype for p in model.learned.values()} == {torch.float32}


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vprompt.Partial(0), "blocks of Partial must be at least 1, not 0"),
        (lambda: vprompt.Partial(-3), "not -3"),
        (lambda: vprompt.MLP(1), "at least 2 and at most 100, not 1"),
        (lambda: vprompt.MLP(101), "not 101"),
        (lambda: vprompt.Adapter(reduction=0), "at least 1, not 0"),
        (lambda: vprompt.LoRA(rank=0), "at least 1 .*not 0"),
        (lambda: vprompt.LoRA(alpha=0.0), "above 0, not 0.0"),
        (lambda: vprompt.LoRA(alpha=float("nan")), "not nan"),
        (lambda: vprompt.LoRA(alpha=float("inf")), "not inf"),
        (lambda: vprompt.Side(width=0), "at least 1 .*not 0"),
    ],
)
def test_nonsense_is_refused(make, match):
    with pytest.raises(VPromptError, match=match):
        make()


def test_an_adapter_is_never_without_width():
    model = vprompt.attach(families.vit(), vprompt.Adapter(reduction=1000), head_init="paper", num_classes=2)
    assert model.learned["tuned.blocks.0.mlp.down.weight"].shape == (1, 32)


def wrapped(backbone):
    backbone.blocks[1].attn.qkv = nn.Sequential(backbone.blocks[1].attn.qkv)
    backbone.blocks[1].attn.qkv.weight = backbone.blocks[1].attn.qkv[0].weight
    return backbone


@pytest.mark.parametrize(
    ("make", "method", "match"),
    [
        (families.vit, vprompt.Partial(99), "3 blocks, .* last 99; give"),
        (families.BACKBONES["swin"], vprompt.Partial(5), "4 blocks"),
        (families.BACKBONES["parallel"], vprompt.Adapter(), "ParallelScalingBlock has none"),
        (lambda: wrapped(families.vit()), vprompt.LoRA(), "blocks.1.attn.qkv is a Sequential"),
    ],
)
def test_a_method_that_does_not_fit_leaves_the_backbone_alone(make, method, match):
    backbone = make().train()
    before, wanted = state(backbone), {path: p.requires_grad for path, p in backbone.named_parameters()}
    with pytest.raises(VPromptError, match=match):
        vprompt.attach(backbone, method, num_classes=2)
    assert all(module.training for module in backbone.modules())
    assert {path: p.requires_grad for path, p in backbone.named_parameters()} == wanted
    assert same(state(backbone), before)


def test_a_backbone_without_biases_has_none_to_learn():
    backbone = families.vit()
    for module in backbone.modules():
        if module is not backbone.head and getattr(module, "bias", None) is not None:
            module.register_parameter("bias", None)
    with pytest.raises(BackboneError, match="no parameters that the method 'bias' could learn"):
        vprompt.attach(backbone, vprompt.Bias(), num_classes=2)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_fit_and_eval_from_the_command_line(method, colours, tmp_path, vprompt_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--backbone", "test_vit", "--img-size", "32", "--weights", str(weights(tmp_path))]
    named = ["--method", METHODS[method].name, *(["--targets", "all"] if method == "lora-all" else [])]
    run = vprompt_command("fit", colours, *named, "--epochs", "1", "--batch-size", "8", *options)
    assert run.status == 0, run.err
    assert max(map(len, run.out.splitlines())) <= 80
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"-{METHODS[method].name}-" in folder.name
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    model = vprompt.load(folder)
    assert result["method"] == METHODS[method].name == model.method.name
    assert result["learned_params"] == model.num_learned
    bare = timm.create_model("test_vit", img_size=32, num_classes=0)
    assert result["backbone_params"] == sum(p.numel() for p in bare.parameters())
    assert f"{model.num_learned:,} ({100 * model.num_learned / result['backbone_params']:.2f} %)" in run.out
    judged = vprompt_command("eval", folder, colours, "--json")
    assert judged.status == 0, judged.err
    assert judged.document["accuracy"] == result["test_accuracy"]


def weights(folder):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"
