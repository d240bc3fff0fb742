"""Algorithm 1 of Prompt Condensation as one call, and the smallest share of the prompts that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vprompt.compression.criteria import Criterion, Scope, check_prompts
from vprompt.compression.merge import check_merge
from vprompt.compression.merge import merge as merged
from vprompt.compression.score import score
from vprompt.compression.select import select
from vprompt.model.model import PromptedModel
from vprompt.model.records import Condensation, Recipe
from vprompt.training.evaluate import Evaluation, difference
from vprompt.training.loader import ImageLabels
from vprompt.training.trainer import fit, given_or_own
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import bar

SHARES = (0.5, 0.3, 0.2, 0.1, 0.05)
"""Shares of the prompts that `smallest_share` tries, one after the other."""

T = TypeVar("T")


def smallest_share(
    before: Evaluation, attempt: Callable[[float], tuple[T, Evaluation]]
) -> tuple[T | None, list[dict[str, Any]]]:
    """Tries ever smaller shares of the prompts, until one is worse than all prompts by more than chance.

    Args:
        before: The model with all prompts, on validation images.
        attempt: Makes something of a share, and evaluates it on the same images.

    Returns:
        What was made of the smallest share that is not worse, None where each is. And for each that was tried: `ratio`,
        its score (such as `val_accuracy`), `difference` (from that with all prompts, on the same images) and the paired
        95 % `interval` of that.

    Raises:
        VPromptError: If these images do not tell the score.

    Example:
        >>> import torch
        >>> from vprompt.tasks.single_label import SingleLabel
        >>> def evaluation(right):
        ...     logits = torch.stack([torch.arange(100) < right, torch.arange(100) >= right], 1).float()
        ...     labels = torch.zeros(100).long()
        ...     return Evaluation(target=SingleLabel(names=("a", "b")), loss=0.0, logits=logits, labels=labels)
        >>> best, trials = smallest_share(evaluation(90), lambda share: (share, evaluation(88 if share > 0.2 else 60)))
        >>> best, [trial["ratio"] for trial in trials]
        (0.3, [0.5, 0.3, 0.2])
    """
    if before.interval is None:
        raise VPromptError(f"The validation images tell no {before.target.title}; give a share instead of auto.")
    best, trials = None, list[dict[str, Any]]()
    for ratio in SHARES:
        made, after = attempt(ratio)
        change, interval = difference(before, after)
        score = {f"val_{after.target.headline}": after.score}
        trials.append({"ratio": ratio, **score, "difference": change, "interval": interval})
        if interval[1] < 0:
            break
        best = made
    return best, trials


def condense(
    model: PromptedModel,
    train: ImageLabels,
    val: ImageLabels | None = None,
    *,
    ratio: float = 0.3,
    criterion: Criterion = "taylor",
    scope: Scope = "global",
    merge: bool = False,
    fine_tune: bool = True,
    recipe: Recipe | None = None,
    scores: Sequence[Tensor] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> PromptedModel:
    """Scores the prompts of a trained model, retains the best, removes the others, and fine-tunes the rest.

    Args:
        model: A trained model with prompts; it is not changed.
        train: Data to score and fine-tune on; as for `vprompt.fit`.
        val: As for `vprompt.fit`.
        ratio: Share of the prompts to retain, above 0 and up to 1; see `smallest_share` for one that is found.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.
        merge: Merge the other prompts of a block into the retained ones, instead of dropping them; see
            `vprompt.compression.merge`.
        fine_tune: False stops after the removal.
        recipe: For the fine-tuning; see `fine_tuning_recipe` when not given. Prompt dropout is off in any case.
        scores: Use these scores instead of computing them.
        checkpoint: As for `vprompt.fit`.
        resume: As for `vprompt.fit`.
        progress: Show bars on standard error.

    Returns:
        A new model in eval mode over the same backbone; `condensation` on it holds the scores and the choice.

    Raises:
        VPromptError: If the model has no prompts, an argument is out of range, or its prompts cannot be merged.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(5), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> sum(condense(model, data, ratio=0.3, fine_tune=False).prompt_counts)
        9

    Source: Prompt Condensation (arXiv 2305.17223), Algorithm 1.
    """
    check_prompts(model.prompt_counts, "condense")
    if merge:
        check_merge(model)
    recipe = given_or_own(recipe, fine_tuning_recipe(model), val)
    if scores is None:
        with bar("scoring", enabled=progress) as report:
            scores = score(model, train, criterion=criterion, seed=recipe.seed, workers=recipe.workers, report=report)
    retained = select(scores, ratio=ratio, scope=scope)
    small = merged(model, retained) if merge else model.keep(retained)
    small.method = small.method.without_dropout()
    small.prompts.dropout = 0.0
    small.condensation = Condensation(
        criterion=criterion,
        scope=scope,
        ratio=ratio,
        merge=merge,
        scores=tuple(tuple(values.tolist()) for values in scores),
        kept=tuple(tuple(index.tolist()) for index in retained),
        tuned=False,
    )
    if fine_tune:
        fit(
            small,
            train,
            val,
            recipe=recipe,
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
            label="fine-tuning",
        )
    return small.eval()


def fine_tuning_recipe(model: PromptedModel) -> Recipe:
    """The recipe a model was trained with, at a tenth of the rate for 20 epochs; that of a fine-tuned one as it is.

    A pruned model was trained, not fine-tuned.
    """
    recipe = model.recipe or Recipe()
    tuned = model.condensation is not None and model.condensation.tuned and model.pruning is None
    return recipe if tuned else recipe.for_fine_tuning()
