"""The documentation: pages for all that is public, examples that import and run, paths that exist."""

import bisect
import csv
import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import statistics
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tyro

from conftest import run_command
from processes import Script
from vprompt.cli.main import commands
from vprompt.methods.layers.dense import HEADS, blocks_read
from vprompt.utils.text import percent, spread

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


@functools.cache
def recipe_table(name):
    """The lines of a recipe's table, from the file that it left."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with (ROOT / "docs" / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as opened:
        return [*recipe.tables([*csv.DictReader(opened)])]


TABLES = [("dense", "dense"), ("defaults", "methods"), ("condensing", "condensing"), ("quantised", "../memory")]


@pytest.mark.parametrize(("name", "page"), TABLES)
def test_tables_of_recipes_are_what_was_measured(name, page):
    lines = recipe_table(name)
    assert len(lines) > 3
    assert "\n".join(lines).strip() in (ROOT / "docs" / "results" / f"{page}.md").read_text("utf-8")


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


@functools.cache
def claims_recipe():
    spec = importlib.util.spec_from_file_location("claims_recipe", ROOT / "recipes" / "claims.py")
    recipe = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclasses look
    spec.loader.exec_module(recipe)
    return recipe


def test_claims_are_judged_from_their_files():
    recipe = claims_recipe()
    dense = "\n".join(recipe.table(recipe.dense()))
    assert dense.count("\n") > 5
    assert dense in (RESULTS / "dense.md").read_text("utf-8")
    lines = [*recipe.tables()]
    assert len(lines) > 30
    assert "\n".join(lines) in (RESULTS / "claims.md").read_text("utf-8")
    rows = {"up": [[1.0, 2.0, 3.0]], "down": [[-1.4, -1.2, -1.3]], "wide": [[-9.0, 9.0]], "none": [[0.1, -0.1]]}
    judged = {
        name: [recipe.Comparison(what="", where="", rows=row, more=more).verdict for more in (True, False)]
        for name, row in rows.items()
    }
    assert judged == {
        "up": ["not shown", "holds"],
        "down": ["contradicted", "contradicted"],
        "wide": ["not shown", "not shown"],
        "none": ["not shown", "not shown"],
    }


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


# ── numbers of pages come from committed files ───────────────────────────────────────────────────────────────────────

# Of a section; what runs, code and the addresses of links are left out before.
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.]*\.\d)")
COMMENT = re.compile(r"<!-- ([\d.]+)(?: = ([^>]*)|: (arXiv \d{4}\.\d{5}|another test)) -->")
RESULTS = ROOT / "docs" / "results"
SMALL = {
    "Linear": "Linear",
    "VPT-Deep": "VPT-Deep, 20 a block",
    "PC 50 %": "PC to 50 %",
    "PC 30 %": "PC to 30 %",
    "PC 10 %": "PC to 10 %",
    "From scratch, 30 %": "From scratch with 30 %",
    "E2VPT, pruned": "E2VPT, pruned",
}
SOURCES = tomllib.loads((ROOT / "docs" / "sources.toml").read_text("utf-8"))


def plain(text):
    """Without code, and without the addresses of links."""
    return re.sub(r"`[^`]*`|\[[\d.]+\]\([^)]*\)|\]\([^)]*\)|(?:arXiv |Python |Apache-)\d+\.\d+(?![\d.]* -->)", "", text)


def sections_of(page):
    """Heading -> text."""
    text = re.sub(r"^(```.*?^```|    .*?)$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(plain, parts[2::2]), strict=True))


@functools.cache
def numbers_in(source):
    """All numbers of a file of results, or of some of its columns or keys."""
    path, _, named = source.partition(":")
    text, keys = (ROOT / path).read_text("utf-8"), set(named.split(",")) if named else set()
    if path.endswith(".csv") and keys:
        text = json.dumps([{key: row[key] for key in keys} for row in csv.DictReader(text.splitlines())])
    elif path.endswith(".json") and keys:
        found = []

        def collect(node, inside):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                if isinstance(value, dict | list):
                    collect(value, inside or key in keys)
                elif inside or key in keys:
                    found.append(value)

        collect(json.loads(text), False)
        text = json.dumps(found)
    return sorted({float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)})


def is_there(number, sources):
    """Whether a number is one of the files', rounded as it is printed: as it stands, in percent, or in millions."""
    value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
    for scale in (1, 100, 1e-6):
        near = 0.5 * 10**-digits * (1 + 1e-9)
        for source in sources:
            known = numbers_in(source)
            at = bisect.bisect_left(known, (value - near) / scale)
            if at < len(known) and known[at] * scale <= value + near:
                return True
    return False


def strangers(text, sources, generated=()):
    """Numbers of a section that neither its sources nor its generated tables have, and that do not follow from such."""
    follow, wrong = set(), []
    lines = COMMENT.sub("", text).splitlines()
    tables = set(NUMBER.findall("\n".join(line for line in lines if line in generated)))
    for number, formula, elsewhere in COMMENT.findall(text):
        follow.add(number)
        known = all(part in tables or is_there(part, sources) for part in NUMBER.findall(formula))
        if not elsewhere and not (known and re.fullmatch(r"[\d. +*/()-]+", formula)):
            wrong.append(f"{number} = {formula}")
        elif not elsewhere and abs(eval(formula) - float(number)) > 0.5001 * 10 ** -len(number.partition(".")[2]):
            wrong.append(f"{number} is not {formula}")
    found = NUMBER.findall("\n".join(line for line in lines if line not in generated))
    return wrong + [number for number in found if not ({number} & (follow | tables) or is_there(number, sources))]


