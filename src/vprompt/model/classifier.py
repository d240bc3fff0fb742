"""The interface of a classifier: the facts that prediction and evaluation ask of a model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import nn

from vprompt.data.preprocessing import Preprocessing
from vprompt.model.predict import Pictures, Predictions, predict
from vprompt.tasks.base import Target


class Classifier(nn.Module):
    """Called with normalised images (B, 3, H, W), gives logits (B, C).

    Attributes:
        classes: Names of the classes, in the order of the logits, or None.
        target: What it says of an image: one of the classes, tags, numbers.
        preprocessing: Preprocessing of images.
    """

    classes: tuple[str, ...] | None
    target: Target
    preprocessing: Preprocessing

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.target.names)

    @property
    def device(self) -> torch.device:
        """Device of the model, and so of its images."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    @abstractmethod
    def any_size(self) -> bool:
        """True where images of other sizes than that of `preprocessing` are taken as they come."""

    @property
    def as_read(self) -> Preprocessing:
        """How images are read: as the model sees them, or in their own size where pixels have labels."""
        return replace(self.preprocessing, resize="keep") if self.target.dense else self.preprocessing

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        return f"{type(self).__name__}({self.target.size}, images of {height}×{width} pixels)"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; those without names are called by their numbers."""
        return self.target.names

    def predict(self, images: Pictures, *, batch_size: int = 32) -> Predictions:
        """Classes and probabilities of images as they come; they are prepared as the model wants them.

        Args:
            images: A file, a folder, a PIL image, a uint8 array (H, W, 3), or a list of those; see
                `vprompt.model.predict.Pictures`.
            batch_size: Images per forward pass.

        Raises:
            DataError: If an image cannot be read.

        Example:
            >>> import numpy as np, timm, vprompt
            >>> model = vprompt.attach(timm.create_model("test_vit"), vprompt.VPT(2), classes=["ant", "bee"])
            >>> model.predict(np.zeros((50, 40, 3), np.uint8)).class_names
            ('ant',)
        """
        return predict(self, images, batch_size=batch_size)
