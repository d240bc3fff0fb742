"""Exported files: what they compute, what they say of themselves, and what becomes of damaged and foreign ones."""

import contextlib
import io
import json
import logging
import pickle
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import families
import vprompt
import vprompt.exporters.formats.openvino  # before OpenVINO itself, which would report its use
from conftest import COLOURS, run_command, write_classes, write_images
from processes import Script
from vprompt.backbones.factory import create_backbone
from vprompt.data.images import decode
from vprompt.exporters.base import FORMATS, quiet
from vprompt.exporters.export import Int8, compare
from vprompt.exporters.exported import add_checksum
from vprompt.methods.layers.prompts import Prompts
from vprompt.utils.errors import StorageError, VPromptError
from vprompt.utils.io import written_together

HOSTILE = ("plain", "<b>&amp;\"'</b>", "tab\tline\nnul\x00", "日本 \U0001f426", "]]>\\u0041")
"""Names that XML, JSON, C strings and terminals each trip over."""


def attached(backbone, method, *, counts=None, copies=None, classes=HOSTILE):
    model = vprompt.attach(backbone, method, head_init="paper", num_classes=len(classes), classes=classes)
    torch.manual_seed(1)
    if counts is not None:
        prompts = Prompts(
            [torch.randn(n, w) for n, w in zip(counts, model.info.widths, strict=True)], multiplicity=copies
        )
        model = model.copy(prompts=prompts)
    with torch.no_grad():
        for parameter in (*model.prompts, *model.head.parameters()):
            parameter.normal_(std=0.5)
    return model.eval()


def small_vit(depth, **options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, depth=depth, **options)


def some_images(model, count, seed=0):
    return torch.randn(count, 3, *model.preprocessing.size, generator=torch.Generator().manual_seed(seed))


def deep():
    return attached(small_vit(2), vprompt.VPT(3), counts=[3, 2])


MODELS = {
    "deep pt2": deep,
    "deep onnx": deep,
    "deep openvino": lambda: attached(families.dinov3(depth=1), vprompt.VPT(2), counts=[2]),
    "merged executorch": lambda: attached(small_vit(1), vprompt.VPT(3), counts=[3], copies=[[1, 4, 2]]),
    "shallow pt2": lambda: attached(small_vit(1), vprompt.VPT(3, depth="shallow")),
    "mlp pt2": lambda: attached(small_vit(1), vprompt.MLP(layers=2)),
    "swin onnx": lambda: attached(families.swin(depths=(1,), num_heads=(2,)), vprompt.VPT(2)),
}
"""What is exported to what, once for all tests."""


class Exports:
    def __init__(self, folder):
        self.folder, self.made = folder, {}

    def __call__(self, name):
        if name not in self.made:
            model = MODELS[name]()
            path = self.folder / name.replace(" ", "-") / f"bird s{FORMATS.get(name.split()[1]).suffix}"
            vprompt.export(model, path, adapter="birds é")
            self.made[name] = model, path
        return self.made[name]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return Exports(tmp_path_factory.mktemp("exports"))


