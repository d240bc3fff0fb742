"""Prompts as keys and values.

A deep prompt's output is discarded by VPT, so it acts on the network only as a key and a value (the exact shortcut).
The maths is in `functional`; every other file has the attention wrappers of a few attention classes. A wrapper knows
how its class projects tokens and what it knows of positions; it knows no prompt method.
"""
