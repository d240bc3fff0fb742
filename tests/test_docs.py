"""The documentation: pages for all that is public, examples that import and run, paths that exist."""

import csv
import importlib
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import tyro

from conftest import run_command
from processes import Script
from vprompt.cli.main import commands
from vprompt.methods.layers.dense import HEADS, blocks_read

ROOT = Path(__file__).parents[1]
DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("gen_pages", ROOT / "docs" / "gen_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_every_public_name_has_a_page_and_a_docstring(pages):
    api = pages.api_pages()
    for module in ("vprompt", "vprompt.data"):
        for name in importlib.import_module(module).__all__:
            assert f"::: {module}.{name}\n" in api[f"api/{module}.{name}.md"]
            assert pages.docstring(module, name), f"{name} has no docstring"
            assert f"[`{name}`]({module}.{name}.md)" in api["api/index.md"]


def test_every_command_has_a_page(pages):
    usage = run_command("--help").out
    names = re.search(r"\{([\w,-]+)\}", usage)[1].split(",")
    commands = dict(pages.commands())
    assert [command[0] for command in commands if len(command) == 1] == names
    assert any(command[0] == "analyze" and len(command) == 2 for command in commands)
    assert all(text.startswith(f"usage: vprompt {' '.join(command)} ") for command, text in commands.items())
    texts = pages.command_pages()
    assert {f"commands/{'-'.join(command)}.md" for command in commands} <= texts.keys()
    assert "### lora\n\n```text\n" in texts["commands/fit.md"]
    assert "--rank" in texts["commands/fit.md"].partition("### lora\n")[2]


def test_links_of_root_pages_lead_to_the_site(pages):
    text = "[a](docs/speed.md#folded) [b](LICENSE) [c](https://x.org/docs/a.md) [d](gone.md) ![e](docs/demo/kept.png)"
    assert pages.linked(text, "README.md", "index.md") == (
        "[a](speed.md#folded) b [c](https://x.org/docs/a.md) [d](gone.md) ![e](demo/kept.png)"
    )
    assert pages.linked("[a](../../README.md)", "docs/results/claims.md", "results/claims.md") == "[a](../index.md)"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_examples_import_what_there_is(page):
    for block in python_blocks(page.read_text("utf-8")):
        compile(block, page.name, "exec")
        for module, names in re.findall(r"^from (vprompt[\w.]*) import (.+)$", block, flags=re.MULTILINE):
            there = importlib.import_module(module)
            assert [name for name in names.split(", ") if not hasattr(there, name)] == []
        for name in re.findall(r"\bvprompt\.(\w+)", block):
            assert hasattr(importlib.import_module("vprompt"), name), name


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_commands_can_be_meant(page):
    text = page.read_text("utf-8").replace("\\\n", "")
    for line in re.findall(r"^    vprompt (.+)$", text, flags=re.MULTILINE):
        arguments = shlex.split(line, comments=True)
        tyro.cli(
            commands(arguments), args=arguments, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
        )


def demo_rows():
    """The table of the demo as pages show it, from what the run left."""
    for row in json.loads((ROOT / "docs" / "demo" / "demo.json").read_text("utf-8"))["rows"]:
        low, high = (round(100 * end) for end in row["test_interval"])
        accuracy, prompts = f"{100 * row['test_accuracy']:.1f} % ({low}-{high})", row["prompts"] or "–"
        size, time = f"{row['adapter_bytes'] / 1024:.0f} KiB", f"{row['time_ratio']:.2f}"
        yield f"| {row['name']} | {accuracy} | {prompts} | {row['learned_params']:,} | {size} | {time} |"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_demo_in_words_is_what_it_left(page):
    text = (ROOT / page).read_text("utf-8")
    assert "\n".join(demo_rows()) in text
    document = json.loads((ROOT / "docs" / "demo" / "demo.json").read_text("utf-8"))
    assert document["failed"] == {}
    for picture in re.findall(r"\((?:docs/)?(demo/[\w.]+)\)", text):
        assert (ROOT / "docs" / picture).exists(), picture


def test_the_study_of_schedules_in_words_is_what_it_left():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    names = {
        "location": "place of a sprite (rendered)",
        "counting": "number of shapes (rendered)",
        "eurosat": "EuroSAT",
        "gtsrb": "GTSRB",
    }
    with (ROOT / "docs" / "results" / "schedule.csv").open(encoding="utf-8") as opened:
        left = {(row["task"], row["images"], row["epochs"]): row["val_accuracy"] for row in csv.DictReader(opened)}
    assert {row[0] for row in left} == names.keys()
    for images, task in sorted({(images, task) for task, images, _ in left}):
        name = names[task]
        known = [left.get((task, images, epochs)) for epochs in ("10", "20", "40", "100")]
        cells = ["–" if accuracy is None else f"{100 * float(accuracy):.1f}" for accuracy in known]
        assert f"| {int(images):,} | {name} | {' | '.join(cells)} |" in text


@pytest.mark.parametrize(("name", "page"), [("dense", "dense"), ("defaults", "methods"), ("quantised", "../memory")])
def test_tables_of_recipes_are_what_was_measured(name, page):
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    results = ROOT / "docs" / "results"
    with (results / f"{name}.csv").open(encoding="utf-8", newline="") as opened:
        lines = [*recipe.tables([*csv.DictReader(opened)])]
    assert len(lines) > 3
    assert "\n".join(lines).strip() in (results / f"{page}.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("script", "file"),
    [
        ("quantised", "quantised-speed"),
        ("training_memory", "training-memory"),
        ("training_memory", "training-memory-checkpointed"),
    ],
)
def test_tables_of_memory_are_what_was_measured(script, file, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    document = json.loads((ROOT / "docs/results" / f"{file}.json").read_text())
    lines = [*importlib.import_module(script).tables(document)]
    assert len(lines) > 3
    assert "\n".join(lines) in (ROOT / "docs/memory.md").read_text("utf-8")


def test_the_first_screen_has_the_result():
    first = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:30])
    assert "vprompt fit photos/" in first
    assert "\n".join(demo_rows()) in first
    assert "](docs/demo/" in first


