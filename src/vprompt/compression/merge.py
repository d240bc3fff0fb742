"""Merging of prompts: those that are not retained are merged into the others instead of being dropped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vprompt.methods.layers.inject import attention_at
from vprompt.methods.layers.prompts import Prompts
from vprompt.model.model import PromptedModel
from vprompt.utils.clustering import k_means, one_hot
from vprompt.utils.errors import VPromptError


@torch.no_grad()
def merge(model: PromptedModel, kept: Sequence[Tensor]) -> PromptedModel:
    """A copy in which the prompts of a block are clustered by their keys; each cluster becomes one prompt.

    K-means starts from the retained prompts, so that there are as many clusters. The prompt of a cluster is the mean
    of its members as the norm before attention, if any, leaves them, and attention counts it as often as there were
    members (the logarithm of their number is added to its logits): members whose keys are the same are merged exactly,
    up to what that norm does to their mean. A block without any retained prompt loses all.

    Args:
        model: With deep prompts, whole (no segments pruned).
        kept: Indices of the prompts to retain, one tensor per block, as `vprompt.select` returns.

    Returns:
        A model with as many prompts per block as are retained.

    Raises:
        VPromptError: If the prompts are shallow, or segments of them were pruned.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(4), num_classes=2)
        >>> small = merge(model, [torch.tensor([0, 2])] * 6)
        >>> small.prompt_counts, sum(small.prompts.multiplicity[0])
        ([2, 2, 2, 2, 2, 2], 4)
    """
    check_merge(model)
    small = model.keep(kept)
    values: list[Tensor] = []
    multiplicity: list[list[int]] = []
    for block, chosen in enumerate(kept):
        prompts_PD = model.prompts.dense(block)
        number_P = torch.tensor(model.prompts.multiplicity[block], device=prompts_PD.device)
        index = chosen.to(prompts_PD.device)
        if not len(index):
            values.append(prompts_PD[:0].clone())
            multiplicity.append([])
            continue
        attention = attention_at(model.tuned.base, model.info, block)
        keys_1HPd = attention.key_values(prompts_PD.unsqueeze(0)).keys
        member_P = k_means(keys_1HPd[0].transpose(0, 1).flatten(1).float(), number_P, index)
        normed = model.info.blocks[block].entry is not None
        merged_KD, number_K = _means(prompts_PD, number_P, member_P, len(index), normed=normed)
        values.append(merged_KD)
        multiplicity.append(number_K.tolist())
    return small.copy(prompts=Prompts(values, dropout=model.prompts.dropout, multiplicity=multiplicity))


def check_merge(model: PromptedModel) -> None:
    """Raises a `VPromptError` for a model whose prompts cannot be merged."""
    if model.method.riding == "tokens":
        raise VPromptError(
            "Shallow prompts cannot be merged: they change from block to block, and so do their keys; drop them."
        )
    if model.prompts.num_segments > 1:
        raise VPromptError("Prompts whose segments were pruned cannot be merged; drop them.")


def _means(
    prompts_PD: Tensor, number_P: Tensor, member_P: Tensor, clusters: int, *, normed: bool
) -> tuple[Tensor, Tensor]:
    """The prompt (K, D) of every cluster, and how many it stands for (K,)."""
    weights_KP = one_hot(member_P, clusters) * number_P
    share_KP = (weights_KP / weights_KP.sum(1, keepdim=True)).to(prompts_PD.dtype)
    if not normed:
        return share_KP @ prompts_PD, weights_KP.sum(1)
    length_P1 = prompts_PD.std(1, correction=0, keepdim=True).clamp(min=1e-12)
    # As long as its members are on average: the norm does not mind, but what is trained next does.
    return (share_KP @ (prompts_PD / length_P1)) * (share_KP @ length_P1), weights_KP.sum(1)
