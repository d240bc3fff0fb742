"""Engines: what they compute for adapters not seen before, alone and mixed, what files say, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import families
import vprompt
import vprompt.exporters.formats.openvino  # before OpenVINO itself, which would report its use
from conftest import COLOURS, run_command
from vprompt.backbones.factory import create_backbone
from vprompt.exporters.engine import HIDDEN, EngineAdapter, open_engine, packed, read_adapter
from vprompt.methods.layers.prompts import Prompts
from vprompt.serving.bank.banks import Banks
from vprompt.utils.errors import AdapterError, UnknownAdapterError, VPromptError


def vit(depth=2):
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, depth=depth)


BACKBONES = {
    "vit.onnx": vit,
    "swin.onnx": lambda: families.swin(depths=(1, 1), num_heads=(2, 4)),
    "dinov3.xml": lambda: families.dinov3(depth=1),
    "dinov3.pt2": lambda: families.dinov3(depth=1),
}


class Engines:
    """Each is made once for all tests, from adapters that no test has."""

    def __init__(self, folder):
        self.folder, self.made = folder, {}

    def __call__(self, name):
        if name not in self.made:
            backbone = BACKBONES[name]()
            vprompt.export_engine(backbone, self.folder / name)
            self.made[name] = backbone, self.folder / name
        return self.made[name]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return Engines(tmp_path_factory.mktemp("engines"))


def adapted(backbone, method, classes, *, counts=None, multiplicity=None, seed=1):
    model = vprompt.attach(backbone, method, head_init="paper", num_classes=classes)
    generator = torch.Generator().manual_seed(seed)
    if counts is not None:
        tokens = [torch.zeros(n, w) for n, w in zip(counts, model.info.widths, strict=True)]
        model = model.copy(prompts=Prompts(tokens, multiplicity=multiplicity))
    with torch.no_grad():
        for parameter in model.learned.values():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def zoo(backbone, *, kv):
    blocks = len(vprompt.backbones.info.describe(backbone).blocks)
    counts = [5 * (block % 2) + 1 for block in range(blocks)]
    models = {
        "deep": adapted(backbone, vprompt.VPT(7), 3, seed=2),
        "gaps": adapted(backbone, vprompt.VPT(1), 6, counts=[0] * (blocks - 1) + [11], seed=3),
        "merged": adapted(
            backbone, vprompt.VPT(1), 2, counts=counts, multiplicity=[[*range(1, n + 1)] for n in counts], seed=4
        ),
        "linear": adapted(backbone, vprompt.Linear(), 4, seed=5),
    }
    if kv:
        models["e2vpt"] = adapted(backbone, vprompt.E2VPT(2, 3), 5, seed=6)
    return models


def some_images(size, count, seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_rows(engine, models, names, images):
    for name, image, row in zip(names, images, engine(images, names), strict=True):
        eager = models[name](image[None])[0]
        assert row.shape == eager.shape
        torch.testing.assert_close(row, eager, rtol=0, atol=1e-4 * float(eager.abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_adapters_not_seen_before_are_those_of_eager(name, engines):
    backbone, path = engines(name)
    models, engine = zoo(backbone, kv=not name.startswith("swin")), vprompt.Engine(path)
    for adapter, model in models.items():
        entry = engine.add(adapter, model)
        assert (entry.num_classes, entry.prompt_counts) == (model.num_classes, tuple(model.prompt_counts))
    size = engine.file.about.preprocessing.size
    names = [*models, *reversed(models), "deep"]
    assert_rows(engine, models, names, some_images(size, len(names)))
    for adapter in models:
        assert_rows(engine, models, [adapter], some_images(size, 1, seed=9))
    assert engine.file.about.comparison.images == 32
    assert 0 < engine.file.about.comparison.largest <= 1e-4 * engine.file.about.comparison.scale


def test_a_process_whose_engine_is_gone_survives_a_signal(engines):
    path = engines("dinov3.xml")[1]
    code = f"""
import signal, vprompt
first, second = (vprompt.Engine({str(path)!r}) for _ in range(2))
del first
del second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("caught")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


