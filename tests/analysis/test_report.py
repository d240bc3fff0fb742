"""`laconic report` with analyses beside the runs."""

import json
import shutil

from laconic.analysis.cost import cost
from laconic.cli.main import main


def test_analyses_beside_runs_are_sections_of_their_report(undisturbed, tmp_path, capsys):
    runs = shutil.copytree(undisturbed[0], tmp_path / "runs")
    arguments = ["analyze", "cost", "vit_tiny_patch16_224", "--prompts", "0,5", "--originals", "5", "--shares", "0.5"]
    arguments += ["--out", str(runs)]
    assert main(arguments) == 0
    assert main(["report", str(runs), "--out", str(tmp_path / "report")]) == 0
    page, text = ((tmp_path / "report" / f"report.{ending}").read_text() for ending in ("html", "md"))
    published = f"{cost('vit_tiny_patch16_224', [5])[0].published_gmacs:.2f}"
    assert 'id="analysis-cost"' in page
    assert "data:image/png;base64," in page
    assert published in page
    assert published in text
    assert "](cost.png)" in text
    assert (tmp_path / "report" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(runs)]) == 0
    (runs / "cost.json").write_text(json.dumps({"analysis": "other"}))
    assert main(["report", str(runs)]) == 1
    assert "is no analysis" in capsys.readouterr().err
