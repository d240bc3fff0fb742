"""`vprompt report` with analyses beside the runs."""

import json
import shutil
from pathlib import Path

import pytest

from vprompt.analysis.cost import Cost
from vprompt.analysis.page import analysis_sections
from vprompt.cli.main import main
from vprompt.report.markdown import markdown_page


def test_analyses_beside_runs_are_sections_of_their_report(undisturbed, tmp_path, capsys):
    runs = shutil.copytree(undisturbed[0], tmp_path / "runs")
    arguments = ["analyze", "cost", "vit_tiny_patch16_224", "--prompts", "0,5", "--originals", "5", "--shares", "0.5"]
    arguments += ["--out", str(runs)]
    assert main(arguments) == 0
    assert main(["report", str(runs), "--out", str(tmp_path / "report")]) == 0
    page, text = ((tmp_path / "report" / f"report.{ending}").read_text() for ending in ("html", "md"))
    published = (
        f"{Cost(backbone='vit_tiny_patch16_224', prompts=(5,), originals=()).run().prompts[0].published_gmacs:.2f}"
    )
    assert 'id="analysis-cost"' in page
    assert "data:image/png;base64," in page
    assert published in page
    assert published in text
    assert "](cost.png)" in text
    assert (tmp_path / "report" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(runs)]) == 0
    (runs / "cost.json").write_text(json.dumps({"analysis": "cost"}))
    assert main(["report", str(runs)]) == 1
    assert "has no result" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"euros": 12}', "[1, 2]", '{"analysis": "other", "result": 1}'])
def test_files_of_others_are_passed_over_and_not_replaced(content, undisturbed, tmp_path, capsys):
    runs = shutil.copytree(undisturbed[0], tmp_path / "runs")
    (runs / "cost.json").write_text(content)
    assert main(["report", str(runs)]) == 0
    assert "analysis-cost" not in (runs / "report.html").read_text()
    assert main(["analyze", "cost", "vit_tiny_patch16_224", "--out", str(runs)]) == 1
    assert "is there already and is no analysis" in capsys.readouterr().err
    assert (runs / "cost.json").read_text() == content


@pytest.mark.parametrize("key", ["vprompt", "laconic"])
def test_a_section_says_which_version_made_it_also_under_the_old_name(key):
    document = json.loads((Path(__file__).parents[2] / "docs" / "results" / "analyses" / "cost.json").read_text())
    del document["laconic"]
    (section,) = analysis_sections([{**document, key: "0.0.9"}])
    text = markdown_page("Analyses", [section])
    assert f"vprompt 0.0.9, {document['made']}" in text
