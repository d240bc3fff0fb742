"""Starts of prompts that are taken from training images: tokens of theirs, or prompts that suit the attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vprompt.backbones.attention.base import PrefixAttention, no_prefix
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo, patch_embed_path
from vprompt.methods.layers.inject import LearnedPrefix, attention_at, prefix_parts
from vprompt.methods.layers.prompts import KVPrompts, Prompts
from vprompt.utils.clustering import k_means, one_hot
from vprompt.utils.errors import VPromptError

PER_CLUSTER = 16
"""Tokens drawn for each cluster."""


@torch.no_grad()
def tokens(
    prompts: Prompts, backbone: nn.Module, info: BackboneInfo, batches: Iterable[Tensor], *, clusters: bool = False
) -> None:
    """Starts the prompts of each block from tokens of images on their way into it.

    Each prompt is one of them, drawn without replacement over images and places with torch's global generator; leading
    tokens (class, registers) are none. The first block's are taken before positions are added, if that is done outside
    of what makes patches (not in NaFlexViT).

    Args:
        prompts: Changed in place.
        backbone: The bare timm model.
        info: Its description.
        batches: Normalised images (B, 3, H, W).
        clusters: Start from the centres of k-means over such tokens, 16 for each, instead.

    Source: SPT (arXiv 2402.02382), section 4: random tokens do as well as clusters of them.
    """
    many = PER_CLUSTER if clusters else 1
    drawn = [_Drawn(count * many) for count in prompts.counts]
    embed, blocks = backbone.get_submodule(path := patch_embed_path(backbone)), info.blocks
    leading = info.num_prefix_tokens if path == "embeds" else 0
    handles = [_watched(embed, lambda x: drawn[0].add(_patches(x, info, leading).flatten(0, 1)), outputs=True)]
    for site, rows in zip(blocks[1:], drawn[1:], strict=True):
        entry = backbone.get_submodule(site.path)
        handles.append(_watched(entry, lambda x, rows=rows: rows.add(_patches(x, info).flatten(0, 1))))
    _run(backbone, batches, handles)
    for block, count in enumerate(prompts.counts):
        if count:
            rows_MD = drawn[block].rows(count * many)
            if clusters:
                ones_M = torch.ones(len(rows_MD), dtype=torch.int64, device=rows_MD.device)
                member_M = k_means(rows_MD.float(), ones_M, torch.arange(count, device=rows_MD.device))
                shares_PM = one_hot(member_M, count).to(rows_MD.dtype)
                rows_MD = shares_PM @ rows_MD / shares_PM.sum(1, keepdim=True)
            prompts.assign(block, rows_MD)


@torch.no_grad()
def vipamin(
    prompts: Prompts,
    backbone: nn.Module,
    info: BackboneInfo,
    batches: Iterable[Tensor],
    *,
    neighbours: int = 8,
    share: float = 0.5,
) -> None:
    """Starts prompts half from the tokens that their keys are most like, half from what attention does not give yet.

    With p the prompts as they were drawn, and means over images of everything: the first part is the mean of the
    `neighbours` tokens on their way into the block whose keys (mean over the heads) have the largest cosine with the
    key of p. The second is the point whose value is that of p without its part in the span of the attention's outputs
    for its N tokens (class and patches; prompts are among the keys, none is dropped), W⁺((I - QQᵀ)(W p + b) - b).

    Args:
        prompts: Changed in place.
        backbone: The bare timm model.
        info: Its description.
        batches: Normalised images (B, 3, H, W), all of one size.
        neighbours: k, at least 1.
        share: λ of the second part, 0 to 1.

    Raises:
        VPromptError: If blocks see windows, whose tokens stand in many places; if so many tokens span all there is.

    Source: VIPAMIN (arXiv 2510.16446), section 4.
    """
    if info.stages is not None:
        raise VPromptError("The start 'vipamin' needs blocks that see one sequence of tokens; take 'tokens'.")
    means = [_Means() for _ in prompts.counts]
    parts = prefix_parts(
        backbone,
        info,
        lambda block: LearnedPrefix(prompts, KVPrompts(), block) if prompts.counts[block] else no_prefix,
        around=lambda block, attention: _Attended(attention, means[block], info.num_prefix_tokens),
        whole=True,
    )
    handles = [
        _watched(parts[site.path], lambda x, mean=mean: mean.add("tokens", _patches(x, info)))
        for site, mean in zip(info.blocks, means, strict=True)
    ]
    training = prompts.training
    prompts.eval()  # a prompt that is dropped would be compared as zeros
    try:
        _run(graft(backbone, parts), batches, handles)
    finally:
        prompts.train(training)
    for block, mean in enumerate(means):
        if not prompts.counts[block]:
            continue
        attention = attention_at(backbone, info, block)
        cosines_PN = F.normalize(mean["prompts"], dim=1) @ F.normalize(mean["keys"], dim=1).T
        nearest_Pk = cosines_PN.topk(min(neighbours, cosines_PN.shape[1]), dim=1).indices
        likely_PD = mean["tokens"][nearest_Pk].mean(1)
        start_PD, weight_AD, bias_A = (t.to(likely_PD) for t in (prompts.dense(block), *attention.value_map()))
        if (groups := mean["outputs"].shape[1] // len(weight_AD)) > 1:  # query heads that share values
            shape = (attention.head_shape[0], -1)
            weight_AD, bias_A = (
                t.unflatten(0, shape).repeat_interleave(groups, dim=0).flatten(0, 1) for t in (weight_AD, bias_A)
            )
        basis_An, size_n, _ = torch.linalg.svd(mean["outputs"].T, full_matrices=False)
        basis_An = basis_An[:, size_n > 1e-6 * size_n.max()]
        if basis_An.shape[1] == len(basis_An):
            raise VPromptError(
                f"The start 'vipamin' needs fewer tokens than a block is wide, but {len(mean['outputs'])} span all "
                f"its {len(basis_An)} dimensions; take 'tokens', smaller images, or a wider backbone."
            )
        value_PA = start_PD @ weight_AD.T + bias_A
        new_PA = value_PA - value_PA @ basis_An @ basis_An.T
        prompts.assign(block, (1 - share) * likely_PD + share * (new_PA - bias_A) @ torch.linalg.pinv(weight_AD).T)


class _Drawn:
    """Some of all rows that come by, drawn without replacement: those with the least of a random number each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.numbers = torch.empty(0)
        self.kept: list[Tensor] = []

    def add(self, rows_MD: Tensor) -> None:
        if not self.count:
            return
        numbers = torch.cat([self.numbers, torch.rand(len(rows_MD))])
        self.numbers, index = numbers.topk(min(self.count, len(numbers)), largest=False)
        self.kept = [torch.cat([*self.kept, rows_MD])[index.to(rows_MD.device)]]

    def rows(self, count: int) -> Tensor:
        """So many; again from the first where fewer came by."""
        (rows,) = self.kept
        return rows[torch.arange(count, device=rows.device) % len(rows)]


