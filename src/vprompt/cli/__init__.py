"""The command `vprompt`: parses, calls, prints."""

from vprompt.utils.signals import interrupted_imports

with interrupted_imports():
    from vprompt.cli.main import main

__all__ = ["main"]
