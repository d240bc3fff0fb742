"""Models as files that other runtimes take, and back."""

from vprompt.exporters.export import Int8, export
from vprompt.exporters.exported import Exported, load_exported
from vprompt.exporters.metadata import About

__all__ = ["About", "Exported", "Int8", "export", "load_exported"]
