"""Models as files that other runtimes take, and back."""

from laconic.exporting.about import About
from laconic.exporting.exported import Exported, load_exported
from laconic.exporting.job import Int8, export

__all__ = ["About", "Exported", "Int8", "export", "load_exported"]
