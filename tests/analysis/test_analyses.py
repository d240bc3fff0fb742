"""Analyses are open: one of another package, those that come with vprompt, and what all have in common."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import run_command
from vprompt.analysis.base import Analysis, analyses, in_order
from vprompt.analysis.blocks import Blocks
from vprompt.analysis.options import Adapters, Output, RunsOutput, Training
from vprompt.utils.errors import VPromptError

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from vprompt.analysis.base import Analysis, View, analyses
from vprompt.report.document import Body, Table


@dataclass(frozen=True)
class Doubled:
    number: int


@dataclass(frozen=True, kw_only=True)
class Double(Analysis):
    """Twice a number."""

    name: ClassVar[str] = "double"
    number: int = 4
    """Which number."""

    def run(self, host):
        host.note("doubling")
        return Doubled(2 * self.number)

    @classmethod
    def view(cls):
        return View(
            title="Doubled",
            answer=lambda result: f"It is {result['number']}.",
            tables=lambda result: [Table(caption="twice", head=["n"], bodies=[Body(rows=[[str(result["number"])]])])],
            figure=lambda result: Figure(),
        )


analyses.register(Double)
'''


def test_an_analysis_of_one_file_is_a_command_with_a_section(tmp_path):
    """Nothing in the package knows it: its options, help, files and page come from the file alone."""
    plugin = tmp_path / "double.py"
    plugin.write_text(PLUGIN)

    def command(*arguments):
        environment = {**os.environ, "VPROMPT_PLUGINS": str(plugin)}
        return subprocess.run(
            [sys.executable, "-m", "vprompt", *arguments], env=environment, capture_output=True, text=True, check=True
        )

    assert "Twice a number." in command("analyze", "--help").stdout
    assert "Which number. (default: 4)" in command("analyze", "double", "--help").stdout
    done = command("analyze", "double", "--number", "21", "--out", str(tmp_path / "out"))
    assert "42" in done.stdout
    assert done.stderr.splitlines()[:2] == ["doubling", "It is 42."]
    assert json.loads((tmp_path / "out" / "double.json").read_text())["result"] == {"number": 42}
    page = (tmp_path / "out" / "analyses.html").read_text()
    assert "It is 42." in page
    # Without the plugin its file is that of others.
    few = ["--prompts", 1, "--originals", 1, "--shares", 0.5]
    assert run_command("analyze", "cost", "test_vit", *few, "--out", tmp_path / "out").status == 0
    assert "It is 42." not in (tmp_path / "out" / "analyses.html").read_text()


def test_a_plugin_that_fails_is_one_sentence(tmp_path):
    environment = {**os.environ, "VPROMPT_PLUGINS": str(tmp_path / "none.py")}
    command = [sys.executable, "-m", "vprompt", "analyze", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.py" in done.stderr


def test_listing_options_imports_nothing_slow():
    code = (
        "import sys\nfrom vprompt.analysis.base import in_order\nfrom vprompt.cli.main import commands\n"
        "in_order(), commands(['analyze'])\n"
        "print([name for name in ('torch', 'timm', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_analysis_has_what_the_command_needs():
    assert [each.name for each in in_order()] == [
        *("cost", "latency", "sweep", "scores", "blocks", "rank", "schedule", "e2vpt")
    ]
    for each in analyses:
        assert issubclass(each, Analysis)
        assert each.view().title
        assert each.__doc__
        assert each().output.out == "runs/analyses"


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (Output(out=""), "empty name"),
        (RunsOutput(out="s3://bucket/x"), "this machine"),
        (Adapters(), "Name an adapter"),
        (Training(tasks=("",)), "empty name"),
        (Training(workers=0), "at least one"),
    ],
)
def test_groups_of_options_that_cannot_be_meant(group, words):
    with pytest.raises(VPromptError, match=words):
        group.check()


def test_an_adapter_that_fails_does_not_end_the_others(trained, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(trained.folder, tmp_path / name)
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"no")
    places = [tmp_path / name for name in ("a", "b", "c")]
    done = run_command("analyze", "blocks", *places, "--ratios", 0.5, "--out", tmp_path / "out", "--json")
    assert done.status == 1
    assert len(done.document["adapters"]) == 2
    assert done.err.splitlines()[-1].startswith("vprompt: 1 of 3 adapters have no result, the first: ")
    assert str(tmp_path / "b") in done.err
    with pytest.raises(VPromptError, match="1 of 3 adapters"):  # in Python nobody shows a part of it
        Blocks(adapters=Adapters(places=tuple(map(str, places)))).run()
