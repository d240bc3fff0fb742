"""Frozen backbones in few bits: what the codes stand for, gradients through them, what is kept, adapters on them."""

import copy
import json
import math
from functools import cache

import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import TensorDataset

import families
import vprompt
from conftest import run_command
from families import BACKBONES, EACH_CLASS, some_images
from reference import close, loss_weights
from vprompt.backbones import quantise as quantising
from vprompt.backbones.frozen_linear import FORMS, FrozenLinear
from vprompt.backbones.info import fingerprint, num_parameters
from vprompt.backbones.meta import on_meta
from vprompt.backbones.quantise import precision_held, quantise
from vprompt.compression.criteria import CRITERIA
from vprompt.compression.merge import merge
from vprompt.exporters.engine import export_engine
from vprompt.exporters.export import export
from vprompt.model.config import read_config
from vprompt.serving.bank.bank import Bank
from vprompt.serving.bank.banks import Banks
from vprompt.utils.errors import AdapterError, BackboneError, VPromptError

CODED = tuple(FORMS)
SHARE = {"bf16": 2, "int8": 1, "int4": 1 / 2 + 2 / 32, "fp8": 1}
"""Bytes of a number, without the factors of rows."""


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", **{"img_size": 32, **options}).eval()


def images(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prompted(backbone, method=None, **options):
    model = vprompt.attach(backbone, method or vprompt.VPT(4), num_classes=3, **options).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return model


def frozen_layers(module):
    return {path: layer for path, layer in module.named_modules() if type(layer) is FrozenLinear}


# ── what the codes stand for, written out number by number ───────────────────────────────────────────────────────────


def bf16_value(bits):
    sign, exponent, fraction = bits >> 15, (bits >> 7) & 255, bits & 127
    size = fraction * 2.0**-133 if exponent == 0 else (128 + fraction) * 2.0 ** (exponent - 134)
    return -size if sign else size


def e4m3_value(bits):
    sign, exponent, fraction = bits >> 7, (bits >> 3) & 15, bits & 7
    assert bits & 127 != 127, "not a number"
    size = fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10)
    return -size if sign else size


