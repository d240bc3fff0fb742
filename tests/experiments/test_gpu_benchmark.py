"""The benchmark for one GPU, its whole path, on the CPU with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"
SECTIONS = ("Inference, fp32, batch 1", "A training step", "Condensing", "Bank", "compiled, batch 1", "Engines")


def run(out, minutes):
    command = [sys.executable, SCRIPT, "--tiny", "--backbone", "test_vit", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", out, "--minutes", str(minutes)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()


def test_all_sections_and_their_ratios(tmp_path):
    document, page = run(tmp_path / "gpu", 5)
    titles = [table["title"] for table in document["tables"]]
    assert document["left"] == []
    for section in SECTIONS:
        assert any(section in title for title in titles), (section, titles)
    for table in document["tables"]:
        assert f"### {table['title']}" in page
        rows = {row["name"]: row for row in table["rows"]}
        base = rows[table["base"]]
        assert base["ratios"] == [1.0]
        for row in rows.values():
            assert row["ms"][0] > 0
            assert abs(row["ratios"][0] * base["ms"][0] - row["ms"][0]) < 1e-6 * row["ms"][0]
    (condensing,) = (table for table in document["tables"] if table["title"].startswith("Condensing"))
    _, scoring, tuning = (row["ratios"][0] for row in condensing["rows"])
    assert f"{(scoring + 20 * tuning) / 100:.1%}" in condensing["note"]


def test_what_was_not_reached_is_said(tmp_path):
    document, page = run(tmp_path / "gpu", 0)
    assert document["tables"] == []
    assert [line.split(":")[0] for line in document["left"]] == [
        "inference",
        "training",
        "condensing",
        "bank",
        "inference, compiled",
        "engines",
    ]
    assert "## Not measured" in page
    assert "training: not begun, the time was up." in page
