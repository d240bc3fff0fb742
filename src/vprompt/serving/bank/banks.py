"""Banks of several backbones, or of several input sizes of one, under one set of names."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vprompt.backbones.names import BackbonePrecision
from vprompt.backbones.quantise import shared_key
from vprompt.exporters.engine import read_adapter
from vprompt.model.load import backbone_of, load
from vprompt.serving.bank.bank import Bank, Entry, unknown
from vprompt.utils.errors import AdapterError, UnknownAdapterError, VPromptError
from vprompt.utils.text import printable


class Banks:
    """Adapters by name, each in the bank of its backbone and input size; banks come and go with their adapters.

    Args:
        *banks: What there is at first.
        weights: File with a backbone's weights, for adapters that were trained with it.
        device: Where new banks run.
        backbone_precision: How new banks hold their backbones, as `vprompt.load` takes it.

    Example:
        >>> import timm, vprompt
        >>> banks = Banks(Bank(timm.create_model("test_vit", img_size=32)))
        >>> banks.get("birds"), len(banks)
        (None, 0)
    """

    def __init__(
        self,
        *banks: Bank,
        weights: str | Path | None = None,
        device: torch.device | None = None,
        backbone_precision: BackbonePrecision | None = None,
    ) -> None:
        self.banks = self._given = banks
        self._weights = weights
        self._device = device
        self._precision: BackbonePrecision | None = backbone_precision
        self._changing = threading.Lock()

    @property
    def entries(self) -> list[Entry]:
        """Descriptions of all adapters."""
        return [entry for bank in self.banks for entry in bank.entries]

    def get(self, name: str) -> Entry | None:
        """The description of an adapter, or None where there is none of that name."""
        return next((entry for bank in self.banks if (entry := bank.get(name)) is not None), None)

    def __getitem__(self, name: str) -> Entry:
        if (entry := self.get(name)) is None:
            raise self._unknown(name)
        return entry

    def __len__(self) -> int:
        return sum(map(len, self.banks))

    def __contains__(self, name: object) -> bool:
        return any(name in bank for bank in self.banks)

    def add(self, name: str, source: str | Path, *, replace: bool = False, known: bool = False) -> Entry:
        """Takes an adapter in, from a folder or the Hub; its backbone is made where no bank has it.

        Args:
            name: What it is asked by.
            source: Folder or Hub id.
            replace: Take the place of the adapter of that name, if there is one, at once.
            known: Refuse an adapter whose backbone no bank has.

        Raises:
            VPromptError: If the name is taken, or the adapter or its backbone cannot be read; nothing changes then.
        """
        with self._changing:
            wanted = _key(source, self._precision)
            before = self._holding(name)
            bank = self._bank(wanted)
            if bank is None and os.path.isfile(source):
                raise AdapterError(
                    f"{printable(str(source))} is an adapter for an engine of another backbone than there is here; "
                    "start the service with its engine: --engine ENGINE."
                )
            if bank is None and known:
                sizes = ", ".join(f"{bank.info.name} of {bank.key[1]} pixels" for bank in self.banks)
                raise AdapterError(f"{printable(str(source))} is of another backbone than those there are: {sizes}.")
            if bank is None:
                made = Bank(self._backbone(source), device=self._device)
                bank = self._bank(made.key) or made  # its weights may be known by another fingerprint
            if before is not None and not replace:
                before.check_free(name)
            entry = bank.add(name, source, replace=replace)
            if bank not in self.banks:
                self.banks = (bank, *self.banks)  # found before the one that it takes the place of
            if before is not None and before is not bank:
                self._remove(name, before)
        return entry

    def remove(self, name: str) -> None:
        """Gives an adapter up; calls that have begun still answer.

        Raises:
            UnknownAdapterError: If there is none of that name.
        """
        with self._changing:
            self._remove(name, self._holding(name))

    def __call__(self, images: Sequence[Tensor], adapters: Sequence[str]) -> list[Tensor | Exception]:
        """Answers requests, each of them an image and an adapter, in one pass for each backbone and size of images.

        Args:
            images: Normalised images (3, H, W), one for each request; the same object is computed once.
            adapters: The name of the adapter of each request.

        Returns:
            Logits (C,), or why there are none, in order.
        """
        answers: dict[int, Tensor | Exception] = {}
        groups: dict[tuple[Bank, torch.Size], list[int]] = {}
        for number, (image, name) in enumerate(zip(images, adapters, strict=True)):
            if (bank := self._holding(name)) is None:
                answers[number] = self._unknown(name)
            else:
                groups.setdefault((bank, image.shape), []).append(number)
        for (bank, _), numbers in groups.items():
            distinct = {id(images[number]): images[number] for number in numbers}
            row = {key: row for row, key in enumerate(distinct)}
            logits = bank(
                torch.stack([*distinct.values()]),
                [adapters[number] for number in numbers],
                rows=[row[id(images[number])] for number in numbers],
                return_exceptions=True,
            )
            answers |= zip(numbers, logits, strict=True)
        return [answers[number] for number in range(len(adapters))]

    def _holding(self, name: str) -> Bank | None:
        return next((bank for bank in self.banks if name in bank), None)

    def _bank(self, key: tuple[str, tuple[int, int]]) -> Bank | None:
        return next((bank for bank in self.banks if bank.key == key), None)

    def _backbone(self, source: str | Path) -> torch.nn.Module:
        """The backbone of an adapter; the file of weights may be for others."""
        try:
            return load(source, weights=self._weights, backbone_precision=self._precision).backbone
        except VPromptError:
            with contextlib.suppress(VPromptError):
                return load(source, backbone_precision=self._precision).backbone
            raise

    def _remove(self, name: str, bank: Bank | None) -> None:
        if bank is None:
            raise self._unknown(name)
        bank.remove(name)
        if not len(bank) and len(self.banks) > 1 and bank not in self._given:
            self.banks = tuple(other for other in self.banks if other is not bank)

    def _unknown(self, name: str) -> UnknownAdapterError:
        return unknown(name, [entry.name for entry in self.entries])


def _key(source: str | Path, precision: BackbonePrecision | None) -> tuple[str, tuple[int, int]]:
    """`Bank.key` of the bank for an adapter: a folder, a Hub id, or a file for an engine."""
    if os.path.isfile(source):
        about = read_adapter(source).about
        return about.fingerprint, about.preprocessing.size
    wanted = backbone_of(source)
    return shared_key(wanted.fingerprint, precision or wanted.precision), wanted.img_size