def slow_weight(layer):
    """The weight that a layer's codes stand for, in float64, read byte by byte."""
    rows = []
    for row in range(layer.out_features):
        codes = layer.codes[row]
        if layer.precision == "bf16":
            values = [bf16_value(bits & 0xFFFF) for bits in codes.view(torch.int16).tolist()]
        elif layer.precision == "int8":
            values = [code * float(layer.scale[row]) for code in codes.tolist()]
        elif layer.precision == "fp8":
            values = [e4m3_value(bits) * float(layer.scale[row]) for bits in codes.view(torch.uint8).tolist()]
        else:
            numbers = [byte % 16 - 8 for byte in codes.tolist()] + [byte // 16 - 8 for byte in codes.tolist()]
            scales = [bf16_value(bits & 0xFFFF) for bits in layer.scale[row, :, 0].view(torch.int16).tolist()]
            values = [number * scales[place // 32] for place, number in enumerate(numbers)][: layer.in_features]
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("precision", CODED)
def test_codes_are_there_while_a_layer_is_moved(precision):
    """Another thread may compute with it."""
    layer = FrozenLinear(torch.nn.Linear(64, 8), precision=precision)
    images, seen = torch.randn(2, 64), []
    wanted = layer(images)

    def look(tensor):
        seen.append(torch.equal(layer(images), wanted))
        return tensor

    layer._apply(look)
    assert len(seen) >= 2
    assert all(seen)
    assert torch.equal(layer(images), wanted)
    assert layer.double().codes.dtype == layer.codes.dtype != torch.float64


@pytest.mark.parametrize("width", [64, 33, 97])
@pytest.mark.parametrize("precision", CODED)
def test_codes_stand_for_the_weight(precision, width):
    torch.manual_seed(width)
    linear = nn.Linear(width, 40)
    with torch.no_grad():
        linear.weight[0] = 0
        linear.weight[1] *= 1e-20
        linear.weight[2] *= 1e20
        linear.weight[3, 5] = 30
    layer = FrozenLinear(linear, precision)
    meant, weight = slow_weight(layer), linear.weight.detach().double()
    assert torch.equal(layer.weight.double(), meant.float().double())
    # No code is nearer to a number than the one that was taken.
    error = (meant - weight).abs()
    if precision != "int4":
        step = {"bf16": bf16_step, "int8": int8_step, "fp8": fp8_step}[precision](weight, layer.scale)
        assert (error <= step * (1 + 1e-5) + 1e-45).all()
        return
    groups = F.pad(weight, (0, -width % 32)).unflatten(1, (-1, 32))
    scale, codes = layer.scale.double(), F.pad(meant, (0, -width % 32)).unflatten(1, (-1, 32)) / layer.scale.double()
    error = (codes * scale - groups).abs()
    assert ((error <= scale.abs() * (0.5 + 1e-6)) | (codes == 7) | (codes == -8)).all()
    # Nor is rounding between -7 and 7 better in any group.
    simple = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().double()
    simple = simple.where(simple > 0, 1)
    nearest = (groups / simple).round().clamp(-8, 7) * simple - groups
    assert (error.square().sum(-1) <= nearest.square().sum(-1) * (1 + 1e-5)).all()


def bf16_step(weight, scale):
    """Half of the distance to the next number."""
    assert scale is None
    return weight.abs() * 2**-8


def int8_step(weight, scale):
    assert scale.shape == (len(weight), 1)
    return scale.double() / 2


def fp8_step(weight, scale):
    """2⁻⁴ of the number, or half of the smallest one."""
    return torch.maximum(weight.abs() * 2**-4, scale.double() * 2**-10)


@pytest.mark.parametrize("precision", CODED)
def test_all_zeros_and_a_row_of_one_number(precision):
    linear = nn.Linear(32, 32)
    nn.init.constant_(linear.weight, 0)
    assert not FrozenLinear(linear, precision).weight.any()
    nn.init.constant_(linear.weight, -0.75)
    assert torch.allclose(FrozenLinear(linear, precision).weight, linear.weight, rtol=2**-7)


# ── gradients, over all kinds of attention ───────────────────────────────────────────────────────────────────────────


@cache
def pair(name, precision):
    """A model over codes, in float64 otherwise, and the plain backbone with the weights that the codes stand for."""
    backbone = BACKBONES[name]()
    plain = copy.deepcopy(backbone).double()
    before, quantising.LEAST = quantising.LEAST, 1  # these backbones are small
    try:
        view = quantise(backbone, precision)
    finally:
        quantising.LEAST = before
    model = vprompt.attach(view, vprompt.VPT(3), num_classes=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    layers = frozen_layers(view)
    assert len(layers) >= 2 * len(model.prompts)
    for path, layer in layers.items():
        plain.get_submodule(path).weight.data = slow_weight(layer)
    return model.double().eval(), plain


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", EACH_CLASS)
def test_gradients_are_those_of_the_weights_that_the_codes_stand_for(name, precision):
    model, plain = pair(name, precision)
    learned = list(model.learned.values())
    pixels = some_images(name, 2)
    wanted = families.logits(plain, list(model.prompts), model.head.weight, model.head.bias, pixels)
    truth = torch.autograd.grad(loss_weights(wanted).sum(), learned)
    for execution in ("prefix", "published"):
        ours = model.copy(execution=execution).eval()
        logits = ours(pixels)
        close(logits, wanted, 1e-9)
        gradients = torch.autograd.grad(loss_weights(logits).sum(), list(ours.learned.values()))
        for found, gradient in zip(gradients, truth, strict=True):
            close(found, gradient, 1e-8)
    with torch.no_grad():
        close(model.fold()(pixels), wanted, 1e-9)


@pytest.mark.parametrize("precision", CODED)
@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.VPT(4, "shallow"), vprompt.LoRA(targets="all")])
def test_methods_learn_as_over_the_plain_weights(method, precision):
    view = quantise(vit(), precision)
    plain = vit().double()
    for path, layer in frozen_layers(view).items():
        plain.get_submodule(path).weight.data = slow_weight(layer)
    ours, theirs = prompted(view, method).double(), prompted(plain, method)
    pixels = images().double()
    assert list(ours.learned) == list(theirs.learned)
    for model in (ours, theirs):
        loss_weights(model(pixels)).sum().backward()
    for found, wanted in zip(ours.learned.values(), theirs.learned.values(), strict=True):
        close(found.grad, wanted.grad, 1e-9)
    with torch.no_grad():
        close(ours.fold()(pixels), theirs(pixels), 1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_and_merges_are_those_of_the_plain_weights(criterion):
    view, plain = quantise(vit(), "int4"), vit()
    for path, layer in frozen_layers(view).items():
        plain.get_submodule(path).weight.data = layer.weight
    data, pixels = TensorDataset(images(4), torch.tensor([0, 1, 2, 0])), images()
    ours, theirs = prompted(view), prompted(plain)
    scores = [vprompt.score(model, data, criterion=criterion) for model in (ours, theirs)]
    for found, wanted in zip(*scores, strict=True):
        close(found, wanted, 1e-3)
    kept = [torch.tensor([0, 2])] * len(ours.prompts)
    with torch.no_grad():
        close(merge(ours, kept)(pixels), merge(theirs, kept)(pixels), 1e-3)


def test_a_bias_that_learns_gets_its_gradient():
    layer = FrozenLinear(nn.Linear(64, 48), "int8")
    x = torch.randn(3, 5, 64)
    weights = torch.randn(3, 5, 48)
    (layer(x) * weights).sum().backward()
    close(layer.bias.grad, weights.sum((0, 1)), 1e-5)


@pytest.mark.parametrize("precision", CODED)
def test_autocast_computes_in_its_type(precision):
    layer = FrozenLinear(nn.Linear(64, 48).requires_grad_(False), precision)
    x = torch.randn(6, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert layer(x.double()).dtype == torch.float64  # which autocast leaves alone
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    meant = slow_weight(layer)
    close(y, x.double() @ meant.T + layer.bias.double(), 2e-2)
    assert x.grad.dtype == torch.float32
    close(x.grad, meant.sum(0).expand(6, -1), 2e-2)


@pytest.mark.parametrize("precision", CODED)
def test_a_compiled_layer_has_the_same_gradients(precision):
    torch.compiler.reset()
    layer = FrozenLinear(nn.Linear(64, 48).requires_grad_(False), precision)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, again = torch.randn(6, 64, requires_grad=True), None
    found = torch.autograd.grad(loss_weights(compiled(x)).sum(), x)[0]
    again = torch.autograd.grad(loss_weights(layer(x)).sum(), x)[0]
    close(found, again, 1e-6)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def kept(model, pixels):
    """Bytes kept for the backward pass that are no parameter or buffer of the model; and the shapes of all kept."""
    there = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers(), pixels]}
    storages, shapes = {}, []

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        if tensor.untyped_storage().data_ptr() not in there:
            shapes.append(tuple(sorted(tensor.shape)))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_weights(model(pixels)).sum()
    loss.backward()
    return sum(storage.nbytes() for place, storage in storages.items() if place not in there), shapes


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("precision", CODED)
def test_no_copy_of_a_weight_is_kept_for_the_backward_pass(precision, bf16):
    pixels = images(3)
    coded, plain = prompted(vit(), backbone_precision=precision), prompted(vit())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        (ours, shapes), (theirs, _) = kept(coded, pixels), kept(plain, pixels)
    weights = {tuple(sorted((layer.in_features, layer.out_features))) for layer in frozen_layers(coded).values()}
    assert not weights & set(shapes)
    assert ours <= theirs


@pytest.mark.parametrize("precision", CODED)
def test_weights_take_as_many_bytes_as_their_codes(precision):
    backbone = vit()
    view = quantise(backbone, precision)
    layers = frozen_layers(view)
    assert len(layers) == 4 * len(backbone.blocks)
    coded = sum(layer.in_features * layer.out_features for layer in layers.values())
    rows = sum(layer.out_features for layer in layers.values()) * (precision in ("int8", "fp8"))

    def size(module):
        return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])

    assert size(view) == size(backbone) - 4 * coded + SHARE[precision] * coded + 4 * rows
    assert num_parameters(view) == num_parameters(backbone)


