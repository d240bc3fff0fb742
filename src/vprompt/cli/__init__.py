"""The command `vprompt`: parses, calls, prints."""

from vprompt.cli.main import main

__all__ = ["main"]
