"""Bank of adapters: many of them, by name, over one backbone."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.factory import as_timm, create_backbone
from vprompt.backbones.info import describe
from vprompt.backbones.names import BackbonePrecision
from vprompt.backbones.quantise import original_fingerprint, precision_held, quantise, shared_key
from vprompt.data.preprocessing import Preprocessing
from vprompt.methods.layers.inject import ConstantPrefix
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.serving.bank.routing import route
from vprompt.serving.bank.view import MixedView
from vprompt.tasks.base import Target
from vprompt.training.loader import check_images
from vprompt.utils.errors import AdapterError, DataError, UnknownAdapterError, VPromptError
from vprompt.utils.serialization import brief, show


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Description of an adapter in a bank.

    Args:
        name: What it is asked by.
        classes: Names of its classes, where it knows them.
        num_classes: How many logits it gives.
        preprocessing: Size, resizing and normalisation of its images.
        method: Name of its method.
        prompt_counts: Prompts by block.
        nbytes: Its memory in bytes, beside the backbone.
        source: Folder or Hub id; None for a model that was given.
        target: What it says of an image.
    """

    name: str
    classes: tuple[str, ...] | None
    num_classes: int
    preprocessing: Preprocessing
    method: str
    prompt_counts: tuple[int, ...]
    nbytes: int
    source: str | None
    target: Target

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class Held:
    """An adapter as a bank holds it."""

    entry: Entry


@dataclass(frozen=True, kw_only=True)
class _Adapter(Held):
    """An adapter as it is run: by its prefixes and head in the common pass, or by a model of its own."""

    head: nn.Module
    prefixes: tuple[KeyValue | None, ...]
    model: nn.Module | None


