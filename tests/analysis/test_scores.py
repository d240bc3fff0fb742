"""How right scores are: ablation and rank correlation against slow references, what is shown, and the command."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import scipy.stats
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import families
import vprompt
from vprompt.analysis.page import analysis_sections, write_analysis
from vprompt.analysis.scores import Scores
from vprompt.analysis.scores.measure import EXACT, _draw, ablate, scores, spearman
from vprompt.cli.main import main
from vprompt.compression.criteria import CRITERIA
from vprompt.compression.merge import merge
from vprompt.report.html import html_page
from vprompt.utils.errors import VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

FAMILIES = ["swin-padded", "eva-rope-unfused", "beit-both", "cait", "gqa-per-block"]
LABELS = torch.tensor([0, 4, 2, 1])
FEW = Scores(ratios=(0.5,), scopes=("global",), criteria=("random",))


def some_data(name):
    return TensorDataset(families.some_images(name, 4, dtype=torch.float64), LABELS)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("name", FAMILIES)
def test_ablation_is_leaving_out_or_zeroing_by_hand_in_the_reference(name, depth, zero):
    counts = None if depth == "shallow" else [2, 0, 3]
    model = families.attached(name, vprompt.VPT(3, depth), counts=counts, dtype=torch.float64)
    images, labels = some_data(name).tensors
    found = ablate(model, some_data(name), zero=zero)

    def losses(prompts):
        head = model.head
        logits = families.logits(model.backbone, prompts, head.weight, head.bias, images, shallow=depth == "shallow")
        return F.cross_entropy(logits.detach(), labels, reduction="none")

    whole = losses(list(model.prompts))
    assert found.images == 4
    assert found.loss == pytest.approx(float(whole.mean()), rel=1e-5)
    for block, count in enumerate(model.prompt_counts):
        assert len(found.rise[block]) == len(found.change[block]) == count
        for prompt in range(count):
            prompts = [p.detach().clone() for p in model.prompts]
            if zero:
                prompts[block][prompt] = 0
            else:
                prompts[block] = torch.cat([prompts[block][:prompt], prompts[block][prompt + 1 :]])
            change = losses(prompts) - whole
            assert found.rise[block][prompt] == pytest.approx(float(change.mean()), rel=1e-4, abs=1e-5)
            assert found.change[block][prompt] == pytest.approx(float(change.abs().mean()), rel=1e-4, abs=1e-5)


def test_ablation_of_merged_prompts_and_beside_key_value_prompts():
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", img_size=32)
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    model = vprompt.attach(backbone, vprompt.E2VPT(4, 3), head_init="paper", num_classes=3).eval()
    small = merge(model, [torch.arange(2)] * 6)
    for each in (model, small):
        found = ablate(each, data)
        for block, count in enumerate(each.prompt_counts):
            for prompt in range(count):
                kept = [torch.arange(n) for n in each.prompt_counts]
                kept[block] = kept[block][kept[block] != prompt]
                rise = vprompt.evaluate(each.keep(kept), data).loss - vprompt.evaluate(each, data).loss
                assert found.rise[block][prompt] == pytest.approx(rise, abs=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_a_merged_prompt_goes_with_all_that_it_stands_for(zero):
    torch.manual_seed(0)
    model = vprompt.attach(
        timm.create_model("test_vit", img_size=32), vprompt.VPT(4), head_init="paper", num_classes=3
    ).eval()
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    small = merge(model, [torch.arange(2)] * 6)
    found = ablate(small, data, zero=zero)
    copies = [torch.repeat_interleave(torch.arange(2), torch.tensor(many)) for many in small.prompts.multiplicity]
    prompts = [p.detach()[index] for p, index in zip(small.prompts, copies, strict=True)]
    whole, head = vprompt.evaluate(small, data).loss, small.head

    def loss(values):
        logits = families.logits(model.backbone, values, head.weight, head.bias, data.tensors[0])
        return float(F.cross_entropy(logits.detach(), data.tensors[1]))

    assert loss(prompts) == pytest.approx(whole, rel=1e-5)
    for block in (0, 5):
        for prompt in range(2):
            mine = copies[block] == prompt
            changed = prompts[block] * ~mine[:, None] if zero else prompts[block][~mine]
            rise = loss([*prompts[:block], changed, *prompts[block + 1 :]]) - whole
            assert found.rise[block][prompt] == pytest.approx(rise, abs=1e-5)


def test_everything_is_left_as_it_was():
    torch.manual_seed(0)
    model = vprompt.attach(
        timm.create_model("test_vit", img_size=32), vprompt.VPT(3), head_init="paper", num_classes=3
    ).train()
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    before = model.state()
    scores(model, data, data, Scores(ratios=(0.5,), scopes=("global",), fine_tune_epochs=1))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state().items())


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_scipys_also_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(0, 6 if seed % 2 else 10**6, (30,), generator=generator).tolist() for _ in range(2))
    assert spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-9)
    assert spearman(one, one) == 1
    assert spearman(one, [-value for value in one]) == -1


def test_rank_correlation_where_there_is_none():
    assert spearman([], []) is None
    assert spearman([1.0], [2.0]) is None
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 4
    images += F.interpolate(torch.randn(4, 3, 4, 4), 32)[labels]
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(3), head_init="paper", num_classes=4)
    data = TensorDataset(images, labels)
    vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=5, lr=0.01, batch_size=16))
    return model, data


@pytest.fixture(scope="module")
def found(trained):
    return scores(*trained, trained[1], Scores(ratios=(0.2, 0.6), images=20, fine_tune_epochs=1))


def test_what_is_kept_is_what_select_keeps_and_evaluate_measures(trained, found):
    model, data = trained
    assert set(found.scores) == set(CRITERIA)
    assert {one.criterion for one in found.kept} == {*CRITERIA, *EXACT}
    assert len(found.kept) == 2 * 2 * (len(CRITERIA) + len(EXACT))
    for one in found.kept:
        exact = {"ablation": found.ablation.change, "ablation-signed": found.ablation.rise}
        exact |= {"zeroing": found.zeroing.change, "zeroing-signed": found.zeroing.rise}
        values = [torch.tensor(block) for block in exact.get(one.criterion, found.scores.get(one.criterion))]
        kept = vprompt.select(values, ratio=one.ratio, scope=one.scope)
        assert one.counts == tuple(map(len, kept))
        measured = vprompt.evaluate(model.keep(kept), data)
        assert one.accuracy == measured.accuracy
        assert one.loss == pytest.approx(measured.loss, rel=1e-4)
        assert 0 <= one.fine_tuned <= 1
    whole = vprompt.evaluate(model, data)
    assert (found.accuracy, found.loss) == (whole.accuracy, pytest.approx(whole.loss, rel=1e-4))
    assert found.ablation.images == 20


def test_correlations_are_over_all_prompts(found):
    flat = {name: [v for block in values for v in block] for name, values in found.scores.items()}
    rise = [v for block in found.ablation.rise for v in block]
    for name, values in flat.items():
        assert found.agreement[name]["rise"] == pytest.approx(scipy.stats.spearmanr(values, rise).statistic)
        assert found.between[name]["taylor"] == pytest.approx(scipy.stats.spearmanr(values, flat["taylor"]).statistic)
        zeroed = [v for block in found.zeroing.change for v in block]
        assert found.agreement[name]["zeroed change"] == pytest.approx(scipy.stats.spearmanr(values, zeroed).statistic)


def test_sizes_are_those_of_the_effect_that_a_score_estimates(trained, found):
    def total(blocks):
        return sum(abs(value) for block in blocks for value in block)

    exact = {
        "taylor": found.zeroing.change,
        "taylor-signed": found.zeroing.rise,
        "removal": found.ablation.change,
        "removal-signed": found.ablation.rise,
    }
    expected = {name: total(blocks) / total(found.scores[name]) for name, blocks in exact.items()}
    assert found.sizes == pytest.approx(expected)
    # The norm undoes the length of a prompt until it is nearly zero: the slope at its full length says nothing of that.
    assert found.sizes["taylor"] > 100
    without = scores(*trained, trained[1], replace(FEW, criteria=("taylor", "removal"), images=4, zeroing=False))
    assert without.zeroing is None
    assert set(without.sizes) == {"removal"}
    assert set(without.agreement["taylor"]) == {"rise", "change"}


def test_criteria_that_cannot_be_are_left_out():
    shallow = vprompt.attach(
        timm.create_model("test_vit", img_size=32), vprompt.VPT(3, "shallow"), head_init="paper", num_classes=3
    )
    data = TensorDataset(torch.randn(3, 3, 32, 32), torch.arange(3))
    seen = scores(shallow, data, data, Scores(ratios=(0.5,), scopes=("global",)))
    assert set(seen.scores) == set(CRITERIA) - {"removal", "removal-signed"}
    windows = families.attached("swin-padded", vprompt.VPT(2))
    images = families.some_images("swin-padded", 3)
    data = TensorDataset(images, LABELS[:3])
    seen = scores(windows, data, data, Scores(ratios=(0.5,)))
    assert "cls-similarity" not in seen.scores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 0}, "at least one image"),
        ({"ratios": (0.0,)}, "above 0"),
        ({"scopes": ("everywhere",)}, "scope"),
        ({"criteria": ("nonsense",)}, "no criterion"),
        ({"fine_tune_epochs": -1}, "epochs"),
    ],
)
def test_bad_arguments(trained, options, words):
    with pytest.raises(VPromptError, match=words):
        scores(*trained, trained[1], replace(FEW, **options))


def test_nothing_to_score():
    plain = vprompt.attach(
        timm.create_model("test_vit", img_size=32), vprompt.methods.linear.Linear(), head_init="paper", num_classes=3
    )
    with pytest.raises(VPromptError, match="no prompts"):
        scores(plain, TensorDataset(torch.zeros(1, 3, 32, 32), torch.tensor([0])), TensorDataset(torch.zeros(1)))


# ── shown ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def document(found, models=2, label="a <b>task</b>, seed 0"):
    one = {"label": label, "task": "t", "seed": 0, **asdict(found)}
    return {"ratios": [0.2, 0.6], "scopes": ["global", "local"], "split": "val", "images": 20, "models": [one] * models}


@pytest.mark.parametrize("models", [1, 3])
def test_it_is_written_as_picture_page_and_text(found, models, tmp_path):
    files = write_analysis(tmp_path, "scores", document(found, models), command="vprompt analyze scores 'a&b'")
    assert [file.name for file in files] == ["scores.json", "scores.png", "analyses.html", "analyses.md"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    page, text = (tmp_path / "analyses.html").read_text(), (tmp_path / "analyses.md").read_text()
    assert "a <b>task" not in page
    assert "a&amp;b" in page
    assert "&#60;b&#62;task" in text
    assert "](scores.png)" in text
    for criterion in CRITERIA:
        assert criterion in page


def test_scores_that_say_nothing_are_shown_as_such(found):
    same = document(found, 1)
    same["models"][0] = {**same["models"][0], "agreement": {"random": {"rise": None, "change": None}}, "between": {}}
    made = {"analysis": "scores", "result": json.loads(json.dumps(same))}
    assert "could be compared" in html_page("t", "m", analysis_sections([made]))


def test_a_damaged_document_is_named(found):
    broken = {**document(found, 1)}
    del broken["ratios"]
    with pytest.raises(VPromptError, match="lacks what its section shows"):
        analysis_sections([{"analysis": "scores", "result": broken}])


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, colours):
    folder = tmp_path_factory.mktemp("run") / "a"
    arguments = ["fit", str(colours), "--img-size", "16", "--prompts", "2", "--epochs", "1", "--lr", "0.2"]
    arguments += ["--out", str(folder)]
    assert main(arguments) == 0
    return folder


def test_the_command_finds_the_images_of_an_adapter(adapter, colours, tmp_path, capsys):
    capsys.readouterr()
    options = [
        "--images",
        "4",
        "--ratios",
        "0.5",
        "--scopes",
        "global",
        "--criteria",
        "removal,random",
        "--split",
        "val",
    ]
    assert main(["analyze", "scores", str(adapter.parent), "--out", str(tmp_path), "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["models"][0]["task"] == str(colours)
    assert said["models"][0]["prompt_counts"] == [2] * 12
    assert str(adapter) not in (tmp_path / "scores.json").read_text().replace(str(tmp_path), "").split('"result"')[1]


def test_early_choices_are_those_of_the_training_begun_anew(adapter, colours, tmp_path, capsys):
    capsys.readouterr()
    options = ["--criteria", "taylor,magnitude,random", "--ratios", "0.1,0.5", "--scopes", "global", "--images", "4"]
    options += ["--split", "val", "--no-zeroing", "--early", "0,1", "--out", str(tmp_path)]
    assert main(["analyze", "scores", str(adapter), *options, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    early = {(one["share"], one["criterion"], one["ratio"]): one for one in found["early"]}
    assert len(early) == 2 * 3 * 2
    # After the whole training the scores are the same, to the last bit, and there is nothing left to train.
    as_kept = {(one["criterion"], one["ratio"]): one for one in found["kept"]}
    for (share, criterion, ratio), one in early.items():
        if share == 1 and criterion != "random":
            kept = as_kept[criterion, ratio]
            assert (one["agreement"], one["overlap"]) == (1, 1)
            assert (one["accuracy"], one["counts"]) == (kept["accuracy"], kept["counts"])
            assert one["fine_tuned"] == one["accuracy"]
    # Before it, the prompts are those that the seed draws.
    settings = json.loads((adapter / "result.json").read_text())["settings"]
    model = vprompt.load(adapter)
    torch.manual_seed(settings["seed"])
    start = vprompt.attach(model.backbone, vprompt.VPT(2), num_classes=model.num_classes)
    first = [p.norm().item() for block in start.prompts for p in block.detach()]
    last = [p.norm().item() for block in model.prompts for p in block.detach()]
    one = early[0, "magnitude", 0.5]
    assert one["agreement"] == pytest.approx(scipy.stats.spearmanr(first, last).statistic)

    def best(values):
        return set(sorted(range(24), key=lambda place: -values[place])[:12])

    assert one["overlap"] == len(best(first) & best(last)) / 12
    assert early[0, "random", 0.5]["agreement"] < 1
    # A head of zeros has no gradient, so that the loss is that with the head of a linear probe.
    task = vprompt.open_data(str(colours), model.backbone)
    probe = vprompt.attach(model.backbone, vprompt.Linear(), data=task)
    vprompt.fit(probe, task, recipe=model.recipe)
    start.head.load_state_dict(probe.head.state_dict())
    drawn = _draw(task.train, 4, 0)
    at_first = torch.cat(vprompt.score(start, drawn)).tolist()
    assert len(set(at_first)) > 12
    at_last = [value for block in found["scores"]["taylor"] for value in block]
    one = early[0, "taylor", 0.5]
    assert one["agreement"] == pytest.approx(scipy.stats.spearmanr(at_first, at_last).statistic)
    assert one["overlap"] == len(best(at_first) & best(at_last)) / 12
    page = (tmp_path / "analyses.md").read_text()
    assert "Chosen after a share of the training (global)" in page


@pytest.mark.parametrize("beside", ['{"seed": 0}', None])
def test_nothing_says_how_it_was_trained(adapter, colours, beside, tmp_path, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "result.json").unlink() if beside is None else (folder / "result.json").write_text(beside)
    options = ["--criteria", "random", "--ratios", "0.5", "--scopes", "global", "--images", "2", "--no-zeroing"]
    capsys.readouterr()
    where = ["--data", str(colours), "--out", str(tmp_path / "out")]
    assert main(["analyze", "scores", str(folder), *options, *where, "--early", "0.5"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "leave out --early" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criteria", "nonsense"], "There is no criterion called 'nonsense'"),
        (["--scopes", "all"], "The scope is"),
        (["--ratios", "a"], "--ratios takes numbers"),
        (["--ratios", "2"], "at most 1"),
        (["--images", "0"], "at least one image"),
        (["--early", "0,1.5"], "from 0 to 1, not 1.5"),
        (["--early", "nan"], "from 0 to 1, not nan"),
        (["--split", "train", "--data", "no/such/folder"], "no/such/folder"),
        (["--out", ""], "empty name"),
    ],
)
def test_wrong_options_are_one_sentence(adapter, options, words, tmp_path, capsys):
    base = ["--out", str(tmp_path)] if "--out" not in options else []
    fast = ["--criteria", "random", "--ratios", "0.5", "--scopes", "global", "--images", "2"]
    fast = [word for word in fast if not set(options) & {word}] if not set(options) & set(fast) else []
    assert main(["analyze", "scores", str(adapter), *base, *fast, *options]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
    assert error.startswith("vprompt: ")


@pytest.mark.parametrize("name", ["scores", "blocks", "rank"])
def test_no_adapter_named(name, tmp_path, capsys):
    assert main(["analyze", name, "--out", str(tmp_path)]) == 2
    assert "Name an adapter" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_adapter_there(tmp_path, capsys):
    assert main(["analyze", "scores", str(tmp_path)]) == 1
    assert "no adapter with prompts" in capsys.readouterr().err


def test_what_cannot_be_shared_is_said_before_anything_is_run(trained):
    model, data = trained
    uneven = model.keep([torch.arange(1 + block % 2) for block in range(len(model.prompts))])
    told, options = [], Scores(scopes=("shared",), criteria=("random",))
    with pytest.raises(VPromptError, match="different numbers"):
        scores(uneven, data, data, options, report=lambda *done: told.append(done))
    assert not told


@pytest.mark.parametrize("places", [[], [""]])
def test_no_name_of_an_adapter(places, tmp_path, capsys):
    assert main(["analyze", "scores", *places, "--out", str(tmp_path / "out")]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beside", ['{"settings": null}', '{"settings": []}', "[1]", "{", '{"settings": {}}'])
def test_a_damaged_result_beside_an_adapter_is_named(adapter, beside, tmp_path, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "result.json").write_text(beside)
    capsys.readouterr()
    assert main(["analyze", "scores", str(folder), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "--data" in error


@pytest.mark.parametrize("counts", [5, "many", None, {}])
def test_a_damaged_adapter_in_a_folder_is_named(adapter, counts, tmp_path, capsys):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["checksum"]
    (folder / "adapter_config.json").write_text(json.dumps({**config, "prompt_counts": counts}))
    capsys.readouterr()
    assert main(["analyze", "scores", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "'prompt_counts' should be a list" in error


def test_where_nothing_can_be_written_is_said_first(adapter, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    for out in ("file", "file/below"):
        assert main(["analyze", "scores", str(adapter), "--out", str(tmp_path / out)]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_what_is_named_twice_counts_once(adapter, tmp_path, capsys):
    fast = ["--ratios", "0.5", "--images", "2", "--split", "val", "--out", str(tmp_path)]
    capsys.readouterr()
    twice = ["--criteria", "random,magnitude,random", "--scopes", "local,local"]
    assert main(["analyze", "scores", str(adapter), *fast, *twice, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scopes"] == ["local"]
    kept = [one["criterion"] for one in said["models"][0]["kept"]]
    assert kept == ["random", "magnitude", *EXACT]
