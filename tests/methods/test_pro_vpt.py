"""PRO-VPT: prompts that move between blocks while they are trained."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vprompt
import vprompt.training.trainer as training
from vprompt.methods.base import Move
from vprompt.methods.layers.prompts import init_bound
from vprompt.methods.pro_vpt import PROVPT
from vprompt.model.cost import model_cost
from vprompt.training.evaluate import evaluate
from vprompt.training.relocation import chosen, fresh, moved
from vprompt.training.trainer import Interrupted
from vprompt.utils.errors import AdapterError, VPromptError

RECIPE = vprompt.Recipe(epochs=5, batch_size=6, warmup=0.2, lr=0.02)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32).eval()


def attached(backbone, method=None, **options):
    torch.manual_seed(3)
    return vprompt.attach(backbone, method or PROVPT(3, moved=2), num_classes=3, **options)


def images(count=4, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def data(count=18, size=32):
    return torch.utils.data.TensorDataset(images(count, size), torch.arange(count) % 3)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def greedy(worth, planted, number):
    """The rule again, by whole lists of prompts; a fresh one is None."""
    blocks = [list(enumerate(values)) for values in worth]
    moves = []

    def mean(block):
        return sum(entry[1] for entry in block if entry) / len(block)

    idle = [(value, block, row) for block, values in enumerate(worth) for row, value in enumerate(values)]
    for value, block, row in sorted(idle):
        old = row < len(worth[block]) - planted[block]
        if not old or len(blocks[block]) == 1 or len(moves) == number:
            continue
        blocks[block].remove((row, value))
        target = max(range(len(blocks)), key=lambda n: mean(blocks[n]))
        blocks[target].append(None)
        moves.append((block, row, target))
    return moves


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scores", ["signed", "absolute"])
def test_idle_ones_go_where_prompts_are_worth_most(scores):
    # Means with signs (-2, 1), (3, 2); without (2, 3), (3, 2).
    effects = [torch.tensor([[-2.0, 4.0], [-2.0, -2.0]]), torch.tensor([[3.0, 2.0], [3.0, 2.0]])]
    row = 0
    assert PROVPT(2, scores=scores).relocate(effects, [0, 0]) == [(0, row, 0 if scores == "absolute" else 1)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scores", ["signed", "absolute"])
def test_the_rule_against_lists(scores, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 6, (5,), generator=generator).tolist()
    planted = [int(torch.randint(0, count + 1, (), generator=generator)) for count in counts]
    effects = [torch.randn(7, count, generator=generator) for count in counts]
    worth = [(e if scores == "signed" else e.abs()).mean(0).tolist() for e in effects]
    for moves in (1, 3, 50):
        found = PROVPT(4, scores=scores, moved=moves).relocate(effects, planted)
        assert found == greedy(worth, planted, moves)
        after = [
            count + sum(m.target == b for m in found) - sum(m.block == b for m in found)
            for b, count in enumerate(counts)
        ]
        assert min(after) >= 1
        assert sum(after) == sum(counts)
        assert all(m.row < counts[m.block] - planted[m.block] for m in found)


@pytest.mark.parametrize(("moves", "number"), [(1, 1), (4, 4), (0.01, 1), (0.25, 5), (0.5, 10)])
def test_how_many_move(moves, number):
    effects = list(torch.rand(5, 3, 4))
    assert len(PROVPT(4, moved=moves).relocate(effects, [0] * 5)) == number


@pytest.mark.parametrize("scores", ["signed", "absolute"])
def test_effects_are_those_of_the_library_and_of_finite_differences(scores):
    torch.manual_seed(0)
    model = attached(timm.create_model("test_vit", img_size=32).double().eval())
    with torch.no_grad():  # small ones, which the norm's epsilon leaves their length
        for value in model.learned.values():
            value.add_(torch.randn_like(value), alpha=0.01)
    pairs = torch.utils.data.TensorDataset(images(6).double(), torch.arange(6) % 3)
    seen = {}

    class Spy(PROVPT):
        def relocate(self, effects, planted):
            seen.update(enumerate(effects))
            return super().relocate(effects, planted)

    model.method = Spy(3, scores=scores)
    found = chosen(model, pairs, RECIPE, [0] * 6)
    assert model.training
    library = vprompt.score(model, pairs, criterion="taylor-signed" if scores == "signed" else "taylor")
    mine = [(e if scores == "signed" else e.abs()).mean(0) for e in seen.values()]
    for one, other in zip(mine, library, strict=True):
        torch.testing.assert_close(one, other.to(one), rtol=1e-6, atol=1e-12)
    assert found == greedy([values.tolist() for values in mine], [0] * 6, 1)
    model.eval()
    for block, row in ((0, 1), (4, 2)):
        ends = []
        for scale in (1 - 1e-4, 1 + 1e-4):
            twin = model.copy().eval()
            with torch.no_grad():
                twin.prompts[block][row] *= scale
                ends.append(F.cross_entropy(twin(pairs.tensors[0]), pairs.tensors[1], reduction="none"))
        by_hand = (ends[0] - ends[1]) / 2e-4  # of an image: the order is that of the sample
        torch.testing.assert_close(by_hand.sort().values, seen[block][:, row].sort().values, rtol=1e-3, atol=1e-10)


def test_the_sample_is_small_and_always_the_same(backbone):
    asked = []

    class Watched(torch.utils.data.Dataset):
        def __len__(self):
            return 2000

        def __getitem__(self, index):
            asked.append(index)
            return images(1)[0], index % 3

    model = attached(backbone)
    chosen(model, Watched(), RECIPE, [0] * 6)
    first, asked[:] = list(asked), []
    chosen(model, Watched(), RECIPE, [0] * 6)
    assert asked == first
    assert len(set(first)) == len(first) == 80


# ── the move ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_go_and_come_with_their_values():
    values = [torch.arange(6.0).view(3, 2), torch.full((2, 4), 7.0), torch.ones(1, 2)]
    moves, new = (
        [Move(0, 1, 1), Move(1, 0, 0), Move(0, 2, 1)],
        [torch.full((4,), -1.0), torch.full((2,), -2.0), torch.full((4,), -3.0)],
    )
    first, second, third = moved(values, moves, new)
    assert first.tolist() == [[0, 1], [-2, -2]]
    assert second.tolist() == [[7] * 4, [-1] * 4, [-3] * 4]
    assert third.tolist() == [[1, 1]]


def test_fresh_prompts_are_uniform_and_depend_on_seed_and_epoch_alone(backbone):
    model, moves = attached(backbone), [Move(0, 0, 1)] * 400
    torch.manual_seed(0)
    drawn = torch.stack(fresh(model, moves, seed=1, epoch=2))
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.stack(fresh(model, moves, seed=1, epoch=2)))
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(drawn, torch.stack(fresh(model, moves, seed=seed, epoch=epoch)))
    bound = init_bound(model.info.patch_size, model.info.widths[0])
    assert drawn.abs().max() <= bound
    assert drawn.abs().max() > 0.99 * bound
    assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizer_and_average_move_along(backbone, optimizer, monkeypatch):
    """Behind a move, all rows that stayed have their values, moments and averages, and fresh ones none."""
    relocate, checked = training._Run._relocate, []

    def watched(self, moves, epoch):
        before = [p.detach().clone() for p in self.model.prompts]
        slots = [dict(self.optimizer.state[p]) for p in self.model.prompts]
        averages = [self.averages[f"prompts.{b}"].clone() for b in range(6)]
        relocate(self, moves, epoch)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in self.model.learned.values()} == set(map(id, self.optimizer.state))
        for block, prompts in enumerate(self.model.prompts):
            stay = [r for r in range(len(before[block])) if (block, r) not in {m[:2] for m in moves}]
            assert torch.equal(prompts[: len(stay)], before[block][stay])
            assert torch.equal(self.averages[f"prompts.{block}"][: len(stay)], averages[block][stay])
            assert torch.equal(self.averages[f"prompts.{block}"][len(stay) :], prompts[len(stay) :])
            for key, value in self.optimizer.state[prompts].items():
                if value.ndim:
                    assert torch.equal(value[: len(stay)], slots[block][key][stay])
                    assert not value[len(stay) :].any()
                    assert value.shape == prompts.shape
                else:
                    assert value == slots[block][key]
        checked.append(epoch)

    monkeypatch.setattr(training._Run, "_relocate", watched)
    recipe = vprompt.Recipe(epochs=5, batch_size=6, warmup=0.2, lr=0.02, ema=0.9, optimizer=optimizer)
    model = attached(backbone)
    vprompt.fit(model, data(), recipe=recipe)
    assert checked == [1, 2, 3, 4]  # from the end of warm-up on, and not behind the last


def test_fresh_prompts_outlive_their_first_epoch(backbone):
    rows = []

    class Spy(PROVPT):
        def relocate(self, effects, planted):
            moves = super().relocate(effects, planted)
            rows.append(([e.shape[1] for e in effects], list(planted), moves))
            return moves

    model = attached(backbone)
    model.method = Spy(3, moved=4)
    vprompt.fit(model, data(), recipe=RECIPE)
    assert [sum(planted) for _, planted, _ in rows] == [0, 4, 4, 4]
    for counts, planted, moves in rows:
        assert all(move.row < counts[move.block] - planted[move.block] for move in moves)
    assert sum(model.prompt_counts) == 18
    assert model.prompt_counts != [3] * 6


def test_nothing_moves_in_warm_up_or_a_single_epoch(backbone):
    for changes in ({"warmup": 1.0}, {"epochs": 1}, {"epochs": 0}):
        model = attached(backbone)
        vprompt.fit(model, data(), recipe=vprompt.Recipe(**{"epochs": 3, "batch_size": 6, **changes}))
        assert model.prompt_counts == [3] * 6


# ── the whole path ───────────────────────────────────────────────────────────────────────────────────────────────────

WAYS = {
    "plain": {},
    "ema": {"ema": 0.9, "best_epoch": True},
    "checkpointed": {"grad_checkpointing": True, "best_epoch": True},
    "bf16": {"precision": "bf16", "optimizer": "sgd"},
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(backbone, way, tmp_path, monkeypatch):
    recipe, val = vprompt.Recipe(**{**vars(RECIPE), **WAYS[way]}), data(6)
    whole = attached(backbone)
    history = vprompt.fit(whole, data(), val, recipe=recipe)
    assert whole.prompt_counts != [3] * 6 or recipe.best_epoch
    file, step = tmp_path / "state.safetensors", training._Run._step
    parts = attached(backbone)
    for stop in (4, 8, 9, 14):  # of 3 steps an epoch

        def stopped(self, *arguments, stop=stop):
            step(self, *arguments)
            if self.step + 1 == stop:
                self.step += 1
                self._finish_epoch(self.step // 3 - 1, lambda *_, **__: None) if self.step % 3 == 0 else None
                self._save()
                raise Interrupted

        monkeypatch.setattr(training._Run, "_step", stopped)
        model = parts if stop % 2 else attached(backbone)  # of a new process, or the one that was stopped
        with pytest.raises(Interrupted):
            vprompt.fit(model, data(), val, recipe=recipe, checkpoint=file, resume=True)
    monkeypatch.setattr(training._Run, "_step", step)
    saved = load_file(file)
    assert sum(len(saved[f"learned.prompts.{block}"]) for block in range(6)) == 18
    assert [len(saved[f"learned.prompts.{block}"]) for block in range(6)] != [3] * 6
    again = attached(backbone)
    found = vprompt.fit(again, data(), val, recipe=recipe, checkpoint=file, resume=True)
    assert found.rows == history.rows
    assert again.prompt_counts == whole.prompt_counts
    assert same(again.state(), whole.state())


def test_stops_on_the_way_and_the_whole_are_the_same(backbone, tmp_path):
    whole, parts = attached(backbone), attached(backbone)
    vprompt.fit(whole, data(), recipe=RECIPE)
    for until in (1, 3, 3, 9):
        vprompt.fit(parts, data(), recipe=RECIPE, checkpoint=tmp_path / "s.safetensors", resume=True, until=until)
    assert same(parts.state(), whole.state())


def test_a_checkpoint_of_another_run_leaves_the_model_as_it_is(backbone, tmp_path):
    file = tmp_path / "s.safetensors"
    vprompt.fit(attached(backbone), data(), recipe=RECIPE, checkpoint=file, until=3)
    model = attached(backbone)
    before = model.state()
    with pytest.raises(VPromptError, match="other settings"):
        vprompt.fit(model, data(17), recipe=RECIPE, checkpoint=file, resume=True)
    assert same(model.state(), before)


def test_the_best_epoch_has_the_counts_of_then(backbone):
    """The figures of the best epoch are those of the model that comes out."""
    model, val = attached(backbone, PROVPT(3, moved=6, dropout=0.5)), data(9)
    recipe = vprompt.Recipe(epochs=6, batch_size=6, warmup=0.1, lr=0.3, best_epoch=True)
    counts = []
    history = vprompt.fit(model, data(), val, recipe=recipe, at_epoch=lambda _: counts.append(model.prompt_counts))
    assert model.prompt_counts == counts[int(history.best["epoch"])]
    assert evaluate(model, val).loss == pytest.approx(history.best["val_loss"], rel=1e-5)


def test_recorded_values_of_an_earlier_epoch_come_back(backbone):
    model, states = attached(backbone), []
    vprompt.fit(model, data(), recipe=RECIPE, at_epoch=lambda _: states.append((model.state(), model(images()))))
    model.eval()
    late = model.state()
    for state, _ in (states[0], states[3], states[-1]):
        model.restore(state)
        assert same(model.state(), state)
    other = attached(backbone, vprompt.VPT(3)).state()
    other["head.bias"] = torch.zeros(4)
    before = model.state()
    with pytest.raises(VPromptError, match="not those of this model"):
        model.restore(other)
    assert same(model.state(), before)
    model.restore(late)
    assert same(model.state(), late)


NAMES = ["test_vit", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]


def small(name):
    torch.manual_seed(0)
    if name == "test_vit":
        return timm.create_model(name, img_size=32).eval()
    if name.startswith("swin"):
        return timm.create_model(
            name, img_size=32, window_size=2, embed_dim=16, depths=(1, 1), num_heads=(2, 2), patch_size=4
        ).eval()
    return timm.create_model(name, img_size=28, embed_dim=48, depth=3, num_heads=2).eval()


@pytest.mark.parametrize("name", NAMES)
def test_both_executions_train_and_end_the_same(name):
    size = 28 if name.startswith("eva") else 32
    ends = []
    for execution in ("prefix", "published"):
        model = attached(small(name), PROVPT(3, moved=2, dropout=0.0), execution=execution)
        vprompt.fit(model, data(size=size), recipe=RECIPE)
        assert sum(model.prompt_counts) == 3 * len(model.prompt_counts)
        assert [p.shape[1] for p in model.prompts] == list(model.info.widths)
        ends.append((model.prompt_counts, model(images(size=size)), model))
    assert ends[0][0] == ends[1][0] != [3] * len(ends[0][0])
    torch.testing.assert_close(ends[0][1], ends[1][1], atol=1e-3, rtol=1e-3)
    # A view that was made for the counts of the end computes the same as the one that went through the moves.
    model = ends[1][2]
    torch.testing.assert_close(model.copy().eval()(images(size=size)), model(images(size=size)))


def test_saved_folded_condensed_pruned_merged_exported(backbone, tmp_path):
    model = attached(backbone, PROVPT(4, moved=6))
    vprompt.fit(model, data(), recipe=RECIPE)
    counts = model.prompt_counts
    assert max(counts) > 4
    model.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone)
    assert again.prompt_counts == counts
    assert torch.equal(again(images()), model(images()))
    assert again.method == model.method
    assert again.fold().prompt_counts == counts
    torch.testing.assert_close(again.fold()(images()), model(images()), atol=1e-5, rtol=1e-4)
    assert model_cost(again).prompt_params == 24 * 64
    # What is retained of it does not move any more.
    condensed = vprompt.condense(model, data(), ratio=0.5, recipe=vprompt.Recipe(epochs=3, batch_size=6))
    assert sum(condensed.prompt_counts) == 12
    assert condensed.prompt_counts == [len(kept) for kept in condensed.condensation.kept]
    full = vprompt.condense(model, data(), ratio=1.0, recipe=vprompt.Recipe(epochs=3, batch_size=6))
    assert full.prompt_counts == counts
    merged = vprompt.condense(model, data(), ratio=0.5, merge=True, fine_tune=False)
    assert sum(merged.prompt_counts) == 12
    settings = vprompt.PruneSettings(tokens=0.25, segments=0.25, num_segments=4)
    pruned = vprompt.prune(model, data(), settings=settings, recipe=vprompt.Recipe(epochs=3, batch_size=6)).model
    assert sum(pruned.prompt_counts) == 18
    assert pruned.pruning.rewind_epoch is None
    with pytest.raises(VPromptError, match="leave out early"):
        vprompt.prune(model, data(), early=model.state(), settings=settings)


def test_counts_that_cannot_be_are_refused(backbone, tmp_path):
    model = attached(backbone, PROVPT(3)).copy(prompts=vprompt.attach(backbone, vprompt.VPT(4), num_classes=3).prompts)
    with pytest.raises(AdapterError, match="more prompts in a block"):
        model.save_pretrained(tmp_path)


def test_a_bank_mixes_it_with_others_and_it_is_exported(backbone, tmp_path):
    model, other = attached(backbone, PROVPT(3, moved=5)), attached(backbone, vprompt.VPT(2)).eval()
    vprompt.fit(model, data(), recipe=RECIPE)
    bank = vprompt.Bank(backbone)
    bank.add("moved", model)
    bank.add("deep", other)
    logits = bank(images(2), ["moved", "deep"])
    torch.testing.assert_close(logits[0], model(images(2))[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], other(images(2))[1], atol=1e-5, rtol=1e-4)
    vprompt.export(model, tmp_path / "model.pt2")
    exported = vprompt.load_exported(tmp_path / "model.pt2")
    torch.testing.assert_close(torch.as_tensor(exported(images())), model(images()), atol=1e-4, rtol=1e-3)


def test_from_the_command_line(colours, tmp_path, vprompt_command):
    shown = vprompt_command("fit", "--method", "pro-vpt", "--help")
    assert "--moved" in shown.out
    assert "--scores" in shown.out
    out = tmp_path / "run"
    size = ["--img-size", "16", "--prompts", "2", "--moved", "0.2", "--scores", "absolute"]
    run = vprompt_command(
        "fit", colours, "--method", "pro-vpt", *size, "--epochs", "3", "--batch-size", "9", "--prune",
        "--prune-tokens", "0.2", "--prune-segments", "0.2", "--out", out, "--json",
    )  # fmt: skip
    assert run.status == 0, run.err
    before = run.document["before"]["prompt_counts"]
    assert sum(before) == 2 * len(before)
    assert len(set(before)) > 1
    assert vprompt_command("eval", out, colours).status == 0


@pytest.mark.parametrize("moves", [0, -1, 1.5, math.inf, math.nan])
def test_settings_that_cannot_be(moves):
    with pytest.raises(VPromptError):
        PROVPT(3, moved=moves)
    with pytest.raises(VPromptError, match="scores"):
        PROVPT(3, scores="best")
