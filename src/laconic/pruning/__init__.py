"""E²VPT's pruning: token and segment masks, a search for how much to prune, rewinding (arXiv 2307.13770)."""

from laconic.pruning.choices import SHARES, Choice, Trial
from laconic.pruning.importance import Cut, Importance, cut, importance, pruned
from laconic.pruning.prune import prune
from laconic.pruning.search import Pruned
from laconic.pruning.settings import PruneSettings

__all__ = [
    "SHARES",
    "Choice",
    "Cut",
    "Importance",
    "PruneSettings",
    "Pruned",
    "Trial",
    "cut",
    "importance",
    "prune",
    "pruned",
]
