"""Prompts as keys and values.

A deep prompt's output is discarded by VPT, so it acts on the network only as a key and a value (the exact shortcut).
The maths is in `attend`; beside it stands one small adapter for each attention class of timm. An adapter knows how its
class projects tokens and what it knows of positions; it knows no method.
"""
