"""Timing that compares, and pictures that show what they should."""

import threading
from statistics import median

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from vprompt.model.latency import latency
from vprompt.report.plots import COLOURS, Point, legend_below, plot_accuracy, plot_kept

IMAGES = torch.zeros(4, 3, 8, 8)


def work(times):
    matrix = torch.randn(200, 200)

    def run(images):
        for _ in range(times):
            matrix @ matrix
        return images

    return run


# ── latency ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_variant_is_what_others_are_compared_with():
    found = latency({"b": work(4), "a": work(1), "c": work(40)}, IMAGES, rounds=5)
    assert list(found) == ["b", "a", "c"]
    assert found["b"].ratio == 1.0
    assert found["b"].spread == (1.0, 1.0)
    assert found["c"].ratio > 2  # ten times the work
    assert found["c"].milliseconds > 2 * found["b"].milliseconds > 0
    assert found["c"].spread[0] <= found["c"].ratio <= found["c"].spread[1]


def test_every_round_asks_each_variant_in_turn_and_the_first_round_does_not_count():
    asked, threads, modes = [], set(), set()

    def variant(name):
        def run(images):
            asked.append(name)
            threads.add(torch.get_num_threads())
            modes.add(torch.is_inference_mode_enabled())
            assert images is IMAGES
            return images

        return run

    latency({"a": variant("a"), "b": variant("b")}, IMAGES, rounds=3)
    assert asked == ["a", "b"] * 4
    assert threads == {1}
    assert modes == {True}


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        latency({"a": work(1)}, IMAGES, rounds=1)
        assert torch.get_num_threads() == before + 1

        def fails(images):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            latency({"a": fails}, IMAGES, rounds=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_waiting_does_not_count_on_a_cpu():
    pause = threading.Event()

    def waits(images):
        pause.wait(0.05)
        return images

    found = latency({"works": work(1), "waits": waits}, IMAGES, rounds=3)
    assert found["waits"].milliseconds < 50 / len(IMAGES) / 2  # processor time, not the clock on the wall


def test_milliseconds_are_per_image():
    few, many = torch.zeros(2, 1), torch.zeros(64, 1)
    a, b = (
        median(latency({"a": work(20)}, images, rounds=5)["a"].milliseconds for _ in range(3)) for images in (few, many)
    )
    assert a > 8 * b  # the same work, 32 times as many images


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────

POINTS = [
    Point(name="linear probe", prompts=0, accuracy=0.71),
    Point(name="VPT-Deep", prompts=240, accuracy=0.8),
    Point(name="condensed", prompts=72, accuracy=0.79),
]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture, colour):
    """How many pixels are of a colour, give or take antialiasing."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(picture - wanted).max(axis=2) <= 4).sum())


def test_accuracy_has_a_marker_of_its_own_colour_for_every_model(tmp_path):
    plot_accuracy(tmp_path / "a.png", POINTS, title="A title")
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[1] > picture.shape[0] > 300
    assert [near(picture, colour) > 50 for colour in COLOURS[:-1]] == [True] * 3 + [False] * 3
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def columns(picture, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.flatnonzero((abs(picture - wanted).max(axis=2) <= 4).any(axis=0))


def test_more_prompts_lie_further_right_and_more_accuracy_higher(tmp_path):
    def place(prompts, accuracy):
        points = [Point(name="x", prompts=0, accuracy=0.1), Point(name="y", prompts=100, accuracy=0.9)]
        points.append(Point(name="z", prompts=prompts, accuracy=accuracy))
        plot_accuracy(tmp_path / "p.png", points, title="t")
        picture = pixels(tmp_path / "p.png")
        wanted = [int(COLOURS[2][i : i + 2], 16) for i in (1, 3, 5)]
        rows, found = np.nonzero(abs(picture - wanted).max(axis=2) <= 4)
        inside = rows > 60  # below the title, and the marker is far larger than that of the legend
        return np.median(found[inside]), np.median(rows[inside])

    assert place(80, 0.5)[0] > place(20, 0.5)[0] + 100
    assert place(50, 0.7)[1] < place(50, 0.3)[1] - 50


def test_kept_bars_are_as_high_as_their_counts(tmp_path):
    plot_kept(tmp_path / "k.png", [10, 10, 10, 10], [10, 5, 1, 0], title="Kept")
    picture = pixels(tmp_path / "k.png")
    wanted = [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    blue = (abs(picture - wanted).max(axis=2) <= 4)[80:]  # without the legend
    height = blue.sum(axis=0)
    bars = [run for run in np.split(height, np.flatnonzero(np.diff(height > 0)) + 1) if run[0] > 0]
    tall = [int(np.median(run)) for run in bars]
    assert len(tall) == 3  # the fourth block kept none
    assert tall[0] == pytest.approx(2 * tall[1], rel=0.05)
    assert tall[0] == pytest.approx(10 * tall[2], rel=0.2)
    grey = (abs(picture - 0xDD).max(axis=2) <= 4)[80:].sum()
    assert grey > 1000


def test_names_and_titles_are_text_and_never_formulas(tmp_path):
    name = r"$\frac{a}$ <b>&amp; [red]x[/red]"
    plot_accuracy(tmp_path / "a.png", [Point(name=name, prompts=3, accuracy=1.0)], title=name)
    plot_kept(tmp_path / "k.png", [3], [3], title=name)
    for file in ("a.png", "k.png"):
        assert len(np.unique(pixels(tmp_path / file).reshape(-1, 3), axis=0)) > 10


def test_a_picture_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.png"
    plot_kept(path, [2, 2], [1, 1], title="one")
    first = path.read_bytes()
    plot_kept(path, [2, 2], [2, 1], title="two")
    assert path.read_bytes() != first
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("width", [3.0, 4.5, 7.0, 15.0])
def test_a_legend_below_is_whole_and_no_higher_than_it_must_be(width):
    figure = Figure(figsize=(width, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots()
    names = ["from scratch", "condensed, fine-tuned", "condensed, not fine-tuned", "$x_", "not converged"]
    legend_below(figure, [Line2D([], [], label=name) for name in names])
    figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == names
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    rows = {round(text.get_window_extent().y0) for text in legend.get_texts()}
    assert len(rows) == {3.0: 5, 4.5: 3, 7.0: 2, 15.0: 1}[width]
