"""Prompt Condensation: score prompts, keep the best, fine-tune them (arXiv 2305.17223)."""

from laconic.condensation.condense import condense, fine_tuning_recipe
from laconic.condensation.score import CRITERIA, Criterion, check_criterion, score
from laconic.condensation.select import SCOPES, Scope, select, select_segments

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Criterion",
    "Scope",
    "check_criterion",
    "condense",
    "fine_tuning_recipe",
    "score",
    "select",
    "select_segments",
]
