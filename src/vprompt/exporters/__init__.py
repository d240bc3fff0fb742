"""Models as files that other runtimes take, and back: `vprompt.export` and `vprompt.load_exported`."""