# ── what the files compute ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_does_for_batches_of_any_size(name, exports):
    model, path = exports(name)
    exported = vprompt.load_exported(path)
    for size in (1, 2, 5, 11):
        images = some_images(model, size, seed=size)
        with torch.inference_mode():
            wanted = model(images)
        torch.testing.assert_close(exported(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert len(list(path.parent.glob("*"))) == 1 + any(file.exists() for file in exported.format.companions(path))
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("name", ["deep pt2", "deep onnx", "deep openvino", "merged executorch"])
def test_a_file_says_what_it_is(name, exports):
    model, path = exports(name)
    exported = vprompt.load_exported(path)
    about = exported.about
    assert exported.classes == about.classes == HOSTILE
    assert exported.preprocessing == model.preprocessing
    assert about.prompt_counts == tuple(model.prompt_counts)
    assert (about.adapter, about.method, about.precision) == ("birds é", "vpt-deep", "float32")
    assert about.fingerprint == vprompt.backbones.info.fingerprint(model.backbone)
    assert about.libraries["torch"] == torch.__version__.partition("+")[0] or about.libraries["torch"]
    assert about.comparison.images == 32
    assert about.comparison.largest <= about.comparison.tolerance * about.comparison.scale


def test_files_hold_no_path_of_this_machine_and_no_weight_that_is_not_used(exports):
    here = str(Path(vprompt.__file__).parent).encode()
    for name in ("deep pt2", "deep onnx", "deep openvino", "merged executorch"):
        model, path = exports(name)
        files = sorted(path.parent.iterdir())
        for file in files:
            parts = [zipfile.ZipFile(file).read(n) for n in zipfile.ZipFile(file).namelist()] if ".pt2" in name else []
            assert not any(here in part for part in (file.read_bytes(), *parts))
        used = sum(p.numel() for p in model.parameters()) - model.backbone.head.weight.numel()
        assert sum(file.stat().st_size for file in files) < 4 * used + 220_000


def test_onnx_runs_without_vprompt(exports):
    import onnxruntime

    model, path = exports("deep onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    images = some_images(model, 4)
    found = session.run(["logits"], {"images": images.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(images).numpy(), rtol=1e-3, atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["vprompt"])
    assert about["classes"] == list(HOSTILE)
    assert about["preprocessing"]["mean"] == list(model.preprocessing.mean)


def test_the_weights_of_a_large_onnx_model_lie_beside_it(exports, tmp_path, monkeypatch):
    import onnx_ir

    path = exports("deep onnx")[1]
    whole, large = vprompt.load_exported(path), tmp_path / "large.onnx"
    monkeypatch.setattr("vprompt.exporters.formats.onnx.MOST_BYTES", 1000)
    FORMATS.get("onnx").save(onnx_ir.load(path), large, whole.about.to_text())
    add_checksum(FORMATS.get("onnx").files(large))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(vprompt.load_exported(large)(images), whole(images))
    (tmp_path / "large.onnx.data").unlink()
    with pytest.raises(VPromptError, match="missing or of another"):
        vprompt.load_exported(large)


def test_predictions_and_evaluations_take_files(exports, tmp_path):
    from vprompt.data.tasks import load_folder
    from vprompt.serving.predict import predict_each
    from vprompt.training.evaluate import evaluate

    model, path = exports("deep pt2")
    exported = vprompt.load_exported(path)
    write_images(tmp_path / "all", (90, 120, 20), 3)
    mine, theirs = (
        [row for batch in predict_each(subject, [tmp_path], top=5) for row in batch] for subject in (exported, model)
    )
    assert [[name for name, _ in p.top] for p in mine] == [[name for name, _ in p.top] for p in theirs]
    task = load_folder(write_classes(tmp_path / "colours", 4), model.preprocessing)
    mine, theirs = (evaluate(subject, task.train) for subject in (exported, model))
    assert (mine.accuracy, mine.images) == (theirs.accuracy, theirs.images)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)


def test_images_of_another_size_are_refused(exports):
    exported = vprompt.load_exported(exports("deep onnx")[1])
    for images in (torch.zeros(1, 3, 16, 16), torch.zeros(3, 32, 32), torch.zeros(0, 3, 32, 32)):
        with pytest.raises(VPromptError, match="takes images"):
            exported(images)


@pytest.mark.parametrize("suffix", [format.suffix for format in FORMATS])
def test_files_written_under_the_old_name_of_the_library_are_read(suffix):
    """`laconic/` holds one export of each format by version 0.1.0, which was called laconic."""
    exported = vprompt.load_exported(Path(__file__).parent / "laconic" / f"laconic{suffix}", trust=True)
    assert (exported.about.vprompt_version, exported.classes) == ("0.1.0", ("blue", "red"))
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    torch.testing.assert_close(exported(images), torch.tensor([[1.0235, 0.0771], [1.0910, 0.2238]]), atol=2e-4, rtol=0)


def test_new_files_do_not_have_the_old_name(exports):
    for name in ("deep pt2", "deep onnx", "deep openvino", "merged executorch"):
        for file in exports(name)[1].parent.iterdir():
            names = zipfile.ZipFile(file).namelist() if ".pt2" in file.name else []
            assert b"laconic" not in file.read_bytes() + "".join(names).encode()


def test_a_format_of_another_file(tmp_path):
    """A format is one file; this one is outside the package, and nothing in the package knows it."""
    plugin = tmp_path / "packed.py"
    plugin.write_text(
        '''
import gzip, io, json

from vprompt.exporters.base import FORMATS, Format


class Packed(Format):
    """A program of PyTorch, compressed, behind a line that describes it."""

    name, summary, suffix = "packed", "nobody else", ".pt2gz"

    def convert(self, program):
        return program

    def save(self, converted, path, about):
        import torch

        program = io.BytesIO()
        torch.export.save(converted, program)
        path.write_bytes(about.encode() + b"\\n" + gzip.compress(program.getvalue()))

    def read(self, path):
        import torch

        about, _, packed = path.read_bytes().partition(b"\\n")
        module = torch.export.load(io.BytesIO(gzip.decompress(packed))).module(check_guards=False)
        return about, lambda: lambda images: module(torch.from_numpy(images)).detach().numpy()


FORMATS.register(Packed())
'''
    )
    script = f"""
import timm, torch, vprompt
from vprompt.cli.main import main
backbone = timm.create_model("test_vit", img_size=32, depth=1)
model = vprompt.attach(backbone, vprompt.VPT(2), head_init="paper", num_classes=3).eval()
vprompt.export(model, {str(tmp_path / "model.pt2gz")!r})
exported = vprompt.load_exported({str(tmp_path / "model.pt2gz")!r})
images = torch.rand(5, 3, 32, 32)
torch.testing.assert_close(exported(images), model(images).detach(), rtol=1e-4, atol=1e-4)
main(["export", "--help"])
"""
    environment = {"VPROMPT_PLUGINS": str(plugin), "COLUMNS": "200"}
    status, printed, errors = Script(script, folder=tmp_path, environment=environment).end()
    assert status == 0, errors
    assert "packed: nobody else." in printed


def test_help_needs_no_slow_library():
    script = """
import sys
from vprompt.cli.main import main
try:
    main(["export", "--help"])
finally:
    print(sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "timm", "onnx", "openvino", "executorch") if f"'{name}'" in loaded]


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_a_folded_model_with_a_block_without_prompts_goes_through_torchscript():
    model = attached(small_vit(2), vprompt.VPT(2), counts=[0, 2]).fold()
    images, file = some_images(model, 2), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, images, check_trace=False), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(images), model(images))


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_does_not_compute_the_same_is_not_left_behind(tmp_path):
    model = attached(small_vit(1), vprompt.Linear())
    with torch.no_grad():
        model.head.bias[2] = torch.nan
    with pytest.raises(VPromptError, match=r"does not compute what the model does.*nothing was written"):
        vprompt.export(model, tmp_path / "bad.pt2")
    assert list(tmp_path.iterdir()) == []


def test_comparison():
    eager = torch.tensor([[10.0, 9.0, 1.0], [3.0, 2.0, 1.0]])
    found = compare(eager, eager + torch.tensor([[0.0005, 0, 0], [0, 0, -0.0009]]))
    assert (found.images, found.scale) == (2, 10.0)
    assert found.largest == pytest.approx(0.0009, rel=1e-3)
    with pytest.raises(VPromptError, match=r"0\.002.* and 0\.001 is allowed"):
        compare(eager, eager + torch.tensor([[0, 0, 0], [0, 0, 0.002]]))
    with pytest.raises(VPromptError, match="another class than the model for 1 of 2"):
        compare(eager, torch.tensor([[9.45, 9.55, 1.0], [3.0, 2.0, 1.0]]), tolerance=0.06)
    close = torch.tensor([[10.0, 9.9999]])
    assert compare(close, close.flip(1)).largest == pytest.approx(1e-4, rel=0.05)


def test_an_export_replaces_an_export_and_nothing_else(exports, tmp_path):
    path = exports("deep pt2")[1]
    mine, other = tmp_path / "mine.pt2", tmp_path / "other.pt2"
    shutil.copy(path, mine)
    shutil.copy(Path(torch.__file__).with_name("version.py"), other)
    before = other.read_bytes()
    tiny = attached(small_vit(1), vprompt.Linear(), classes=("a", "b"))
    vprompt.export(tiny, mine)
    assert vprompt.load_exported(mine).classes == ("a", "b")
    with pytest.raises(VPromptError, match=r"is there already and is no export"):
        vprompt.export(tiny, other)
    assert other.read_bytes() == before
    (tmp_path / "net.bin").write_bytes(b"precious")
    with pytest.raises(VPromptError, match=r"net\.bin is there already"):
        vprompt.export(tiny, tmp_path / "net.xml")
    assert (tmp_path / "net.bin").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["model", "model.txt", "model.onnx.zip", ""])
def test_names_that_are_no_format(name, tmp_path):
    with pytest.raises(VPromptError, match=r"\.onnx \(onnx\)"):
        vprompt.export(deep(), tmp_path / name if name else "")


@pytest.mark.parametrize(
    ("package", "suffix", "extra"),
    [
        ("onnxruntime", ".onnx", "export"),
        ("openvino", ".xml", "openvino"),
        ("executorch.runtime", ".pte", "executorch"),
    ],
)
def test_a_missing_package_is_named(package, suffix, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rf"{suffix} files need {package}, .*pip install 'vprompt\[{extra}\]'"
    with pytest.raises(VPromptError, match=sentence):
        vprompt.export(deep(), tmp_path / f"model{suffix}")
    (tmp_path / f"model{suffix}").write_bytes(b"?")
    with pytest.raises(VPromptError, match=sentence):
        vprompt.load_exported(tmp_path / f"model{suffix}")


# ── damaged and foreign files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["deep pt2", "deep onnx", "deep openvino", "merged executorch"])
def test_damaged_files_end_in_one_sentence(name, exports, tmp_path):
    path = exports(name)[1]
    shutil.copytree(path.parent, tmp_path / "all")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), (20, 90, 20)).save(photo)
    file = tmp_path / "all" / path.name
    whole = file.read_bytes()
    assert run_command("predict", file, photo).status == 0
    for content in (b"", b"\0" * 5000, whole[: len(whole) // 2], whole[:-1000], whole[:40], b"PK\3\4" + whole):
        file.write_bytes(content)
        outcome = run_command("predict", file, photo)
        assert (outcome.status, outcome.out) == (1, ""), content[:10]
        assert outcome.err.startswith("vprompt: ")
        assert outcome.err.count("\n") == 1
        assert file.name in outcome.err
    file.write_bytes(whole)
    for beside in vprompt.load_exported(file).format.companions(file):
        if beside.exists():
            content = beside.read_bytes()
            beside.write_bytes(content[:-20] + bytes(20))
            assert run_command("predict", file, photo).status == 1
            beside.unlink()
            assert run_command("predict", file, photo).status == 1
            beside.write_bytes(content)
    assert run_command("predict", file, photo).status == 0


def test_models_that_vprompt_did_not_export_are_told_apart(tmp_path):
    import onnx
    import openvino
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(proto, tmp_path / "other.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "other.onnx"), tmp_path / "other.xml")
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), tmp_path / "other.pt2")
    for suffix in (".onnx", ".xml", ".pt2"):
        with pytest.raises(VPromptError, match=r"was not exported by vprompt"):
            vprompt.load_exported(tmp_path / f"other{suffix}")
    (tmp_path / "other.pte").write_bytes(b"?")
    with pytest.raises(VPromptError, match=r"cannot be run.*other\.pte\.json"):
        vprompt.load_exported(tmp_path / "other.pte")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format_version": 2}, "newer vprompt"),
        ({"format_version": "1"}, "'format_version' should be a whole number"),
        ({"classes": ["a"]}, "1 names for 5 classes"),
        ({"classes": [1, 2, 3, 4, 5]}, r"'classes'\[0\] should be text"),
        ({"num_classes": None}, "'num_classes' should be a whole number"),
        ({"preprocessing": {}}, "'preprocessing.size' is missing"),
        ({"libraries": {"torch": 2}}, r"'libraries'\['torch'\] should be text"),
        ({"comparison": []}, "'comparison' should be an object"),
        ({"precision": "float8"}, "'precision' should be 'float32' or 'float16' or 'int8'"),
    ],
    ids=str,
)
def test_a_damaged_description_says_where(change, problem, exports):
    from vprompt.exporters.metadata import read_about

    text = vprompt.load_exported(exports("deep pt2")[1]).about.to_text()
    assert read_about(text, "it").to_text() == text
    with pytest.raises(VPromptError, match=problem):
        read_about(json.dumps({**json.loads(text), **change}), "it")
    for broken in ("", "[]", "null", "{", "[" * 100_000, '{"format_version": NaN}'):
        with pytest.raises(VPromptError, match="What it says of itself is damaged"):
            read_about(broken, "it")


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (Path(self.mark), "gotcha")


def rewritten(source, target, change):
    """A copy of an archive in which `change(name, content)` gives the content of every file; it has no checksum."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)).replace(b"vprompt-sha256:", b""))


def edited(part, change):
    """A change of one JSON file of an archive."""

    def apply(name, content):
        if not name.endswith(part):
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


def test_nothing_in_an_archive_of_others_is_read_without_a_flag(exports, tmp_path):
    (model, path), mark, evil = exports("deep pt2"), tmp_path / "mark", tmp_path / "evil.pt2"

    def pickled_weight(name, content):
        if name.endswith("model_weights_config.json"):
            document = json.loads(content)
            for weight in document["config"].values():
                weight["use_pickle"] = weight["path_name"] == "weight_0"
            return json.dumps(document).encode()
        return pickle.dumps(Evil(mark)) if name.endswith("/data/weights/weight_0") else content

    rewritten(path, evil, pickled_weight)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), (20, 90, 20)).save(photo)
    for arguments in (("predict", evil, photo), ("eval", evil, write_classes(tmp_path / "colours", 2))):
        outcome = run_command(*arguments)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "can run code" in outcome.err
        assert "--trust-file" in outcome.err
    with pytest.raises(VPromptError, match=r"can run code .*trust=True"):
        vprompt.load_exported(evil)
    assert not mark.exists()
    with pytest.raises(VPromptError, match="cannot be run"):
        vprompt.load_exported(evil, trust=True)
    assert mark.exists()  # so it is what it was taken for
    rewritten(path, evil, lambda name, content: content)  # no byte that runs has changed
    with pytest.raises(VPromptError, match="can run code"):
        vprompt.load_exported(evil)
    assert run_command("predict", evil, photo, "--trust-file").status == 0
    images = some_images(model, 2)
    with torch.inference_mode():
        torch.testing.assert_close(vprompt.load_exported(evil, trust=True)(images), model(images), rtol=1e-4, atol=1e-4)


def test_another_process_needs_the_flag_and_may_replace_the_file(exports, tmp_path):
    paths = [exports("shallow pt2")[1], exports("merged executorch")[1]]
    copied = [shutil.copy(path, tmp_path / f"copied{path.suffix}") for path in paths]
    shutil.copy(f"{paths[1]}.json", f"{copied[1]}.json")
    script = """
import sys, vprompt
from pathlib import Path
from vprompt.exporters.base import format_of
from vprompt.exporters.export import refuse_others
for path in map(Path, sys.argv[1:]):
    vprompt.load_exported(path, trust=True)
    refuse_others(path, format_of(path), {})
    try:
        vprompt.load_exported(path)
    except vprompt.VPromptError as error:
        print(error)
"""
    status, printed, errors = Script(script, *copied, folder=tmp_path).end()
    assert status == 0, errors
    assert ["can run code" in line for line in printed.splitlines()] == [True, True]
    assert vprompt.load_exported(copied[0]).classes == HOSTILE  # this one wrote it
    assert vprompt.load_exported(copied[1]).num_classes == exports("merged executorch")[0].num_classes


def test_a_description_without_bound_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("m/models/model.json", b" " * (64 << 20))
        archive.writestr("m/extra/vprompt.json", b" " * (200 << 20))
    tracemalloc.start()
    with pytest.raises(VPromptError, match="damaged"):
        vprompt.load_exported(path, trust=True)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_onnx_reads_no_other_file_and_no_loop(exports, tmp_path):
    import onnx

    source, path = exports("deep onnx")[1], tmp_path / "m.onnx"
    (tmp_path / "secret").write_bytes(bytes(10_000))

    def unsigned():
        model = onnx.load(source)
        for entry in model.metadata_props:  # so that nothing but what is tried stops it
            entry.value = entry.value.replace("vprompt-sha256:", "")
        return model

    def outside(place, **entries):
        def change(model):
            tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": place, **entries}.items():
                tensor.external_data.add(key=key, value=str(value))

        return change

    def loop(model):
        body = onnx.helper.make_graph([], "body", [], [])
        model.graph.node.append(onnx.helper.make_node("Loop", [], [], body=body))

    def huge(model):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**40]), "many"))
        model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["many"], ["bomb"]))

    def foreign(model):
        model.graph.node.append(onnx.helper.make_node("EPContext", [], [], domain="com.microsoft"))

    changes = {
        "reads '../secret'": outside("../secret"),
        f"reads '{tmp_path}/secret'": outside(str(tmp_path / "secret")),
        "reads 'secret'": outside("secret"),
        "loops": loop,
        "more numbers": huge,
        "calls 'EPContext'": foreign,
    }
    for problem, change in changes.items():
        model = unsigned()
        change(model)
        onnx.save(model, path)
        with pytest.raises(VPromptError, match=problem):
            vprompt.load_exported(path)
    beside = path.with_name("m.onnx.data")
    length = max(len(tensor.raw_data) for tensor in onnx.load(source).graph.initializer)
    beside.write_bytes(bytes(length - 4))
    for offset in (0, 995, -4, -length, 2**63 - 4):
        model = unsigned()
        outside("m.onnx.data", offset=offset, length=length)(model)
        onnx.save(model, path)
        with pytest.raises(VPromptError, match="cannot be run"):
            vprompt.load_exported(path)
    beside.unlink()
    beside.symlink_to(tmp_path / "secret")
    with pytest.raises(VPromptError, match="no plain file"):
        vprompt.load_exported(path)


