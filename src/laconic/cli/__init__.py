"""The command `laconic`: parses, calls, prints."""

from laconic.cli.main import main

__all__ = ["main"]
