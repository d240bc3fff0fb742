"""Configuration of an adapter: its fields, and how it is written, read and checked."""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, cast

from vprompt.backbones.names import BackbonePrecision
from vprompt.data.preprocessing import MAX_SIDE, Preprocessing
from vprompt.methods.base import Method
from vprompt.methods.registry import from_config, to_config
from vprompt.model.records import Condensation, Pruning, Recipe
from vprompt.tasks.base import Target, from_document, to_document
from vprompt.utils.errors import AdapterError, VPromptError
from vprompt.utils.io import pretty_json, verified, with_checksum
from vprompt.utils.serialization import Reader, parse, show
from vprompt.utils.text import printable

FORMAT_VERSION = 1
"""Version of the two files' layout; a newer one is refused."""

CHECKSUM = "checksum"
"""Key of the SHA-256 of all others (and so of the tensors, whose own is among them); missing in older files."""

_REDO = "save or download the adapter again"


@dataclass(frozen=True, kw_only=True)
class AdaptedBackbone:
    """The backbone that an adapter was trained on.

    Args:
        name: As `vprompt.backbones.info.describe` gives it.
        fingerprint: As `vprompt.backbones.info.fingerprint` gives it.
        img_size: Height and width of its input in pixels.
        weights: The file that its weights came from, where that is not the one its name stands for; a path, or a
            name without one.
        rounded: Fingerprints of the same weights in types of lower precision; missing in older files.
        precision: How its linear layers were held in training; the fingerprints are those of the weights before.
    """

    name: str
    fingerprint: str
    img_size: tuple[int, int]
    weights: str | None = None
    rounded: tuple[str, ...] = ()
    precision: BackbonePrecision = "fp32"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """All of an adapter but its tensors.

    Args:
        format_version: Version of the files' layout.
        vprompt_version: Version that wrote them.
        method: The method.
        backbone: Its backbone.
        preprocessing: Preprocessing of images.
        classes: Names of the classes, or None.
        num_classes: Number of classes.
        prompt_counts: P_l for every block.
        widths: D_l for every block.
        condensation: Scores and choice of condensing, or None.
        recipe: Recipe of its training, or None.
        tensors_sha256: SHA-256 of the tensors' file, in hex.
        num_segments: R, segments of a prompt, where some are pruned; 1 where prompts are whole.
        pruning: Shares that were pruned, or None.
        merged: Whether prompts were merged, so that the tensors hold their multiplicity.
        target: What the logits say, where that is not one of the classes; without its names, which are the classes.
        plain_prompts: Whether the learned values are the prompts themselves, even if the method computes its prompts
            from such values at first.
    """

    format_version: int
    vprompt_version: str
    method: Method
    backbone: AdaptedBackbone
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    num_classes: int
    prompt_counts: tuple[int, ...]
    widths: tuple[int, ...]
    condensation: Condensation | None
    recipe: Recipe | None
    tensors_sha256: str
    num_segments: int = 1
    pruning: Pruning | None = None
    merged: bool = False
    plain_prompts: bool = False
    target: Target | None = None


def write_config(config: AdapterConfig) -> str:
    """The configuration as JSON text with sorted keys and a checksum, lists of plain values on one line.

    Raises:
        AdapterError: If a value is none that JSON can hold.
    """
    try:
        target = None if config.target is None else to_document(config.target)
        document = {**asdict(config), "method": to_config(config.method), "target": target}
        if config.backbone.precision == "fp32":  # as in earlier versions
            document["backbone"] = {k: v for k, v in asdict(config.backbone).items() if k != "precision"}
        if target is None:  # as in earlier versions
            del document["target"]
        document = with_checksum(parse(pretty_json(document)))
        text = pretty_json(document, sort=True) + "\n"
        if not text.isascii() and re.search("[\ud800-\udfff]", text):  # from names of files that are not UTF-8
            text = pretty_json(document, sort=True, ascii_only=True) + "\n"
    except (TypeError, ValueError) as error:
        raise AdapterError(f"The adapter's configuration cannot be written as JSON: {error}.") from error
    return text


def read_config(text: str | bytes, where: str) -> AdapterConfig:
    """Reads and checks a configuration; keys that it does not know are a warning.

    Args:
        text: JSON.
        where: The file's path, for messages.

    Raises:
        AdapterError: If the text is no JSON object, is of a newer format, lacks a key, or has a value that cannot be.
    """
    reader = _Reader(where)
    document = reader.document(text, FORMAT_VERSION)
    whole = CHECKSUM not in document or verified(document)
    document.pop(CHECKSUM, None)
    if not whole:
        raise AdapterError(
            f"{where} is damaged: what it says is not what was saved; {_REDO}, or remove the line {CHECKSUM!r} if you "
            "changed it on purpose."
        )
    entries = reader.entries(document, AdapterConfig, "")
    if (given := entries.get("target")) is not None:
        entries["target"] = reader.target(given, entries["classes"])
    config = AdapterConfig(**entries)
    _check(config, reader)
    if reader.unknown:
        known = f"this version of vprompt does not know: {printable(', '.join(sorted(reader.unknown)))}"
        warnings.warn(f"{where} has keys that {known}. They are ignored.", stacklevel=3)
    return config


