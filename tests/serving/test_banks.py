"""Several backbones and input sizes in one service, and adapters from a folder that is watched."""

import json
import os
import shutil

import pytest
import torch
from test_serving import IMAGES, TOKEN, assert_problem, assert_same, running

import vprompt
from conftest import run_command
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.serving.bank.bank import Bank
from vprompt.serving.bank.banks import Banks
from vprompt.serving.predict import predict_each
from vprompt.serving.watch import Watch
from vprompt.utils.errors import UnknownAdapterError, VPromptError

KINDS = {
    "small": ("test_vit", 32, vprompt.VPT(3), 4),
    "wide": ("test_vit", 48, vprompt.VPT(2), 3),
    "flat": ("test_vit", 32, vprompt.Linear(), 5),
    "other": (BUNDLED_BACKBONE, None, vprompt.Linear(), 2),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_weights):
    """Folders by name: two of one backbone and size, one of another size, one of another backbone."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, (backbone, size, method, classes)) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        weights = tiny_weights if backbone == "test_vit" else None
        model = vprompt.attach(backbone, method, num_classes=classes, weights=weights, img_size=size)
        torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(root / name)
    return root


def loaded(sources, **options):
    banks = Banks(**options)
    for name, source in sources.items():
        banks.add(name, source)
    return banks


@pytest.fixture
def banks(adapters):
    return loaded({name: adapters / name for name in KINDS})


def names(banks):
    return sorted(entry.name for entry in banks.entries)


def test_each_adapter_is_in_the_bank_of_its_backbone_and_size(banks, adapters):
    assert len(banks) == 4
    assert sorted(sorted(bank) for bank in banks.banks) == [["flat", "small"], ["other"], ["wide"]]
    asked = ["wide", "small", "other", "nobody", "flat", "small", "wide"]
    models = {name: vprompt.load(adapters / name).fold() for name in KINDS}
    sizes = {name: models[name].preprocessing.size for name in KINDS}
    images = [torch.randn(3, *sizes.get(name, (8, 8))) for name in asked]
    images[4] = images[1]  # one image for two adapters
    for name, image, logits in zip(asked, images, banks(images, asked), strict=True):
        if name == "nobody":
            assert isinstance(logits, UnknownAdapterError)
            assert all(repr(known) in str(logits) for known in KINDS)
        else:
            with torch.inference_mode():
                torch.testing.assert_close(logits, models[name](image[None])[0], atol=1e-5, rtol=1e-4)


def test_all_are_asked_about_one_image_by_one_request(banks, adapters, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(IMAGES["jpeg"])
    with running(banks) as server:
        answers = server.client.post("/v1/predict", params={"adapter": [*KINDS]}, content=IMAGES["jpeg"]).json()[
            "answers"
        ]
        health = server.client.get("/health").json()
    for found in answers:
        [[wanted]] = predict_each(vprompt.load(adapters / found["adapter"]).fold(), [path])
        assert_same(found, wanted)
    described = {(one["name"], *one["img_size"]) for one in health["backbones"]}
    assert described == {("test_vit.r160_in1k", 32, 32), ("test_vit.r160_in1k", 48, 48), (BUNDLED_BACKBONE, 64, 64)}
    configs = [json.loads((adapters / name / "adapter_config.json").read_text())["backbone"] for name in KINDS]
    assert {one["fingerprint"] for one in health["backbones"]} == {one["fingerprint"] for one in configs}


def test_names_are_one_set_and_nothing_changes_when_one_is_refused(banks, adapters, tmp_path):
    before = banks.entries
    for source in (adapters / "small", adapters / "other", tmp_path, "no/such/thing/here"):
        with pytest.raises(VPromptError):
            banks.add("small", source)
    with pytest.raises(VPromptError):
        banks.add("new", tmp_path, replace=True)
    with pytest.raises(UnknownAdapterError):
        banks.remove("new")
    assert banks.entries == before


def test_an_adapter_is_replaced_by_one_of_another_backbone_and_its_bank_goes(banks, adapters):
    banks.add("wide", adapters / "other", replace=True)
    assert sorted(sorted(bank) for bank in banks.banks) == [["flat", "small"], ["other", "wide"]]
    assert banks["wide"].num_classes == 2
    banks.add("other", adapters / "wide", replace=True)
    banks.add("flat", adapters / "small", replace=True)
    assert banks["flat"].method == banks["small"].method
    for name in [*KINDS]:
        banks.remove(name)
    assert (len(banks), len(banks.banks)) == (0, 1)
    banks.add("back", adapters / "wide")
    assert "back" in banks


def test_weights_are_for_the_adapters_that_they_fit(adapters, tiny_weights, tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.copy(tiny_weights, moved)
    for name in ("small", "wide"):
        shutil.copytree(adapters / name, tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        config = json.loads(path.read_text())
        assert config["backbone"]["weights"] is not None
        del config["checksum"]  # it is changed on purpose
        config["backbone"]["weights"] = "/nowhere/w.safetensors"
        path.write_text(json.dumps(config))
    sources = {"other": adapters / "other", "small": tmp_path / "small", "wide": tmp_path / "wide"}
    with pytest.raises(VPromptError, match="weights"):
        loaded(sources)
    assert names(loaded(sources, weights=moved)) == ["other", "small", "wide"]


def test_a_client_may_add_an_adapter_of_another_backbone(adapters):
    with running(Bank.load({"small": adapters / "small"}), token=TOKEN, manage=True) as server:
        added = server.client.put("/v1/adapters/other", json={"path": str(adapters / "other")})
        assert added.status_code == 201, added.text
        assert server.ask("other").status_code == server.ask("small").status_code == 200
        again = server.client.put("/v1/adapters/small", json={"path": str(adapters / "other")})
        assert_problem(again, 409, "refused", "small")
        turned = server.client.put("/v1/adapters/x", json={"path": "/no\u202eerehw/\u0007"})
        assert_problem(turned, 409, "refused")
        assert "\u202e" not in turned.json()["error"]["message"]


# ── a folder that is watched ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path, adapters):
    """A folder with one adapter, and things that are none."""
    shutil.copytree(adapters / "small", tmp_path / "watched" / "birds")
    shutil.copytree(adapters / "small", tmp_path / "watched" / ".hidden")
    (tmp_path / "watched" / "empty").mkdir()
    (tmp_path / "watched" / "adapter_config.json").write_text("{}")
    return tmp_path / "watched"


def replaced(folder, source):
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def test_what_is_added_replaced_and_removed_is_so_in_the_service(folder, adapters):
    banks = Banks()
    watch = Watch(banks, folder)
    assert names(banks) == ["birds"]
    assert banks["birds"].num_classes == 4
    shutil.copytree(adapters / "wide", folder / "pets")
    watch.look()  # it may still be written
    assert names(banks) == ["birds"]
    watch.look()
    assert names(banks) == ["birds", "pets"]
    replaced(folder / "birds", adapters / "other")
    watch.look()
    assert banks["birds"].num_classes == 4
    watch.look()
    assert banks["birds"].num_classes == 2
    shutil.rmtree(folder / "birds")
    watch.look()
    assert names(banks) == ["birds", "pets"]
    watch.look()
    assert names(banks) == ["pets"]
    entry = banks["pets"]
    watch.look()
    assert banks["pets"] is entry  # nothing is loaded again


def test_a_bad_adapter_is_logged_once_and_the_old_one_stays(folder, adapters, caplog):
    banks = Banks()
    watch = Watch(banks, folder)
    before = banks.entries
    path = folder / "birds" / "adapter_config.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for name in ("a b", "tw\u202eo"):
        shutil.copytree(adapters / "small", folder / name)
    for _ in range(4):
        watch.look()
    assert banks.entries == before
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("'birds'" in one for one in warnings) == 1
    assert sum("'a b'" in one for one in warnings) == 1
    assert not any("hidden" in one for one in warnings)
    assert not any("\u202e" in one for one in warnings)
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    shutil.rmtree(folder / "a b")
    for _ in range(2):
        watch.look()
    assert len(banks) == 1


def test_a_link_to_nothing_stops_no_other_adapter(folder, adapters):
    (folder / "birds" / ".#README.md").symlink_to("nowhere")
    (folder / "birds" / "moved.safetensors").symlink_to("nowhere")
    banks = Banks()
    watch = Watch(banks, folder)
    shutil.copytree(adapters / "flat", folder / "flat")
    for _ in range(2):
        watch.look()
    assert names(banks) == ["birds", "flat"]


def test_banks_that_were_given_stay(adapters, tiny_weights):
    bank = vprompt.Bank("test_vit", weights=tiny_weights, img_size=48)
    banks = Banks(bank)
    banks.add("wide", adapters / "wide")
    banks.add("small", adapters / "small")
    banks.remove("wide")
    assert bank in banks.banks
    banks.add("wide", adapters / "wide")
    assert bank.get("wide") is not None


def test_a_folder_that_cannot_be_read_for_a_while_takes_nothing_away(folder, caplog):
    banks = Banks()
    watch = Watch(banks, folder)
    folder.rename(folder.with_name("elsewhere"))
    for _ in range(3):
        watch.look()
    assert names(banks) == ["birds"]
    assert "its adapters stay" in caplog.text
    with pytest.raises(VPromptError, match="--watch"):
        Watch(banks, folder)


def test_adapters_that_were_given_by_name_are_left_alone(folder, adapters, caplog):
    banks = loaded({"birds": adapters / "wide"})
    watch = Watch(banks, folder)
    assert banks["birds"].num_classes == 3
    assert "'birds'" in caplog.text
    shutil.rmtree(folder / "birds")
    for _ in range(2):
        watch.look()
    assert names(banks) == ["birds"]


def test_a_link_that_is_turned_is_a_new_adapter(folder, adapters):
    banks = Banks()
    (folder / "now").symlink_to(adapters / "small")
    watch = Watch(banks, folder)
    assert banks["now"].num_classes == 4
    (folder / "now").unlink()
    (folder / "now").symlink_to(adapters / "flat")
    for _ in range(2):
        watch.look()
    assert banks["now"].num_classes == 5


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    outcome = run_command("serve", "--watch", tmp_path / "nowhere", "--port", "0")
    assert outcome.status == 1
    [sentence] = outcome.err.splitlines()
    assert str(tmp_path / "nowhere") in sentence
    assert "--watch" in sentence
