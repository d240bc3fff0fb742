"""Many adapters over one backbone: mixed, shared, concurrent, and what goes wrong."""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

import families
import reference
import vprompt
from vprompt.methods.layers.prompts import Prompts
from vprompt.serving.bank.routing import route
from vprompt.utils.errors import AdapterError, DataError, UnknownAdapterError, VPromptError

# Each attention class and each way of cutting windows once, and models that count images behind their blocks.
MIXED = [
    *(f"reference:{name}" for name in ("class-token", "registers-avg", "qk-norm", "attention-pooling", "distilled")),
    *("swin", "swin-padded", "swin-non-square", "swin2", "swin-cr", "sam", "eva", "dinov3", "rope-mixed", "beit"),
    *("relpos", "diff", "parallel", "diff-parallel", "cait", "naflex-gap", "qwen3", "deepseek"),
]


def backbone_of(name):
    source, _, short = name.rpartition(":")
    module = reference if source else families
    if short not in module.BACKBONES:
        short = next(full for full in module.BACKBONES if full.startswith(short))
    backbone = module.BACKBONES[short]()
    size = module.IMAGE_SIZES.get(short) or vprompt.backbones.info.describe(backbone).preprocessing.size
    return backbone, size


def randomised(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def zoo(backbone, *, kv):
    """Adapters that differ in method, in counts by block and in classes."""
    depth = len(vprompt.backbones.info.describe(backbone).blocks)
    half = [0] * (depth // 2) + [3] * (depth - depth // 2)
    methods = {
        "deep": (vprompt.VPT(5), None),
        "late": (vprompt.VPT(3), half),
        "last": (vprompt.VPT(2), [0] * (depth - 1) + [2]),
        "gaps": (vprompt.VPT(4), [4 * (block % 2 == 0) for block in range(depth)]),
        "linear": (vprompt.Linear(), None),
        "mlp": (vprompt.MLP(2), None),
        "shallow": (vprompt.VPT(3, depth="shallow"), None),
    }
    if kv:
        methods["e2vpt"] = (vprompt.E2VPT(2, 3), None)
    models = {}
    for number, (name, (method, counts)) in enumerate(methods.items()):
        model = vprompt.attach(backbone, method, head_init="paper", num_classes=2 + number)
        if counts is not None:
            model = model.keep([torch.arange(count) for count in counts])
        models[name] = randomised(model, number)
    return models


def banked(backbone, models):
    bank = vprompt.Bank(backbone)
    for name, model in models.items():
        bank.add(name, model)
    return bank


@torch.no_grad()
def close_to_alone(models, images, names, rows, answers):
    assert len(answers) == len(names)
    for name, row, logits in zip(names, rows, answers, strict=True):
        alone = models[name](images[row : row + 1])[0].float()
        assert logits.shape == alone.shape
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, alone, rtol=2e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_batch_is_each_adapter_alone(name):
    backbone, size = backbone_of(name)
    models = zoo(backbone, kv="diff" not in name)
    bank = banked(backbone, models)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    requests = [(adapter, row) for row in range(3) for adapter in models if (row, adapter) != (1, "deep")]
    requests += [("deep", 0), ("linear", 2)]  # the same again
    random.Random(0).shuffle(requests)
    names, rows = [adapter for adapter, _ in requests], [row for _, row in requests]
    close_to_alone(models, images, names, rows, bank(images, names, rows=rows))
    close_to_alone(models, images, ["late", "deep", "late"], [0, 1, 2], bank(images, ["late", "deep", "late"]))


def test_every_method_has_its_place():
    backbone = reference.small_vit()
    methods = [vprompt.Full(), vprompt.Partial(1), vprompt.Bias(), vprompt.Adapter(4), vprompt.LoRA(2), vprompt.Side(8)]
    models = {
        method.name: randomised(vprompt.attach(backbone, method, num_classes=2 + number), number)
        for number, method in enumerate(methods)
    }
    models["deep"] = randomised(vprompt.attach(backbone, vprompt.VPT(4), num_classes=9), 9)
    bank = banked(backbone, models)
    images = torch.randn(2, 3, 32, 32)
    names, rows = [*models, *models], [0] * len(models) + [1] * len(models)
    close_to_alone(models, images, names, rows, bank(images, names, rows=rows))
    # Low-rank updates are held as they are, not as whole weights.
    assert bank["lora"].nbytes < bank["full"].nbytes / 4


def test_merged_and_pruned_prompts():
    backbone = reference.small_vit()
    model = randomised(vprompt.attach(backbone, vprompt.VPT(4), num_classes=3), 0)
    prompts = Prompts([p.detach().clone() for p in model.prompts], multiplicity=[[1, 3, 1, 2]] * 3)
    models = {"merged": model.copy(prompts=prompts).eval(), "whole": model}
    masks = [torch.tensor([[True, False], [True, True]])] * 3
    models["segments"] = model.keep([torch.tensor([0, 2])] * 3, masks).eval()
    images = torch.randn(3, 3, 32, 32)
    names = ["segments", "merged", "whole"]
    close_to_alone(models, images, names, [0, 1, 2], banked(backbone, models)(images, names))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_the_type_of_the_backbone(dtype):
    backbone = reference.small_vit().to(dtype)
    models = {name: model.to(dtype) for name, model in zoo(backbone, kv=True).items()}
    images = torch.randn(2, 3, 32, 32).to(dtype)
    names, rows = [*models, *models], [0] * len(models) + [1] * len(models)
    found = banked(backbone, models)(images, names, rows=rows)
    with torch.no_grad():
        for name, row, logits in zip(names, rows, found, strict=True):
            alone = models[name](images[row : row + 1])[0].float()
            reference.close(logits.double(), alone.double(), 1e-6 if dtype == torch.float64 else 0.1)


class Rows:
    """Counts the rows that pass a module."""

    def __init__(self, module):
        self.seen = 0
        module.register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.seen += len(inputs[0])


def test_what_lies_below_the_first_prompts_is_computed_once_for_an_image():
    backbone = reference.small_vit(depth=4)
    models = {
        name: randomised(vprompt.attach(backbone, vprompt.VPT(2), num_classes=2), seed).keep(
            [torch.arange(count) for count in counts]
        )
        for seed, (name, counts) in enumerate(
            {"a": [0, 0, 2, 2], "b": [0, 0, 2, 0], "c": [0, 0, 0, 1], "d": [0, 0, 0, 0], "e": [2, 0, 0, 0]}.items()
        )
    }
    bank = banked(backbone, models)
    images = torch.randn(2, 3, 32, 32)
    mlps = [Rows(block.mlp) for block in backbone.blocks]
    patches = Rows(backbone.patch_embed)
    names, rows = [*"abcd", *"abcde"], [0] * 4 + [1] * 5
    answers = bank(images, names, rows=rows)
    assert patches.seen == 2
    # Per image one shared row and one for every adapter that has parted; "e" parts at once. Block 3 is the last whose
    # rows "d" shares with nobody else that has not parted.
    assert [mlp.seen for mlp in mlps] == [3, 3, 7, 9]
    again = [Rows(block.mlp) for block in backbone.blocks]
    bank(images, ["a"] * 6, rows=[0, 1, 0, 1, 0, 1])
    assert [mlp.seen for mlp in again] == [2, 2, 2, 2]
    close_to_alone(models, images, names, rows, answers)


@pytest.mark.parametrize("seed", range(60))
def test_routes_lead_every_request_through_its_own_blocks(seed):
    dice = random.Random(seed)
    blocks, adapters, images = dice.randint(1, 5), dice.randint(1, 5), dice.randint(1, 4)
    prompted = [[dice.random() < 0.4 for _ in range(blocks)] for _ in range(adapters)]
    asked = [dice.sample(range(images), dice.randint(1, images)) for _ in range(adapters)]
    shared = dice.random() < 0.7
    found = route(asked, prompted, shared=shared)
    # Follow the rows by name: what each has been through must be what its request alone would see.
    rows = [(image, ()) for image in found.images]
    for block in range(blocks):
        if found.spread[block] is not None:
            rows = [rows[place] for place in found.spread[block]]
        owner = {}
        for group in found.groups[block]:
            owner |= dict.fromkeys(range(group.start, group.stop), group.adapter)
        assert sorted(owner) == list(range(len(rows)))
        rows = [(image, (*past, owner[place])) for place, (image, past) in enumerate(rows)]
        # Nothing twice: with sharing, rows with one past are of different images.
        assert not shared or len(set(rows)) == len(rows)
    for adapter, (mine, places) in enumerate(zip(asked, found.rows, strict=True)):
        own = tuple(adapter if has else None for has in prompted[adapter])
        assert [rows[place] for place in places] == [(image, own) for image in mine]


def test_an_unknown_adapter_fails_alone():
    backbone = reference.small_vit()
    models = zoo(backbone, kv=True)
    bank = banked(backbone, models)
    images = torch.randn(3, 3, 32, 32)
    answers = bank(images, ["deep", "no such", "late"], return_exceptions=True)
    assert isinstance(answers[1], UnknownAdapterError)
    assert "no such" in str(answers[1])
    assert "'deep'" in str(answers[1])
    close_to_alone(models, images, ["deep", "late"], [0, 2], [answers[0], answers[2]])
    computed = Rows(backbone.patch_embed)
    with pytest.raises(UnknownAdapterError, match="no such"):
        bank(images, ["deep", "no such", "late"])
    assert computed.seen == 0
    assert all(isinstance(a, UnknownAdapterError) for a in bank(images, ["x", "y", "z"], return_exceptions=True))


def test_adapters_come_and_go_while_others_ask():
    backbone = reference.small_vit()
    models = {
        f"a{number}": randomised(vprompt.attach(backbone, vprompt.VPT(1 + number), num_classes=3), number)
        for number in range(4)
    }
    bank = banked(backbone, models)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        alone = {name: model(images) for name, model in models.items()}
    stop, changes = threading.Event(), itertools.count()

    def change():
        while not stop.is_set():
            bank.remove("a3")
            bank.add("a3", models["a3"])
            list(bank)
            next(changes)

    def ask(seed):
        dice = random.Random(seed)
        answered = unknown = 0
        for _ in range(25):
            names = [dice.choice([*models]) for _ in range(4)]
            for row, (name, logits) in enumerate(zip(names, bank(images, names, return_exceptions=True), strict=True)):
                if isinstance(logits, UnknownAdapterError):
                    assert name == "a3"
                    unknown += 1
                else:
                    torch.testing.assert_close(logits, alone[name][row], rtol=2e-5, atol=2e-5)
                    answered += 1
        return answered, unknown

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, range(4)))
    finally:
        stop.set()
        changing.join()
    assert sum(answered + unknown for answered, unknown in found) == 400
    assert next(changes) > 1


