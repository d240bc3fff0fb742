"""What each block's prompts are worth: against removal by hand, and on models whose blocks are known."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import families
import reference
import vprompt
from reference import close
from vprompt.analysis.adapters import Trained
from vprompt.analysis.blocks.measure import (
    AdapterBlocks,
    BlockAblation,
    BlockCounts,
    Evaluated,
    blocks,
    retained,
    study,
)
from vprompt.analysis.blocks.report import VIEW
from vprompt.analysis.page import analysis_sections, write_analysis
from vprompt.data.dataset import Task
from vprompt.data.preprocessing import Preprocessing
from vprompt.report.document import Table
from vprompt.utils.errors import VPromptError

METHODS = {"deep": vprompt.VPT(4, "deep"), "shallow": vprompt.VPT(4, "shallow")}


def labelled(images, classes=5):
    return TensorDataset(images, torch.arange(len(images)) % classes)


def by_hand(run, model, data, gone, *, shallow=False):
    """Accuracy and loss without the prompts of some blocks, in the slow reference."""
    images, labels = data.tensors
    prompts = [p.detach()[: 0 if block in gone else len(p)] for block, p in enumerate(model.prompts)]
    with torch.no_grad():
        head = model.head
        scores = run(model.backbone, prompts, head.weight.detach(), head.bias.detach(), images, shallow=shallow)
    loss = float(reference.cross_entropy(scores, labels).mean())
    return Evaluated(accuracy=float((scores.argmax(1) == labels).double().mean()), loss=loss)


def same(found, wanted):
    assert found.accuracy == wanted.accuracy
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)  # vprompt adds up losses in float32


@pytest.mark.parametrize("depth", METHODS)
@pytest.mark.parametrize("name", ["swin-padded", "swin2", "sam", "eva-rope", "beit-both", "cait", "parallel"])
def test_removal_is_that_of_the_reference(name, depth):
    counts = None if depth == "shallow" else [3, 0, 2]
    model = families.attached(name, METHODS[depth], counts=counts, dtype=torch.float64)
    data = labelled(families.some_images(name, 6, dtype=torch.float64))
    found = blocks(model, data)
    assert found.images == 6
    assert found.prompts == tuple(model.prompt_counts)
    every = set(range(len(model.prompts)))
    same(found.full, by_hand(families.logits, model, data, set(), shallow=depth == "shallow"))
    same(found.bare, by_hand(families.logits, model, data, every, shallow=depth == "shallow"))
    for block, without in enumerate(found.without):
        same(without, by_hand(families.logits, model, data, {block}, shallow=depth == "shallow"))
        if not model.prompt_counts[block]:
            assert without == found.full


def small(method=None, **options):
    torch.manual_seed(0)
    model = (
        vprompt.attach(reference.small_vit(**options), method or vprompt.VPT(5), head_init="paper", num_classes=2)
        .double()
        .eval()
    )
    with torch.no_grad():
        for prompts in model.prompts:
            prompts.normal_()
    return model


def some_data(count=12, size=32):
    return labelled(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4)).double(), 2)


def test_planted_blocks_are_found():
    """Of three blocks, the head listens to the first alone, and the last does nothing, for its attention is cut off."""
    model, images = small(), some_data(6).tensors[0]

    def features(*counts):
        return model.keep([torch.arange(count) for count in counts]).features(images)

    with torch.no_grad():
        model.backbone.blocks[2].attn.proj.weight.zero_()
        seen = torch.cat([features(5, 5, 5), features(5, 0, 5), features(0, 5, 5), features(0, 0, 0)])
        wanted = torch.tensor([1.0, 1, -1, -1]).double().repeat_interleave(6)
        direction = torch.linalg.lstsq(seen, wanted).solution
        close(seen @ direction, wanted, 1e-6)
        model.head.weight.copy_(torch.stack([-direction, direction]))
        model.head.bias.zero_()
    found = blocks(model, TensorDataset(images, torch.ones(6, dtype=torch.int64)))
    assert found.full.accuracy == found.without[1].accuracy == 1
    assert found.without[0].accuracy == found.bare.accuracy == 0
    assert found.without[2] == found.full


@pytest.mark.parametrize(("counts", "runs"), [((5, 5, 5), 5), ((5, 0, 2), 4), ((0, 3, 0), 2)])
def test_only_what_differs_is_run(counts, runs):
    model = small().keep([torch.arange(count) for count in counts])
    told = []
    found = blocks(model, some_data(), report=lambda done, total: told.append((done, total)))
    assert told[-1] == (12 * runs, 12 * runs)
    assert found.without == tuple(
        found.full if not count else blocks(model, some_data()).without[block] for block, count in enumerate(counts)
    )
    if runs == 2:
        assert found.bare == found.without[1] != found.full


def test_key_value_prompts_stay():
    model, data = small(vprompt.E2VPT(3, 2)), some_data()
    with torch.no_grad():
        for prompts in model.kv_prompts:
            prompts.normal_(std=3)
    wanted = vprompt.evaluate(model.keep([torch.arange(0)] * 3), data)
    found = blocks(model, data)
    assert (found.bare.accuracy, found.bare.loss) == (wanted.accuracy, wanted.loss)
    assert found.bare.loss != pytest.approx(by_hand(reference.logits, model, data, {0, 1, 2}).loss, rel=1e-3)


def test_the_model_stays_as_it_was():
    model = small(vprompt.VPT(4, dropout=0.9)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert blocks(model, some_data()) == blocks(model, some_data())
    retained(model, some_data())
    assert model.training
    assert model.prompt_counts == [4, 4, 4]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_segments_stay_pruned():
    model = small()
    masks = [torch.tensor([[True, False, True, False]] * 5)] * 3
    pruned = model.keep([torch.arange(5)] * 3, masks)
    found = blocks(pruned, some_data())
    hand = small()
    with torch.no_grad():
        for prompts in hand.prompts:
            prompts[:, 8:16] = 0
            prompts[:, 24:] = 0
    wanted = blocks(hand, some_data())
    for mine, theirs in zip([found.full, *found.without], [wanted.full, *wanted.without], strict=True):
        same(mine, theirs)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ratios", [(0.5, 0.3, 0.1), (1.0,), (0.01,)])
def test_what_is_kept_is_the_best_by_the_reference_scores(ratios):
    model, data = small(), some_data(6)
    images, labels = data.tensors
    scores = reference.taylor(model.backbone, list(model.prompts), model.head.weight, model.head.bias, images, labels)
    order = torch.cat(scores).argsort(descending=True)
    for found, ratio in zip(retained(model, data, ratios=ratios), ratios, strict=True):
        best = order[: max(1, int(ratio * 15 + 0.5))] // 5
        assert found == BlockCounts(ratio=ratio, counts=tuple(int((best == block).sum()) for block in range(3)))


def test_other_criteria_choose_otherwise():
    model = small()
    with torch.no_grad():
        model.prompts[1].mul_(10)
    (found,) = retained(model, some_data(), ratios=[1 / 3], criterion="magnitude")
    assert found.counts == (0, 5, 0)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.1, float("nan")])
def test_a_share_that_cannot_be_kept_is_refused(ratio):
    with pytest.raises(VPromptError, match="must be above 0 and at most 1"):
        retained(small(), some_data(), ratios=[0.5, ratio])


def test_what_cannot_be_taken_apart_is_one_sentence():
    bare = small(vprompt.Linear())
    with pytest.raises(VPromptError, match="nothing to take away"):
        blocks(bare, some_data())
    with pytest.raises(VPromptError, match="none to keep"):
        retained(bare, some_data())
    with pytest.raises(VPromptError, match=r"Images must be \(3, 32, 32\)"):
        blocks(small(), some_data(size=16))
    with pytest.raises(VPromptError, match="no criterion called"):
        retained(small(), some_data(), criterion="fame")


# ── several adapters ─────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(seed, *, depth=3, task="task", name="an adapter", ratios=(0.5, 0.1), prompts=None):
    """An adapter whose numbers are drawn."""
    chance = np.random.default_rng(seed)

    def measured():
        return Evaluated(accuracy=float(chance.random()), loss=float(chance.random() * 3))

    had = tuple(prompts or (10,) * depth)
    chosen = [BlockCounts(ratio=ratio, counts=tuple(int(chance.integers(0, h + 1)) for h in had)) for ratio in ratios]
    ablation = BlockAblation(
        images=9, prompts=had, full=measured(), without=tuple(measured() for _ in had), bare=measured()
    )
    return AdapterBlocks(name=name, task=task, split="val", ablation=ablation, kept=tuple(chosen))


def test_means_and_spread_are_those_of_numpy():
    adapters = [drawn(seed, task="ab"[seed % 2], prompts=(10, 5, 0)) for seed in range(5)]
    found = study(adapters, criterion="magnitude")
    assert found.criterion == "magnitude"
    assert [(group.name, group.adapters) for group in found.tasks] == [("a", 3), ("b", 2)]
    for group, mine in ((found.every, adapters), (found.tasks[0], adapters[::2]), (found.tasks[1], adapters[1::2])):
        cut = [one.ablation for one in mine]
        drops = np.array([[one.full.accuracy - less.accuracy for less in one.without] for one in cut])
        rises = np.array([[less.loss - one.full.loss for less in one.without] for one in cut])
        for spread, wanted in ((group.drops, drops), (group.rises, rises)):
            assert spread.means == pytest.approx(tuple(wanted.mean(0)))
            assert spread.stds == pytest.approx(tuple(wanted.std(0, ddof=1)))
        assert group.full == pytest.approx(np.mean([one.full.accuracy for one in cut]))
        assert group.bare_drop == pytest.approx(np.mean([one.full.accuracy - one.bare.accuracy for one in cut]))
        assert group.bare_rise == pytest.approx(np.mean([one.bare.loss - one.full.loss for one in cut]))
    for number, each in enumerate(found.kept):
        counts = np.array([one.kept[number].counts for one in adapters])
        assert each.counts.means == pytest.approx(tuple(counts.mean(0)))
        assert each.counts.stds == pytest.approx(tuple(counts.std(0, ddof=1)))
        assert each.shares.means == pytest.approx(tuple(counts.mean(0) / [10, 5, 1]))


def test_one_adapter_has_no_spread_and_one_task_no_tasks():
    found = study([drawn(0)])
    assert found.tasks == ()
    assert found.every.drops.stds is found.kept[0].counts.stds is None
    assert study([drawn(0, ratios=())]).criterion is None
    assert len(study([drawn(0), drawn(1)]).every.drops.stds) == 3


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([], "no adapter"),
        ([drawn(0), drawn(1, depth=4)], "different numbers of blocks"),
        ([drawn(0), drawn(1, ratios=(0.5,))], "different shares"),
    ],
)
def test_adapters_that_cannot_be_compared_are_refused(adapters, words):
    with pytest.raises(VPromptError, match=words):
        study(adapters)


@pytest.mark.parametrize(
    ("train_on", "has_val", "wanted"), [("train", True, "val"), ("train+val", True, "test"), ("train", False, "test")]
)
def test_images_that_were_learned_are_not_measured_on(train_on, has_val, wanted):
    looks = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    parts = dict.fromkeys(("train", "val", "test"), object())
    parts["val"] = parts["val"] if has_val else None
    task = Task(name="t", source="t", classes=("a",), preprocessing=looks, **parts)
    one = Trained(folder="f", result={"settings": {"train_on": train_on}}, model=small(), task=task)
    assert one.split_name("auto") == wanted
    assert one.split_name("train") == "train"
    assert one.split("auto") is parts[wanted]


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = "<script>alert(1)</script> | $\\frac{a}$ `x`\n\u202e" + "y" * 200


def shown(tmp_path, adapters):
    """The pages and the tables of a study."""
    document = json.loads(json.dumps(asdict(study(adapters)), allow_nan=False))
    files = write_analysis(tmp_path, "blocks", document, command="vprompt analyze blocks")
    assert all(file.stat().st_size > 200 for file in files)
    tables = [block for block in VIEW.tables(VIEW.read(document)) if isinstance(block, Table)]
    for table in tables:
        (rows,) = [body.rows for body in table.bodies]
        assert all(len(row) == len(table.head) for row in rows)
        assert sum(max(len(str(cell)) for cell in column) + 2 for column in zip(table.head, *rows, strict=True)) <= 80
    return (tmp_path / "analyses.html").read_text(), (tmp_path / "analyses.md").read_text(), tables


@pytest.mark.parametrize("depth", [1, 2, 12, 48])
def test_any_number_of_blocks_is_shown(tmp_path, depth):
    _, _, tables = shown(tmp_path, [drawn(depth, depth=depth)])
    assert [row[0] for row in tables[0].bodies[0].rows] == [*map(str, range(depth)), "all"]
    assert len(tables) == 3


def test_without_scores_there_is_one_panel(tmp_path):
    _, _, tables = shown(tmp_path, [drawn(0, ratios=())])
    assert len(tables) == 1


@pytest.mark.parametrize("tasks", [2, 7])
def test_several_tasks_with_names_that_hurt_are_shown(tmp_path, tasks):
    adapters = [drawn(n, depth=12, task=f"{n % tasks}{HOSTILE}", name=HOSTILE) for n in range(2 * tasks)]
    page, text, tables = shown(tmp_path, adapters)
    assert "<script>" not in page + text
    assert "\u202e" not in page + text
    assert len(tables) == 2 + -(-tasks // 5) + 3
    assert [row[1] for row in tables[1].bodies[0].rows] == ["2"] * tasks


def test_the_answer_names_the_blocks_and_judges_the_claim():
    losses = [0.0, 0.01, 0.3, 0.05, 0.02, 0.02]
    full = Evaluated(accuracy=0.9, loss=0.4)
    without = tuple(Evaluated(accuracy=0.9 - loss, loss=0.4 + loss) for loss in losses)
    ablation = BlockAblation(
        images=5, prompts=(10,) * 6, full=full, without=without, bare=Evaluated(accuracy=0.1, loss=3)
    )

    def said(counts):
        chosen = (BlockCounts(ratio=0.5, counts=(10, 10, 10, 0, 0, 0)), BlockCounts(ratio=0.1, counts=counts))
        one = AdapterBlocks(name="a", task="t", split="val", ablation=ablation, kept=chosen)
        return VIEW.answer(study([one]))

    early = said((0, 1, 0, 0, 2, 3))
    assert "prompts of block 2 accuracy changes by -30.0 points, without those of block 0 by 0.0" in early
    assert "without any by -80.0" in early
    assert "the first 2 blocks keep 5.0 % of theirs and the last 25.0 %: early blocks keep few, as the paper" in early
    assert "no fewer than late ones, unlike in the paper" in said((3, 2, 0, 0, 1, 0))


def test_a_document_that_lacks_something_is_one_sentence():
    with pytest.raises(VPromptError, match="run `vprompt analyze blocks` again"):
        analysis_sections([{"analysis": "blocks", "result": {"every": {}}}])


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command(tmp_path, trained, vprompt_command):
    done = vprompt_command("analyze", "blocks", trained.folder, "--ratios", "0.5,0.2", "--out", tmp_path, "--json")
    assert done.status == 0, done.err
    (adapter,) = done.document["adapters"]
    assert adapter["split"] == "val"
    assert adapter["ablation"]["images"] == trained.result["val_images"]
    assert adapter["ablation"]["full"]["accuracy"] == pytest.approx(trained.result["val_accuracy"])
    assert [sum(each["counts"]) for each in adapter["kept"]] == [3, 1]
    assert {file.name for file in tmp_path.iterdir()} == {"blocks.json", "blocks.png", "analyses.html", "analyses.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ratios", "half"], "--ratios takes numbers separated by commas"),
        (["--ratios", "0.5,0"], "must be above 0 and at most 1, not 0.0"),
        (["--data", "/nowhere"], "/nowhere"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, trained, vprompt_command, arguments, words):
    done = vprompt_command("analyze", "blocks", trained.folder, "--out", tmp_path / "o", *arguments)
    assert done.status in (1, 2)
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "o").exists()


def test_the_command_wants_an_adapter(tmp_path, vprompt_command):
    assert vprompt_command("analyze", "blocks").status == 2
    empty = vprompt_command("analyze", "blocks", tmp_path)
    assert empty.status == 1
    assert "no adapter with prompts" in empty.err
