"""Examples of docs/extending.md as plugins: files outside the package, which nothing in it knows."""

import os
import re
from contextlib import contextmanager
from pathlib import Path

from vprompt.utils.registry import PLUGINS, load_plugin

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def example(title):
    """The first block of code in a section."""
    return re.search(rf"## {title}\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[1]


@contextmanager
def plugged(path, code):
    """Inside, the code is a plugin of this process and of those that it starts; the file's path.

    Where that may happen twice in a process it is to be one path: a file is loaded once, and two would be two plugins.
    """
    path.write_text(code)
    before = os.environ.get(PLUGINS)
    os.environ[PLUGINS] = str(path)
    try:
        load_plugin(str(path))
        yield path
    finally:
        os.environ.pop(PLUGINS)
        if before is not None:
            os.environ[PLUGINS] = before
