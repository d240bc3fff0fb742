"""Pictures that show what they should, as PNG and as SVG."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from vprompt.report.document import Bar, Chart, Charts, Curve, Dot
from vprompt.report.plots import COLOURS, STYLE, described, legend_below, plot_accuracy, plot_kept, png, save_png, svg

POINTS = [
    ("linear probe", 0, 0.71),
    ("VPT-Deep", 240, 0.8),
    ("condensed", 72, 0.79),
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
        points = [("x", 0, 0.1), ("y", 100, 0.9), ("z", prompts, accuracy)]
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
    plot_accuracy(tmp_path / "a.png", [(name, 3, 1.0)], title=name)
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
    names = ["from scratch", "condensed, fine-tuned", "condensed, not fine-tuned", "$x_", "not converged"]
    with rc_context(STYLE):
        figure = Figure(figsize=(width, 3.0), layout="constrained")
        FigureCanvasAgg(figure)
        figure.subplots()
        legend_below(figure, [Line2D([], [], label=name) for name in names])
        figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == names
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    rows = {round(text.get_window_extent().y0) for text in legend.get_texts()}
    assert len(rows) == {3.0: 5, 4.5: 3, 7.0: 2, 15.0: 1}[width]


HOSTILE = [
    "</text><script>alert(1)</script>",
    '"><a href="javascript:x">',
    r"$\frac{a}$ & <b>",
    "url(http://x.y/z)",
    "_x",
]


def charts(name):
    """A chart of each kind in which every text is `name`."""
    words = {"title": name, "x": name, "y": name, "alt": name}
    dots = [Curve(name=name, dots=[Dot(x=10.0 ** (3 + n), y=50.0 + n, error=0.5)], style=n) for n in range(9)]
    points = [Dot(x=1.0, y=2.0), Dot(x=2.0, y=0.001), Dot(x=3.0, y=0.5, hollow=True)]
    curves = [Curve(name=name, dots=points, line="--", marks=False), Curve(name=name, dots=points[:1], style=1)]
    return [
        Chart(**words, curves=dots, rule=(2e4, name), levels=[(50.0, name)]),
        Chart(**words, curves=dots, log=True),
        Chart(**words, curves=curves, zero=True),
        Chart(**words, bars=[Bar(before=10, retained=4, std=2.0), Bar(before=10, retained=0.0)]),
        Chart(**words, bars=[Bar(before=10, retained=4)] * 40),
        Chart(**words, curves=curves, rows=[name, name]),
    ]


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("name", HOSTILE)
def test_svg_has_text_that_stays_text_and_refers_to_nothing_else(name, kind):
    text = svg(charts(name)[kind])
    root = ElementTree.fromstring(text)
    elements = list(root.iter())
    assert {element.tag for element in elements} <= {"svg", "defs", "g", "path", "use", "text", "title"}
    written = {element.text for element in elements if element.tag == "text"}
    assert name in written  # as text, not as outlines
    assert "$" in name or not any("mathdefault" in part for part in written)
    assert root.attrib["aria-label"] == name
    links = [value for element in elements for key, value in element.attrib.items() if key.endswith("href")]
    ids = {element.attrib["id"] for element in elements if "id" in element.attrib}
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    for element in elements:
        assert element.attrib.keys() <= {
            *("id", "style", "d", "x", "y", "transform", "href"),
            *("class", "viewBox", "role", "aria-label"),
        }
        assert re.fullmatch(r"[-\w .#%:;,()']*", element.attrib.get("style", ""))
        assert "url" not in element.attrib.get("style", "")


def test_svg_has_the_colours_of_the_page_and_no_background():
    text = "".join(svg(chart) for chart in charts("a"))
    assert set(re.findall(r"#[0-9a-fA-F]{6}", text)) == set()
    assert {f"var(--c{n})" for n in range(6)} <= set(re.findall(r"var\(--\w+\)", text))
    background = next(path for path in ElementTree.fromstring(svg(charts("a")[0])).iter("path"))
    assert "fill: none" in background.attrib["style"]


def test_svg_is_the_same_each_time_and_ids_are_not_those_of_another_picture():
    one, other = (svg(chart) for chart in charts("a")[:2])
    assert one == svg(charts("a")[0])
    ids = [set(re.findall(r' id="(\w+)"', svg(charts(name)[0]))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert one != other


def test_what_is_hovered_says_its_name():
    titles = [title.text for title in ElementTree.fromstring(svg(charts("a & b")[3])).iter("title")]
    assert titles == ["block 0: 4.0 of 10.0", "block 1: 0.0 of 10.0"]
    titles = [title.text for title in ElementTree.fromstring(svg(charts("a & b")[0])).iter("title")]
    assert titles == ["a & b"] * 9


def test_charts_side_by_side_have_one_legend(tmp_path):
    save_png(tmp_path / "a.png", Charts(charts("$x$ <b>")[:3], [(0, "$x$"), (1, "_y")]), title="$a_$ " * 60)
    assert pixels(tmp_path / "a.png").shape[1] > 2000


def test_single_values_have_room_and_ticks():
    chart = Chart(title="", x="x", y="y", curves=[Curve(name="a", dots=[Dot(x=7690.0, y=80.0)])], log=True)
    texts = [text.text for text in ElementTree.fromstring(svg(chart)).iter("text")]
    assert {"10k", "80"} <= set(texts)


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [Curve(name="a", dots=[])],
        [Curve(name="a", dots=[Dot(x=1, y=math.nan)], line="-")],
        [Curve(name="a", dots=[Dot(x=0, y=0, error=(0.0, 0.5), hollow=True)])],
        [Curve(name="a", dots=[Dot(x=-5, y=-50), Dot(x=3, y=1e6)], line=":", marks=False)],
    ],
)
def test_whatever_lacks_a_chart_is_drawn(curves):
    kinds = [{}, {"zero": True}, {"log": True}, {"rows": ["r"]}, {"levels": [(0.0, "level")], "rule": (1.0, "rule")}]
    charts = [Chart(title="", x="x", y="y", curves=curves, **kind) for kind in kinds]
    for picture in (Charts([]), Charts(charts, [(0, "a")], rings="ring")):
        assert png(picture).startswith(b"\x89PNG")
    assert all("nan" not in described(chart) for chart in charts)


def test_a_chart_in_words_says_between_what_values_it_runs():
    dots = [Dot(x=1, y=3), Dot(x=2, y=math.nan), Dot(x=4, y=-0.5)]
    chart = Chart(title="t", x="x", y="y", curves=[Curve(name="a", dots=dots), Curve(name="none", dots=[])])
    assert described(chart) == "t: y against x: a -0.5 to 3"
    assert described(replace(chart, rows=["r"], y="")) == "t: x: a 1 to 4"  # rows run along x


def test_curves_lie_where_they_should(tmp_path):
    """A gap parts a line, a hollow marker shows the paper, and error bars reach as far as they say."""
    dots = [Dot(x=0, y=10), Dot(x=1, y=math.nan), Dot(x=2, y=10), Dot(x=3, y=10)]
    chart = Chart(title="", x="x", y="y", curves=[Curve(name="a", dots=dots, line="-", marks=False)])
    save_png(tmp_path / "a.png", Charts([chart]))
    blue = columns(pixels(tmp_path / "a.png"), COLOURS[0])
    assert np.diff(blue).max() <= 2  # the first point stands alone, without a line or a marker
    whole = Chart(title="", x="x", y="y", curves=[Curve(name="a", dots=[*dots[:1], *dots[2:]], line="-", marks=False)])
    save_png(tmp_path / "b.png", Charts([whole]))
    assert len(columns(pixels(tmp_path / "b.png"), COLOURS[0])) > 1.5 * len(blue)
    for number, error in enumerate((None, 1.0, (1.0, 4.0))):
        dot = Dot(x=1, y=10, error=error, hollow=True)
        level = [(0.0, ""), (20.0, "")]
        one = Chart(title="", x="x", y="y", levels=level, curves=[Curve(name="a", dots=[dot])])
        save_png(tmp_path / f"{number}.png", Charts([one]))
    areas = [near(pixels(tmp_path / f"{number}.png"), COLOURS[0]) for number in range(3)]
    assert areas[0] < areas[1] < areas[2]
