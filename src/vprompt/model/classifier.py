"""The interface of a classifier: the facts that prediction and evaluation ask of a model."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from vprompt.data.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Called with normalised images (B, 3, H, W), gives logits (B, C).

    Attributes:
        classes: Names of the classes, in the order of the logits, or None.
        preprocessing: Preprocessing of images.
    """

    classes: tuple[str, ...] | None
    preprocessing: Preprocessing

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of logits."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the model, and so of its images."""

    @property
    @abstractmethod
    def any_size(self) -> bool:
        """True where images of other sizes than that of `preprocessing` are taken as they come."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; those without names are called by their numbers."""
        return self.classes or tuple(str(number) for number in range(self.num_classes))
