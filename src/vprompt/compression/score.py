"""Scores of prompts and of their segments."""

from __future__ import annotations

import torch
from torch import Tensor

from vprompt.compression.criteria import (
    GRADIENTS,
    Criterion,
    check_criterion,
    check_prompts,
    check_riding,
    check_segments_by,
    check_target,
)
from vprompt.compression.gradients import class_similarity
from vprompt.compression.select import summed_over_blocks
from vprompt.methods.layers.prompts import check_segments
from vprompt.model.effects import gradient_effects
from vprompt.model.model import PromptedModel
from vprompt.training.loader import ImageLabels, in_order, iterate, size_of
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, silent


class Scores(list[Tensor]):
    """Scores of prompts, a tensor for each block."""

    def __repr__(self) -> str:
        shapes = ", ".join("×".join(map(str, scores.shape)) for scores in self[:12]) + ", ..." * (len(self) > 12)
        return f"Scores({sum(scores.numel() for scores in self)} in {len(self)} blocks: {shapes})"


def score(
    model: PromptedModel,
    data: ImageLabels,
    *,
    criterion: Criterion = "taylor",
    segments: int | None = None,
    shared: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    workers: int = 0,
    report: Report = silent,
) -> Scores:
    """Scores every prompt, or every segment of it; higher means more important.

    - `taylor`: how much the loss would change if the prompt were zeroed, to first order, per sample and then averaged:
      mean over i of |<dL_i/dp, p>|. It is the expected sensitivity E|dL/dm| to a mask m = 1 that the prompt is
      multiplied with. One forward and backward pass over the data.
    - `taylor-signed`: by how much the loss would rise, so that images cancel and a harmful prompt is below zero: mean
      over i of -<dL_i/dp, p>.
    - `removal`, `removal-signed`: the same for removing the prompt from attention, which is what condensing does,
      instead of zeroing it: the derivative by a bias that is added to its logits. Norms before attention undo the
      length of a prompt, so that the derivative by it says little about its removal. Deep prompts only.
    - `pseudo-label`: as `taylor`, with the labels that the model itself predicts. The labels of the data are not read.
    - `feature-change`: how far the pooled features would move if the prompt were zeroed, to first order: the mean
      over i of the length of their change, along one random direction per image (from `seed`). Without labels.
    - `cls-similarity`: mean attention that the class token pays to the prompt, over heads and images (shallow: and over
      blocks). One forward pass.
    - `magnitude`: Euclidean norm. `random`: uniform, from `seed`. Neither reads the data.

    The model is left as it was, and prompt dropout is off.

    Args:
        model: A prompted model.
        data: Usually the training set; as for `vprompt.fit`.
        criterion: One of the above.
        segments: R, to score each of the R segments (contiguous channels) of every prompt instead of the whole.
        shared: Score one mask for all blocks that have prompts: scores are added over the blocks, image by image for
            the Taylor scores, and each block is given the sum.
        batch_size: Images per pass; does not change the scores.
        seed: For `random` and `feature-change`.
        workers: Processes that load a data set that is no `ImageDataset`.
        report: Told of every batch.

    Returns:
        One float32 tensor (P_l,) on the CPU for every block, or (P_l, R) for segments.

    Raises:
        VPromptError: If the model has no prompts; if the criterion is unknown, needs a class token that the backbone
            has not, or says nothing of segments; if prompts cannot be cut into so many; if blocks that share have
            different numbers of prompts.
        DataError: If the data does not fit.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> [len(scores) for scores in score(model, data)]
        [2, 2, 2, 2, 2, 2]

    Source: Prompt Condensation (arXiv 2305.17223), equations 13-16; [CLS] similarity: its Table 3; masks: E²VPT
    (arXiv 2307.13770), section 3.3.
    """
    check_criterion(criterion, model.info)
    check_prompts(model.prompt_counts, "score")
    if segments is not None:
        check_segments(segments, model.info.widths)
        check_segments_by(criterion)
    check_riding(criterion, model.method)
    check_target(criterion, model.target)
    if shared and len(set(filter(None, model.prompt_counts))) > 1:
        raise VPromptError("Blocks with different numbers of prompts cannot share a mask.")
    sizes = [(count, segments or 1) for count in model.prompt_counts]
    if criterion in ("magnitude", "random"):
        generator = torch.Generator().manual_seed(seed)
        scores = [
            torch.rand(*size, generator=generator) if criterion == "random" else _lengths(model, block, size)
            for block, size in enumerate(sizes)
        ]
        scores = summed_over_blocks(scores) if shared else scores
    else:
        scores = _effects(model, data, criterion, sizes, shared, batch_size, seed, workers, report)
    return Scores(scores if segments is not None else [values.squeeze(1) for values in scores])


def _lengths(model: PromptedModel, block: int, size: tuple[int, int]) -> Tensor:
    """Euclidean norms (P, R)."""
    return model.prompts.dense(block).detach().float().unflatten(1, (size[1], -1)).norm(dim=2).cpu()


def _effects(
    model: PromptedModel,
    data: ImageLabels,
    criterion: Criterion,
    sizes: list[tuple[int, int]],
    shared: bool,
    batch_size: int,
    seed: int,
    workers: int,
    report: Report,
) -> list[Tensor]:
    """Scores (P_l, R) that are means over images."""
    kind = GRADIENTS.get(criterion)
    run = class_similarity(model) if kind is None else gradient_effects(model, kind, segments=sizes[0][1], seed=seed)
    device, length = next(model.parameters()).device, size_of(data)
    sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    batches = in_order(length, batch_size)
    training = model.training
    model.eval()
    try:
        with run as effects:
            done = 0
            for images, labels in iterate(data, batches, device=device, workers=workers, model=model):
                by_block = effects(images, labels)
                if shared and by_block:
                    by_block = dict.fromkeys(by_block, torch.stack(list(by_block.values())).sum(0))
                for block, effect_BPR in by_block.items():
                    summed = (effect_BPR if kind is None or kind.signed else effect_BPR.abs()).sum(0)
                    sums[block] += summed.cpu().double()
                done += len(labels)
                report(done, length)
    finally:
        model.train(training)
    return [(total / length).float() for total in sums]
