"""Progress as it is seen: on terminals of several widths, in a log, in a notebook."""

import os
import pty
import re
import subprocess
import sys

import pytest

from vprompt.utils import progress
from vprompt.utils.progress import bar, figures_text, tell

JOB = """
import time
from vprompt.utils.progress import bar, tell
tell(["Data: photos, 3 classes, 60 images (train 38, val 10, test 12); by class (train/val/test): cat 13/3/4."])
for label in ("training", "evaluating (validation)"):
    with bar(label, unit="img", keep=True) as report:
        for step in range(30):
            report(step + 1, 30, epoch=step // 10 + 1, loss=0.512, accuracy=0.875, rate=1234.0, val_accuracy=0.5)
            time.sleep(0.02)
"""
WORDS = {"training", "evaluating", "(validation)", "left", "epoch", "loss", "acc", "img/s", "val", ""}


def on_terminal(columns):
    """Lines that a terminal of so many columns was given, without control sequences."""
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", JOB], stdout=side, stderr=side, env=environment)
    os.close(side)
    text = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(main)
    assert process.wait(timeout=60) == 0, text
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", text.decode())]


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_a_bar_shows_the_time_left_and_only_whole_words(columns):
    lines = on_terminal(columns)
    assert max(map(len, lines)) <= columns
    frames = [line for line in lines if "%" in line]
    assert frames
    for frame in frames:
        assert re.search(r" (\d:\d\d:\d\d|-:--:--)( |$)", frame), frame
        assert "…" not in frame
        words = set(re.sub(r"[━╸╺]+|[-\d.:%]+", " ", frame).split(" "))
        assert words <= WORDS, frame
    if columns >= 60:
        assert any("left" in frame and "epoch" in frame for frame in frames)
    told = " ".join("".join(f"{line.strip()} " for line in lines).split())
    assert "Data: photos, 3 classes, 60 images (train 38, val 10, test 12);" in told


def drawn(capsys, epochs, steps):
    with bar("training", unit="img") as report:
        for epoch in range(epochs):
            for step in range(steps):
                report(epoch * steps + step + 1, epochs * steps, epoch=epoch + 1, loss=1 / (epoch + 1))
            report((epoch + 1) * steps, epochs * steps, val_accuracy=0.5)
    return capsys.readouterr().err.splitlines()


def test_a_log_has_a_line_for_every_epoch(capsys):
    lines = drawn(capsys, 4, 10)
    assert [re.search(r"epoch (\d)", line)[1] for line in lines] == ["1", "2", "3", "4"]
    assert all("val acc 50.0%" in line for line in lines)
    assert all(" left " in line for line in lines[:-1])


def test_a_log_of_many_short_epochs_stays_short(capsys):
    assert len(drawn(capsys, 300, 2)) <= 21


def test_a_log_hears_of_a_long_epoch_every_thirty_seconds(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with bar("reading images") as report:
        for step in range(20):
            report(step + 1, 100)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 8
    assert all(re.fullmatch(r"reading images: \d+%, \d+ (s|min) left", line) for line in lines)


def test_a_notebook_shows_one_line_that_moves(capsys, monkeypatch):
    class ZMQInteractiveShell:
        pass

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    with bar("training", unit="img") as report:
        for step in range(10):
            report(step + 1, 10, epoch=step + 1, loss=0.5)
    shown = capsys.readouterr().err
    assert shown.endswith("\n")
    assert shown.count("\n") == 1
    assert f"training: {'━' * 12} 100%" in shown.split("\r")[-1]


def test_figures_for_which_there_is_no_room_are_left_out_whole():
    figures = {"epoch": 3.0, "loss": 0.5, "accuracy": 0.25, "rate": 10.0, "cached": 60.0}
    assert figures_text(figures, "img") == "epoch 3 loss 0.5 acc 25.0% 10 img/s"
    assert figures_text(figures, "img", most=17) == "epoch 3 loss 0.5"
    assert figures_text(figures, "img", most=3) == figures_text(figures, "img", most=-5) == ""


def test_a_log_gets_sentences_as_they_are(capsys):
    tell(["x " * 200 + "end", "two"])
    assert capsys.readouterr().err == "x " * 200 + "end\ntwo\n"
