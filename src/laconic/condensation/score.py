"""How much each prompt matters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.assembly import attention_at
from laconic.backbone import BackboneInfo
from laconic.batches import ImageLabels, check_batch, in_order, iterate, size_of
from laconic.errors import LaconicError
from laconic.model import PromptedModel
from laconic.prefix import Observer
from laconic.progress import Report, silent
from laconic.prompts import check_segments

Criterion = Literal["taylor", "taylor-signed", "cls-similarity", "magnitude", "random"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


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
) -> list[Tensor]:
    """Scores every prompt, or every segment of it; higher means more worth keeping.

    - `taylor`: how much the loss would change if the prompt were zeroed, to first order, per sample and then averaged:
      mean over i of |<dL_i/dp, p>|. It is the expected sensitivity E|dL/dm| to a mask m = 1 that the prompt is
      multiplied with. One forward and backward pass over the data.
    - `taylor-signed`: by how much the loss would rise, so that images cancel and a harmful prompt is below zero: mean
      over i of -<dL_i/dp, p>.
    - `cls-similarity`: mean attention that the class token pays to the prompt, over heads and images (shallow: and over
      blocks). One forward pass.
    - `magnitude`: Euclidean norm. `random`: uniform, from `seed`. Both without a look at the data.

    The model is left as it was, and prompt dropout is off.

    Args:
        model: A prompted model.
        data: Usually the training set; as for `laconic.fit`.
        criterion: One of the above.
        segments: R, to score each of the R segments (contiguous channels) of every prompt instead of the whole.
        shared: Score one mask for all blocks that have prompts: what the blocks say is added up, image by image for
            the Taylor scores, and each block is given the sum.
        batch_size: Images per pass; does not change the scores.
        seed: For `random`.
        workers: Processes that load a data set which is not ours.
        report: Told of every batch.

    Returns:
        One float32 tensor (P_l,) on the CPU for every block, or (P_l, R) for segments.

    Raises:
        LaconicError: If the criterion is unknown, needs a class token that the backbone has not, or says nothing of
            segments; if prompts cannot be cut into so many; if blocks that share have different numbers of prompts.
        DataError: If the data does not fit.

    Example:
        >>> import timm, laconic
        >>> model = laconic.attach(timm.create_model("test_vit", img_size=32), laconic.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> [len(scores) for scores in score(model, data)]
        [2, 2, 2, 2, 2, 2]

    Source: Prompt Condensation (arXiv 2305.17223), equations 13-16 and section 5.3; masks: E²VPT (arXiv 2307.13770),
    section 3.3.
    """
    check_criterion(criterion, model.info)
    if segments is not None:
        check_segments(segments, model.info.widths)
    if segments is not None and criterion == "cls-similarity":
        raise LaconicError("The criterion 'cls-similarity' is about whole prompts; use 'taylor' for segments.")
    if shared and len(set(filter(None, model.prompt_counts))) > 1:
        raise LaconicError("Blocks with different numbers of prompts cannot share a mask.")
    found = _scores(model, data, criterion, segments or 1, shared, batch_size, seed, workers, report)
    return found if segments is not None else [scores.squeeze(1) for scores in found]


def _scores(
    model: PromptedModel,
    data: ImageLabels,
    criterion: Criterion,
    segments: int,
    shared: bool,
    batch_size: int,
    seed: int,
    workers: int,
    report: Report,
) -> list[Tensor]:
    """Scores (P_l, R)."""
    sizes = [(count, segments) for count in model.prompt_counts]
    if criterion == "magnitude":
        cut = [model.prompts.dense(block).detach().float() for block in range(len(sizes))]
        return _added([p.view(len(p), segments, p.shape[1] // segments).norm(dim=2).cpu() for p in cut], shared)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return _added([torch.rand(*size, generator=generator) for size in sizes], shared)
    run = _class_similarity if criterion == "cls-similarity" else partial(_taylor, segments=segments)
    device, length = next(model.parameters()).device, size_of(data)
    sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    batches = in_order(length, batch_size)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            effects = stack.enter_context(run(model))
            done = 0
            for images, labels in iterate(data, batches, device=device, workers=workers):
                check_batch(images, labels, model)
                found = effects(images, labels)
                if shared:
                    found = dict.fromkeys(found, torch.stack(list(found.values())).sum(0)) if found else found
                for block, effect_BPR in found.items():
                    summed = (effect_BPR.abs() if criterion == "taylor" else effect_BPR).sum(0)
                    sums[block] += summed.double().cpu()
                done += len(labels)
                report(done, length)
    finally:
        model.train(training)
    return [(total / length).float() for total in sums]


def _added(scores: list[Tensor], shared: bool) -> list[Tensor]:
    """The scores, or their sum for every block that has any."""
    used = [values for values in scores if len(values)]
    if not shared or not used:
        return scores
    total = torch.stack(used).sum(0)
    return [total if len(values) else values for values in scores]


def check_criterion(criterion: str, info: BackboneInfo) -> None:
    """Raises a `LaconicError` for a criterion that there is not, or not on this backbone."""
    if criterion not in CRITERIA:
        raise LaconicError(f"There is no criterion called {criterion!r}; there are {', '.join(CRITERIA)}.")
    if criterion == "cls-similarity" and not info.class_token:
        raise LaconicError(
            f"The criterion 'cls-similarity' needs a class token among the prompts' tokens, and {info.name} has none "
            "there; use 'taylor'."
        )


Effects = Callable[[Tensor, Tensor], dict[int, Tensor]]
"""From images and labels to what each prompt or segment does to each image, (B, P, R) by block."""


@contextmanager
def _taylor(model: PromptedModel, *, segments: int) -> Generator[Effects]:
    """How much each image's loss would rise without a segment, to first order: -<dL_i/ds, s>.

    Norms before attention undo the length of a prompt all but for their epsilon, so that the inner product is a small
    remainder of large terms. For a prefix it is therefore taken at its keys and values, along their change when the
    segment is scaled, which is computed in float64.
    """
    tokens = model.method.name == "vpt-shallow"
    run = model if tokens or model.execution == "prefix" else model.copy(execution="prefix").eval()
    along = {
        block: (_cut(run.prompts.dense(block).detach(), segments),) if tokens else _scaling(run, block, segments)
        for block, count in enumerate(run.prompt_counts)
        if count
    }
    with run.prompts.per_sample() as recorded:

        def effects(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
            recorded.clear()
            if not along:
                return {}
            logits = run(images)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = iter(torch.autograd.grad(loss, [leaf for block in along for leaf in recorded[block]]))
            return {
                block: -torch.stack([_products(next(gradients), change) for change in changes]).sum(0)
                for block, changes in along.items()
            }

        yield effects


def _cut(prompts_PD: Tensor, segments: int) -> Tensor:
    """Each segment alone, zeros elsewhere: (R, P, D)."""
    cut_PRw = prompts_PD.unflatten(1, (segments, -1))
    alone_RPRw = torch.eye(segments, dtype=cut_PRw.dtype, device=cut_PRw.device)[:, None, :, None] * cut_PRw
    return alone_RPRw.flatten(2)


def _scaling(model: PromptedModel, block: int, segments: int) -> tuple[Tensor, Tensor]:
    """How keys and values (R, H, P, d) of a block's prompts change when a segment is scaled, in float64."""
    adapter = copy.deepcopy(attention_at(model.backbone, model.info, block)).cpu().double()
    prompts_PD = model.prompts.dense(block).detach().cpu().double()
    jvp: Any = torch.func.jvp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own use of torch.jit
        changes = [
            jvp(adapter.key_values, (prompts_PD.unsqueeze(0),), (alone_PD.unsqueeze(0),))[1]
            for alone_PD in _cut(prompts_PD, segments)
        ]
    keys, values = (torch.cat(parts) for parts in zip(*changes, strict=True))
    device = model.prompts[block].device
    # Apple's GPUs have no float64.
    return (keys, values) if device.type == "mps" else (keys.to(device), values.to(device))


def _products(gradient: Tensor, change: Tensor) -> Tensor:
    """Inner products (B, P, R) of a gradient (B, ..., P, width) and changes (R, ..., P, width)."""
    sizes = "bpw, rpw -> bpr" if gradient.ndim == 3 else "bhpw, rhpw -> bpr"
    return torch.einsum(sizes, gradient.to(change.device).double(), change.double())


@contextmanager
def _class_similarity(model: PromptedModel) -> Generator[Effects]:
    """The class token's attention to each prompt, (B, P, 1) by block of the prompts."""
    watched = model.copy(execution="prefix").eval()
    shallow = watched.method.name == "vpt-shallow"
    # A prefix stands before all tokens; prompts among the tokens stand behind the leading ones.
    first = model.info.num_prefix_tokens if shallow else 0
    seen: dict[int, Tensor] = {}

    def watch(block: int) -> Observer:
        source = 0 if shallow else block
        count, scale = watched.prompt_counts[source], len(model.info.blocks) if shallow else 1

        def note(weights: Callable[[int], Tensor]) -> None:
            weights_BHN = weights(1)[:, :, 0]
            paid = weights_BHN[..., first : first + count].mean(1).unsqueeze(2) / scale
            seen[source] = seen.get(source, torch.zeros_like(paid)) + paid

        return note

    @torch.no_grad()
    def effects(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
        seen.clear()
        watched(images)
        return dict(seen)

    for block, attention in enumerate(watched.attentions):
        if watched.prompt_counts[0 if shallow else block]:
            attention.observer = watch(block)
    yield effects