class Bank:
    """Many adapters over one backbone, mixed in one batch.

    Deep prompts, key-value prompts and heads alone (`VPT` deep, `E2VPT`, `Linear`, `MLP`), folded, share one forward
    pass, whatever their counts, blocks and numbers of classes: everything but attention runs on the whole batch, and
    the blocks below an adapter's first prompts are computed once for an image that several ask about. What changes the
    backbone otherwise (shallow prompts, LoRA and the other baselines) runs over the same weights in a pass of its own.

    Adapters may be added and removed while other threads ask: a call goes on with those it began with.

    Args:
        backbone: A timm name, or a timm model, which is frozen and not changed.
        pretrained: With a name: load its weights.
        weights: With a name: file with its weights.
        img_size: With a name: input size in pixels.
        device: Where to run; where the backbone is when not given.
        backbone_precision: How to hold the backbone's linear layers, as `vprompt.attach` takes it.

    Raises:
        BackboneError: If the backbone cannot be made or is not supported.

    Example:
        >>> import timm, vprompt
        >>> backbone = timm.create_model("test_vit", img_size=32)
        >>> bank = Bank(backbone)
        >>> _ = bank.add("birds", vprompt.attach(backbone, vprompt.VPT(4), num_classes=3))
        >>> _ = bank.add("cars", vprompt.attach(backbone, vprompt.VPT(9), num_classes=5))
        >>> [tuple(logits.shape) for logits in bank(torch.zeros(2, 3, 32, 32), ["cars", "birds"])]
        [(5,), (3,)]
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        img_size: int | tuple[int, int] | None = None,
        device: str | torch.device | None = None,
        backbone_precision: BackbonePrecision | None = None,
    ) -> None:
        if isinstance(backbone, str):
            backbone = create_backbone(backbone, pretrained=pretrained, weights=weights, img_size=img_size)
        elif img_size is not None or weights is not None:
            raise VPromptError("img_size and weights go with a backbone's name; a model object has both already.")
        backbone = quantise(as_timm(backbone), backbone_precision)
        self.info = describe(backbone)
        self.backbone = backbone.requires_grad_(False).eval()
        if device is not None:
            self.backbone.to(device)
        self._view = MixedView(self.backbone, self.info)
        # Never changed, only replaced: a call goes on with the one it began with.
        self._adapters: Mapping[str, Held] = {}
        self._changing = threading.Lock()

    @staticmethod
    def load(
        adapters: Mapping[str, str | Path],
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        backbone_precision: BackbonePrecision | None = None,
    ) -> Bank:
        """A bank of saved adapters; the backbone is made as the first of them says.

        Args:
            adapters: Name -> folder or Hub id; at least one.
            weights: File with the backbone's weights; see `vprompt.load`.
            device: Where to run.
            backbone_precision: How to hold the backbone, as `vprompt.load` takes it; the adapters may have been trained
                in others.

        Raises:
            VPromptError: If there is none, or one of them cannot be read or is of another backbone.
        """
        if not adapters:
            raise VPromptError("A bank needs at least one adapter to know its backbone; or give Bank() the backbone.")
        first = load(next(iter(adapters.values())), weights=weights, backbone_precision=backbone_precision)
        bank = Bank(first.backbone, device=device)
        for name, source in adapters.items():
            bank.add(name, source)
        return bank

    def add(self, name: str, adapter: str | Path | PromptedModel, *, replace: bool = False) -> Entry:
        """Takes an adapter in.

        Args:
            name: What it is asked by.
            adapter: Folder, Hub id, or a model, which stays as it is; of the same backbone.
            replace: Take the place of the adapter of that name, if there is one; else the name must be free.

        Raises:
            VPromptError: If the name is taken or empty, or the adapter cannot be read.
            AdapterError: If it is of another backbone.
        """
        if not name:
            raise VPromptError("An adapter in a bank needs a name.")
        added = self._held(name, adapter)  # before the lock is taken: nobody waits for the disk
        with self._changing:
            if not replace:
                self.check_free(name)
            self._adapters = {**self._adapters, name: added}
        return added.entry

    def _held(self, name: str, adapter: str | Path | PromptedModel) -> Held:
        if not isinstance(adapter, PromptedModel):
            there = load(adapter, self.backbone, backbone_precision=precision_held(self.backbone))
            return self._prepare(name, there, str(adapter))
        self._check_backbone(name, adapter)
        return self._prepare(name, adapter, None)

    def remove(self, name: str) -> None:
        """Gives an adapter up; calls that have begun still answer.

        Raises:
            UnknownAdapterError: If there is none of that name.
        """
        with self._changing:
            if name not in self._adapters:
                raise unknown(name, self._adapters)
            self._adapters = {other: adapter for other, adapter in self._adapters.items() if other != name}

    def __repr__(self) -> str:
        names = ", ".join(map(show, list(self)[:5])) + ", ..." * (len(self) > 5)
        return f"Bank({self.info.name}, {len(self)} adapters{': ' * bool(names)}{names})"

    @functools.cached_property
    def key(self) -> tuple[str, tuple[int, int]]:
        """Fingerprint of the backbone's weights, and the height and width of its input: what adapters must share."""
        return _key(self.backbone), self.info.preprocessing.size

    @property
    def entries(self) -> list[Entry]:
        """Descriptions of all adapters, at one moment."""
        return [adapter.entry for adapter in self._adapters.values()]

    def get(self, name: str) -> Entry | None:
        """The description of an adapter, or None where there is none of that name."""
        adapter = self._adapters.get(name)
        return None if adapter is None else adapter.entry

    def __getitem__(self, name: str) -> Entry:
        if (entry := self.get(name)) is None:
            raise unknown(name, self._adapters)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    @torch.inference_mode()
    def __call__(
        self,
        images_BCHW: Tensor,
        adapters: Sequence[str],
        *,
        rows: Sequence[int] | None = None,
        return_exceptions: bool = False,
    ) -> list[Tensor | Exception]:
        """Answers requests, each of them an image and an adapter.

        Args:
            images_BCHW: Normalised images (B, 3, H, W), each as its adapter's `preprocessing` says.
            adapters: The name of the adapter of each request.
            rows: The image of each request; one request for each image, in order, when not given.
            return_exceptions: What is wrong with one adapter alone (an unknown one is an `UnknownAdapterError`) stands
                in its place, and the others are answered.

        Returns:
            The logits (C,) of each request in float32; (C, H, W) where pixels have labels.

        Raises:
            UnknownAdapterError: If an adapter is not there and exceptions are not returned; nothing is computed then.
            DataError: If images, names and rows do not go together.
        """
        known = self._adapters
        self._check_requests(images_BCHW, adapters, rows)
        requests = list(zip(adapters, range(len(adapters)) if rows is None else map(int, rows), strict=True))
        asked: dict[str, list[int]] = {}
        for name, row in dict.fromkeys(requests):
            if name in known:
                asked.setdefault(name, []).append(row)
            elif not return_exceptions:
                raise unknown(name, known)
        answers: dict[tuple[str, int], Tensor | Exception] = {}
        for name, logits in self._logits(images_BCHW, {name: known[name] for name in asked}, asked):
            try:
                answers |= {(name, row): logits_C for row, logits_C in zip(asked[name], logits(), strict=True)}
            except Exception as error:
                if not return_exceptions:
                    raise
                answers |= {(name, row): error for row in asked[name]}
        return [answers[name, row] if name in known else unknown(name, known) for name, row in requests]

    def _logits(
        self, images_BCHW: Tensor, adapters: Mapping[str, Any], asked: Mapping[str, list[int]]
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """What computes the logits (N, C) of each adapter, of the images it was asked about."""
        like = next(self.backbone.parameters())
        images_BCHW = images_BCHW.to(like.device, like.dtype)
        together = [name for name, adapter in adapters.items() if adapter.model is None]
        if together:
            prefixes = [adapters[name].prefixes for name in together]
            way = route(
                [asked[name] for name in together],
                [[prefix is not None for prefix in blocks] for blocks in prefixes],
                shared=self._view.shares,
            )
            features_RF = self._view.features(images_BCHW, way, prefixes)
            for name, rows in zip(together, way.rows, strict=True):
                yield name, lambda name=name, rows=rows: adapters[name].head(features_RF[list(rows)]).float()
        for name, adapter in adapters.items():
            if (model := adapter.model) is not None:
                yield name, lambda model=model, name=name: model(images_BCHW[asked[name]]).float()

    @torch.no_grad()
    def _prepare(self, name: str, model: PromptedModel, source: str | None) -> _Adapter:
        together = _shares_a_pass(model)
        # Merging low-rank updates would need the weights once more for every adapter.
        own = model.fold() if together or not model.method.merges_weights else model.copy().eval()
        prefixes = cast("nn.ModuleList", own.prefixes) if together else nn.ModuleList()
        parts = nn.ModuleList([own.head, prefixes]) if together else own
        like = next(self.backbone.parameters())
        parts.to(like.device, like.dtype)
        shared = {id(tensor) for tensor in (*self.backbone.parameters(), *self.backbone.buffers())}
        tensors = [tensor for tensor in (*parts.parameters(), *parts.buffers()) if id(tensor) not in shared]
        entry = Entry(
            name=name,
            classes=model.classes,
            num_classes=model.head.out_features,
            preprocessing=model.preprocessing,
            method=model.method.name,
            prompt_counts=tuple(model.prompt_counts),
            nbytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            source=source,
            target=model.target,
        )
        return _Adapter(
            entry=entry,
            head=own.head,
            prefixes=tuple(cast("ConstantPrefix", prefix).constant() for prefix in prefixes),
            model=None if together else own,
        )

    def check_free(self, name: str) -> None:
        """Refuses a name that is taken, by a `VPromptError`."""
        if name in self._adapters:
            raise VPromptError(f"The bank holds an adapter called {name!r} already; remove it first.")

    def _check_backbone(self, name: str, model: PromptedModel) -> None:
        if model.backbone is self.backbone:
            return
        if not _shares_a_pass(model):
            raise AdapterError(
                f"The model for {name!r} has a backbone object of its own; attach it to the bank's (bank.backbone), or "
                "save it and add the folder."
            )
        (ours, size), theirs = self.key, _key(model.backbone)
        if ours != theirs or describe(model.backbone).preprocessing.size != size:
            raise AdapterError(
                f"The model for {name!r} is over another backbone ({model.info.name}, weights {theirs}) than the "
                f"bank's ({self.info.name}, weights {ours})."
            )

    def _check_requests(self, images_BCHW: Tensor, adapters: Sequence[str], rows: Sequence[int] | None) -> None:
        if isinstance(adapters, str):
            raise DataError("Give the name of an adapter for every request, not one name.")
        asked = len(images_BCHW) if rows is None else len(rows)
        if asked != len(adapters):
            kind = "images" if rows is None else "rows"
            raise DataError(f"There are {len(adapters)} adapters for {asked} {kind}; each request needs one of both.")
        dense = all(self._adapters[name].entry.target.dense for name in adapters if name in self._adapters)
        check_images(images_BCHW, self.info.preprocessing.shape, any_size=self.info.any_size or dense)
        wrong = next((row for row in rows or () if not 0 <= row < len(images_BCHW)), None)
        if wrong is not None:
            raise DataError(f"A request asks about image {wrong}; there are {len(images_BCHW)}, numbered from 0.")


def unknown(name: str, adapters: Collection[str]) -> UnknownAdapterError:
    """What is said of a name that no adapter has."""
    known = ", ".join(map(repr, list(adapters)[:10])) + (", ..." if len(adapters) > 10 else "")
    return UnknownAdapterError(f"There is no adapter called {name[:100]!r} in the bank; there is {known or 'none'}.")


def _shares_a_pass(model: PromptedModel) -> bool:
    """Whether a model differs from others by prefixes and a head on pooled features alone."""
    method = model.method
    return not method.tunes_backbone and method.riding != "tokens" and not model.target.dense


def _key(backbone: nn.Module) -> str:
    return shared_key(original_fingerprint(backbone), precision_held(backbone))
