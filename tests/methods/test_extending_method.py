"""The method of docs/extending.md, loaded from a file outside the package, goes everywhere that a built-in one goes."""

import json
import os
import subprocess
import sys

import pytest
import torch

import vprompt
from conftest import run_command
from plugins import example, plugged
from processes import Script
from vprompt.compression.merge import merge
from vprompt.methods.layers.prompts import Prompts
from vprompt.methods.registry import METHODS
from vprompt.model.cost import model_cost

SMALL = ["--epochs", 1, "--batch-size", 9, "--img-size", 16, "--prompts", 4]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The first block of code in the page, as a file that nothing in the package knows."""
    code = example("A method")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 60
    with plugged(tmp_path_factory.getbasetemp() / "fourier.py", code) as path:
        yield path


@pytest.fixture(scope="module")
def backbone(plugin):
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32)


def fourier(**options):
    return METHODS.get("fourier").make(options)


def attached(backbone, seed=0, classes=3, **options):
    torch.manual_seed(seed)
    method = fourier(**{"prompts": 4, "dropout": 0.0, **options})
    model = vprompt.attach(backbone, method, num_classes=classes)
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(torch.randn_like(value))
    return model.eval()


def images(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def data(count=6):
    return torch.utils.data.TensorDataset(images(count), torch.arange(count) % 3)


def by_hand(values, share):
    """The real part of the discrete Fourier transform over prompts and channels, as sums of cosines."""
    values, count = values.double(), round(share * len(values))
    first = values[:count]
    rows, columns = torch.arange(count).double(), torch.arange(values.shape[1]).double()
    angle = rows[:, None, None, None] * rows[None, None, :, None] / max(count, 1)
    angle = 2 * torch.pi * (angle + columns[None, :, None, None] * columns[None, None, None, :] / values.shape[1])
    waves = (torch.cos(angle) * first[None, None]).sum((2, 3)) / (count * values.shape[1]) ** 0.5
    return torch.cat([waves, values[count:]])


# ── what it computes ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_computes_what_its_formula_says(backbone, share):
    model = attached(backbone, fourier_share=share)
    for block, values in enumerate(model.prompts):
        torch.testing.assert_close(model.prompts.dense(block).double(), by_hand(values, share), atol=1e-4, rtol=1e-4)
    plain = vprompt.attach(backbone, vprompt.VPT(4), num_classes=3).eval()
    plain.restore(model.state())
    with torch.no_grad():
        apart = float((plain(images()) - model(images())).abs().max())
    assert (apart < 1e-5) == (share == 0)


def test_both_executions_and_the_folded_model_agree(backbone):
    model = attached(backbone)
    wanted = model.copy(execution="published")(images())
    torch.testing.assert_close(model(images()), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.fold()(images()), wanted, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_finite_differences(plugin):
    import timm

    torch.manual_seed(0)
    model = attached(timm.create_model("test_vit", img_size=32).double())
    loss = torch.nn.functional.cross_entropy(model(images().double()), torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(loss, [model.prompts[1]])
    direction = torch.randn_like(gradient)
    ends = []
    for step in (1e-5, -1e-5):
        moved = model.copy()
        with torch.no_grad():
            moved.prompts[1].add_(step * direction)
            ends.append(torch.nn.functional.cross_entropy(moved(images().double()), torch.tensor([0, 1, 2])))
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-5)


# ── everything that a model can do ───────────────────────────────────────────────────────────────────────────────────


def test_training_changes_it(backbone):
    model = attached(backbone)
    before = model.state()
    vprompt.fit(model, data(), recipe=vprompt.Recipe(epochs=1, batch_size=3))
    assert all(not torch.equal(before[name], value) for name, value in model.state().items())
    assert type(model.prompts).__name__ == "FourierPrompts"


def test_saved_it_loads_in_a_new_process(backbone, plugin, tmp_path):
    model = attached(backbone)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pt")
    model.save_pretrained(tmp_path / "adapter")
    again = vprompt.load(tmp_path / "adapter", backbone)
    assert torch.equal(again(images()), model(images()))
    assert again.method == model.method
    code = (
        "import sys, timm, torch, vprompt\n"
        "backbone = timm.create_model('test_vit', img_size=32)\n"
        f"backbone.load_state_dict(torch.load({str(tmp_path / 'backbone.pt')!r}))\n"
        f"model = vprompt.load({str(tmp_path / 'adapter')!r}, backbone)\n"
        "x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))\n"
        "print(model.method.name, model(x).sum().item())"
    )
    plugins = {"VPROMPT_PLUGINS": str(plugin)}
    status, printed, errors = Script(code, folder=tmp_path, environment=plugins).end()
    assert status == 0, errors
    name, total = printed.split()
    assert name == "fourier"
    assert float(total) == pytest.approx(float(model(images()).detach().sum()), abs=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "fourier, started with 4 prompts per block" in card
    status, _, errors = Script(code, folder=tmp_path, environment={"VPROMPT_PLUGINS": ""}).end()
    assert status == 1
    assert "The method 'fourier' is not known" in errors.replace("\\", "")


def test_scored_condensed_and_saved_it_is_ordinary_prompts(backbone, tmp_path):
    model = attached(backbone)
    scores = vprompt.score(model, data(), criterion="taylor")
    assert [len(values) for values in scores] == [4] * 6
    small = vprompt.condense(model, data(), ratio=0.5, scores=scores, recipe=vprompt.Recipe(epochs=1, batch_size=3))
    assert sum(small.prompt_counts) == 12
    assert type(small.prompts) is Prompts
    untrained = vprompt.condense(model, data(), ratio=1.0, scores=scores, fine_tune=False)
    torch.testing.assert_close(untrained(images()), model(images()), atol=1e-5, rtol=1e-4)
    small.save_pretrained(tmp_path / "small")
    assert torch.equal(vprompt.load(tmp_path / "small", backbone)(images()), small(images()))


def test_scores_are_those_of_the_prompts_that_the_backbone_is_given(backbone):
    """They equal the scores of ordinary prompts with the same values."""
    model = attached(backbone)
    values = [model.prompts.dense(block).detach() for block in range(6)]
    plain = model.copy(prompts=Prompts(values)).eval()
    for mine, theirs in zip(vprompt.score(model, data()), vprompt.score(plain, data()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


def test_it_can_be_pruned_and_rewound(backbone):
    model = attached(backbone)
    early = model.state()
    recipe = vprompt.Recipe(epochs=1, batch_size=3)
    vprompt.fit(model, data(), recipe=recipe)
    settings = vprompt.PruneSettings(tokens=0.5, segments=0.25, num_segments=4)
    pruned = vprompt.prune(model, data(), early=early, settings=settings, recipe=recipe).model
    assert sum(pruned.prompt_counts) == 12
    assert pruned.prompts.num_segments == 4


def test_merged_prompts_of_one_cluster_are_exact(backbone):
    model = attached(backbone)
    kept = [torch.arange(4)] * 6
    torch.testing.assert_close(merge(model, kept)(images()), model(images()), atol=1e-5, rtol=1e-4)
    assert sum(merge(model, [torch.arange(2)] * 6).prompt_counts) == 12


def test_a_bank_mixes_it_with_others(backbone):
    model, other = attached(backbone), vprompt.attach(backbone, vprompt.VPT(2), num_classes=2).eval()
    bank = vprompt.Bank(backbone)
    bank.add("waves", model)
    bank.add("deep", other)
    logits = bank(images(), ["waves", "deep", "waves"])
    torch.testing.assert_close(logits[0], model(images())[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], other(images())[1], atol=1e-5, rtol=1e-4)


def test_exported_it_gives_the_same(backbone, tmp_path):
    model = attached(backbone)
    vprompt.export(model, tmp_path / "model.pt2")
    exported = vprompt.load_exported(tmp_path / "model.pt2")
    torch.testing.assert_close(torch.as_tensor(exported(images())), model(images()), atol=1e-4, rtol=1e-3)


def test_its_cost_is_counted(backbone):
    mine, deep = (
        model_cost(vprompt.attach(backbone, method, num_classes=3)) for method in (fourier(prompts=4), vprompt.VPT(4))
    )
    assert mine.folded_gmacs == deep.folded_gmacs
    assert mine.published_gmacs == pytest.approx(deep.published_gmacs, rel=0.01)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_shows_its_options_and_no_other_methods(plugin):
    text = run_command("fit", "--method", "fourier", "--help").out
    assert "--fourier-share" in text
    assert "Share of each block's prompts" in " ".join(text.split())
    assert "--rank" not in text
    assert "--kv-prompts" not in text
    assert "--fourier-share" not in run_command("fit", "--method", "lora", "--help").out
    assert run_command("fit", "--method", "lora", "--fourier-share", 0.5).status == 2


def test_fit_trains_it_with_its_option(plugin, colours, tmp_path):
    arguments = ["fit", colours, "--method", "fourier", "--fourier-share", 0.25, *SMALL, "--out", tmp_path / "run"]
    done = run_command(*arguments, "--json")
    assert done.status == 0, done.err
    assert done.document["method"] == "fourier"
    assert done.document["settings"]["fourier_share"] == 0.25
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text("utf-8"))
    assert config["method"]["fourier_share"] == 0.25
    wrong = run_command(*arguments[:4], "--fourier-share", 2, *SMALL, "--out", tmp_path / "wrong")
    assert wrong.status == 1
    assert "between 0 and 1, not at 2" in wrong.err


def test_compare_runs_it(plugin, colours, tmp_path):
    arguments = ["compare", colours, "--methods", "linear,fourier", "--seeds", 1, "--fourier-share", 0.75, *SMALL]
    done = run_command(*arguments, "--out", tmp_path / "compared", "--json")
    assert done.status == 0, done.err
    assert [row["method"] for row in done.document["rows"]] == ["linear", "fourier"]
    assert done.document["runs"][1]["settings"]["fourier_share"] == 0.75


def test_a_plan_of_three_settings_makes_three_runs(plugin, text, tmp_path):
    head = text.partition("[[methods]]")[0].partition("[search]")[0]
    plan = (
        head + '[[methods]]\nlabel = "Fourier {fourier_share}"\nmethod = "fourier"\nfourier_share = [0.0, 0.5, 1.0]\n'
    )
    (tmp_path / "waves.toml").write_text(plan)
    done = run_command("bench", tmp_path / "waves.toml", "--out", tmp_path / "runs", "--json")
    assert done.status == 0, done.err
    cells = [cell for cell in done.document["cells"] if cell["seed"] == done.document["cells"][0]["seed"]]
    assert len({cell["result"] for cell in cells}) == 3
    assert [cell["method"] for cell in cells[:3]] == ["Fourier 0", "Fourier 0.5", "Fourier 1"]
    results = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "runs" / "results").glob("*.json")]
    assert {result["settings"]["fourier_share"] for result in results} == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("code", ["raise NameError('oops')", "import nothing_of_that_name", "def ("])
def test_a_plugin_that_fails_is_one_sentence(tmp_path, code):
    path = tmp_path / "broken.py"
    path.write_text(code)
    environment = {**os.environ, "VPROMPT_PLUGINS": str(path)}
    command = [sys.executable, "-m", "vprompt", "fit", "--help"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"vprompt: The plugin {path}")
    assert len(failed.stderr.splitlines()) == 1