@pytest.mark.parametrize("precision", CODED)
def test_codes_stay_as_they_are_when_a_model_changes_its_type(precision):
    model = prompted(vit(), backbone_precision=precision)
    before = {path: (layer.codes.clone(), layer.scale) for path, layer in frozen_layers(model.backbone).items()}
    for kind in (torch.float16, torch.float64, torch.bfloat16, torch.float32):
        model.to(kind)
        assert torch.isfinite(model(images().to(kind))).all()
    for path, layer in frozen_layers(model.backbone).items():
        codes, scale = before[path]
        assert layer.codes.dtype == codes.dtype
        assert torch.equal(layer.codes.view(torch.uint8), codes.view(torch.uint8))
        assert scale is None or torch.equal(layer.scale, scale)
    shapes = on_meta(model)
    assert shapes(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 3)
    assert copy.deepcopy(model)(images()).equal(model(images()))


def test_a_device_without_fp8_is_a_sentence():
    def to_device(tensor):
        if tensor.dtype == torch.float8_e4m3fn:
            raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for it.")
        return tensor

    layer = FrozenLinear(nn.Linear(32, 32), "fp8")
    with pytest.raises(BackboneError, match="no fp8 numbers on this device; hold the backbone in int8"):
        layer._apply(to_device)
    assert torch.isfinite(layer(torch.ones(1, 32))).all()  # it is as it was
    FrozenLinear(nn.Linear(32, 32), "int8")._apply(to_device)