def test_contributing_names_files_that_exist():
    for path in re.findall(r"`([a-z_]+/[\w/]*(?:\.py)?)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")):
        assert "NAME" in path or (ROOT / "src" / "vprompt" / path).exists() or (ROOT / path).exists(), path


def test_figures_of_planted_copies_and_labels_are_those_of_their_file():
    with (ROOT / "docs" / "results" / "planted.csv").open(encoding="utf-8") as file:
        planted = list(csv.DictReader(file))
    copies = ("jpeg40", "half", "brighter", "mirrored", "crop90", "crop75", "all")
    expected = {"copies": list[str](), "labels": list[str]()}
    for row in planted:
        name, shares = f"{row['model']}, {row['task']}", {key: f"{100 * float(row[key]):.0f} %" for key in copies}
        cells = [name, *shares.values(), f"{row['others']} of {row['tests']}"]
        expected["copies"].append(f"| {' | '.join(cells)} |")
        cells = [f"{100 * float(row['linear']):.1f} %", row["named"]]
        cells += [f"{100 * float(row[key]):.0f} %" for key in ("precision", "recall")]
        expected["labels"].append(f"| {' | '.join([name, *cells, row['first10']])} |")
    text = (ROOT / "docs" / "embeddings.md").read_text("utf-8")
    tables = re.findall(r"^\|[-|]+\n((?:\|.*\n?)+)", text, flags=re.MULTILINE)
    assert [table.splitlines() for table in tables] == [*expected.values()]


def sections():
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = python_blocks(section)
        if blocks:
            yield section.partition("\n")[0], blocks


def test_the_detector_learns(capsys):
    maps, detector = python_blocks((ROOT / "docs" / "dense.md").read_text("utf-8"))
    ran: dict = {}
    exec(maps, ran)
    assert [tuple(each.shape) for each in ran["maps"]] == [(2, 384, 14, 14)] * 4
    step = "        sum(losses.values()).backward()\n"
    assert step in detector
    shorter = detector.replace("range(16)", "range(3)")
    shorter = shorter.replace(step, "        kept.append(sum(losses.values()))\n        kept[-1].backward()\n")
    ran = {"kept": []}
    exec(shorter, ran)
    losses = [loss.item() for loss in ran["kept"]]
    assert len(losses) == 15
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    moved = [name for name, p in ran["model"].learned.items() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert {name for name in ran["model"].learned if name.startswith("prompts.")} <= {*moved}
    assert all(p.grad is None for p in ran["model"].backbone.parameters())
    assert re.fullmatch(r"\d+ of \d+ squares found, in \d+ boxes\n", capsys.readouterr().out)


def test_the_squares_are_found(tmp_path, monkeypatch, capsys):
    (block,) = python_blocks((ROOT / "docs" / "segmentation.md").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    ran: dict = {}
    exec(block, ran)
    assert ran["found"].masks[0].shape == (40, 56)
    assert ran["model"].target.names == ("ground", "square")
    size, figure = capsys.readouterr().out.rsplit(maxsplit=1)
    assert size == "torch.Size([40, 56])"
    assert float(figure) > 0.5  # all ground is under a half


def test_blocks_that_heads_read():
    text = (ROOT / "docs" / "segmentation.md").read_text("utf-8")
    swin = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    for head in HEADS:
        cells = re.findall(rf"^\| `{head}`[^|]*\|([^|]*)\|([^|]*)\|", text, flags=re.MULTILINE)
        read = [tuple(int(number) for number in cell.split(",")) for cell in cells[0]]
        assert read == [blocks_read(head, widths) for widths in ([384] * 12, swin)]


EACH = """
import os, runpy, sys
sys.path.insert(0, "")
for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path("use.py", run_name="__main__")
"""


def test_extensions(tmp_path):
    """The first block of a section is a plugin, found by its file alone; the others use it, with all of them there."""
    folders = []
    for title, (plugin, *uses) in sections():
        folders.append(tmp_path / title)
        folders[-1].mkdir()
        (folders[-1] / "plugin.py").write_text(plugin, encoding="utf-8")
        (folders[-1] / "use.py").write_text("\n".join(uses), encoding="utf-8")
    assert len(folders) >= 5
    plugins = os.pathsep.join(str(folder / "plugin.py") for folder in folders)
    status, _, errors = Script(EACH, *folders, folder=tmp_path, environment={"VPROMPT_PLUGINS": plugins}).end()
    assert status == 0, errors  # names the section by its folder
