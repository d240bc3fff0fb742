"""An engine with adapters: a bank whose backbone is a file of another runtime."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vprompt.exporters.engine import EngineAdapter, open_engine, packed, read_adapter
from vprompt.model.classifier import Classifier
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.serving.bank.bank import Bank, Entry, Held

if TYPE_CHECKING:
    from vprompt.backbones.info import BackboneInfo


@dataclass(frozen=True, kw_only=True)
class _Ready(Held):
    adapter: EngineAdapter


class Engine(Bank):
    """Many adapters over one engine, mixed in one batch; asked as a `Bank` is.

    Adapters are added and removed while it runs, and nothing is compiled again. One takes the memory of its file.

    Args:
        path: What `vprompt.export_engine` or `vprompt export --engine` wrote.
        trust: As for `vprompt.load_exported`.

    Raises:
        VPromptError: If it is no engine, or cannot be run.

    Example:
        >>> engine = Engine("vit.onnx")  # doctest: +SKIP
        >>> _ = engine.add("birds", "birds.safetensors"), engine.add("pets", "pets.safetensors")  # doctest: +SKIP
        >>> [tuple(logits.shape) for logits in engine(images, ["pets", "birds"])]  # doctest: +SKIP
        [(37,), (200,)]
    """

    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        self.file = open_engine(path, trust=trust)
        about = self.file.about
        facts = SimpleNamespace(name=about.backbone, preprocessing=about.preprocessing, any_size=False)
        self.info = cast("BackboneInfo", facts)  # all that is asked of it without the backbone itself
        self._adapters: Mapping[str, Held] = {}
        self._changing = threading.Lock()

    @functools.cached_property
    def key(self) -> tuple[str, tuple[int, int]]:
        """Fingerprint of the backbone's weights, and the height and width of its input: what adapters must share."""
        return self.file.about.fingerprint, self.info.preprocessing.size

    def classifier(self, name: str) -> Classifier:
        """One adapter, to predict and to evaluate with."""
        self[name]  # or the error that names those there are
        return self.file.classifier(cast("_Ready", self._adapters[name]).adapter)

    def _held(self, name: str, adapter: str | Path | PromptedModel) -> Held:
        """From the file of an adapter; one that was saved, or a model, is folded here."""
        source = None if isinstance(adapter, PromptedModel) else str(adapter)
        if isinstance(adapter, PromptedModel):
            ready = packed(adapter, name)
        elif os.path.isdir(adapter):  # its backbone is needed, as it was before it was quantised
            ready = packed(load(adapter, backbone_precision="fp32"), name)
        else:
            ready = read_adapter(adapter)
        about = self.file.check(ready, name).about
        shared = ("classes", "num_classes", "preprocessing", "method", "prompt_counts")
        facts: dict[str, Any] = {fact: getattr(about, fact) for fact in shared}
        entry = Entry(name=name, nbytes=ready.nbytes, source=source, target=about.made_target, **facts)
        return _Ready(entry=entry, adapter=ready)

    def _logits(
        self, images_BCHW: Tensor, adapters: Mapping[str, Any], asked: Mapping[str, list[int]]
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        order = [(name, row) for name, rows in asked.items() for row in rows]
        if not order:
            return
        rows, held = [row for _, row in order], [adapters[name].adapter for name, _ in order]
        each = iter(self.file(images_BCHW[rows], held)[1])
        for name, rows in asked.items():
            mine = [next(each) for _ in rows]
            yield name, lambda mine=mine: torch.stack(mine)

    def __repr__(self) -> str:
        return f"Engine({self.file.path.name}, {len(self)} adapters)"