def table_rows():
    """Tables of pages, made anew from their files: page -> lines."""
    gmacs = {}
    for page, path in (("README", "analyses/cost.json"), ("docs/speed", "cost-swin-b.json")):
        document = json.loads((RESULTS / path).read_text("utf-8"))
        costs = document if isinstance(document, list) else document["result"]["prompts"]
        for name in ("published", "folded"):
            cells = " | ".join(f"{cost[f'{name}_gmacs']:.2f}" for cost in costs)
            gmacs.setdefault(page, []).append(f"| GMACs {'as ' * (name == 'published')}{name} | {cells} |")
    times = []
    for path, images in (("analyses", "one image"), ("analyses-batch16", "sixteen images")):
        [device] = json.loads((RESULTS / path / "latency.json").read_text("utf-8"))["result"]["devices"]
        for series in sorted(device["series"], key=lambda series: series["original"]):
            whole = {time["execution"]: time for time in series["times"] if time["share"] == 1}
            cells = [whole[name] for name in ("folded", "prefix", "published")]
            texts = ["{:.2f} ({:.2f}-{:.2f})".format(cell["ratio"], *cell["spread"]) for cell in cells]
            times.append(f"| {series['original']}, {images} | {' | '.join(texts)} |")
    left = {}
    for row in csv.DictReader((RESULTS / "small" / "report.csv").read_text("utf-8").splitlines()):
        left.setdefault(row["method"], {}).setdefault(row["seed"], []).append(float(row["test_accuracy"]))
    small = []
    for method, label in SMALL.items():
        seeds = [[*accuracies, statistics.fmean(accuracies)] for accuracies in left[method].values()]
        cells = [spread(statistics.fmean(c), statistics.stdev(c)) for c in zip(*seeds, strict=True)]
        small.append(f"| {label} | {' | '.join(cells)} |")
    for name, label in (("gtsrb", "GTSRB"), ("eurosat400", "EuroSAT, 404 training images")):
        document = json.loads((ROOT / "docs" / f"pruning-search-{name}.json").read_text("utf-8"))
        first = {**document["full"][0], **document["all_prompts"], "trainings": 0}
        for words, row in (
            ("all prompts", first),
            ("all choices trained", document["full_search"]),
            ("`--prune`", {**document["cheap_search"], "trainings": document["cheap_search"]["trainings"] - 1}),
        ):
            shares = [f"{100 * row[key]:.0f} %" if row[key] else "0" for key in ("tokens", "segments")]
            cells = [f"{row['trainings'] + 1:.3g}", *shares, str(row["prompts"]), f"{row['numbers']:,}"]
            cells += [f"{row['val_loss']:.3f}", percent(row["val"]), percent(row["test"])]
            small.append(f"| {label}: {words} | {' | '.join(cells)} |")
    return {"README": gmacs["README"], "docs/speed": gmacs["docs/speed"] + times, "docs/results": small}


def generated_lines():
    """Lines of tables that tests make anew from their files."""
    recipe = claims_recipe()
    rows = [*demo_rows(), *(row for name in ("dense", "defaults", "condensing") for row in recipe_table(name))]
    rows += recipe.table(recipe.dense())
    return {plain(row) for row in [*rows, *(row for lines in table_rows().values() for row in lines)]}


def test_tables_are_what_their_files_say():
    for page, rows in table_rows().items():
        text = (ROOT / f"{page}.md").read_text("utf-8")
        assert [row for row in rows if row not in text] == []


def test_rank_correlations_of_the_search_are_those_of_its_files():
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    found = []
    for name in ("gtsrb", "eurosat400"):
        trials = json.loads((ROOT / "docs" / f"pruning-search-{name}.json").read_text("utf-8"))["full"]
        ranks = {key: np.argsort(np.argsort([trial[key] for trial in trials])) for key in ("val", "val_loss", "test")}
        for key in ranks:  # equal values share the mean of their places
            values = np.array([trial[key] for trial in trials])
            ranks[key] = [ranks[key][values == value].mean() for value in values]
        found += [abs(np.corrcoef(ranks[key], ranks["test"])[0, 1]) for key in ("val", "val_loss")]
    words = "{:.2f} for validation accuracy and {:.2f} for validation loss (EuroSAT: {:.2f} and {:.2f})"
    assert words.format(*found) in text


@pytest.mark.parametrize("page", SOURCES)
def test_every_number_of_a_page_is_in_a_committed_file(page):
    sections, generated = sections_of(page), generated_lines()
    assert SOURCES[page].keys() <= sections.keys()
    found = {name: strangers(text, SOURCES[page].get(name, []), generated) for name, text in sections.items()}
    assert {name: numbers for name, numbers in found.items() if numbers} == {}


def test_a_number_that_is_altered_is_found():
    """The search above is worth something: of numbers with another last digit it finds most."""
    altered, found, generated = 0, 0, generated_lines()
    for page, sources in SOURCES.items():
        for name, text in sections_of(page).items():
            lines = text.splitlines()
            for line in lines:
                for match in [] if line in generated else NUMBER.finditer(COMMENT.sub("", line)):
                    other = match[0][:-1] + str((int(match[0][-1]) + 3) % 10)
                    changed = [line.replace(match[0], other) if each is line else each for each in lines]
                    altered += 1
                    found += bool(strangers("\n".join(changed), sources.get(name, []), generated))
    assert altered > 50
    assert found > 0.7 * altered
    dense = ["docs/results/dense.csv"]
    assert strangers("It has 0.5 <!-- 0.5 = 85.46 - 85.06 -->.", dense) == ["0.5 is not 85.46 - 85.06"]
    assert strangers("It has 0.5 <!-- 0.5 = 99.91 - 99.41 -->.", dense) == ["0.5 = 99.91 - 99.41"]
    assert strangers("It has 99.91, 0.8546 and 85.5.", dense) == ["99.91"]