# ── the view ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_backbone_stays_as_it_is_and_comes_back():
    backbone = vit(num_classes=7).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    model = prompted(backbone, backbone_precision="int4")
    assert model.backbone is not backbone
    assert precision_held(backbone) == "fp32"
    assert type(model.backbone.head) is nn.Linear  # its own classifier, which is never used
    loss_weights(model(images())).sum().backward()
    model.detach()
    assert {name: value.equal(before[name]) for name, value in backbone.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert {name: parameter.requires_grad for name, parameter in backbone.named_parameters()} == flags
    assert all(module.training for module in backbone.modules())
    assert quantise(model.backbone, None) is quantise(model.backbone, "int4") is model.backbone
    assert quantise(backbone, None) is quantise(backbone, "fp32") is backbone


def test_a_layer_in_two_places_is_one_layer():
    backbone = vit()
    backbone.blocks[1].mlp.fc1 = backbone.blocks[0].mlp.fc1
    view = quantise(backbone, "int8")
    assert view.blocks[1].mlp.fc1 is view.blocks[0].mlp.fc1


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: quantise(vit(), "int3"), "no precision 'int3' of backbones; take fp32, bf16, int8, int4, fp8"),
        (lambda: vprompt.attach(vit(), num_classes=2, backbone_precision=4), "no precision 4 of backbones"),
        (lambda: quantise(quantise(vit(), "int4"), "int8"), "held in int4 already, so int8 is lost; give the original"),
        (lambda: quantise(quantise(vit(), "int4"), "fp32"), "held in int4 already, so fp32 is lost"),
        *(
            (lambda method=method: prompted(vit(), method, backbone_precision="int8"), "learns the backbone's own weig")
            for method in (vprompt.Full(), vprompt.Partial(), vprompt.Bias())
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(act, words):
    with pytest.raises(VPromptError, match=words) as caught:
        act()
    assert str(caught.value).count(". ") == 0


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.LoRA()])
@pytest.mark.parametrize("precision", CODED)
def test_an_adapter_remembers_the_precision(precision, method, tmp_path):
    backbone = vit()
    model = prompted(backbone, method, backbone_precision=precision)
    model.save_pretrained(tmp_path / "a")
    config = read_config((tmp_path / "a/adapter_config.json").read_text(), "a")
    assert (config.backbone.precision, config.backbone.fingerprint) == (precision, fingerprint(backbone))
    assert f"held in {precision}" in (tmp_path / "a/README.md").read_text()
    for given in (backbone, model.backbone):
        again = vprompt.load(tmp_path / "a", given)
        assert precision_held(again.backbone) == precision
        assert again(images()).equal(model(images()))
    wide = vprompt.load(tmp_path / "a", backbone, backbone_precision="fp32")
    assert wide.backbone is backbone
    assert not wide(images()).equal(model(images()))
    # What was learned is the same, and saved again it is the same adapter but for the precision.
    for name, value in model.values.items():
        assert wide.values[name].equal(value)
    other = "bf16" if precision != "bf16" else "int8"
    with pytest.raises(AdapterError, match=f"trained on a backbone in {precision}, and this one is held in {other}"):
        vprompt.load(tmp_path / "a", quantise(backbone, other))
    same = vprompt.load(tmp_path / "a", quantise(backbone, other), backbone_precision=other)
    assert precision_held(same.backbone) == other
    torch.manual_seed(9)
    stranger = timm.create_model("test_vit", img_size=32)
    with pytest.raises(AdapterError, match="their weights differ"):
        vprompt.load(tmp_path / "a", stranger)


def test_an_adapter_in_float32_is_as_before_there_were_precisions(tmp_path):
    prompted(vit()).save_pretrained(tmp_path / "a")
    document = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert "precision" not in document["backbone"]
    assert "held in" not in (tmp_path / "a/README.md").read_text()