def test_an_image_that_several_are_asked_about_and_features(engines):
    backbone, path = engines("vit.onnx")
    models, engine = zoo(backbone, kv=False), vprompt.Engine(path)
    for adapter, model in models.items():
        engine.add(adapter, model)
    images = some_images((32, 32), 2)
    answers = engine(images, ["deep", "linear", "deep"], rows=[1, 1, 0])
    with torch.no_grad():
        for answer, wanted in zip(answers, ("deep 1", "linear 1", "deep 0"), strict=True):
            adapter, row = wanted.split()
            torch.testing.assert_close(answer, models[adapter](images)[int(row)], rtol=1e-4, atol=1e-4)
        found = engine.file(images, [packed(models["deep"])] * 2)[0]
        torch.testing.assert_close(found, models["deep"].features(images), rtol=1e-4, atol=1e-4)
    assert engine(images[:0], []) == []


def test_prompts_that_are_not_there_weigh_nothing(engines):
    backbone, path = engines("vit.onnx")
    ready, file = packed(adapted(backbone, vprompt.VPT(1), 3, counts=[1, 6])), open_engine(path)
    assert (ready.arrays["prefix_mask"][0] == [0] + [HIDDEN] * 5).all()
    images = some_images((32, 32), 2)
    noisy = {name: array.copy() for name, array in ready.arrays.items()}
    half = noisy["prefix_keys"].shape[1] // 2  # of the first of two blocks
    noisy["prefix_keys"][1:, :half] = 1e4
    noisy["prefix_values"][1:, :half] = 1e6
    one, two = (file(images, [EngineAdapter(about=ready.about, arrays=a)] * 2)[1] for a in (ready.arrays, noisy))
    assert torch.equal(torch.stack(one), torch.stack(two))
    noisy["prefix_mask"][0] = 0  # and they would, were they there
    assert not torch.equal(
        torch.stack(file(images[:1], [EngineAdapter(about=ready.about, arrays=noisy)])[1]), one[0][None]
    )


def test_the_file_of_an_adapter(engines, tmp_path):
    backbone, path = engines("vit.onnx")
    model, file = adapted(backbone, vprompt.VPT(6), 3), tmp_path / "birds.safetensors"
    made = vprompt.export_adapter(model, file, open_engine(path), adapter="birds é")
    assert made.about.comparison.largest <= 1e-4 * made.about.comparison.scale
    assert (made.about.adapter, made.about.method) == ("birds é", "vpt-deep")
    again = read_adapter(file)
    for part, array in packed(model).arrays.items():
        assert np.array_equal(again.arrays[part], array)
    assert 0 <= file.stat().st_size - again.nbytes < 3000  # the description
    entry = vprompt.Engine(path).add("birds", file)
    assert entry.nbytes == again.nbytes
    vprompt.export_adapter(adapted(backbone, vprompt.Linear(), 2), file, open_engine(path))
    assert read_adapter(file).about.num_classes == 2
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(VPromptError, match="checksum differs"):
        read_adapter(file)
    with pytest.raises(VPromptError, match="is there already and is no adapter"):
        vprompt.export_adapter(model, file, open_engine(path))
    (tmp_path / "text.safetensors").write_text("not one")
    with pytest.raises(VPromptError, match="no adapter for an engine"):
        vprompt.Engine(path).add("text", tmp_path / "text.safetensors")
    with pytest.raises(AdapterError, match="There is no file"):
        read_adapter(tmp_path / "none.safetensors")
    with pytest.raises(VPromptError, match=r"ends in \.safetensors"):
        vprompt.export_adapter(model, tmp_path / "birds.npz", open_engine(path))
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / "text.safetensors"]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (vprompt.VPT(3, depth="shallow"), "shallow prompts ask queries"),
        (vprompt.LoRA(), "lora changes the backbone"),
        (vprompt.Full(), "full changes the backbone"),
        (vprompt.MLP(2), "several layers"),
    ],
)
def test_what_cannot_run_gets_its_sentence(method, why):
    with pytest.raises(AdapterError, match=f"birds cannot be run by an engine.*{why}"):
        packed(vprompt.attach(vit(), method, num_classes=2), "birds")