def test_two_threads_that_add_one_name():
    backbone = reference.small_vit()
    model = vprompt.attach(backbone, vprompt.VPT(2), head_init="paper", num_classes=2)
    bank = vprompt.Bank(backbone)

    def add(_):
        try:
            return bank.add("one", model) is not None
        except VPromptError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(8))) == 1
    assert list(bank) == ["one"]


def test_what_an_entry_says_and_costs():
    backbone = reference.small_vit()
    model = vprompt.attach(backbone, vprompt.VPT(5), head_init="paper", num_classes=3, classes=["x", "y", "z"])
    model = model.keep([torch.arange(count) for count in (5, 0, 2)])
    bank = vprompt.Bank(backbone)
    entry = bank.add("birds", model)
    assert entry == bank["birds"]
    assert (entry.name, entry.classes, entry.num_classes, entry.method) == ("birds", ("x", "y", "z"), 3, "vpt-deep")
    assert entry.prompt_counts == (5, 0, 2)
    assert entry.preprocessing == model.preprocessing
    # Folded: a key and a value for each prompt, and the head.
    assert entry.nbytes == 4 * (7 * 2 * 32 + 3 * 32 + 3)
    assert ("birds" in bank, "cars" in bank, len(bank)) == (True, False, 1)
    bank.remove("birds")
    assert list(bank) == []


