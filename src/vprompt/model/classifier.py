"""What predictions and evaluations need to know of a model, whatever runs it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from vprompt.data.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Called with normalised images (B, 3, H, W), gives logits (B, C).

    Attributes:
        classes: Names of the classes, in the order of the logits, or None.
        preprocessing: What images must look like.
    """

    classes: tuple[str, ...] | None
    preprocessing: Preprocessing

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many logits there are."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where images go."""

    @property
    @abstractmethod
    def any_size(self) -> bool:
        """Whether it takes images of other sizes than that of `preprocessing` as they come."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; those without names are called by their numbers."""
        return self.classes or tuple(str(number) for number in range(self.num_classes))
