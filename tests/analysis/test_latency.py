"""Times of a small backbone: what is timed, in what order, on what, and how it is shown; never how long it took."""

import json
from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch

from vprompt.analysis.base import Host
from vprompt.analysis.latency import Latency
from vprompt.analysis.latency.report import VIEW
from vprompt.analysis.page import analysis_sections, write_analysis
from vprompt.report import published
from vprompt.report.html import html_page
from vprompt.report.markdown import markdown_page
from vprompt.utils.errors import BackboneError, VPromptError

SMALL = {"prompts": [6, 2], "shares": [0.5, 1.0], "images": 2, "rounds": 2, "img_size": 32, "device": "cpu"}


class Watching(Host):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def bar(self, label):
        return nullcontext(lambda done, total: self.steps.append((done, total)))


def latencies(backbone, host=None, **options):
    """What `vprompt analyze latency` measures."""
    return Latency(backbone=backbone, **options).run(host or Host())


@pytest.fixture(scope="module")
def measured():
    host = Watching()
    found = latencies("test_vit", host, **SMALL)
    return found, host.notes, host.steps


@pytest.fixture
def result(measured):
    return json.loads(json.dumps(asdict(measured[0]), allow_nan=False))


def test_every_configuration_is_timed_under_every_execution(measured):
    found, (note,), steps = measured
    (device,) = found.devices
    assert (device.device, device.threads, device.images, device.rounds) == ("cpu", 1, 2, 2)
    assert [series.original for series in device.series] == [6, 2]
    for series in device.series:
        places = [(time.share, time.where, time.execution) for time in series.times]
        wanted = [(0.5, "local"), (0.5, "global"), (1.0, "local")]
        assert places == [(*place, how) for place in wanted for how in ("published", "prefix", "folded")]
        assert series.bare_milliseconds > 0
        for time in series.times:
            assert time.milliseconds > 0
            assert time.spread[0] <= time.ratio <= time.spread[1]
            assert sum(time.counts) == round(time.share * series.original * found.blocks)
    models = 2 * (1 + 9)
    assert note.startswith(f"cpu: {models} models in turn, 2 rounds, a batch of 2 images; it will take about")
    assert steps[-1] == (2 * 10 * 3, 2 * 10 * 3)  # models of both series, two rounds and one that is not counted
    assert [done for done, _ in steps] == list(range(1, 61))
    assert (found.backbone, found.img_size, found.dtype) == ("test_vit", (32, 32), "float32")