def test_adapters_of_other_backbones_and_with_too_many_prompts_are_refused(engines):
    backbone, path = engines("vit.onnx")
    engine = vprompt.Engine(path)
    torch.manual_seed(5)
    other = timm.create_model("test_vit", img_size=32, depth=2, pretrained=False)
    with torch.no_grad():
        other.norm.weight.mul_(1.5)
    with pytest.raises(AdapterError, match=r"weights .*, and vit\.onnx is an engine of"):
        engine.add("other", adapted(other, vprompt.VPT(2), 3))
    with pytest.raises(AdapterError, match=r"has 257 prompts in a block.*--max-prompts 257"):
        engine.add("many", adapted(backbone, vprompt.VPT(257), 3))
    ready = packed(adapted(backbone, vprompt.VPT(2), 3))
    for part, wrong in (("prefix_values", ready.arrays["prefix_values"][:1]), ("head_bias", np.full(3, np.nan))):
        with pytest.raises(AdapterError, match="is damaged"):
            engine.file.check(replace(ready, arrays={**ready.arrays, part: wrong}), "bad")
    assert len(engine) == 0


def test_engines_and_exports_are_told_apart(engines, tmp_path):
    backbone, path = engines("vit.onnx")
    with pytest.raises(VPromptError, match=r"is an engine.*--adapter FILE"):
        vprompt.load_exported(path)
    with pytest.raises(VPromptError, match="which takes images alone"):
        vprompt.export_engine(backbone, tmp_path / "vit.pte")
    with pytest.raises(VPromptError, match="at least 1 prompt"):
        vprompt.export_engine(backbone, tmp_path / "vit.onnx", max_prompts=0)
    shutil.copy(path, tmp_path / "flipped.onnx")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(content)
    with pytest.raises(VPromptError, match="checksum differs"):
        vprompt.Engine(tmp_path / "flipped.onnx")


def test_adapters_come_and_go_while_it_runs(engines):
    backbone, path = engines("vit.onnx")
    engine, stays = vprompt.Engine(path), adapted(backbone, vprompt.VPT(3), 4)
    engine.add("stays", stays)
    images, session, failed = some_images((32, 32), 3), engine.file._run, []
    with torch.no_grad():
        wanted = stays(images)

    def ask():
        for _ in range(15):
            rows = torch.stack(engine(images, ["stays"] * 3))
            failed.extend([] if torch.allclose(rows, wanted, rtol=1e-4, atol=1e-4) else [rows])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        engine.add("guest", adapted(backbone, vprompt.VPT(number + 1), 2))
        engine(images[:1], ["guest"])
        engine.remove("guest")
    for thread in threads:
        thread.join()
    assert not failed
    assert engine.file._run is session  # nothing was opened again
    with pytest.raises(UnknownAdapterError, match="guest"):
        engine(images[:1], ["guest"])
    with pytest.raises(VPromptError, match="already"):
        engine.add("stays", stays)
    answers = engine(images[:2], ["gone", "stays"], return_exceptions=True)
    assert isinstance(answers[0], UnknownAdapterError)
    assert torch.allclose(answers[1], wanted[1], rtol=1e-4, atol=1e-4)


def test_int8_says_what_it_costs(tmp_path):
    engine = vprompt.export_engine(vit(1), tmp_path / "small.onnx", precision="int8")
    cost = engine.about.quantisation
    assert (engine.about.precision, cost.calibration_images) == ("int8", 0)
    assert 0.8 < cost.same_class <= 1
    model = adapted(vit(1), vprompt.VPT(5), 3)
    made = vprompt.export_adapter(model, tmp_path / "birds.safetensors", engine)
    assert made.about.comparison is None
    assert made.about.quantisation.same_class > 0.8
    with torch.no_grad():
        images = some_images((32, 32), 4)
        eager, found = model(images), torch.stack(engine(images, [made] * 4)[1])
    assert 0 < float((eager - found).abs().max()) < 0.1 * float(eager.abs().max())


def test_half_as_many_bits_in_weights_are_close_and_say_what_they_cost(tmp_path):
    whole = vprompt.export_engine(vit(1), tmp_path / "whole.onnx")
    half = vprompt.export_engine(vit(1), tmp_path / "half.onnx", precision="fp16")
    assert (half.about.precision, whole.about.quantisation) == ("float16", None)
    assert 0.8 < half.about.quantisation.same_class <= 1
    made = packed(adapted(vit(1), vprompt.VPT(5), 3))
    images = some_images((32, 32), 4)
    exact, found = (torch.stack(engine(images, [made] * 4)[1]) for engine in (whole, half))
    assert 0 < float((exact - found).abs().max()) < 0.02 * float(exact.abs().max())


