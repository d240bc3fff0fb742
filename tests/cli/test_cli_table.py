"""A table as DATA of the commands: its columns are said once, when an adapter is trained."""

import json

import pytest
from PIL import Image

from vprompt.cli import main
from vprompt.experiments.bench.tasks import split_sizes, why_missing
from vprompt.tasks.columns import Columns

COLOURS = {"blue": (40, 40, 220), "red": (220, 40, 40)}
SAID = Columns(label_column="colour", group="site")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with two columns that may be labels."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["file,colour,shape,site"]
    for number in range(30):
        name, colour = list(COLOURS.items())[number % 2]
        Image.new("RGB", (16 + number, 16), (*colour[:2], colour[2] - number)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{name},round,s{number // 3}")
    (folder / "birds.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "birds.csv"


@pytest.fixture(scope="module")
def small(two_blocks):
    """Options of runs that take a second."""
    return ["--epochs", "1", "--prompts", "2", "--img-size", "16", "--backbone", two_blocks]


def test_fit_eval_and_condense(table, small, tmp_path, capsys):
    assert main(["fit", str(table), *small]) == 1
    assert "--label-column NAME" in capsys.readouterr().err
    fit = ["fit", str(table), *small, "--label-column", "colour", "--group", "site", "--out", str(tmp_path / "full")]
    assert main(fit) == 0
    result = json.loads((tmp_path / "full" / "result.json").read_text())
    assert (result["settings"]["label_column"], result["settings"]["group"]) == ("colour", "site")
    assert "image_column" not in result["settings"]
    assert "label from colour, group from site" in " ".join(result["provenance"]["data"]["notes"])
    assert main([*fit, "--resume"]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "full"), str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == result["provenance"]["data"]["images"]["test"]
    assert (
        main(["condense", str(tmp_path / "full"), str(table), "--ratio", "0.5", "--out", str(tmp_path / "half")]) == 0
    )
    half = json.loads((tmp_path / "half" / "result.json").read_text())
    assert half["provenance"]["data"]["fingerprint"] == result["provenance"]["data"]["fingerprint"]
    assert main(["eval", str(tmp_path / "full"), str(table), "--label-column", "shape"]) == 1
    assert "class round is not known to the adapter" in capsys.readouterr().err


def test_a_pattern_stands_for_tables_and_what_is_missing_is_said(table, small, tmp_path, capsys):
    assert main(["fit", str(table.with_name("*.csv")), *small, "--label-column", "colour", "--out", str(tmp_path)]) == 0
    assert main(["fit", str(table.with_name("*.tsv")), *small]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_another_group_is_another_run(table, small, tmp_path, capsys):
    fit = ["fit", str(table), *small, "--label-column", "colour", "--out", str(tmp_path)]
    assert main(fit) == 0
    assert main([*fit, "--group", "site", "--resume"]) == 1
    assert "group" in capsys.readouterr().err


def test_a_plan_knows_the_columns(table):
    assert "--label-column" in why_missing(str(table), None)
    assert why_missing(str(table), None, SAID) is None
    assert sum(split_sizes(str(table), None, SAID)) == 30
