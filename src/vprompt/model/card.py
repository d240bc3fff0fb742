"""The model card of an adapter: what it is, how to load it, what it expects; safe for any text from data."""

from __future__ import annotations

import json
import os

from vprompt.data.preprocessing import WHITE
from vprompt.model.config import AdapterConfig
from vprompt.utils.text import escape


def card(config: AdapterConfig, *, base_model: str, known_to_timm: bool, learned: int) -> str:
    """The text of README.md: YAML front matter, then Markdown.

    Args:
        config: What the adapter is.
        base_model: The backbone's id on the Hub, or its name.
        known_to_timm: Whether the backbone can be made by name.
        learned: How many numbers were learned.

    Example:
        >>> escape("<b>_ant_ | bee</b>")
        '&lt;b&gt;\\\\_ant\\\\_ \\\\| bee&lt;/b&gt;'
    """
    prompted = config.method.riding != "nothing"
    tags = ["vprompt", *["visual-prompt-tuning"] * prompted, "vision-transformer", config.method.name]
    front = [
        "---",
        "library_name: vprompt",
        "pipeline_tag: image-classification",
        f"base_model: {_quoted(base_model)}",
        f"tags: [{', '.join(map(_quoted, tags))}]",
        "---",
    ]
    parts = ["\n".join(front), "# " + escape(_title(config)), _loading(config, known_to_timm)]
    parts += [_facts(config, learned), *[_blocks(config)] * prompted]
    return "\n\n".join([*parts, _images(config), _classes(config)]) + "\n"


def _title(config: AdapterConfig) -> str:
    if config.method.riding == "nothing":
        return f"{config.method.name} for {config.backbone.name}"
    number = sum(config.prompt_counts)
    return f"{number} prompt{'s' * (number != 1)} for {config.backbone.name}"


def _loading(config: AdapterConfig, known_to_timm: bool) -> str:
    argument = note = ""
    if not known_to_timm:
        argument, note = ", backbone=model", "\n\n`model` is the timm model that the adapter was trained on."
    elif config.backbone.weights is not None:
        argument = f", weights={_quoted(os.path.basename(config.backbone.weights))}"
        note = "\n\n`weights` is the file with the weights of the backbone that the adapter was trained on."
    lines = ["import vprompt", "", f'model = vprompt.load("path/to/this/folder"{argument})  # or the id on the Hub']
    return "## Loading\n\n```python\n" + "\n".join(lines) + "\n```" + note


def _facts(config: AdapterConfig, learned: int) -> str:
    height, width = config.backbone.img_size
    prompts = sum(count * width for count, width in zip(config.prompt_counts, config.widths, strict=True))
    numbers = f" ({prompts:,} numbers)" if config.num_segments == 1 else ""
    rows = [
        ("Method", escape(f"{config.method.name}, {config.method.summary()}")),
        ("Backbone", f"{escape(config.backbone.name)}, {height} × {width} pixels"),
        ("Fingerprint of its weights", f"`{config.backbone.fingerprint}`"),
        *[("Prompts", f"{sum(config.prompt_counts)}{numbers}")] * (prompts > 0),
        ("Learned", f"{learned:,} numbers in all"),
        ("Classes", str(config.num_classes)),
    ]
    if record := config.condensation:
        were = sum(map(len, record.scores))
        words = f"{were} prompts to {sum(map(len, record.kept))}, by {record.criterion}, {record.scope}"
        words += ", the others merged into them" * record.merge
        rows.append(("Condensed", escape(words)))
    if pruning := config.pruning:
        words = f"{100 * pruning.tokens:.0f} % of the prompts, then {100 * pruning.segments:.0f} % of the segments"
        again = "" if pruning.rewind_epoch is None else f"; trained again from epoch {pruning.rewind_epoch}"
        rows.append(("Pruned", words + again))
    return "## What it is\n\n" + _table(["", ""], [list(row) for row in rows])


def _blocks(config: AdapterConfig) -> str:
    head = ["Block", *map(str, range(len(config.prompt_counts)))]
    return _table(head, [["Prompts", *map(str, config.prompt_counts)]])


def _images(config: AdapterConfig) -> str:
    preprocessing = config.preprocessing
    rows = [
        ["Size", f"{preprocessing.size[0]} × {preprocessing.size[1]} pixels"],
        ["Resizing", escape(f"{preprocessing.resize}, {preprocessing.interpolation}")],
        ["Mean", ", ".join(f"{value:g}" for value in preprocessing.mean)],
        ["Standard deviation", ", ".join(f"{value:g}" for value in preprocessing.std)],
        *[["White in images of 16 bits", str(preprocessing.white)]] * (preprocessing.white != WHITE),
    ]
    return "## Images\n\n" + _table(["", ""], rows)


def _classes(config: AdapterConfig) -> str:
    if config.classes is None:
        return f"## Classes\n\n{config.num_classes} classes without names."
    return "## Classes\n\n" + _table(["", "Name"], [[str(n), escape(name)] for n, name in enumerate(config.classes)])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _quoted(text: str) -> str:
    return json.dumps(text)
