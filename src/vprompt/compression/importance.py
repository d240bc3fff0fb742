"""Importance of prompts and of their segments, and pruning of the least important ones."""

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
    """Scores of prompts and of segments, and the criterion and scope behind them.

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
        num_segments: R, segments of a prompt; must divide every width.
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
        >>> scores = importance(model, data, num_segments=4)
        >>> scores.tokens[0].shape, scores.segments[0].shape
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
    """Retained prompts and segments of a model.

    Args:
        retained: Indices of the retained prompts, by block.
        segments: For these, a mask (P_l, R) by block; None where all their segments are retained.
        pruned_tokens: Share of the prompts that is pruned.
        pruned_segments: Share of the segments of the retained prompts that is pruned.
    """

    retained: Sequence[Tensor]
    segments: Sequence[Tensor] | None
    pruned_tokens: float
    pruned_segments: float

    @property
    def share(self) -> float:
        """The retained share, the mean of prompts and numbers; see `Trial`."""
        prompts = 1 - self.pruned_tokens
        return (prompts + prompts * (1 - self.pruned_segments)) / 2


def cut(scores: Importance, choice: Choice) -> Cut:
    """The prompts and segments that are retained when the least important ones are pruned.

    Example:
        >>> import torch
        >>> values = torch.tensor([1.0, 2.0, 3.0])
        >>> scores = Importance(tokens=[values], segments=[values[:, None]], criterion="taylor", scope="global")
        >>> half = cut(scores, Choice(tokens=0.5, segments=0.5))  # two of three prompts, with their only segment
        >>> half.retained[0].tolist(), round(half.pruned_tokens, 3), half.pruned_segments
        ([1, 2], 0.333, 0.0)
    """
    retained = select(scores.tokens, ratio=1 - choice.tokens, scope=scores.scope)
    masks = None
    if choice.segments and scores.num_segments > 1:
        rows = [values[index] for values, index in zip(scores.segments, retained, strict=True)]
        masks = select_segments(rows, ratio=1 - choice.segments, scope=scores.scope)
    prompts = sum(map(len, retained))
    segments = prompts * scores.num_segments if masks is None else sum(int(mask.sum()) for mask in masks)
    return Cut(
        retained=retained,
        segments=masks,
        pruned_tokens=1 - prompts / sum(map(len, scores.tokens)),
        pruned_segments=1 - segments / (prompts * scores.num_segments),
    )


def pruned(
    model: PromptedModel, scores: Importance, choice: Choice, *, early: Mapping[str, Tensor] | None = None
) -> PromptedModel:
    """A copy of a model without its least important prompts and segments.

    Args:
        model: The model that was scored; it is not changed.
        scores: Importance of its prompts.
        choice: Shares to prune.
        early: Rewind weights, as `model.state()` recorded them, for what is retained; those of now when not given.

    Returns:
        A `PromptedModel` whose `condensation` and `pruning` say what was done.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.E2VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> scores = importance(model, data, num_segments=4)
        >>> small = pruned(model, scores, Choice(tokens=0.5, segments=0.5))
        >>> sum(small.prompt_counts), sum(p.numel() for p in small.prompts)
        (12, 384)

    Source: E²VPT (arXiv 2307.13770), section 3.3.
    """
    chosen = cut(scores, choice)
    whole = model.copy()
    if early is not None:
        whole.restore(early)
    small = whole.keep(chosen.retained, chosen.segments)
    small.condensation = Condensation(
        criterion=scores.criterion,
        scope=scores.scope,
        ratio=1 - chosen.pruned_tokens,
        scores=tuple(tuple(values.tolist()) for values in scores.tokens),
        kept=tuple(tuple(index.tolist()) for index in chosen.retained),
    )
    small.pruning = Pruning(tokens=chosen.pruned_tokens, segments=chosen.pruned_segments, rewind_epoch=None)
    return small
