"""Modules that methods are made of: prompts, token blocks, prefixes, tuned parameters, heads."""