# ── the command line, services, and other languages ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_weights):
    """Two adapters of colours on a backbone that can be made by name."""
    root = tmp_path_factory.mktemp("adapters")
    backbone = create_backbone("test_vit", img_size=32, weights=tiny_weights)
    for seed, name in enumerate(("birds", "pets")):
        model = adapted(backbone, vprompt.VPT(2 + seed), len(COLOURS), seed=seed)
        target = vprompt.tasks.single_label.SingleLabel(names=tuple(COLOURS))
        vprompt.PromptedModel(backbone, model.method, model.prompts, model.head, target=target).save_pretrained(
            root / name
        )
    return root


def test_a_backbone_is_named_as_for_training(tmp_path, monkeypatch, tiny_weights):
    monkeypatch.chdir(tmp_path)
    made = run_command("export", "test_vit", "--engine", "--format", "onnx", "--weights", tiny_weights, "--json")
    assert (made.status, [file.name for file in tmp_path.iterdir()]) == (0, ["test_vit.onnx"]), made.err
    unknown = run_command("export", "no_such_vit", "--engine", "--format", "onnx")
    assert (unknown.status, "no model called 'no_such_vit'" in unknown.err) == (1, True)


def test_commands_services_and_node(folders, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    birds, pets = folders / "birds", folders / "pets"
    done = run_command(
        "export", birds, "--engine", "--format", "onnx", "--out", "vit.onnx", "--adapters", pets, "--json"
    )
    assert done.status == 0, done.err
    assert done.document["engine"]["max_prompts"] == 256
    for folder in (birds, pets):
        done = run_command("export", folder, "--for", "vit.onnx")
        assert done.status == 0, done.err
    assert {file.name for file in tmp_path.iterdir()} == {"vit.onnx", "birds.safetensors", "pets.safetensors"}
    images = sorted(colours.rglob("*.png"))[:3]
    done = run_command(
        "predict", "vit.onnx", "--adapter", "birds", "--adapter", "b=pets.safetensors", *images, "--json"
    )
    assert done.status == 0, done.err
    rows = done.document
    assert [row["adapter"] for row in rows] == ["birds"] * 3 + ["b"] * 3
    for row, folder, file in zip(rows, [birds] * 3 + [pets] * 3, images * 2, strict=True):
        single = vprompt.load(folder).predict(file)
        assert (row["image"], row["class_name"]) == (str(file), single.class_names[0])
        assert row["probability"] == pytest.approx(float(single.outputs.max()), rel=1e-3)
    done = run_command("predict", "vit.onnx", *images)
    assert done.status == 1
    assert "is an engine" in done.err
    wrong = run_command("export", birds, "--for", "vit.onnx", "--format", "onnx")
    assert (wrong.status, "leave out --format" in wrong.err) == (2, True)
    evaluated = run_command("eval", "vit.onnx", "--adapter", "birds", colours, "--split", "all", "--json")
    assert evaluated.status == 0, evaluated.err
    assert 0 <= evaluated.document["accuracy"] <= 1

    banks = Banks(vprompt.Engine("vit.onnx"))
    banks.add("birds", tmp_path / "birds.safetensors")
    banks.add("pets", str(pets))  # a folder is folded for it
    assert len(banks.banks) == 1
    pixels = some_images((32, 32), 2)
    with torch.no_grad():
        wanted = [vprompt.load(folder)(pixels[row : row + 1])[0] for row, folder in enumerate((birds, pets))]
    for row, logits in zip(wanted, banks([*pixels], ["birds", "pets"]), strict=True):
        torch.testing.assert_close(logits, row, rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="start the service with its engine"):
        Banks().add("birds", tmp_path / "birds.safetensors")

    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    (tmp_path / "engine.js").write_text(re.search(r"^```js\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    pixels.numpy().tofile(tmp_path / "images.f32")
    node = shutil.which("node")
    if (
        node is None
        or subprocess.run([node, "-e", "require('onnxruntime-node')"], capture_output=True, check=False).returncode
    ):
        return  # as above, but for the other language: NODE_PATH=FOLDER/node_modules
    files = ["vit.onnx", "images.f32", "birds.safetensors", "pets.safetensors"]
    out = subprocess.run([node, "engine.js", *files], capture_output=True, text=True, check=True, env=os.environ)
    for row, logits in zip(wanted, json.loads(out.stdout), strict=True):
        torch.testing.assert_close(torch.tensor(logits), row, rtol=1e-4, atol=1e-4)
