"""Preparing the tasks of VTAB-1k and FGVC from the original archives, without a network."""

from vprompt.data.prepare.prepare import Prepared, prepare
from vprompt.data.prepare.registry import RECIPES, Recipe

__all__ = ["RECIPES", "Prepared", "Recipe", "prepare"]
