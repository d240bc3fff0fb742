"""The objective of a training: the images that an epoch draws, how they are mixed, and the weights in the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.data.augment import seeded
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.loader import epoch_order
from vprompt.utils.errors import TrainingError


class Objective:
    """The loss of each image as a recipe has it, and the order of the images of an epoch.

    Args:
        model: The model, whose labels these are.
        recipe: Its `balance`, `mixup`, `cutmix` and `label_smoothing`.
        labels: Of all training images, (N,) classes or (N, K) tags; None where they are not needed, see `needs_labels`.

    Raises:
        TrainingError: If the labels are not such as the recipe's options are for.
    """

    def __init__(self, model: PromptedModel, recipe: Recipe, labels: Tensor | None) -> None:
        self.recipe = recipe
        self._weights: Tensor | None = None
        self._log_priors: Tensor | None = None
        if labels is None:
            return
        single = labels.ndim == 1
        if not single and recipe.balance == "logit-adjustment":
            raise TrainingError("Logits are adjusted for classes that exclude each other; take --balance loss.")
        counts = labels.bincount(minlength=model.num_classes) if single else labels.sum(0)
        untagged = labels.new_zeros(1) if single else (labels.sum(1) == 0).sum().view(1)
        # The last one is that of images without tags.
        self._rarities = 1 / torch.cat([counts, untagged]).double().clamp(min=1)
        weights = self._rarity(labels)
        if recipe.balance == "logit-adjustment":
            self._log_priors = (counts.clamp(min=1) / len(labels)).log().float()
        else:
            self._weights = weights
            self._mean = float(weights.mean())

    @staticmethod
    def needs_labels(recipe: Recipe) -> bool:
        """Whether the labels of all training images have to be known."""
        return recipe.balance != "none"

    def order(self, length: int, *, epoch: int) -> Tensor:
        """The images of one epoch (N,): each once, or drawn with replacement so that all classes are as likely."""
        if self.recipe.balance != "sampler" or self._weights is None:
            return epoch_order(length, seed=self.recipe.seed, epoch=epoch)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        return torch.multinomial(self._weights, length, replacement=True, generator=generator)

    def mixed(self, images_BCHW: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """The images, mixed in pairs from the outside in, and the share (B,) of each that is its own.

        Of an odd number the last one stays as it is.
        """
        from timm.data.mixup import Mixup

        even = len(images_BCHW) // 2 * 2
        shares = torch.ones(len(images_BCHW), device=images_BCHW.device)
        if even:
            mix: Any = Mixup(self.recipe.mixup, self.recipe.cutmix, label_smoothing=0.0, num_classes=even)
            with seeded(seed):
                mixed, pairs = mix(images_BCHW[:even].clone(), torch.arange(even, device=images_BCHW.device))
            images_BCHW = torch.cat([mixed, images_BCHW[even:]])
            shares[:even] = pairs.diagonal()
        return images_BCHW, shares

    def losses(self, logits: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
        """The loss of each image, (B,).

        Args:
            logits: (B, K).
            labels: Of the images.
            shares: As of `mixed`.
        """
        losses = self._losses(logits, labels)
        if shares is None:
            return losses
        partner = torch.arange(len(labels), device=labels.device)
        partner[: len(labels) // 2 * 2] = partner[: len(labels) // 2 * 2].flip(0)
        return shares * losses + (1 - shares) * self._losses(logits, labels[partner])

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._log_priors is not None:
            logits = logits + self._log_priors.to(logits.device)
        losses = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        if self.recipe.balance == "loss":
            losses = losses * (self._rarity(labels) / self._mean).to(losses.dtype)
        return losses

    def _rarity(self, labels: Tensor) -> Tensor:
        """One over the number of images of the class of each image, or of its rarest tag."""
        rarities = self._rarities.to(labels.device)
        if labels.ndim == 1:
            return rarities[labels]
        tagged = ((labels > 0) * rarities[:-1]).amax(1)
        return torch.where(tagged > 0, tagged, rarities[-1])
