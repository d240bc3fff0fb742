"""Preparing the tasks of VTAB-1k and FGVC from the original archives, without a network."""

from laconic.data.prepare.job import Prepared, prepare
from laconic.data.prepare.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Prepared", "Recipe", "prepare"]