def test_saved_adapters(tmp_path):
    backbone = timm.create_model("test_vit", img_size=32)
    models = {
        name: randomised(vprompt.attach(backbone, method, num_classes=3), seed)
        for seed, (name, method) in enumerate({"one": vprompt.VPT(2), "two": vprompt.VPT(2, depth="shallow")}.items())
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    bank = vprompt.Bank(backbone)
    for name in models:
        assert bank.add(name, tmp_path / name).source == str(tmp_path / name)
    images = torch.randn(2, 3, 32, 32)
    close_to_alone(models, images, ["one", "two"], [0, 1], bank(images, ["one", "two"]))
    other = timm.create_model("test_vit", img_size=32)
    vprompt.attach(other, vprompt.VPT(2), num_classes=3).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match="weights differ"):
        bank.add("other", tmp_path / "other")
    with pytest.raises(AdapterError, match="no folder"):
        bank.add("nowhere", tmp_path / "nowhere")
    assert list(bank) == ["one", "two"]


def test_a_bank_of_saved_adapters_makes_their_backbone(tmp_path):
    model = vprompt.attach(
        "vprompt_vit_tiny_patch8_64.tiny_imagenet", vprompt.VPT(2), head_init="paper", num_classes=3
    ).eval()
    model.save_pretrained(tmp_path / "birds")
    bank = vprompt.Bank.load({"birds": tmp_path / "birds", "again": tmp_path / "birds"})
    images = torch.randn(2, 3, 64, 64)
    close_to_alone(
        {"birds": model, "again": model}, images, ["again", "birds"], [0, 1], bank(images, ["again", "birds"])
    )
    with pytest.raises(VPromptError, match="at least one"):
        vprompt.Bank.load({})


