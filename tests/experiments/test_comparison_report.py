"""Pictures and tables of a comparison, from its document alone."""

import pytest

from vprompt.experiments.report.comparison import draw, markdown


def row(name, params=2000.0, milliseconds=1.4, accuracy=0.78, std=0.01):
    return {
        "method": name,
        "learned_params": params,
        "milliseconds": milliseconds,
        "test_accuracy": accuracy,
        "test_std": std,
        "val_accuracy": 0.7,
    }


def document(rows, bare=None):
    return {
        "data": "$a_$ " * 60,
        "backbone": "x",
        "bare": {"milliseconds": bare},
        "rows": rows,
        "settings": {"seeds": 1, "values": {}},
    }


@pytest.mark.parametrize(
    "rows",
    [
        [row("one", std=None)],
        [row("equal"), row("twin")],
        [row(f"m{n}") for n in range(60)],
        [row("linear"), row("full", params=86e6, milliseconds=900.0)],
        [row("perfect", accuracy=1.0, std=0.0), row("none", accuracy=0.0, std=0.0)],
        [row("not timed", milliseconds=None), row("$x$ [b] <i>")],
        [row("not timed", milliseconds=None)],
        [row("not tested", accuracy=None, std=None)],
    ],
    ids=["one", "equal", "many", "far", "extremes", "partly timed", "not timed", "not tested"],
)
@pytest.mark.parametrize("bare", [1.3, None])
def test_any_comparison_can_be_drawn(tmp_path, rows, bare, recwarn):
    assert draw(document(rows, bare), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    assert [str(warning.message) for warning in recwarn] == []


def test_without_an_accuracy_there_is_no_picture(tmp_path):
    nothing = row("failed", accuracy=None) | {"val_accuracy": None}
    assert not draw(document([nothing]), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


UNKNOWN = dict.fromkeys(("folded_gmacs", "time_ratio", "training_seconds", "prompts", "learned_share"))


def test_a_method_that_failed_hides_no_figures_of_the_others():
    settings = {"seeds": 1, "values": {"epochs": 1, "optimizer": "adamw"}, "rates": {}}
    common = UNKNOWN | {"learned_params": None, "milliseconds": None, "test_std": None, "pruned": False}
    failed = {"target": "single-label", "test_accuracy": None, "val_accuracy": None, "runs": 0, "converged": 0}
    done = {"target": "regression", "test_r2": 0.5, "val_r2": 0.4, "runs": 1, "converged": 1}
    done |= {"test_interval": [0.4, 0.6], "test_mae": {"area": 1.25}}
    rows = [{"method": name, "failed": [], **common, **facts} for name, facts in (("a", failed), ("b", done))]
    text = markdown(document(rows) | {"settings": settings})
    assert "mean error" in next(line for line in text.splitlines() if line.startswith("| method |"))
    assert "| b | 50.0 ± – | 40–60 | area 1.25 |" in text
    assert "| a | – | – | – |" in text
    assert "R² against learned parameters" in text


@pytest.mark.parametrize(
    "how", [{"epochs": 1, "words": "1 epoch"}, {"epochs": "auto", "words": "epochs by"}, {"epochs": 100, "time": "9m"}]
)
def test_the_length_of_the_trainings_is_said_as_it_was_asked_for(how):
    values = {"optimizer": "adamw", **how}
    rows = [row("a") | UNKNOWN | {"converged": 1, "runs": 1, "failed": [], "pruned": False}]
    study = document(rows) | {"settings": {"seeds": 1, "values": values, "rates": {}}}
    line = next(line for line in markdown(study).splitlines() if "of adamw" in line)
    assert line.startswith(how.get("words", "9m"))
    assert "100 epochs" not in line


def test_what_is_not_known_is_a_dash():
    rows = [row("a", std=None) | UNKNOWN | {"converged": 1, "runs": 1, "failed": [], "pruned": False}]
    settings = {"seeds": 1, "values": {"epochs": 1, "optimizer": "adamw"}, "rates": {}}
    study = document(rows) | {"settings": settings}
    line = next(line for line in markdown(study).splitlines() if line.startswith("| a "))
    assert line == "| a | 78.0 ± – | – | – | 70.0 | 1 of 1 (older rule) | – | 2,000 | – | – | 1.4 | – | – |"
    for unknown, words in ((0, "1 of 2"), (1, "1 of 1"), (2, "not known")):
        rows[0] |= {"runs": 2, "converged": int(unknown < 2), "unknown": unknown}
        assert f"| {words} |" in markdown(study)
