"""The law that the growth of a rank follows: a logarithm, or a straight line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vprompt.utils.errors import VPromptError

Verdict = Literal["logarithmic", "linear", "neither", "none", "open"]
"""See `fit_law`."""

GOOD = 0.9
"""The R² from which on a law is said to fit."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """Two laws fitted to the growth of a rank, each with one constant; R² is None where the growth is constant.

    Args:
        verdict: See `fit_law`.
        tokens: n.
        log_slope: C of C · (log(n + m) - log n), natural logarithms.
        log_r2: Share of the variance of the growth that it explains; below 0 if the mean alone does better.
        linear_slope: C of C · m.
        linear_r2: The same of it.
        likeness: R² of a straight line fitted to an exact logarithm at these numbers of prompts; next to 1 they can
            hardly be told apart.
    """

    verdict: Verdict
    tokens: float
    log_slope: float | None
    log_r2: float | None
    linear_slope: float | None
    linear_r2: float | None
    likeness: float | None


def fit_law(prompts: Sequence[float], ranks: Sequence[float], tokens: float) -> Law:
    """Fits the logarithmic law of growth, and a straight line as its rival, by least squares through the origin.

    What is fitted is the growth rank(n + m) - rank(n): on log(n + m) - log n, and on m.

    Proposition 1 says that the growth is O(log(n + m) - log n). As an upper bound up to a constant it excludes nothing
    that can be measured: over a finite range of m any growth lies below a logarithm times some constant. (And it bounds
    the rank of an approximation whose existence needs rank log n / ε², which at n = 197 and ε = 0.1 is already more
    than n.) What can fail is how the paper reads it: that the rank follows a logarithm, so that each further prompt
    adds less. The verdict is about that:

    - `logarithmic`: its R² is at least 0.9, and not below that of the straight line.
    - `linear`: the straight line's R² is at least 0.9, and above the logarithm's.
    - `neither`: both are below 0.9.
    - `none`: the rank grows at no number of prompts, so that there is no law to find and any bound holds.
    - `open`: fewer than three numbers of prompts above 0 are too few to tell.

    Args:
        prompts: m, with 0 among them.
        ranks: Of the attention matrix with so many prompts, usually means.
        tokens: n.

    Raises:
        VPromptError: If the numbers do not belong together, or 0 prompts are not among them.

    Example:
        >>> law = fit_law([0, 10, 20, 40], [5.0, 5 + math.log(2), 5 + math.log(3), 5 + math.log(5)], tokens=10)
        >>> law.verdict, round(law.log_slope, 6), round(law.log_r2, 6)
        ('logarithmic', 1.0, 1.0)

    Source: Prompt Condensation (arXiv 2305.17223), Proposition 1.
    """
    if len(prompts) != len(ranks):
        raise VPromptError(f"There are {len(prompts)} numbers of prompts for {len(ranks)} ranks.")
    if not all(map(math.isfinite, [*prompts, *ranks, tokens])) or tokens <= 0 or min(prompts, default=0) < 0:
        raise VPromptError("Numbers of prompts, ranks and tokens must be finite, and none of them below 0.")
    bare = [rank for count, rank in zip(prompts, ranks, strict=True) if count == 0]
    if not bare:
        raise VPromptError("The growth of the rank needs the rank without prompts; 0 is not among their numbers.")
    start = sum(bare) / len(bare)
    pairs = [(float(count), rank - start) for count, rank in zip(prompts, ranks, strict=True) if count]
    straight, growth = [count for count, _ in pairs], [grown for _, grown in pairs]
    bent = [math.log1p(count / tokens) for count in straight]
    log_slope, log_r2 = _through_origin(bent, growth)
    linear_slope, linear_r2 = _through_origin(straight, growth)
    return Law(
        verdict=_verdict(len(set(straight)), growth, log_r2, linear_r2),
        tokens=tokens,
        log_slope=log_slope,
        log_r2=log_r2,
        linear_slope=linear_slope,
        linear_r2=linear_r2,
        likeness=_through_origin(straight, bent)[1],
    )


def _through_origin(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """Slope and R² of the line through the origin; None where they mean nothing."""
    if not x:
        return None, None
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    mean = statistics.fmean(y)
    varies = sum((b - mean) ** 2 for b in y)
    left = sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    # Of numbers that are equal but for rounding there is no variance to explain.
    return slope, 1 - left / varies if varies > 1e-12 * sum(b * b for b in y) else None


def _verdict(counts: int, growth: Sequence[float], log_r2: float | None, linear_r2: float | None) -> Verdict:
    if counts < 3:
        return "open"
    if max(growth) <= 0:
        return "none"
    bent, straight = (-math.inf if r2 is None else r2 for r2 in (log_r2, linear_r2))
    if max(bent, straight) < GOOD:
        return "neither"
    return "logarithmic" if bent >= straight else "linear"