def test_models_over_other_backbones():
    backbone, twin, other = reference.small_vit(), reference.small_vit(), reference.randomise(reference.small_vit(), 7)
    bank = vprompt.Bank(backbone)
    model = randomised(vprompt.attach(twin, vprompt.VPT(2), num_classes=3), 0)
    bank.add("same weights", model)
    images = torch.randn(1, 3, 32, 32)
    close_to_alone({"same weights": model}, images, ["same weights"], [0], bank(images, ["same weights"]))
    with pytest.raises(AdapterError, match="another backbone"):
        bank.add("other", vprompt.attach(other, vprompt.VPT(2), num_classes=3))
    with pytest.raises(AdapterError, match="of its own"):
        bank.add("lora", vprompt.attach(twin, vprompt.LoRA(2), num_classes=3))


def test_what_cannot_be_asked():
    backbone = reference.small_vit()
    bank = banked(backbone, {"one": vprompt.attach(backbone, vprompt.VPT(2), head_init="paper", num_classes=2)})
    images = torch.zeros(2, 3, 32, 32)
    assert bank(images[:0], []) == []
    for arguments, words in [
        ((images, ["one"]), "1 adapters for 2 images"),
        ((images, "one"), "for every request"),
        ((images.byte(), ["one", "one"]), "float and normalised"),
        ((images[0], ["one"] * 3), r"a batch of them \(B, 3, 32, 32\); it is \(3, 32, 32\)"),
        ((images[:, :1], ["one", "one"]), r"it is \(2, 1, 32, 32\)"),
        ((torch.zeros(1, 3, 40, 32), ["one"]), r"\(3, 32, 32\) for this backbone.*it is \(1, 3, 40, 32\)"),
    ]:
        with pytest.raises(DataError, match=words):
            bank(*arguments)
    for rows, words in [([0], "2 adapters for 1 rows"), ([0, 2], "image 2; there are 2"), ([-1, 0], "image -1")]:
        with pytest.raises(DataError, match=words):
            bank(images, ["one", "one"], rows=rows)
    with pytest.raises(VPromptError, match="already"):
        bank.add("one", vprompt.attach(backbone, vprompt.VPT(2), num_classes=2))
    with pytest.raises(VPromptError, match="needs a name"):
        bank.add("", vprompt.attach(backbone, vprompt.VPT(2), num_classes=2))
    for use in (bank.remove, bank.__getitem__):
        with pytest.raises(UnknownAdapterError, match="'two' in the bank; there is 'one'"):
            use("two")
    with pytest.raises(VPromptError, match="go with a backbone's name"):
        vprompt.Bank(backbone, img_size=64)


def test_the_backbone_and_the_models_stay_as_they_are():
    backbone = reference.small_vit()
    models = zoo(backbone, kv=True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = backbone(images)
    bank = banked(backbone, models)
    bank(images, ["deep", "shallow"])
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    with torch.no_grad():
        assert torch.equal(backbone(images), plain)
    # What a model learns after it was added is its own.
    answer = bank(images, ["deep", "deep"])
    with torch.no_grad():
        models["deep"].head.bias += 1
        models["deep"].prompts[0] += 1
    assert torch.equal(torch.stack(bank(images, ["deep", "deep"])), torch.stack(answer))