class _Means(dict[str, Tensor]):
    """Means over images, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, int] = {}

    def add(self, name: str, of_images_BX: Tensor) -> None:
        before, batch = self.images.get(name, 0), len(of_images_BX)
        mean, total = of_images_BX.to(torch.promote_types(of_images_BX.dtype, torch.float32)).mean(0), before + batch
        self[name] = mean if not before else self[name] + (mean - self[name]) * (batch / total)
        self.images[name] = total


class _Attended(nn.Module):
    """An attention of which the mean keys of prompts and patches, and the mean outputs of the heads, are recorded."""

    def __init__(self, attention: PrefixAttention, means: _Means, leading: int) -> None:
        super().__init__()
        self.attention = attention
        self.means = means
        self.leading = leading
        self.num_queries = attention.num_queries

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        attention = self.attention
        _, k_BHNd, v_BHNd = attention.project(x)
        if (prefix := attention.prefix(attention, len(x))) is None:
            return attention(x, *args, **options)
        v_BHMd = torch.cat([prefix.values.expand(len(x), -1, -1, -1), v_BHNd], dim=2)

        def observe(weights: Callable[[int], Tensor]) -> None:
            weights_BHNM = weights(x.shape[1])
            each_BHMd = v_BHMd.repeat_interleave(weights_BHNM.shape[1] // v_BHMd.shape[1], dim=1)
            self.means.add("outputs", (weights_BHNM @ each_BHMd).transpose(1, 2).flatten(2))

        self.means.add("prompts", prefix.keys.mean(1))
        self.means.add("keys", k_BHNd[:, :, self.leading :].mean(1))
        attention.observer = observe
        try:
            return attention(x, *args, **options)
        finally:
            attention.observer = None


def _watched(module: nn.Module, see: Callable[[Tensor], None], *, outputs: bool = False) -> RemovableHandle:
    """Shows what enters a module, or what leaves it."""

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(inputs[0])

    def after(module: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
        see(out[0] if isinstance(out, tuple) else out)

    return module.register_forward_hook(after) if outputs else module.register_forward_pre_hook(before)


def _run(view: Any, batches: Iterable[Tensor], handles: Sequence[RemovableHandle]) -> None:
    try:
        for images_BCHW in batches:
            view.forward_features(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()


def _patches(x: Tensor, info: BackboneInfo, leading: int | None = None) -> Tensor:
    """The tokens of patches (B, N, D) in a sequence or a map."""
    if x.ndim == 3:
        return x[:, info.num_prefix_tokens if leading is None else leading :]
    first = x.shape[-1] not in info.widths and x.shape[1] in info.widths
    return x.flatten(2).transpose(1, 2) if first else x.flatten(1, -2)
