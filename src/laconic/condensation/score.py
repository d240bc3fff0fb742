"""How much each prompt matters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
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

Criterion = Literal["taylor", "cls-similarity", "magnitude", "random"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


def score(
    model: PromptedModel,
    data: ImageLabels,
    *,
    criterion: Criterion = "taylor",
    batch_size: int = 64,
    seed: int = 0,
    workers: int = 0,
    report: Report = silent,
) -> list[Tensor]:
    """Scores every prompt; higher means more worth keeping.

    - `taylor`: how much the loss would change if the prompt were zeroed, to first order, per sample and then averaged:
      mean over i of |<dL_i/dp, p>|. One forward and backward pass over the data.
    - `cls-similarity`: mean attention that the class token pays to the prompt, over heads and images (shallow: and over
      blocks). One forward pass.
    - `magnitude`: Euclidean norm. `random`: uniform, from `seed`. Both without a look at the data.

    The model is left as it was, and prompt dropout is off.

    Args:
        model: A prompted model.
        data: Usually the training set; as for `laconic.fit`.
        criterion: One of the above.
        batch_size: Images per pass; does not change the scores.
        seed: For `random`.
        workers: Processes that load a data set which is not ours.
        report: Told of every batch.

    Returns:
        One float32 tensor (P_l,) on the CPU for every block.

    Raises:
        LaconicError: If the criterion is unknown, or needs a class token that the backbone has not.
        DataError: If the data does not fit.

    Example:
        >>> import timm, laconic
        >>> model = laconic.attach(timm.create_model("test_vit", img_size=32), laconic.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> [len(scores) for scores in score(model, data)]
        [2, 2, 2, 2, 2, 2]

    Source: Prompt Condensation (arXiv 2305.17223), equations 13-16 and section 5.3.
    """
    check_criterion(criterion, model.info)
    if criterion == "magnitude":
        return [p.detach().float().norm(dim=1).cpu() for p in model.prompts]
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(count, generator=generator) for count in model.prompt_counts]
    run = _taylor if criterion == "taylor" else _class_similarity
    device, length = next(model.parameters()).device, size_of(data)
    sums = [torch.zeros(count, dtype=torch.float64) for count in model.prompt_counts]
    batches = in_order(length, batch_size)
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            add = stack.enter_context(run(model))
            done = 0
            for images, labels in iterate(data, batches, device=device, workers=workers):
                check_batch(images, labels, model)
                for block, summed in add(images, labels).items():
                    sums[block] += summed.double().cpu()
                done += len(labels)
                report(done, length)
    finally:
        model.train(training)
    return [(total / length).float() for total in sums]


def check_criterion(criterion: str, info: BackboneInfo) -> None:
    """Raises a `LaconicError` for a criterion that there is not, or not on this backbone."""
    if criterion not in CRITERIA:
        raise LaconicError(f"There is no criterion called {criterion!r}; there are {', '.join(CRITERIA)}.")
    if criterion == "cls-similarity" and not info.class_token:
        raise LaconicError(
            f"The criterion 'cls-similarity' needs a class token among the prompts' tokens, and {info.name} has none "
            "there; use 'taylor'."
        )


@contextmanager
def _taylor(model: PromptedModel) -> Generator[Callable[[Tensor, Tensor], dict[int, Tensor]]]:
    """Sums over a batch of |<dL_i/dp, p>|, by block.

    Norms before attention undo the length of a prompt all but for their epsilon, so that the inner product is a small
    remainder of large terms. For a prefix it is therefore taken at its keys and values, along their change when the
    prompt is scaled, which is computed in float64.
    """
    tokens = model.method.name == "vpt-shallow"
    run = model if tokens or model.execution == "prefix" else model.copy(execution="prefix").eval()
    along = {
        block: (prompts.detach().unsqueeze(0),) if tokens else _scaling(run, block)
        for block, prompts in enumerate(run.prompts)
        if len(prompts)
    }
    with run.prompts.per_sample() as recorded:

        def add(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
            recorded.clear()
            if not along:
                return {}
            logits = run(images)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            found: dict[int, Tensor] = {}
            gradients = iter(torch.autograd.grad(loss, [leaf for block in along for leaf in recorded[block]]))
            for block, changes in along.items():
                products_BP = torch.stack([_by_prompt(next(gradients), change) for change in changes]).sum(0)
                found[block] = products_BP.abs().sum(0)
            return found

        yield add


def _scaling(model: PromptedModel, block: int) -> tuple[Tensor, Tensor]:
    """How keys and values (1, H, P, d) of a block's prompts change when the prompts are scaled, in float64."""
    adapter = copy.deepcopy(attention_at(model.backbone, model.info, block)).cpu().double()
    prompts_1PD = model.prompts[block].detach().cpu().double().unsqueeze(0)
    jvp: Any = torch.func.jvp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own use of torch.jit
        _, (keys, values) = jvp(adapter.key_values, (prompts_1PD,), (prompts_1PD,))
    device = model.prompts[block].device
    # Apple's GPUs have no float64.
    return (keys, values) if device.type == "mps" else (keys.to(device), values.to(device))


def _by_prompt(gradient: Tensor, change: Tensor) -> Tensor:
    """Inner products (B, P) of tensors (B or 1, ..., P, width)."""
    products = (gradient.to(change.device).double() * change.double()).sum(-1)
    return products if products.ndim == 2 else products.sum(1)


@contextmanager
def _class_similarity(model: PromptedModel) -> Generator[Any]:
    """Sums over a batch of the class token's attention to each prompt, by block of the prompts."""
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
            paid = weights_BHN[..., first : first + count].mean(1).sum(0) / scale
            seen[source] = seen.get(source, torch.zeros_like(paid)) + paid

        return note

    @torch.no_grad()
    def add(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
        seen.clear()
        watched(images)
        return dict(seen)

    for block, attention in enumerate(watched.attentions):
        if watched.prompt_counts[0 if shallow else block]:
            attention.observer = watch(block)
    yield add
