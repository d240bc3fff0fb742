"""What each prompt and each of its segments is worth, and a model without those that are worth least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vprompt.compression.choices import Choice
from vprompt.compression.criteria import Criterion, Scope
from vprompt.compression.score import score
from vprompt.compression.select import select, select_segments
from vprompt.model.model import PromptedModel
from vprompt.model.records import Condensation, Pruning
from vprompt.training.loader import ImageLabels
from vprompt.utils.progress import Report, part, silent


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Scores of prompts and of segments, and by what they were found.

    Args:
        tokens: One tensor (P_l,) per block.
        segments: One tensor (P_l, R) per block.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`; `"shared"` means that a mask was shared by all blocks when they were scored.
    """

    tokens: Sequence[Tensor]
    segments: Sequence[Tensor]
    criterion: Criterion
    scope: Scope

    @property
    def num_segments(self) -> int:
        """R."""
        return self.segments[0].shape[1]


def importance(
    model: PromptedModel,
    data: ImageLabels,
    *,
    num_segments: int = 16,
    criterion: Criterion = "taylor",
    scope: Scope = "global",
    seed: int = 0,
    workers: int = 0,
    report: Report = silent,
) -> Importance:
    """Scores a trained model's prompts, and their segments, in two passes over the data.

    Args:
        model: A trained model with prompts.
        data: Usually the training set.
        num_segments: R, into which a prompt is cut; must divide every width.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.
        seed: For random scores.
        workers: As for `vprompt.score`.
        report: Told of every batch of both passes.

    Returns:
        An `Importance`.

    Raises:
        VPromptError: As `vprompt.score`.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.E2VPT(3), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> found = importance(model, data, num_segments=4)
        >>> found.tokens[0].shape, found.segments[0].shape
        (torch.Size([3]), torch.Size([3, 4]))

    Source: E²VPT (arXiv 2307.13770), section 3.3.
    """
    tokens, segments = (
        score(
            model,
            data,
            criterion=criterion,
            segments=segments,
            shared=scope == "shared",
            seed=seed,
            workers=workers,
            report=part(report, number, 2),
        )
        for number, segments in enumerate((None, num_segments))
    )
    return Importance(tokens=tokens, segments=segments, criterion=criterion, scope=scope)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What stays of a model's prompts.

    Args:
        kept: Indices of the prompts that stay, by block.
        segments: For these, a mask (P_l, R) by block; None where their segments all stay.
        tokens: Share of the prompts that goes.
        removed: Share of the segments of the others that goes.
    """

    kept: Sequence[Tensor]
    segments: Sequence[Tensor] | None
    tokens: float
    removed: float

    @property
    def share(self) -> float:
        """What stays, the mean of prompts and numbers; see `Trial`."""
        prompts = 1 - self.tokens
        return (prompts + prompts * (1 - self.removed)) / 2


def cut(worth: Importance, choice: Choice) -> Cut:
    """What stays when the prompts and segments that are worth least go.

    Example:
        >>> import torch
        >>> scores = torch.tensor([1.0, 2.0, 3.0])
        >>> worth = Importance(tokens=[scores], segments=[scores[:, None]], criterion="taylor", scope="global")
        >>> found = cut(worth, Choice(tokens=0.5, segments=0.5))  # of three prompts, two stay, with their only segment
        >>> found.kept[0].tolist(), round(found.tokens, 3), found.removed
        ([1, 2], 0.333, 0.0)
    """
    kept = select(worth.tokens, ratio=1 - choice.tokens, scope=worth.scope)
    masks = None
    if choice.segments and worth.num_segments > 1:
        rows = [scores[index] for scores, index in zip(worth.segments, kept, strict=True)]
        masks = select_segments(rows, ratio=1 - choice.segments, scope=worth.scope)
    prompts = sum(map(len, kept))
    stay = prompts * worth.num_segments if masks is None else sum(int(mask.sum()) for mask in masks)
    return Cut(
        kept=kept,
        segments=masks,
        tokens=1 - prompts / sum(map(len, worth.tokens)),
        removed=1 - stay / (prompts * worth.num_segments),
    )


def pruned(
    model: PromptedModel, worth: Importance, choice: Choice, *, early: Mapping[str, Tensor] | None = None
) -> PromptedModel:
    """A copy of a model without the prompts and segments that are worth least.

    Args:
        model: The model that was scored; it is not changed.
        worth: Its importance.
        choice: How much to prune.
        early: Learned values, as `model.state()` recorded them earlier, for what stays; those of now when not given.

    Returns:
        A `PromptedModel` whose `condensation` and `pruning` say what was done.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.E2VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> worth = importance(model, data, num_segments=4)
        >>> small = pruned(model, worth, Choice(tokens=0.5, segments=0.5))
        >>> sum(small.prompt_counts), sum(p.numel() for p in small.prompts)
        (12, 384)

    Source: E²VPT (arXiv 2307.13770), section 3.3.
    """
    stays = cut(worth, choice)
    whole = model.copy()
    if early is not None:
        whole.restore(early)
    small = whole.keep(stays.kept, stays.segments)
    small.condensation = Condensation(
        criterion=worth.criterion,
        scope=worth.scope,
        ratio=1 - stays.tokens,
        scores=tuple(tuple(values.tolist()) for values in worth.tokens),
        kept=tuple(tuple(index.tolist()) for index in stays.kept),
    )
    small.pruning = Pruning(tokens=stays.tokens, segments=stays.removed, rewind_epoch=None)
    return small
