"""Preparing the tasks of VTAB-1k and FGVC from the original archives, without a network."""