def test_openvino_reads_no_entity_and_no_byte_that_is_not_there(exports, tmp_path):
    source, path = exports("deep openvino")[1], tmp_path / "m.xml"
    text = source.read_text(encoding="utf-8").replace("vprompt-sha256:", "")  # so that nothing but this stops it
    weights = path.with_suffix(".bin")
    shutil.copy(source.with_suffix(".bin"), weights)
    path.write_text(text, encoding="utf-8")
    assert vprompt.load_exported(path).classes == HOSTILE
    first = text.index('size="')
    changes = {
        "entities": text.replace("<net ", '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net ', 1),
        "past the end": text[:first] + 'size="9' + text[first + 6 :].replace('"', '999999999"', 1),
        "calls 'MatMul'": text.replace('type="MatMul" version="opset1"', 'type="MatMul" version="extension"', 1),
    }
    changes["namespaces"] = changes["calls 'MatMul'"].replace("<net ", '<net xmlns="x" ', 1)
    for problem, changed in changes.items():
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(VPromptError, match=problem):
            vprompt.load_exported(path)
    path.write_text(text, encoding="utf-8")
    weights.unlink()
    weights.symlink_to(source.with_suffix(".bin"))
    with pytest.raises(VPromptError, match="no plain file"):
        vprompt.load_exported(path)


