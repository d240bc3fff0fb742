"""Prompt Condensation: score prompts, keep the best, fine-tune them (arXiv 2305.17223)."""

from laconic.condensation.condense import condense, fine_tuning_recipe
from laconic.condensation.merge import check_merge, merge
from laconic.condensation.score import score
from laconic.condensation.select import select, select_segments
from laconic.criteria import CRITERIA, SCOPES, Criterion, Scope, check_criterion

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Criterion",
    "Scope",
    "check_criterion",
    "check_merge",
    "condense",
    "fine_tuning_recipe",
    "merge",
    "score",
    "select",
    "select_segments",
]
