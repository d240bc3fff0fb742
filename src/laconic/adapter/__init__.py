"""Adapters on disk and on the Hub: prompts and head, and what they were trained on."""

from laconic.adapter.adapter import load, push_adapter, save_adapter
from laconic.adapter.config import FORMAT_VERSION

__all__ = ["FORMAT_VERSION", "load", "push_adapter", "save_adapter"]