def test_a_precision_that_is_none_is_a_sentence_about_the_file(tmp_path):
    prompted(vit(), backbone_precision="int8").save_pretrained(tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    text = path.read_text()
    assert '"precision": "int8"' in text
    lines = [line for line in text.splitlines(keepends=True) if '"checksum"' not in line]
    path.write_text("".join(lines).replace('"precision": "int8"', '"precision": "int3"'))
    with pytest.raises(AdapterError, match=r"'backbone.precision' should be 'fp32' or 'bf16' or .*, not 'int3'"):
        vprompt.load(tmp_path / "a", vit())


def test_a_bank_holds_adapters_of_all_precisions_on_its_own(tmp_path):
    backbone = vit()
    for precision in ("fp32", "int8", "int4"):
        prompted(backbone, backbone_precision=precision).save_pretrained(tmp_path / precision)
    bank = Bank(backbone, backbone_precision="int8")
    own = prompted(bank.backbone)
    other = prompted(backbone, vprompt.Linear(), backbone_precision="int4")
    for name in ("fp32", "int8", "int4"):
        bank.add(name, tmp_path / name)
    bank.add("model", own)
    with pytest.raises(AdapterError, match="over another backbone"):
        bank.add("other", other)
    pixels = images(4)
    names = ["fp32", "int8", "int4", "model"]
    for image, name, logits in zip(pixels, names, bank(pixels, names), strict=True):
        alone = own if name == "model" else vprompt.load(tmp_path / name, backbone, backbone_precision="int8")
        close(logits, alone(image[None])[0], 1e-4)


def test_services_share_a_backbone_only_in_one_precision(tmp_path, tiny_weights):
    for precision in ("fp32", "int8"):
        model = prompted("test_vit", weights=tiny_weights, img_size=32, backbone_precision=precision)
        model.save_pretrained(tmp_path / precision)
    apart, together = Banks(), Banks(backbone_precision="int4")
    for banks in (apart, together):
        for name in ("fp32", "int8", "again"):
            banks.add(name, tmp_path / ("int8" if name == "again" else name))
    assert sorted(sorted(bank) for bank in apart.banks) == [["again", "int8"], ["fp32"]]
    (bank,) = together.banks
    assert precision_held(bank.backbone) == "int4"
    (logits,) = apart([*images(1)], ["int8"])
    close(logits, vprompt.load(tmp_path / "int8")(images(1))[0], 1e-4)


# ── exports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exported_file_computes_what_the_codes_stand_for(tmp_path):
    model = prompted(vit(depth=1), backbone_precision="int4")
    export(model.fold(), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images(3).numpy()})
    close(torch.from_numpy(found), model(images(3)), 1e-4)


def test_an_engine_has_a_precision_of_its_own(tmp_path):
    backbone = vit(depth=1)
    model = prompted(backbone, backbone_precision="int8")
    model.save_pretrained(tmp_path / "a")
    path, words = tmp_path / "engine.pt2", "a backbone held in int8 is given; load it with backbone_precision='fp32'"
    for given, adapters in ((model.backbone, ()), (backbone, [model])):
        with pytest.raises(VPromptError, match=words):
            export_engine(given, path, adapters=adapters)
    assert not path.exists()
    made = export_engine(backbone, path, adapters=[tmp_path / "a"])
    assert made.about.fingerprint == fingerprint(backbone)


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_commands_take_and_remember_the_precision(colours, two_blocks, tmp_path):
    out, small = tmp_path / "run", tmp_path / "small"
    options = ["--backbone", two_blocks, "--img-size", 32, "--prompts", 3, "--epochs", 1, "--batch-size", 8]
    fit = ["fit", colours, *options, "--out", out, "--json"]
    done = run_command(*fit, "--backbone-precision", "int8")
    assert done.status == 0, done.err
    assert "held in int8" in done.err
    assert done.document["settings"]["backbone_precision"] == "int8"
    assert precision_held(vprompt.load(out).backbone) == "int8"
    again = run_command(*fit, "--backbone-precision", "int8", "--resume")
    assert again.document == done.document
    other = run_command(*fit, "--backbone-precision", "int4", "--resume")
    assert other.status == 1
    assert "backbone_precision" in other.err or "backbone-precision" in other.err
    image = next((colours / "red").iterdir())
    answers = {}
    for precision in (None, "int8", "fp32"):
        given = [] if precision is None else ["--backbone-precision", precision]
        answers[precision] = run_command("predict", out, image, "--json", *given).document
    assert answers[None] == answers["int8"] != answers["fp32"]
    scores = run_command("eval", out, colours, "--backbone-precision", "fp32", "--json")
    assert scores.status == 0, scores.err
    condensed = run_command("condense", out, colours, "--ratio", 0.5, "--fine-tune-epochs", 1, "--out", small, "--json")
    assert condensed.status == 0, condensed.err
    assert precision_held(vprompt.load(small).backbone) == "int8"
    refused = run_command("predict", out, image, "--backbone-precision", "int3")
    assert refused.status == 2
    assert math.prod(word in refused.err for word in ("--backbone-precision", "int8"))
    full = run_command(*fit[:-3], "--method", "full", "--backbone-precision", "int8", "--out", tmp_path / "full")
    assert full.status != 0
