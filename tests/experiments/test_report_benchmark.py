"""The report of a benchmark: numbers against a slow computation, and text from data that must stay text."""

import copy
import csv
import io
import math
import re
from html.parser import HTMLParser

import pytest

from studies import METHODS, VTAB, make_study
from vprompt.experiments import report as benchmark

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>x",
    "</title></svg><i>",
    r"\end{tabular} \input{x} % $ & # _ ^ ~ { }",
    "a | b\n# c",
    "=cmd()",
    "\u202egnp.exe",
    "x\x00\x1b[31m",
    "y" * 10_000,
    "\ud800",
)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "nav", "a", "main", "section", "ul"),
    *("li", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "pre", "code"),
    *("svg", "g", "defs", "use", "text", "path"),
}
ATTRIBUTES = {
    *("charset", "http-equiv", "content", "name", "lang", "class", "id", "href", "aria-label", "aria-hidden", "role"),
    *("tabindex", "scope", "colspan", "d", "viewbox", "x", "y", "transform", "style"),
}
STYLE = re.compile(r"[-\w .#%:;,()']*")
"""Styles of charts: no address and no other rule."""


class Page(HTMLParser):
    """Every tag, attribute and cell of a page; complains of tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.links, self.stack = set(), set(), [], []
        self.styles = set()
        self.text, self.measured, self.published = [], [], []
        self.kind = None
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.styles |= {value for name, value in attrs if name == "style"}
        if tag not in ("meta", "br"):
            self.stack.append(tag)
        if tag == "tbody":
            self.kind = dict(attrs).get("class") or "measured"

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.stack:
            (self.published if self.kind == "published" else self.measured).append(data)


def hostile_study(poison):
    """A study in which every text is poisoned, and names still differ."""
    study = make_study(["svhn", "dtd"], METHODS[2:5], (0, 1), epochs=3)
    names = {name: f"{number}{poison}" for number, name in enumerate(("vtab:dtd", "vtab:svhn"))}
    names |= {name: f"{poison}{'x' * number}" for number, name in enumerate(METHODS[2:5])}

    def spoil(value, key=""):
        if isinstance(value, dict):
            return {name: spoil(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [spoil(entry, key) for entry in value]
        fixed = not isinstance(value, str) or key in ("state", "group", "published", "benchmark")
        return value if fixed else names.get(value, poison)

    study = spoil(study)
    study["cells"][0] |= {"state": "failed", "failure": poison, "result": None}
    study["cells"][1]["result"]["settings"][poison] = poison
    study["tasks"][0]["differences"] = [poison]
    return study


@pytest.mark.parametrize("poison", HOSTILE)
def test_hostile_text_stays_text_on_the_page(poison):
    text = benchmark.page(hostile_study(poison))
    text.encode()  # no lone surrogates
    page = Page(text)
    assert page.tags <= TAGS
    assert page.attributes <= ATTRIBUTES
    assert all(link.startswith("#") for link in page.links)
    assert all(STYLE.fullmatch(style) and "url" not in style for style in page.styles)
    assert all(c.isprintable() or c == "\n" for c in text)
    if len(poison) > 1000:
        assert poison[:1000] not in benchmark.page({**hostile_study(poison), "description": "", "plan": ""})
    assert text.count("</style>") == 1


def test_page_needs_nothing_else_and_forbids_it():
    text = benchmark.page(make_study(["svhn"], METHODS, epochs=3))
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text)


@pytest.mark.parametrize("poison", HOSTILE)
def test_hostile_text_stays_text_in_markdown(poison):
    text = benchmark.markdown(hostile_study(poison))
    plain = "\n".join(line for line in text.split("\n") if not line.startswith("    "))
    assert not re.search(r"(?<!\\)<[a-z/]", plain)
    assert all(c.isprintable() or c == "\n" for c in text)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().split("\n")}
            assert len(columns) == 1


@pytest.mark.parametrize("poison", HOSTILE)
def test_hostile_text_stays_text_in_latex(poison):
    text = benchmark.latex(hostile_study(poison))
    stack = []
    for kind, name in re.findall(r"(?<!\\)\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= {
        *("usepackage", "begin", "end", "centering", "caption", "resizebox", "textwidth", "toprule", "midrule"),
        *("bottomrule", "multicolumn", "emph", "textbf", "scriptsize", "pm", "dagger", "dots", "textsuperscript"),
        *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl"),
        "textasciigrave",
    }
    body = "\n".join(line for line in text.split("\n") if not line.startswith("% "))
    bare = re.sub(r"\\[\\{}$&#_%]", "", body)
    assert bare.count("{") == bare.count("}")
    assert "#" not in bare
    assert "_" not in bare
    for table in re.findall(r"\\begin\{tabular\}\{l(r+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in table[1].split("\n") if line.endswith(r" \\") and "multicolumn" not in line]
        assert rows
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table[0])}


@pytest.mark.parametrize("poison", HOSTILE)
def test_csv_reads_back_and_has_no_formulas(poison):
    rows = list(csv.DictReader(io.StringIO(benchmark.csv_rows(hostile_study(poison)))))
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        for value in row.values():
            assert value[:1] not in ("=", "@", "\t", "\r", "+")
            assert value[:1] != "-" or float(value) < 0


def test_csv_has_the_numbers_of_every_run():
    study = make_study(["svhn", "dtd"], METHODS[2:5], (0, 1), epochs=4, failing=0.2)
    rows = list(csv.DictReader(io.StringIO(benchmark.csv_rows(study))))
    cells = {(cell["task"], cell["method"], str(cell["seed"])): cell for cell in study["cells"]}
    for row in rows:
        found = cells[row["task"], row["method"], row["seed"]]
        assert row["state"] == found["state"]
        if found["result"]:
            assert float(row["test_accuracy"]) == found["result"]["test_accuracy"]
            assert row["prompts_per_block"] == " ".join(map(str, found["result"]["prompt_counts"]))
            assert float(row["final_loss"]) == found["result"]["epochs"][-1]["loss"]
        else:
            assert row["test_accuracy"] == ""
    assert len(rows) == len(study["cells"])


def slow(study):
    """The same numbers, the long way."""
    accuracy = {}
    for cell in study["cells"]:
        value = cell["result"] and cell["result"]["test_accuracy"]
        accuracy[cell["method"], cell["task"], cell["seed"]] = value
    names = {}
    for task in study["tasks"]:
        names.setdefault(task["group"], []).append(task["task"])

    def over(method, combine):
        values = []
        for seed in study["seeds"]:
            table = {g: [accuracy[method, t, seed] for t in tasks] for g, tasks in names.items()}
            if (value := combine(table)) is not None:
                values.append(value)
        mean = sum(values) / len(values) if values else None
        deviations = [(v - mean) ** 2 for v in values]
        return mean, math.sqrt(sum(deviations) / (len(values) - 1)) if len(values) > 1 else None, len(values)

    def mean(values):
        return None if None in values else sum(values) / len(values)

    return {
        method["label"]: {
            **{group: over(method["label"], lambda t, g=group: mean(t[g])) for group in names},
            "groups": over(method["label"], lambda t: mean([mean(v) for v in t.values()])),
            "plain": over(method["label"], lambda t: mean([x for v in t.values() for x in v])),
        }
        for method in study["methods"]
    }


@pytest.mark.parametrize(("failing", "missing"), [(0.0, 0.0), (0.05, 0.02), (0.5, 0.2), (0.0, 1.0)])
def test_aggregates_are_those_of_a_slow_computation(failing, missing):
    study = make_study(None, METHODS, (3, 1, 7), epochs=1, failing=failing, missing=missing)
    found, expected = benchmark.aggregate(study), slow(study)
    assert [numbers.method for numbers in found] == METHODS
    for numbers in found:
        wanted = expected[numbers.method]
        pairs = [(numbers.groups[group], wanted[group]) for group in VTAB]
        pairs += [(numbers.group_mean, wanted["groups"]), (numbers.plain_mean, wanted["plain"])]
        for spread, (mean, std, n) in pairs:
            assert spread.n == n
            assert spread.mean == (None if mean is None else pytest.approx(mean, abs=1e-12))
            assert spread.std == (None if std is None else pytest.approx(std, abs=1e-12))


def test_missing_and_failed_cells_are_said():
    study = make_study(["svhn", "dtd"], METHODS[:2], (0, 1, 2), epochs=2)
    for cell in study["cells"]:
        if cell["method"] == "Linear" and cell["task"] == "vtab:svhn":
            cell |= {"state": "failed", "failure": "It broke <here>.", "result": None}
    study["cells"] = [c for c in study["cells"] if (c["method"], c["seed"]) != ("VPT-Shallow", 2)]
    linear, shallow = benchmark.aggregate(study)
    assert linear.tasks["vtab:svhn"].failed == 3
    assert linear.groups["natural"].mean is None
    assert linear.groups["natural"].lacking == 1
    assert shallow.tasks["vtab:dtd"].n == 2
    page = Page(benchmark.page(study))
    assert {"failed", "no result on 1 task", "n = 2"} <= set(page.measured)
    assert "It broke <here>." in page.text
    assert "Of 12 runs: 7 finished, 3 failed, 2 missing." in page.text


def test_published_numbers_are_never_among_measured_ones_nor_best():
    study = make_study(["cifar", "svhn", "dtd"], METHODS, epochs=1)
    before = benchmark.aggregate(study)
    text = benchmark.page(study)
    page = Page(text)
    assert "78.8" in page.published  # VPT-Deep on CIFAR-100
    published_part = "".join(re.findall(r'<tbody class="published">.*?</tbody>', text, re.DOTALL))
    assert published_part
    assert 'class="best"' not in published_part
    without = copy.deepcopy(study)
    for task in without["tasks"]:
        task["published"] = None
    assert benchmark.aggregate(without) == before
    plain = Page(benchmark.page(without))
    assert plain.published == []
    assert plain.measured == page.measured


def test_published_rows_of_another_backbone_say_so():
    study = make_study(["svhn"], METHODS[:2], epochs=1)
    study["backbone"]["name"] = "vprompt_vit_tiny_patch8_64.tiny_imagenet"
    assert any("another backbone, not comparable" in text for text in Page(benchmark.page(study)).text)


def test_data_of_another_kind_is_warned_of():
    study = make_study(["svhn", "dtd"], METHODS[:2], epochs=1)
    text = " ".join(Page(benchmark.page(study)).text)
    assert "cannot be compared with those measured on Svhn" in text
    assert "Its images are other ones." in text
    assert "differ in their" not in text
    study["cells"][0]["result"]["provenance"]["data"]["fingerprint"] = "other"
    study["cells"][1]["result"]["provenance"]["preprocessing"]["mean"] = [0.485, 0.456, 0.406]
    text = " ".join(Page(benchmark.page(study)).text)
    assert "differ in their data (2 kinds)" in text
    assert "differ in their normalisation or resizing (2 kinds)" in text


@pytest.mark.parametrize("odd", [None, float("nan"), float("inf"), -1, 1e300, "x", True, [], {}])
def test_odd_values_do_not_break_a_report(odd):
    study = make_study(["svhn", "dtd"], METHODS[2:5], (0, 1), epochs=3)
    for number, key in enumerate(study["cells"][0]["result"]):
        study["cells"][number % 12]["result"][key] = odd
    study["cells"][11]["result"]["epochs"] = [{"loss": odd}, odd]
    study["cells"][10]["search"] = {
        "trials": [odd, {"settings": odd, "epochs": odd, "val_accuracy": odd}],
        "space": odd,
    }
    study["hours_planned"] = study["description"] = study["plan"] = odd
    study["backbone"] = {"name": "x", "parameters": odd, "bare_gmacs": odd}
    numbers, settings = benchmark.page(study).split('<section id="origin">')
    assert Page(numbers + "</main></body></html>").measured
    assert not re.search(r"\b(nan|inf)\b", numbers.split("</style>")[1])
    assert settings
    assert benchmark.markdown(study)
    assert benchmark.latex(study)
    assert len(benchmark.csv_rows(study).splitlines()) == 13
    if odd != 1e300:
        spreads = [spread for method in benchmark.aggregate(study) for spread in method.tasks.values()]
        assert all(spread.mean is None or 0 <= spread.mean <= 1 for spread in spreads)


def test_an_empty_study_is_a_page():
    text = benchmark.page(make_study(["svhn"], METHODS[:1], missing=1.0))
    assert any("Nothing has finished yet" in part for part in Page(text).text)
    study = make_study([], [], ())
    assert Page(benchmark.page(study)).text
    assert benchmark.csv_rows(study) == ""
    assert benchmark.markdown(study)
    assert benchmark.latex(study)


def test_a_real_run(trained):
    study = make_study(["svhn"], ["VPT-Deep"], (0,))
    study["cells"][0]["result"] = trained.result
    page = Page(benchmark.page(study))
    assert f"{100 * trained.result['test_accuracy']:.1f} †" not in page.measured
    assert "it is not known whether they had converged" in " ".join(page.text)
    for answer in (False, True):  # what earlier versions say of it counts for nothing
        study["cells"][0]["result"] = {**trained.result, "converged": answer}
        assert "†:" not in benchmark.page(study)
    told = {"converged": False, "convergence": {"epochs": 4, "difference": 1.0, "standard_error": 0.1}}
    study["cells"][0]["result"] = trained.result | told
    assert f"{100 * trained.result['test_accuracy']:.1f} †" in Page(benchmark.page(study)).measured
    assert trained.result["provenance"]["data"]["fingerprint"] in page.measured


def test_large_studies_stay_small_pages():
    study = make_study(None, [f"PC {n}" for n in range(32)], range(2), epochs=100, searched=False)
    assert len(study["cells"]) > 1200
    assert len(benchmark.page(study).encode()) < 2_500_000


def test_tasks_and_methods_that_are_called_alike_are_told_apart():
    study = make_study(["svhn", "dtd"], METHODS[:2], (0,), epochs=2)
    for task in study["tasks"]:
        task["title"] = "mine"
    names = {METHODS[0]: "m" * 70 + "a", METHODS[1]: "m" * 70 + "b"}
    for entry in study["methods"]:
        entry["label"] = names[entry["label"]]
    for cell in study["cells"]:
        cell["method"] = names[cell["method"]]
    text = benchmark.markdown(study)
    assert "mine (2)" in text
    found = re.findall(r"^\| (.*?) \| (\d+) \| \d+ s \|", text, re.MULTILINE)
    assert [runs for _, runs in found] == ["2"] * 4


def test_a_search_that_methods_share_counts_once():
    study = make_study(["svhn"], METHODS[:3], (0,), epochs=2)
    for cell in study["cells"]:
        cell["search"] = study["cells"][0]["search"]
    assert "6 trials for 1 choice," in benchmark.markdown(study)


def test_columns_without_numbers_are_left_out():
    study = make_study(["svhn"], METHODS[:3], (0,), epochs=2)
    assert "| GMACs, folded |" in benchmark.markdown(study)
    for cell in study["cells"]:
        del cell["result"]["folded_gmacs"]
    assert "| GMACs, folded |" not in benchmark.markdown(study)
    assert "| % of backbone |" in benchmark.markdown(study)


def test_latex_names_sources_only_of_rows_that_it_has():
    study = make_study(["svhn"], METHODS[:2], (0, 1), epochs=2)
    assert "Sources of the published" in benchmark.latex(study)
    study["tasks"] += [
        {**study["tasks"][0], "task": f"own{n}", "title": f"own{n}", "published": None} for n in range(3)
    ]
    assert "Sources of the published" not in benchmark.latex(study)


def test_the_training_of_a_pruned_run_is_the_whole_search():
    document = make_study(["cifar"], methods=("E²VPT", "PC 30 %"), seeds=(0,), searched=False)
    pruned, condensed = (cell["result"] for cell in document["cells"])
    pruned["pruning"] = {"trainings": 2.5}
    of = {run.method.label: run.training_seconds for run in benchmark.read(document).finished}
    assert of == {
        "E²VPT": pytest.approx(2.5 * pruned["before"]["training_seconds"]),
        "PC 30 %": pytest.approx(condensed["before"]["training_seconds"] + condensed["training_seconds"]),
    }