def test_what_is_timed_is_the_model_it_says(monkeypatch):
    """Models are told apart by what they compute: folded and published agree, and the bare backbone is timm's."""
    import vprompt.analysis.latency.measure as module

    seen = {}

    def spy(variants, images, **options):
        if len(variants) > 1:
            seen.update({name: run(images) for name, run in variants.items()})
            seen["images"] = images
            seen["bare"] = variants[""]
        return real(variants, images, **options)

    real = module.timing.latency
    monkeypatch.setattr(module.timing, "latency", spy)
    latencies("test_vit", **{**SMALL, "prompts": [4], "shares": [0.5]})
    assert torch.equal(seen[""], seen["bare"](seen["images"]))
    for place in ("0", "1"):
        torch.testing.assert_close(seen[f"{place} published"], seen[f"{place} folded"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen[f"{place} prefix"], seen[f"{place} folded"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen["0 folded"], seen["1 folded"], atol=1e-4)  # local and global differ


def test_a_small_backbone_gets_the_papers_batch():
    host = Watching()
    latencies("test_vit", host, **{**SMALL, "prompts": [1], "shares": [1.0], "images": None, "rounds": 1})
    assert "a batch of 64 images" in host.notes[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "nothing to time"),
        ({"shares": []}, "nothing to time"),
        ({"prompts": [0]}, "not 0"),
        ({"shares": [-0.5]}, "not -0.5"),
        ({"images": 0}, "images must be at least 1"),
        ({"rounds": -1}, "rounds must be at least 1"),
        ({"device": "abacus"}, "no device 'abacus' here; there is cpu"),
        ({"images": 10**13}, "too little memory"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(VPromptError, match=words):
        latencies("test_vit", **{**SMALL, **arguments})


def test_a_backbone_that_is_none_is_refused():
    with pytest.raises(BackboneError, match="vit_nope"):
        latencies("vit_nope")


# ── the view ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sections_of(result):
    return analysis_sections([{"analysis": "latency", "result": result}])


def set_ratios(result, published, folded, spread=0.01):
    for device in result["devices"]:
        for series in device["series"]:
            for row in series["times"]:
                ratio = {"published": published(row["share"]), "folded": folded}.get(row["execution"], 1.1)
                row["ratio"], row["spread"] = ratio, [ratio - spread, ratio + spread]


def test_the_answer_says_what_condensation_saves(result):
    set_ratios(result, lambda share: 1 + share, 1.0)
    said = VIEW.answer(VIEW.read(result))
    assert "2.00 published, 1.10 prefix, 1.00 folded" in said
    assert "to 50 % saves 25.0 % of the time as published and 0.0 % when folded" in said
    assert "saves time in 4 of 4 configurations, costs it in 0, and 0 are too close to tell" in said
    assert "Local and global differ by at most 0.0 %" in said


def test_the_answer_says_where_the_claim_does_not_hold(result):
    set_ratios(result, lambda share: 2 - share, 1.0)
    assert "saves time in 0 of 4 configurations, costs it in 4" in VIEW.answer(VIEW.read(result))
    set_ratios(result, lambda share: 1 + share, 1.0, spread=0.4)
    assert "saves time in 0 of 4 configurations, costs it in 0, and 4 are too close to tell" in VIEW.answer(
        VIEW.read(result)
    )


def test_every_ratio_is_in_html_and_markdown(result):
    sections = sections_of(result)
    for text in (html_page("t", "m", sections), markdown_page("t", sections)):
        for series in result["devices"][0]["series"]:
            for row in series["times"]:
                assert f"{row['ratio']:.2f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})" in text
    assert "as the paper printed it" not in text  # of this backbone it prints nothing


def test_the_papers_times_stand_beside_those_of_its_backbone(result):
    result["backbone"], result["img_size"] = "vit_base_patch16_224.augreg_in21k", [224, 224]
    result["devices"][0]["series"][0]["original"] = 200
    set_ratios(result, lambda share: 2 * share, 1.0)
    text = markdown_page("t", sections_of(result))
    assert "| 50 % | global | 0.50 | 1.00 | 1.00 | 0.72 | 0.75 | 0.68 |" in text  # 501 / 697, 348 / 462, 80 / 118
    assert text.count("as the paper printed it") == 1  # it has no times from 2 prompts


def test_the_papers_table_4_that_ships_is_whole():
    found = {device: times for device, times in published.condensed(published.VIT).items() if device}
    assert {name: len(times) for name, times in found.items()} == {"Quadro RTX 5000": 33, "V100": 33, "A100": 33}
    assert [found["A100"][50, 100, "local"], found["V100"][100, 20, "local"]] == ["60", "245"]
    assert found["Quadro RTX 5000"][200, 40, "global"] == "473"
    assert published.condensed(published.SWIN) == {}


@pytest.mark.parametrize("odd", ["one share", "two devices", "hostile", "no share of all"])
def test_odd_results_can_be_shown(result, tmp_path, odd):
    series = result["devices"][0]["series"]
    if odd == "one share":
        for entry in series:
            entry["times"] = [row for row in entry["times"] if row["share"] == 1]
    elif odd == "two devices":
        twin = json.loads(json.dumps(result["devices"][0]))
        result["devices"].append({**twin, "device": "cuda", "name": "GPU", "threads": None})
    elif odd == "no share of all":
        for entry in series:
            entry["times"] = [row for row in entry["times"] if row["share"] < 1]
    else:
        result["devices"][0]["name"] = result["backbone"] = "<script>$x_$\x1b[31m\u202e"
    files = write_analysis(tmp_path, "latency", result)
    assert all(file.stat().st_size > 1000 for file in files)
    text = (tmp_path / "analyses.html").read_text() + (tmp_path / "analyses.md").read_text()
    assert "<script" not in text
    assert "\x1b" not in text


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

QUICK = ("--backbone", "test_vit", "--img-size", "32", "--images", "1", "--rounds", "1", "--device", "cpu")


def test_the_command_says_how_long_before_and_prints_ratios_first(vprompt_command, tmp_path):
    found = vprompt_command("analyze", "latency", *QUICK, "--prompts", "4", "--shares", "0.5,1", "--out", tmp_path)
    assert found.status == 0
    assert found.err.startswith("cpu: 10 models in turn, 1 round, a batch of 1 image; it will take about ")
    assert found.out.startswith("Time over the bare backbone's, from 4 prompts per block")
    assert (tmp_path / "latency.png").stat().st_size > 1000
    saved = json.loads((tmp_path / "latency.json").read_text())
    assert saved["result"]["devices"][0]["images"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompts", "many"), "--prompts"),
        (("--shares", "0.5,,1"), "--shares"),
        (("--shares", "7"), "not 7.0"),
        (("--images", "0"), "images"),
        (("--device", "abacus"), "'abacus'"),
        (("--backbone", "vit_nope"), "'vit_nope'"),
    ],
)
def test_wrong_use_is_one_sentence(vprompt_command, tmp_path, arguments, words):
    found = vprompt_command("analyze", "latency", *QUICK, *arguments, "--out", tmp_path)
    assert found.status == 1
    assert words in found.err
    assert found.err.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())
