"""Ratios of 1 to 10 % with few prompts: blocks that end with none, and one prompt in all."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import reference
import vprompt
from vprompt.analysis.blocks.measure import blocks
from vprompt.analysis.scores import Scores
from vprompt.analysis.scores.measure import scores
from vprompt.compression.choices import PruneSettings
from vprompt.compression.prune import prune
from vprompt.utils.errors import VPromptError

FEW = vprompt.Recipe(epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=3)
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    vprompt.fit(model, data, recipe=FEW)
    return model, data


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("scope", ["global", "local", "shared"])
@pytest.mark.parametrize("ratio", [0.01, 0.02, 0.05, 0.1])
def test_at_least_one_is_left_and_the_rest_is_as_in_the_reference(trained, ratio, scope, merge, tmp_path):
    model, data = trained
    small = vprompt.condense(model, data, ratio=ratio, scope=scope, merge=merge, recipe=FEW)
    counts = small.prompt_counts
    assert sum(counts) == (6 if scope == "shared" else 1)
    assert scope == "shared" or sorted(counts) == [0, 0, 0, 0, 0, 1]
    images = data.tensors[0]
    values = [
        p.detach().repeat_interleave(torch.tensor(many, dtype=torch.long), 0)
        for p, many in zip(small.prompts, small.prompts.multiplicity, strict=True)
    ]
    expected = reference.logits(small.backbone, values, small.head.weight.detach(), small.head.bias.detach(), images)
    small.save_pretrained(tmp_path)
    for each in (small, small.fold(), small.copy(execution="published"), vprompt.load(tmp_path, model.backbone)):
        with torch.no_grad():
            assert torch.allclose(each.eval()(images).double(), expected, atol=1e-4)


def test_one_prompt_can_be_scored_removed_condensed_and_pruned_again(trained):
    model, data = trained
    one = vprompt.condense(model, data, ratio=0.01, fine_tune=False)
    block = one.prompt_counts.index(1)
    found = scores(one, data, data, Scores(ratios=(0.01, 1.0), criteria=("taylor", "removal", "random")))
    assert [len(values) for values in found.ablation.rise] == one.prompt_counts
    assert found.agreement["taylor"] == dict.fromkeys(found.agreement["taylor"])  # one number has no rank
    without = one.keep([torch.arange(0)] * 6)
    losses = [F.cross_entropy(each(data.tensors[0]), data.tensors[1]).item() for each in (without.eval(), one.eval())]
    assert found.ablation.rise[block][0] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    assert all(kept.counts == tuple(one.prompt_counts) for kept in found.kept)
    again = vprompt.condense(one, data, ratio=0.02, recipe=FEW)
    assert again.prompt_counts == one.prompt_counts
    pruned = prune(one, data, settings=PruneSettings(tokens=0.9, segments=0.0), recipe=FEW)
    assert pruned.model.prompt_counts == one.prompt_counts
    ablation = blocks(one, data)
    assert [alone == ablation.full for alone in ablation.without] == [count == 0 for count in one.prompt_counts]
    assert ablation.without[block] == ablation.bare
    with pytest.raises(VPromptError, match="nothing to condense"):
        vprompt.condense(without, data, ratio=0.5)