class _Reader(Reader):
    """Of an adapter's configuration."""

    error = AdapterError
    beside = frozenset({"method.name"})
    may_lack = (Recipe, AdaptedBackbone, AdapterConfig, Condensation)  # not all was there at first

    def fail(self, problem: str, else_: str = "") -> NoReturn:
        raise AdapterError(f"In {self.where}, {problem}; {else_}{_REDO}.")

    def value(self, value: Any, hint: Any, at: str) -> Any:
        if hint == Target | None:
            return value  # read when its names are known
        return self.method(value, at) if hint == Method else super().value(value, hint, at)

    def target(self, value: object, classes: tuple[str, ...] | None) -> Target:
        if not isinstance(value, dict) or classes is None:
            self.fail(f"'target' should be an object, beside 'classes', not {show(value)}")
        try:
            return from_document(cast("dict[str, Any]", value), classes)
        except VPromptError as error:
            self.fail(f"the target cannot be made: {str(error).rstrip('.')}", "upgrade vprompt if it is newer, or ")

    def method(self, value: object, at: str) -> Method:
        if not isinstance(value, dict):
            self.fail(f"{at} should be an object, not {show(value)}")
        document = cast("dict[str, Any]", value)
        try:
            method = from_config(document)
        except (VPromptError, TypeError, ValueError) as error:
            problem = f"the method {show(document.get('name'))} cannot be made: {str(error).rstrip('.')}"
            self.fail(problem, "upgrade vprompt if the adapter is newer, or ")
        self.entries(document, type(method), "method")
        if method.name != document.get("name"):
            self.fail(f"'method.name' is {show(document.get('name'))}, but its settings are those of {method.name!r}")
        return method


def _check(config: AdapterConfig, reader: _Reader) -> None:
    """Checks conditions on the values beyond their types."""
    counts, method, size = config.prompt_counts, config.method, config.backbone.img_size
    start, most = method.initial_counts(len(config.widths)), method.most_counts(len(config.widths))
    misplaced = any(count > 0 and not first for count, first in zip(counts, start, strict=False))
    surplus = sum(counts) > sum(start) or any(map(int.__gt__, counts, most))
    checks = [
        (config.num_classes >= 1, f"'num_classes' should be at least 1, not {config.num_classes}"),
        (
            config.classes is None or len(config.classes) == config.num_classes,
            f"there are {len(config.classes or ())} names in 'classes' for {config.num_classes} classes",
        ),
        (len(config.widths) >= 1 and min(config.widths) >= 1, "'widths' should have a number above 0 for every block"),
        (
            len(counts) == len(config.widths) and min(counts, default=0) >= 0,
            f"'prompt_counts' should have a number of at least 0 for each of the {len(config.widths)} blocks",
        ),
        (not (method.riding == "tokens" and config.merged), "'merged' is nothing that shallow prompts can be"),
        (not misplaced, f"'prompt_counts' has prompts in blocks where the method {method.name} has none"),
        (
            not surplus,
            f"'prompt_counts' has more prompts in a block than the {max(most, default=0)} that it may have, or in all",
        ),
        (re.fullmatch("[0-9a-f]{16}", config.backbone.fingerprint), "'backbone.fingerprint' should be 16 hex digits"),
        (re.fullmatch("[0-9a-f]{64}", config.tensors_sha256), "'tensors_sha256' should be 64 hex digits"),
        (0 < min(size) <= max(size) <= MAX_SIDE, f"'backbone.img_size' should be from 1 to {MAX_SIDE} pixels"),
        (_condensation_fits(config), "'condensation' should have a score for each prompt kept, block by block"),
        (_pruning_fits(config), "'pruning' should have shares from 0 to below 1, and an epoch of at least 0 or none"),
        (
            config.num_segments >= 1 and all(width % config.num_segments == 0 for width in config.widths),
            f"'num_segments' should cut prompts into equal parts, which {config.num_segments} does not",
        ),
    ]
    for holds, problem in checks:
        if not holds:
            reader.fail(problem)


def _condensation_fits(config: AdapterConfig) -> bool:
    record = config.condensation
    if record is None:
        return True
    if not len(record.scores) == len(record.kept) == len(config.widths):
        return False
    return all(0 <= i < len(s) for s, kept in zip(record.scores, record.kept, strict=True) for i in kept)


def _pruning_fits(config: AdapterConfig) -> bool:
    record = config.pruning
    if record is None:
        return True
    shares = 0 <= record.tokens < 1 and 0 <= record.segments < 1
    return shares and (record.rewind_epoch is None or record.rewind_epoch >= 0)