@pytest.mark.parametrize("name", ["deep onnx", "deep openvino"])
def test_threads_that_ask_at_once_get_their_own_answers(name, exports):
    model, path = exports(name)
    exported = vprompt.load_exported(path)
    batches = [some_images(model, 3, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        wanted = [model(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: exported(batches[number % 4]), range(80)))
    for number, logits in enumerate(found):
        torch.testing.assert_close(logits, wanted[number % 4], rtol=1e-3, atol=1e-4)


def test_silence_ends_whatever_other_threads_do():
    out, disabled, inside = sys.stdout, logging.root.manager.disable, threading.Barrier(2, timeout=1)

    def silent():
        with quiet(), contextlib.suppress(threading.BrokenBarrierError):
            inside.wait()  # where both are in at once, the first to leave would end what the second began

    threads = [threading.Thread(target=silent) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside.broken
    assert (sys.stdout, logging.root.manager.disable) == (out, disabled)


@pytest.mark.parametrize("name", ["deep pt2", "deep onnx", "deep openvino", "merged executorch"])
def test_a_flipped_bit_anywhere_is_noticed(name, exports, tmp_path):
    path = exports(name)[1]
    shutil.copytree(path.parent, tmp_path / "all")
    generator = np.random.default_rng(0)
    for file in (tmp_path / "all").iterdir():
        whole = file.read_bytes()
        for place in [0, len(whole) - 1, *generator.integers(0, len(whole), 8)]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << generator.integers(0, 8)
            if (b"vprompt-sha256:" in damaged) != (b"vprompt-sha256:" in whole):
                continue  # the word by which the checksum is found; nothing else has changed
            file.write_bytes(damaged)
            with pytest.raises(VPromptError):
                vprompt.load_exported(tmp_path / "all" / path.name)
        file.write_bytes(whole)
    assert vprompt.load_exported(tmp_path / "all" / path.name).classes == HOSTILE


@pytest.mark.parametrize("suffix", [".pt2", ".xml"])
def test_a_full_disk_is_one_sentence(suffix, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        kind, why = (StorageError, ": the system allows") if suffix == ".pt2" else (VPromptError, ".*make room")
        with pytest.raises(kind, match=rf"model\{suffix} cannot be written{why}"):
            vprompt.export(attached(small_vit(1), vprompt.Linear()), tmp_path / f"model{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    target = tmp_path / "model [1].onnx"
    script = """
import os, signal, sys, time
from pathlib import Path
from vprompt.utils.io import written_together
with written_together(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print(part, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        part = Path(process.stdout.readline().strip())
        (tmp_path / ".model [1].onnx.mine").mkdir()
        with written_together(target) as mine:
            mine.write_bytes(b"whole")
        assert (target.read_bytes(), part.read_bytes()) == (b"whole", b"half")
        process.communicate("\n")
    beside = tmp_path / "beside"
    beside.write_bytes(b"of the former")
    with written_together(target, [beside]) as mine:
        mine.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".model [1].onnx.mine", target.name]


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_onnx_from_pixels_to_probabilities_in_float16(tmp_path, exports):
    import ast

    import onnx
    import onnxruntime

    path, model = tmp_path / "whole.onnx", attached(small_vit(1), vprompt.VPT(2))
    exported = vprompt.export(model, path, include_preprocessing=True, precision="fp16", opset=18, labels=True)
    assert exported.about.precision == "float16"
    assert exported.about.includes_preprocessing
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = model.preprocessing.normalise(pixels)
    with torch.inference_mode():
        wanted = model(images).softmax(1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.type, given.shape) == ("tensor(uint8)", ["batch", 32, 32, 3])
    found = session.run(["probabilities"], {"images": pixels.permute(0, 2, 3, 1).numpy()})[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=0.02)
    torch.testing.assert_close(exported(images).softmax(1), torch.tensor(found), atol=1e-5, rtol=0)
    file = onnx.load(path)
    assert file.opset_import[0].version == 18
    assert {tensor.data_type for tensor in file.graph.initializer if len(tensor.raw_data) > 100} == {
        onnx.TensorProto.FLOAT16
    }
    names = session.get_modelmeta().custom_metadata_map["names"]
    assert ast.literal_eval(names) == dict(enumerate(HOSTILE))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {str(number): name for number, name in enumerate(HOSTILE)}
    assert config["label2id"] == {name: number for number, name in enumerate(HOSTILE)}
    lines = (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert (len(lines), lines[0], lines[3]) == (5, HOSTILE[0], HOSTILE[3])


def test_files_of_the_user_are_not_replaced(tmp_path):
    model, path = attached(small_vit(1), vprompt.Linear(), classes=("a", "b")), tmp_path / "model.pt2"
    (tmp_path / "labels.txt").write_text("mine\n")
    path.symlink_to(tmp_path / "nowhere")
    for options in ({}, {"labels": True}):
        with pytest.raises(VPromptError, match=r"model\.pt2 is there already"):
            vprompt.export(model, path, **options)
    with pytest.raises(VPromptError, match=r"labels\.txt is there already"):
        vprompt.export(model, tmp_path / "other.pt2", labels=True)
    assert (tmp_path / "labels.txt").read_text() == "mine\n"
    (tmp_path / "labels.txt").unlink()
    path.unlink()
    vprompt.export(model, path, include_preprocessing=True, labels=True)
    assert (tmp_path / "labels.txt").read_text() == "a\nb\n"
    assert torch.export.load(path).module()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).sum() == 1
    others = attached(small_vit(1), vprompt.Linear(), classes=("c", "d"))
    with pytest.raises(VPromptError, match=r"labels\.txt is there already"):
        vprompt.export(others, tmp_path / "other.pt2", labels=True)
    vprompt.export(others, path, labels=True)  # the labels are those of the export that goes
    assert (tmp_path / "labels.txt").read_text() == "c\nd\n"


@pytest.mark.parametrize(
    ("suffix", "options", "sentence"),
    [
        (".pt2", {"precision": "fp16"}, "fp16 is an option of onnx and openvino, not of pt2"),
        (".xml", {"opset": 18}, "opset is an option of onnx, not of openvino"),
        (".onnx", {"opset": 5}, "The opset can be 18 to 23, not 5"),
        (".onnx", {"precision": "half"}, "not 'half'"),
        (".onnx", {"precision": "fp16", "int8": Int8(calibration=[])}, "fp32, fp16, or int8"),
    ],
    ids=str,
)
def test_options_that_a_format_does_not_have(suffix, options, sentence, tmp_path):
    with pytest.raises(VPromptError, match=sentence):
        vprompt.export(deep(), tmp_path / f"x{suffix}", **options)
    assert list(tmp_path.iterdir()) == []


# ── int8 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_int8_files_are_small_close_and_say_what_they_cost(tmp_path, exports):
    from vprompt.data.tasks import load_folder
    from vprompt.training.evaluate import evaluate

    model, whole = exports("deep openvino")
    folder = write_classes(tmp_path / "data", 5, colours={name: (40 * n, 200, 90) for n, name in enumerate("abcde")})
    task = load_folder(folder, model.preprocessing)
    int8 = Int8(calibration=task.train, labelled=task.test, data="data", split="test")
    exported = vprompt.export(model, tmp_path / "small.xml", int8=int8)
    cost = vprompt.load_exported(exported.path).about.quantisation
    assert exported.about.precision == "int8"
    assert cost.calibration_images == len(task.train)
    assert cost.accuracy_before == evaluate(model, task.test).accuracy
    assert cost.accuracy_after == evaluate(exported, task.test).accuracy
    assert (cost.data, cost.split, cost.images) == ("data", "test", len(task.test))
    images = torch.stack([task.test[n][0] for n in range(4)])
    with torch.inference_mode():
        wanted, found = model(images), exported(images)
    assert 0 < float((wanted - found).norm()) < 0.5 * float(wanted.norm())
    small, large = (path.with_suffix(".bin") for path in (exported.path, whole))
    assert small.stat().st_size < 0.6 * large.stat().st_size


def test_int8_of_other_formats_is_refused(tmp_path):
    write_images(tmp_path / "images", (90, 120, 20), 2)
    with pytest.raises(VPromptError, match="int8 is an option of onnx and openvino, not of pt2"):
        vprompt.export(attached(small_vit(1), vprompt.Linear()), tmp_path / "x.pt2", int8=Int8(calibration=[tmp_path]))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images"]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_weights):
    """An adapter of three colours on a backbone that can be made by name."""
    folder = tmp_path_factory.mktemp("adapters") / "colours é"
    backbone = create_backbone("test_vit", img_size=32, weights=tiny_weights)
    attached(backbone, vprompt.Linear(), classes=tuple(COLOURS)).save_pretrained(folder)
    return folder


def test_export_and_predict(adapter, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("export", adapter, "--format", "onnx", "--images", colours, "--int8", colours, "--json")
    assert done.status == 0, done.err
    document = done.document
    assert document["path"] == "colours é.onnx"
    assert document["adapter"] == "colours é"
    assert document["comparison"]["images"] == 30
    assert (document["quantisation"]["images"], document["quantisation"]["split"]) == (9, "test")
    assert document["quantisation"]["calibration_images"] == 0
    assert document["bytes"] < 0.5 * 4 * sum(p.numel() for p in vprompt.load(adapter).backbone.blocks.parameters())
    assert document["bytes"] == (tmp_path / "colours é.onnx").stat().st_size
    wanted = run_command("predict", adapter, colours / "red", "--json").document
    judged = run_command("eval", adapter, colours, "--json").document

    def never(*_, **__):
        raise AssertionError("a backbone was made")

    monkeypatch.setattr("timm.create_model", never)
    monkeypatch.setattr("vprompt.backbones.factory.create_backbone", never)
    found = run_command("predict", "colours é.onnx", colours / "red", "--json")
    assert found.status == 0, found.err
    assert [p["image"] for p in found.document] == [p["image"] for p in wanted]
    assert [p["probability"] for p in found.document] == pytest.approx([p["probability"] for p in wanted], abs=0.1)
    evaluated = run_command("eval", "colours é.onnx", colours, "--json")
    assert evaluated.document["images"] == judged["images"] == 9
    assert evaluated.document["accuracy"] == document["quantisation"]["accuracy_after"]
    assert "images" in run_command("predict", "colours é.onnx", colours / "red").out


def test_preprocessing_in_the_file_is_that_of_the_adapter(adapter, colours, exports):
    """The ten lines that docs/export.md shows, against vprompt's own decoding."""
    looks = vprompt.load_exported(exports("deep onnx")[1]).preprocessing
    file = next(colours.rglob("*.png"))
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize(looks.size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    plain = ((pixels - looks.mean) / looks.std).transpose(2, 0, 1)
    np.testing.assert_allclose(plain, looks.normalise(decode(file, looks)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--format", "onnx", "--out", "x.pt2"], 2, "ends in .onnx, which x.pt2 does not"),
        (["--format", "onnx", "--eval", "photos"], 2, "--int8 DATA"),
        (["--format", "tflite"], 2, "tflite"),
        ([], 2, "--format"),
        (["--format", "onnx", "--images", "nowhere"], 1, "The image nowhere does not exist"),
        (["--format", "onnx", "--int8", "nowhere"], 1, "nowhere"),
        (["--format", "pt2", "--int8", "COLOURS"], 1, "not of pt2"),
    ],
    ids=str,
)
def test_wrong_commands(arguments, status, sentence, adapter, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_command("export", adapter, *(str(colours) if a == "COLOURS" else a for a in arguments))
    assert (outcome.status, outcome.out) == (status, ""), outcome.err
    assert sentence in " ".join(outcome.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_exported_files_take_no_weights(exports, tmp_path):
    path = exports("deep pt2")[1]
    outcome = run_command("predict", path, tmp_path, "--weights", path)
    assert outcome.status == 2
    assert "has its weights in it" in outcome.err
    assert "There is no exported file" in run_command("predict", "no/such.pte", tmp_path).err
