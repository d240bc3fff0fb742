"""The package as its users see it: its names, its types, and what objects say of themselves."""

import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import vprompt
from vprompt.experiments.settings import settings_from

ROOT = Path(__file__).parent.parent

USE = """
from vprompt import *
import vprompt

model = attach("test_vit", VPT(num_prompts=3), num_classes=2, pretrained=False)
task = open_data("photos", "test_vit")
history = fit(model, task, recipe=Recipe(epochs=1))
small = condense(model, task.train, ratio=0.5)
accuracy: float = vprompt.evaluate(small, task.test or task.train).accuracy
name: str = small.predict("a.png").class_names[0]
folder: vprompt.data.Task = task
wrong: int = name
VPT(number=3)
"""


def test_the_names_are_the_public_ones():
    public = {name for name in dir(vprompt) if not name.startswith("_")}
    assert public == set(vprompt.__all__)
    assert {"attach", "fit", "open_data", "load", "VPT", "data"} <= public
    assert not {"annotations", "import_module", "Any", "TYPE_CHECKING", "utils", "cli", "model"} & public
    assert all(getattr(vprompt, name) is not None for name in public)
    everything = {}
    exec("from vprompt import *", everything)
    assert everything.keys() - {"__builtins__"} == public


def objects():
    backbone = timm.create_model("test_vit", img_size=32)
    model = vprompt.attach(backbone, vprompt.VPT(200), num_classes=3, classes=["ant", "bee", "c" * 500])
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    task = vprompt.open_data()
    bank = vprompt.Bank(backbone)
    for number in range(30):
        bank.add(f"adapter {number}", model)
    small = vprompt.condense(model, data, ratio=0.5, fine_tune=False)
    yield from (model, model.fold(), model.info, bank, bank["adapter 0"], task, task.train, task.preprocessing)
    yield from (vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=30)), vprompt.evaluate(model, data))
    yield from (vprompt.score(model, data), vprompt.score(model, data, segments=4), small.condensation)
    yield from (vprompt.Recipe(lr=0.1), vprompt.VPT(3), vprompt.PruneSettings())
    yield settings_from({"backbone": "test_vit", "condense": 0.3, "data": "x" * 3000, "epochs": 7})
    yield model.predict(torch.zeros(40, 3, 9, 9, dtype=torch.uint8))


@pytest.fixture(scope="module")
def shown():
    return [(type(thing).__name__, repr(thing)) for thing in objects()]


def test_what_a_user_holds_says_what_it_is_in_five_lines(shown):
    assert len(shown) == 18
    for name, text in shown:
        assert text.startswith(name)
        assert len(text) <= 5 * 100, text
        assert text.count("\n") < 5
        assert "tensor(" not in text
        assert " object at 0x" not in text


def test_what_a_user_holds_says_what_matters(shown):
    texts = dict(shown)
    for word in ("vpt-deep", "test_vit.r160_in1k", "1200 prompts in 6 blocks", "3 classes", "32×32"):
        assert word in texts["PromptedModel"]
    assert "learned" not in texts["FoldedModel"]
    assert texts["Task"] == "Task('fashion-mnist', 10 classes, images: 800 train, 200 val, 2000 test)"
    assert texts["Recipe"] == "Recipe(lr=0.1)"
    assert "30 adapters" in texts["Bank"]
    assert texts["History"].startswith("History(30 epochs, loss ")
    assert "epochs=7" in texts["Settings"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as a wheel, put into a folder of its own."""
    if find_spec("hatchling") is None:
        pytest.skip("no hatchling here to build a wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)  # which is what an installation of pure Python is
    (folder / "use.py").write_text(USE)
    return folder


def test_the_wheel_says_that_it_is_typed(installed):
    assert (installed / "site" / "vprompt" / "py.typed").is_file()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_understand_an_installed_wheel(installed, checker):
    if find_spec(checker) is None:
        pytest.skip(f"no {checker} here")
    (installed / "pyrightconfig.json").write_text(
        f'{{"extraPaths": ["site", {sysconfig.get_path("purelib")!r}]}}'.replace("'", '"')
    )
    # What others annotate takes mypy a minute to read, and says nothing of us.
    others = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "timm", "numpy", "PIL", "rich"))
    (installed / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n{others}")
    options = {"mypy": [], "pyright": ["--project", "."]}
    environment = {"MYPYPATH": "site", "PATH": "/usr/bin:/bin", "HOME": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], "use.py"],
        check=False, capture_output=True, text=True, cwd=installed, env=environment, timeout=600,
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if "error" in line and "use.py:" in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert "use.py:12" in errors[0]
    assert "use.py:13" in errors[1]
