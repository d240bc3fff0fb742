"""The model card of an adapter: what it is, how to load it, what it expects; safe for any text from data."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from vprompt.data.preprocessing import WHITE
from vprompt.model.config import AdapterConfig
from vprompt.utils.text import escape

TEMPLATE = Path(__file__).with_name("card.md")


def card(config: AdapterConfig, *, base_model: str, known_to_timm: bool, learned: int) -> str:
    """The text of README.md: YAML front matter, then Markdown.

    Args:
        config: What the adapter is.
        base_model: The backbone's id on the Hub, or its name.
        known_to_timm: Whether the backbone can be made by name.
        learned: How many numbers were learned.

    Example:
        >>> escape("<b>_ant_ | bee</b>")
        '&#60;b&#62;\\\\_ant\\\\_ \\\\| bee&#60;/b&#62;'
    """
    return _template().render(
        config=config,
        base_model=base_model,
        known_to_timm=known_to_timm,
        learned=learned,
        prompted=config.method.riding != "nothing",
        numbers=sum(count * width for count, width in zip(config.prompt_counts, config.widths, strict=True)),
        white=WHITE,
    )


@functools.cache
def _template() -> Template:
    pages = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    pages.filters |= {"escape": escape, "quoted": json.dumps, "basename": os.path.basename}
    return pages.from_string(TEMPLATE.read_text(encoding="utf-8"))
