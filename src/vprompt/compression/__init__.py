"""Fewer prompts: scores, selection, condensation (arXiv 2305.17223) and pruning (arXiv 2307.13770)."""
