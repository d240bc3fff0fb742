"""The page of a run, looked at in a real browser: nothing asked for, nothing wider than a phone, nothing that acts."""

import json
import re
import shutil

import pytest
import timm
import torch

import vprompt
from browser import CHROMIUM, browsing
from conftest import run_command
from vprompt.data.dataset import ImageDataset
from vprompt.experiments.report import outcome
from vprompt.experiments.report.outcome import attention_maps, write_page
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.tasks.single_label import SingleLabel
from vprompt.training.evaluate import Evaluation

HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a class whose name never seems to end " * 3)


def drawn(labels, generator):
    """Logits of a model that is often right."""
    wanted = labels if labels.ndim > 1 else torch.nn.functional.one_hot(labels, int(labels.max()) + 1)
    return torch.randn(wanted.shape, generator=generator) + 2 * (wanted - 0.5)


def cases():
    generator = torch.Generator().manual_seed(0)
    for name, names, images in (("few", HOSTILE, 60), ("many", tuple(f"class number {n}" for n in range(200)), 800)):
        labels = torch.arange(images) % len(names)
        yield name, SingleLabel(names=names), labels, drawn(labels, generator)
    labels = (torch.rand(80, 12, generator=generator) < 0.3).float()
    labels[:, 0] = 0
    yield "tags", MultiLabel(names=tuple(f"tag {n}" for n in range(12))), labels, drawn(labels, generator)
    labels = torch.randn(90, 2, generator=generator) * torch.tensor([300.0, 0.01])
    target = Regression(names=("weight", HOSTILE[0]), mean=(0.0, 0.0), std=(300.0, 0.01))
    yield "numbers", target, labels, labels / torch.tensor([300.0, 0.01]) + 0.3


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind of target."""
    folder, found = tmp_path_factory.mktemp("pages"), {}
    backbone = timm.create_model("test_vit", img_size=32)
    for name, target, labels, logits in cases():
        model = vprompt.attach(backbone, vprompt.VPT(2), target=target)
        pixels = torch.randint(256, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
        files = [f"{HOSTILE[1]}/{number}.jpg" for number in range(len(labels))]
        images = ImageDataset(labels, model.preprocessing, pixels=pixels, paths=files)
        evaluation = Evaluation(target=target, loss=1.0, logits=logits, labels=labels)
        figures = {f"test_{key}": value for key, value in evaluation.figures.items()}
        course = [{"epoch": n, "loss": 1 / n, target.hit: 0.5, "lr": 0.1, "val_loss": 2 / n} for n in range(1, 9)]
        result = {"prompt_counts": model.prompt_counts, "epochs": course, "settings": {"data": HOSTILE[0]}, **figures}
        result["notes"] = evaluation.remarks("test")
        path = found[name] = folder / f"{name}.html"
        write_page(path, model, {"test": evaluation}, {"test": images}, result, adapter="a'b", data=HOSTILE[0])
    return found


def test_all_parts_are_drawn_and_names_stay_text(pages):
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert "cannot be drawn" not in text
        assert path.stat().st_size < 3e6
        assert not re.search(r"<script|<img src=x|https?://(?!www\.w3\.org)", text)
        assert "vprompt eval &#39;a&#39;&#34;&#39;&#34;&#39;b&#39;" in text  # quoted for a shell, then for a page
        for title in ("Result", "Learning curves", "Worst and least certain", "Attention", "What to do next"):
            assert f"<h2>{title}</h2>" in text
    assert "not defined" not in pages["tags"].read_text()
    assert "No test image has tag 0" in pages["tags"].read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
def test_a_browser_shows_them_on_a_phone_and_in_the_dark_and_asks_for_nothing(pages, tmp_path):
    with browsing(tmp_path) as browser:
        for path in pages.values():
            for width, dark in ((390, False), (1200, True)):
                browser.show(path, width=width, dark=dark)
                assert browser.requests() == []
                assert browser.complaints() == []
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate("document.scripts.length") == 0
                assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                # Text that is cut off, and pictures out of sight, but for what scrolls by itself.
                outside = """[...document.querySelectorAll('h1, h2, p, figure, svg, nav, li, pre, .scroll')]
                    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"""
                assert browser.evaluate(outside) == 0
                assert contrast(browser, "body") > 10
                assert contrast(browser, ".made") > 4.5
                assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
                    "rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)"
                )
            assert_inside(browser)


def contrast(browser, where):
    """The contrast of text to the page, as WCAG has it."""
    lights = []
    for place, key in ((where, "color"), ("body", "backgroundColor")):
        colour = browser.evaluate(f"getComputedStyle(document.querySelector('{place}')).{key}")
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def assert_inside(browser):
    """The texts of pictures lie inside them, and the names beside a picture do not cover each other."""
    found = browser.evaluate("""[...document.querySelectorAll('svg')].flatMap(picture => {
        const whole = picture.getBoundingClientRect();
        return [...picture.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
        }).map(text => text.textContent);
    })""")
    assert found == []


def test_maps_are_the_attention_that_is_paid():
    """Against the weights of a plain attention, computed from keys and queries of the blocks."""
    torch.manual_seed(0)
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(3), num_classes=2).eval()
    images = torch.randn(2, 3, 32, 32)
    maps = attention_maps(model, images)
    view, paid = model.copy(execution="prefix").eval(), []
    for block, attention in enumerate(view.attentions):
        attention.observer = lambda weights, block=block: paid.append(weights(99).mean(1))
    with torch.no_grad():
        view(images)
    assert torch.allclose(maps["class token"].flatten(1), paid[-1][:, 0, 4:], atol=1e-6)
    full = [weights for weights in paid if weights.shape[1] == 5]
    assert torch.allclose(
        maps["prompts"].flatten(1), torch.stack([w[:, 1:, :3].sum(2) for w in full]).mean(0), atol=1e-6
    )
    windows = vprompt.attach(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2), vprompt.VPT(1), num_classes=2
    )
    assert attention_maps(windows, torch.randn(1, 3, 64, 64)) == {}


def test_a_run_leaves_a_page_and_an_evaluation_as_well(trained, colours, tmp_path):
    page = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert "cannot be drawn" not in page
    assert f"vprompt predict {trained.folder} IMAGE" in page
    found = run_command("eval", trained.folder, colours, "--out", tmp_path / "seen", "--json")
    assert found.status == 0, found.err
    assert any("report.html" in note for note in found.document["notes"])
    text = (tmp_path / "seen" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Confusion</h2>" in text
    assert "cannot be drawn" not in text
    again = run_command("eval", trained.folder, colours, "--out", tmp_path / "seen")
    assert again.status != 0
    assert "is there already; choose another --out" in again.err


def fit(colours, backbone, out, *more):
    small = ["--backbone", backbone, "--prompts", 2, "--epochs", 1, "--batch-size", 8, "--img-size", 32]
    return run_command("fit", colours, *small, "--out", out, "--json", *more)


def test_a_page_that_fails_costs_nothing(colours, two_blocks, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("<no> pencil")

    monkeypatch.setattr(outcome, "html_page", broken)
    found = fit(colours, two_blocks, tmp_path / "run")
    assert found.status == 0, found.err
    assert found.document["notes"][-1] == "There is no report.html (RuntimeError: <no> pencil)."
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found.document
    assert not (tmp_path / "run" / "report.html").exists()
    assert run_command("eval", tmp_path / "run", colours).status == 0


def test_a_part_that_fails_is_said_and_the_others_stand(colours, two_blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(outcome, "jpeg", lambda pixels: 1 / 0)
    assert fit(colours, two_blocks, tmp_path / "run", "--calibrate").status == 0
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert text.count("This part cannot be drawn (ZeroDivisionError") == 2  # mistakes, and attention
    assert "Calibration, val images" in text


def test_calibration_is_kept_in_the_adapter_and_left_out_by_default(colours, two_blocks, trained, tmp_path):
    found = fit(
        colours,
        two_blocks,
        tmp_path / "run",
        "--calibrate",
        "--no-report",
        "--condense",
        "0.5",
        "--fine-tune-epochs",
        "1",
    )
    assert found.status == 0, found.err
    assert not (tmp_path / "run" / "report.html").exists()
    for document in (found.document, found.document["before"]):
        for figures in document["calibration"].values():
            assert figures["before"]["temperature"] == 1
        val = document["calibration"]["val"]
        assert val["after"]["loss"] <= val["before"]["loss"]
        assert document["test_ece"] == document["calibration"]["test"]["after"]["ece"]
    temperature = found.document["calibration"]["val"]["after"]["temperature"]
    model = vprompt.load(tmp_path / "run")
    assert model.target.temperature == temperature != 1
    logits = torch.randn(2, 3)
    for each in (model.fold(), model.copy()):
        assert torch.allclose(each.target.activate(logits), (logits / temperature).softmax(1))
    full = found.document["before"]["calibration"]["val"]["after"]["temperature"]
    assert vprompt.load(tmp_path / "run" / "full").target.temperature == full
    assert "target" not in json.loads((trained.folder / "adapter_config.json").read_text())
    assert "calibration" not in trained.result
    assert "calibrate" not in trained.result["settings"]
    shutil.rmtree(tmp_path / "run" / "condensed", ignore_errors=True)
    smaller = run_command(
        "condense",
        tmp_path / "run" / "full",
        colours,
        "--out",
        tmp_path / "small",
        "--ratio",
        "0.5",
        "--no-fine-tune",
        "--json",
    )
    assert smaller.status == 0, smaller.err
    assert (
        smaller.document["calibration"]["val"]["after"]["temperature"]
        == vprompt.load(tmp_path / "small").target.temperature
    )


@pytest.mark.parametrize(
    ("more", "why"), [(["--train-on", "train+val"], "validation images"), (["--method", "linear"], None)]
)
def test_calibration_needs_images_that_were_not_learned(colours, two_blocks, tmp_path, more, why):
    arguments = ["--backbone", two_blocks, "--epochs", 1, "--calibrate", "--out", tmp_path / "run", "--no-report"]
    found = run_command("fit", colours, *arguments, *more)
    assert (found.status != 0) == (why is not None)
    assert why is None or why in found.err
