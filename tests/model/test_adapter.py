"""Save -> load gives the same model bit for bit; everything that is wrong with an adapter is a sentence."""

import hashlib
import json
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import vprompt
from processes import Script
from vprompt.backbones.info import fingerprint
from vprompt.data.preprocessing import Preprocessing
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.config import read_config
from vprompt.model.load import load
from vprompt.model.records import Condensation
from vprompt.model.save import save_adapter
from vprompt.utils.errors import AdapterError, BackboneError, StorageError, VPromptError

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
NASTY = [
    "it's",
    'a "b"',
    "<script>alert(1)</script>",
    "new\nline\r\n# x",
    "| a | b |",
    "鸢尾花 🌼",
    "\u202edrow",
    "\udcff",
    "",
]


def tiny_backbone(seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model("test_vit", **{"img_size": 32, **options})


def some_images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def model_with(backbone, method=None, counts=None, **options):
    """A prompted model whose every learned number is random, with the given counts where they are not the method's."""
    torch.manual_seed(11)
    method = method or vprompt.VPT(4)
    model = vprompt.attach(backbone, method, **{"num_classes": 3, **options})
    if counts is not None:
        model = model.keep([torch.arange(count) for count in counts])
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def pristine(backbone, tmp_path_factory):
    """A folder with a good adapter; tests work on copies."""
    folder = tmp_path_factory.mktemp("pristine") / "adapter"
    model = model_with(backbone, counts=[4, 0, 3, 1, 0, 2], classes=["ant", "bee", "cat"])
    model.condensation = Condensation(
        criterion="taylor",
        scope="global",
        ratio=0.4,
        scores=tuple((1.5, 0.25, 1e-9, 3.0) for _ in range(6)),
        kept=((0, 1, 2, 3), (), (0, 1, 2), (3,), (), (1, 0)),
    )
    model.recipe = vprompt.Recipe(epochs=3, lr=0.5, optimizer="sgd")
    save_adapter(model, folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


def edit(folder, **changes):
    """Changes top-level entries of the configuration, which loses its checksum."""
    (folder / "adapter_config.json").write_text(json.dumps({**config_of(folder), **changes}))


def config_of(folder):
    """The configuration without its checksum, as older versions wrote it."""
    document = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in document.items() if key != "checksum"}


def rewrite_tensors(folder, change):
    """Changes the tensors and makes the configuration vouch for them."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    vouch(folder)


def vouch(folder):
    data = (folder / "adapter_model.safetensors").read_bytes()
    edit(folder, tensors_sha256=hashlib.sha256(data).hexdigest())


def refused(match, source, backbone=None, error=AdapterError):
    """Loading fails with one sentence; returns it."""
    with pytest.raises(error, match=match) as caught:
        vprompt.load(source, backbone)
    assert str(caught.value).endswith(".")
    return str(caught.value)


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (vprompt.VPT(4), None),
        (vprompt.VPT(4, dropout=0.25), [4, 0, 3, 1, 0, 2]),
        (vprompt.VPT(2), [0, 0, 0, 0, 0, 0]),
        (vprompt.VPT(5, "shallow"), None),
        (vprompt.VPT(5, "shallow"), [2, 0, 0, 0, 0, 0]),
        (vprompt.Linear(), None),
    ],
)
def test_save_load_is_bit_identical(backbone, tmp_path, method, counts, execution):
    model = model_with(backbone, method, counts, execution=execution)
    save_adapter(model, tmp_path)
    loaded = vprompt.load(tmp_path, backbone, execution=execution)
    assert torch.equal(loaded(some_images()), model(some_images()))
    assert loaded.method == method
    assert loaded.prompt_counts == model.prompt_counts
    assert loaded.execution == execution
    assert loaded.learned.keys() == model.learned.keys()
    assert not loaded.training


def test_everything_else_comes_back(backbone, tmp_path):
    looks = Preprocessing(
        size=(32, 32), mean=(0.1, 0.2, 0.3), std=(1, 2.5, 1e-3), interpolation="nearest", resize="crop"
    )
    model = model_with(backbone, classes=["ant", "bee", "cat"], preprocessing=looks)
    model.recipe = vprompt.Recipe(epochs=7, lr=1 / 3, precision="bf16", seed=2**31)
    scores, kept = ((0.1, 1 / 3, 1e-300, 2.0),) * 6, ((1, 3), (), (0,), (2,), (), (3, 1))
    model.condensation = Condensation(criterion="taylor", scope="local", ratio=0.3, scores=scores, kept=kept)
    save_adapter(model, tmp_path)
    loaded = vprompt.load(str(tmp_path), backbone)
    assert loaded.recipe == model.recipe
    assert loaded.condensation == model.condensation
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.preprocessing == looks


def test_a_temperature_stays_where_classes_have_no_names(backbone, tmp_path):
    model = vprompt.attach(backbone, vprompt.VPT(2), num_classes=3)
    model.target = replace(model.target, temperature=2.5)
    kept = model.keep([torch.tensor([1])] * len(model.prompt_counts))
    assert (model.copy().target, kept.target) == (model.target, model.target)
    kept.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone)
    assert again.target == model.target
    assert again.classes == ("0", "1", "2")


def test_numbers_keep_their_type(tmp_path):
    backbone = tiny_backbone().double()
    model = model_with(backbone).double()
    save_adapter(model, tmp_path)
    loaded = vprompt.load(tmp_path, backbone)
    assert loaded.head.weight.dtype == torch.float64
    assert torch.equal(loaded(some_images().double()), model(some_images().double()))


def test_loading_leaves_backbone_and_random_generator_alone(folder):
    backbone = tiny_backbone()
    before, state = fingerprint(backbone), torch.get_rng_state()
    model = vprompt.load(folder, backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.detach() is backbone
    assert fingerprint(backbone) == before


def test_a_loaded_adapter_can_be_trained_and_saved_again(backbone, folder, tmp_path):
    model = vprompt.load(folder, backbone).train()
    model(some_images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.learned.values())
    save_adapter(model, tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_a_fresh_process_gives_the_same_logits(backbone, folder, tmp_path):
    expected = vprompt.load(folder, backbone)(some_images())
    script = (
        "import vprompt, torch, test_adapter as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"print(vprompt.load({str(folder)!r}, t.tiny_backbone())(t.some_images()).detach().numpy().tobytes().hex())"
    )
    status, printed, errors = Script(script, folder=tmp_path).end()
    assert status == 0, errors
    assert printed.strip() == expected.detach().numpy().tobytes().hex()


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.text(st.characters()), min_size=1, max_size=5) | st.just(NASTY))
def test_any_class_names(names, backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    save_adapter(model_with(backbone, vprompt.VPT(1), num_classes=len(names), classes=names), folder)
    assert vprompt.load(folder, backbone).classes == tuple(names)
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = text.split("## Classes\n\n")[1].removesuffix("\n").split("\n")
    assert len(rows) == 2 + len(names)
    assert not any(c in row for row in rows for c in "<>")
    assert all(row.replace("\\\\", "").replace("\\|", "").count("|") == 3 for row in rows)


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("counts", [[4] * 6, [0, 0, 4, 0, 1, 0]])
def test_the_folder_holds_three_files_and_the_tensors_nothing_else(backbone, tmp_path, counts):
    model = model_with(backbone, counts=counts)
    save_adapter(model, tmp_path / "a" / "b")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == FILES
    size = (tmp_path / "a" / "b" / "adapter_model.safetensors").stat().st_size
    assert size <= model.num_learned * 4 + 8192
    tensors = load_file(tmp_path / "a" / "b" / "adapter_model.safetensors")
    assert tensors.keys() == {"head.weight", "head.bias"} | {f"prompts.{n}" for n, p in enumerate(counts) if p}
    assert sum(tensor.numel() for tensor in tensors.values()) == model.num_learned


def test_saving_in_place_replaces_the_adapter_and_leaves_other_files(backbone, folder):
    (folder / "result.json").write_text("{}")
    model = model_with(backbone, vprompt.Linear(), num_classes=5)
    save_adapter(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == [*FILES, "result.json"]
    assert torch.equal(vprompt.load(folder, backbone)(some_images()), model(some_images()))


@pytest.mark.parametrize("stuck", FILES)
def test_a_half_written_adapter_does_not_look_finished(backbone, tmp_path, stuck):
    (tmp_path / stuck).mkdir()  # this file cannot be written
    with pytest.raises(StorageError, match=f"{stuck} cannot be written: is a directory"):
        save_adapter(model_with(backbone), tmp_path)
    assert not (tmp_path / "adapter_config.json").is_file()
    assert not list(tmp_path.glob(".*"))
    refused("adapter_config.json", tmp_path, backbone)


def test_saving_cut_short_over_an_old_adapter_is_noticed(backbone, folder, tmp_path):
    model = model_with(backbone, counts=[4, 0, 3, 1, 0, 2])
    torch.nn.init.ones_(model.head.bias)
    save_adapter(model, tmp_path / "new")
    shutil.copy(tmp_path / "new" / "adapter_model.safetensors", folder)
    refused("is not the file that adapter_config.json was written for", folder, backbone)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["head.bias", "prompts.2"])
def test_numbers_that_are_not_finite_are_not_saved(backbone, tmp_path, name, value):
    model = model_with(backbone)
    with torch.no_grad():
        model.learned[name].view(-1)[-1] = value
    with pytest.raises(AdapterError, match=rf"cannot be saved.*'{name}'.*NaN or infinite"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_record_that_json_cannot_hold_is_not_saved(backbone, tmp_path):
    model = model_with(backbone)
    record = Condensation(criterion="x", scope="local", ratio=1.0, scores=((0.5,),) * 6, kept=((0,),) * 6)
    for scores in (((float("nan"),),) * 6, ((torch.tensor(1.0),),) * 6, ((0.5,),)):
        model.condensation = replace(record, scores=scores)
        with pytest.raises(AdapterError, match=r"JSON|condensation"):
            save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ── what is refused: the files ───────────────────────────────────────────────────────────────────────────────────────


def test_a_source_that_is_no_folder(tmp_path, folder):
    refused("no folder .*nowhere", tmp_path / "nowhere")
    refused("no folder .*nowhere", str(tmp_path / "nowhere"))
    refused("no folder 'birds', and that is no id on the Hub", "birds")
    refused("no id on the Hub", "")
    refused("no id on the Hub", "a/b\0c")
    refused("no id on the Hub", "x" * 5000)
    refused("is a file; give the folder", folder / "adapter_config.json")


@pytest.mark.parametrize("file", FILES[1:])
def test_a_missing_file(backbone, folder, file):
    (folder / file).unlink()
    assert str(folder) in refused(f"has no {file}", folder, backbone)


def test_a_pickle_is_never_read(backbone, folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (folder / "adapter_model.safetensors").unlink()
    torch.save({"head.weight": Bomb()}, folder / "adapter_model.bin")
    refused("has no adapter_model.safetensors.*adapter_model.bin is not read", folder, backbone)
    shutil.copy(folder / "adapter_model.bin", folder / "adapter_model.safetensors")
    vouch(folder)
    refused("no safetensors file", folder, backbone)
    assert not (tmp_path / "exploded").exists()


def test_damage_anywhere_in_the_tensors_is_noticed(backbone, folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused("is damaged", folder, backbone)
    for place in range(0, len(whole), 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refused("is damaged", folder, backbone)
    path.write_bytes(whole + b"\0")
    refused("is damaged", folder, backbone)
    path.write_bytes(whole)
    vprompt.load(folder, backbone)


def test_forged_tensors_load_or_are_refused(backbone, folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    loaded = 0
    for length in [*range(0, header, 41), header, header + 5, len(whole) - 1]:
        path.write_bytes(whole[:length])
        vouch(folder)
        refused("no safetensors file", folder, backbone)
    for place in range(0, header + 40, 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        vouch(folder)
        try:
            vprompt.load(folder, backbone)
            loaded += 1
        except AdapterError as error:
            assert path.name in str(error)  # noqa: PT017 - some of them load
    assert loaded > 0  # a flipped bit in a number is still a number


def drop(tensors):
    del tensors["prompts.3"]


def add(tensors):
    tensors["optimizer.state"] = torch.zeros(2)


def empty(tensors):
    tensors["prompts.1"] = torch.zeros(0, 64)


def lengthen(tensors):
    tensors["prompts.2"] = torch.zeros(4, 64)


def flatten(tensors):
    tensors["head.weight"] = tensors["head.weight"].flatten()


def widen(tensors):
    tensors["head.weight"] = torch.zeros(3, 65)


def spoil(tensors):
    tensors["prompts.0"][1, 5] = float("nan")


def blow_up(tensors):
    tensors["head.bias"][0] = -float("inf")


def round_off(tensors):
    tensors["head.bias"] = tensors["head.bias"].long()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop, "lacks the tensor 'prompts.3'"),
        (add, "has a tensor 'optimizer.state'"),
        (empty, "has a tensor 'prompts.1'"),
        (lengthen, "'prompts.2' in .* has the shape 4×64, not 3×64"),
        (flatten, "'head.weight' in .* has the shape 192, not 3×64"),
        (widen, "has the shape 3×65, not 3×64"),
        (spoil, "'prompts.0' in .* NaN or infinite"),
        (blow_up, "'head.bias' in .* NaN or infinite"),
        (round_off, "'head.bias' in .* torch.int64, not floating point"),
    ],
)
def test_tensors_that_do_not_fit(backbone, folder, change, match):
    rewrite_tensors(folder, change)
    refused(match, folder, backbone)


# ── what is refused: the backbone ────────────────────────────────────────────────────────────────────────────────────


def test_other_weights(folder):
    other = tiny_backbone(seed=1)
    sentence = refused("weights differ", folder, other)
    assert fingerprint(other) in sentence
    assert config_of(folder)["backbone"]["fingerprint"] in sentence
    assert sentence.count("test_vit.r160_in1k") == 2


def test_another_head_is_no_other_backbone(folder):
    torch.manual_seed(0)
    other = tiny_backbone()
    other.reset_classifier(17)
    assert vprompt.load(folder, other).prompt_counts == [4, 0, 3, 1, 0, 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 5}, "6 blocks there, 5 here"),
        ({"embed_dim": 128}, "block 0 is 64 wide there, 128 here"),
        ({"img_size": 48}, "images of 32×32 pixels there, 48×48 here; make the backbone with img_size=32"),
        ({"img_size": (32, 48)}, "images of 32×32 pixels there, 32×48 here"),
    ],
)
def test_another_architecture(folder, options, match):
    refused(match, folder, tiny_backbone(**options))


def test_a_backbone_that_is_not_supported(folder):
    refused("Linear is not supported", folder, torch.nn.Linear(2, 2), error=BackboneError)


def test_a_backbone_that_timm_cannot_make(folder):
    for name in ("VisionTransformer", "vit_of_tomorrow"):
        edit(folder, backbone={**config_of(folder)["backbone"], "name": name})
        assert name in refused("timm cannot make by name.*backbone=model", folder)
    edit(folder, backbone={**config_of(folder)["backbone"], "name": "test_vit.no_such_tag"})
    refused("no_such_tag", folder, error=BackboneError)


def test_a_backbone_from_a_folder_is_found_again(tmp_path):
    save_for_hf(timm.create_model("test_vit", img_size=32), tmp_path / "vit", safe_serialization=True)
    model = attach(f"local-dir:{tmp_path / 'vit'}", VPT(2), num_classes=3).eval()
    save_adapter(model, tmp_path / "adapter")
    images = torch.randn(2, 3, *model.preprocessing.size)
    assert torch.equal(load(tmp_path / "adapter")(images), model(images))


def test_a_backbone_made_by_hand_needs_the_object(tmp_path):
    backbone = tiny_backbone()
    backbone.pretrained_cfg = {}
    model = model_with(backbone)
    save_adapter(model, tmp_path)
    refused("'VisionTransformer', which timm cannot make by name", tmp_path)
    assert "backbone=model" in (tmp_path / "README.md").read_text()
    assert torch.equal(vprompt.load(tmp_path, backbone)(some_images()), model(some_images()))


def test_a_backbone_made_by_name(tmp_path):
    model = model_with("vprompt_vit_tiny_patch8_64.tiny_imagenet", img_size=32)
    save_adapter(model, tmp_path)
    loaded = vprompt.load(tmp_path)
    assert loaded.backbone is not model.backbone
    assert torch.equal(loaded(some_images()), model(some_images()))
    edit(tmp_path, backbone={**config_of(tmp_path)["backbone"], "fingerprint": "0123456789abcdef"})
    sentence = refused(r"weights differ.*vprompt.load\(..., backbone=model\)", tmp_path)
    assert "0123456789abcdef" in sentence
    assert fingerprint(model.backbone) in sentence


def test_execution_is_checked(backbone, folder):
    with pytest.raises(VPromptError, match="Execution"):
        vprompt.load(folder, backbone, execution="fast")


def test_a_good_adapter_loads_without_a_warning(backbone, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vprompt.load(folder, backbone)


# ── the same weights in another form ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_backbone_in_another_precision_is_the_same(folder, dtype):
    expected = vprompt.load(folder, tiny_backbone())(some_images())
    other = tiny_backbone().to(dtype)
    before = fingerprint(other)
    model = vprompt.load(folder, other)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for runs in (model, model.fold()):
        torch.testing.assert_close(runs(some_images()).float(), expected, rtol=0.1, atol=0.3)
    assert fingerprint(other) == before
    refused(f"weights differ.*{str(dtype).removeprefix('torch.')}", folder, tiny_backbone(seed=1).to(dtype))


def test_an_adapter_of_a_half_backbone_on_a_whole_one(tmp_path):
    save_adapter(model_with(tiny_backbone().bfloat16()), tmp_path)
    assert vprompt.load(tmp_path, tiny_backbone()).head.weight.dtype == torch.float32
    assert vprompt.load(tmp_path, tiny_backbone().bfloat16().float()).prompt_counts == [4] * 6


def test_an_older_adapter_on_a_half_backbone_says_what_to_do(folder):
    known = {key: value for key, value in config_of(folder)["backbone"].items() if key != "rounded"}
    edit(folder, backbone=known)
    assert vprompt.load(folder, tiny_backbone()).prompt_counts == [4, 0, 3, 1, 0, 2]
    refused(
        "older adapter does not know weights rounded to float16: load it on float32", folder, tiny_backbone().half()
    )


def test_tensors_of_several_types(backbone, folder):
    def mix(tensors):
        tensors["prompts.3"] = tensors["prompts.3"].double()

    rewrite_tensors(folder, mix)
    refused(r"several types \(torch.float32, torch.float64\)", folder, backbone)


# ── the whole of it is vouched for ───────────────────────────────────────────────────────────────────────────────────


def test_any_flipped_bit_in_the_configuration_is_noticed_or_changes_nothing(pristine, folder, backbone):
    path, whole = folder / "adapter_config.json", (pristine / "adapter_config.json").read_bytes()
    wanted = read_config(whole, "here")
    chance = random.Random(0)
    noticed = 0
    for _ in range(2000):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a key that is no longer known
                found = read_config(bytes(data), str(path))
        except AdapterError:
            noticed += 1
        else:
            assert found == wanted
    assert noticed > 1000


def test_a_configuration_changed_on_purpose(folder, backbone):
    path = folder / "adapter_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"ant"', '"aunt"'))
    refused("damaged: what it says is not what was saved.*remove the line 'checksum'", folder, backbone)
    path.write_text("\n".join(line for line in path.read_text().split("\n") if '"checksum"' not in line))
    assert vprompt.load(folder, backbone).classes[0] == "aunt"
    path.write_text(json.dumps(dict(reversed(json.loads(text).items()))))  # only order and spacing
    assert vprompt.load(folder, backbone).classes[0] == "ant"


@pytest.mark.parametrize("size", [[64, 64], [32, 64], [4096, 4096], [30000, 30000], [0, 32], [32]])
def test_images_of_a_size_that_the_backbone_does_not_take(tmp_path, size):
    backbone = tiny_backbone(dynamic_img_size=False)
    save_adapter(model_with(backbone), tmp_path)
    edit(tmp_path, preprocessing={**config_of(tmp_path)["preprocessing"], "size": size})
    refused("pixels|list of 2", tmp_path, backbone, error=VPromptError)


@pytest.mark.parametrize(("size", "takes"), [([64, 48], True), ([40, 32], False), ([30000, 30000], False)])
def test_images_of_another_size_for_a_backbone_of_any_size(folder, backbone, size, takes):
    edit(folder, preprocessing={**config_of(folder)["preprocessing"], "size": size})
    if takes:
        assert vprompt.load(folder, backbone)(torch.zeros(1, 3, *size)).shape == (1, 3)
    else:
        refused("pixels", folder, backbone, error=VPromptError)


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ("num_classes", 10**12, "head.weight|cannot be"),
        ("num_classes", 2**63, "cannot be"),
        ("prompt_counts", [10**12, 0, 3, 1, 0, 2], "more prompts in a block"),
        (
            "method",
            {"name": "vpt-deep", "dropout": None, "depth": "deep", "num_prompts": 10**12},
            "num_prompts|prompts",
        ),
        ("method", {"name": "mlp", "layers": 10**9}, "layers"),
        (
            "method",
            {"name": "e2vpt", "dropout": None, "share": "heads", "num_prompts": 4, "num_kv_prompts": 10**9},
            "prompts",
        ),
        ("backbone", {"img_size": [30000, 30000]}, "img_size"),
    ],
)
def test_numbers_without_bounds_are_refused_before_memory_is_asked_for(folder, backbone, place, value, match):
    if place == "backbone":
        value = {**config_of(folder)["backbone"], **value}
    edit(folder, **{place: value, "condensation": None, **({"classes": None} if place == "num_classes" else {})})
    refused(match, folder, backbone)
