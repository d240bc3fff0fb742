"""Criteria by which prompts are scored; without torch, as commands list them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from vprompt.model.records import Gradient
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.base import Method
    from vprompt.tasks.base import Target


Criterion = Literal[
    "taylor",
    "taylor-signed",
    "removal",
    "removal-signed",
    "pseudo-label",
    "feature-change",
    "cls-similarity",
    "magnitude",
    "random",
]

CRITERIA: tuple[str, ...] = get_args(Criterion)

Scope = Literal["global", "local", "shared"]

SCOPES: tuple[str, ...] = get_args(Scope)


GRADIENTS: Mapping[str, Gradient] = {
    "taylor": Gradient(),
    "taylor-signed": Gradient(signed=True),
    "removal": Gradient(along="removal"),
    "removal-signed": Gradient(along="removal", signed=True),
    "pseudo-label": Gradient(of="predicted-loss"),
    "feature-change": Gradient(of="features"),
}


def whole(ratio: float, number: int) -> int:
    """A share of so many prompts as a whole number, at least one; a half is rounded up.

    Example:
        >>> whole(0.3, 5), whole(0.5, 5), whole(0.145, 100), whole(0.01, 5)
        (2, 3, 15, 1)
    """
    return max(1, math.floor(round(ratio * number, 9) + 0.5))


def removes(criterion: str) -> bool:
    """True for a criterion of the removal of whole deep prompts."""
    return criterion in GRADIENTS and GRADIENTS[criterion].along == "removal"


def check_name(criterion: str) -> None:
    """Raises a `VPromptError` for an unknown criterion."""
    if criterion not in CRITERIA:
        raise VPromptError(f"There is no criterion called {criterion!r}; there are {', '.join(CRITERIA)}.")


def check_segments_by(criterion: str) -> None:
    """Raises a `VPromptError` for a criterion that cannot score segments."""
    if removes(criterion) or criterion == "cls-similarity":
        raise VPromptError(f"The criterion {criterion!r} is about whole prompts; use 'taylor' for segments.")


def check_riding(criterion: str, method: Method) -> None:
    """Raises a `VPromptError` for a criterion that cannot score the prompts of a method."""
    if method.riding == "tokens" and removes(criterion):
        raise VPromptError(
            f"The criterion {criterion!r} is for deep prompts: shallow ones ask queries themselves; use 'taylor'."
        )


def check_target(criterion: str, target: Target) -> None:
    """Raises a `VPromptError` for a criterion that says nothing of models with a target."""
    if criterion == "pseudo-label" and target.answer == "values":
        raise VPromptError(
            "The criterion 'pseudo-label' is for classes and tags: numbers that the model itself says have no loss; "
            "use 'feature-change', which needs no labels either."
        )


def check_prompts(counts: Sequence[int], use: str) -> None:
    """Raises a `VPromptError` where blocks have no prompts to put to a use, such as "condense"."""
    if not any(counts):
        raise VPromptError(
            f"There is nothing to {use}: the model has no prompts; train with a method that has, such as vpt-deep."
        )


def check_criterion(criterion: str, info: BackboneInfo) -> None:
    """Raises a `VPromptError` for a criterion that is unknown, or impossible on this backbone."""
    check_name(criterion)
    if criterion == "cls-similarity" and not info.class_token:
        raise VPromptError(
            f"The criterion 'cls-similarity' needs a class token among the prompts' tokens, and {info.name} has none "
            "there; use 'taylor'."
        )
