"""The objective of a training: the images that an epoch draws, how they are mixed, and the weights in the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vprompt.data.augment import seeded
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.loader import ImageLabels, epoch_order, labels_of
from vprompt.utils.errors import DataError, TrainingError


class Objective:
    """The loss of each image as a recipe has it, and the order of the images of an epoch.

    Args:
        model: What is trained.
        data: The images to train on.
        recipe: Its `balance`, `mixup`, `cutmix` and `label_smoothing`.

    Raises:
        DataError: If labels to count are none of the model's target.
        TrainingError: If the model's target is not one that the recipe's options are for.
    """

    def __init__(self, model: PromptedModel, data: ImageLabels, recipe: Recipe) -> None:
        self.recipe, self.target = recipe, model.target
        self._prior: Tensor | None = None
        if self.target.dense and (recipe.balance != "none" or recipe.mixes):
            raise TrainingError(
                "Images whose pixels have labels are not balanced or mixed; leave out --balance, --mixup and --cutmix."
            )
        if recipe.balance == "none" and not recipe.label_smoothing:
            return
        if not self.target.unit or (recipe.balance == "logit-adjustment" and not self.target.grouped):
            raise TrainingError(
                f"The target {self.target.name} has no classes, one for each image, to balance so or to smooth; leave "
                "out --balance and --label-smoothing, or take --balance loss where images have tags."
            )
        if recipe.balance == "none":
            return
        labels = labels_of(data, recipe.batch, recipe.workers)
        if (problem := self.target.check(labels)) is not None:
            raise DataError(problem)
        counts = labels.sum(0) if labels.ndim > 1 else labels.bincount(minlength=len(self.target.names))
        tagged = int((labels > 0).any(1).sum()) if labels.ndim > 1 else len(labels)
        self._rarities = 1 / torch.cat([counts, torch.tensor([len(labels) - tagged])]).double().clamp(min=1)
        self._weights = self._rarity(labels)
        if recipe.balance == "logit-adjustment":
            self._prior = (counts.clamp(min=1) / len(labels)).log().float()

    def order(self, length: int, *, epoch: int) -> Tensor:
        """The images of one epoch (N,): each once, or drawn with replacement so that all classes are as likely."""
        if self.recipe.balance != "sampler":
            return epoch_order(length, seed=self.recipe.seed, epoch=epoch)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        return torch.multinomial(self._weights, length, replacement=True, generator=generator)

    def mixed(self, images_BCHW: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """The images, the first mixed with the last and so on, and the share (B,) of each that is its own.

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
        """The loss of each image, (B,); of images that were mixed, given their shares as of `mixed`."""
        losses = self._losses(logits, labels)
        if shares is None:
            return losses
        even = len(labels) // 2 * 2
        partners = torch.cat([labels[:even].flip(0), labels[even:]])
        return shares * losses + (1 - shares) * self._losses(logits, partners)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._prior is not None:
            self._prior = self._prior.to(logits.device)
            logits = logits + self._prior
        losses = self.target.loss(logits, labels, smoothing=self.recipe.label_smoothing)
        if self.recipe.balance == "loss":
            losses = losses * (self._rarity(labels) / self._weights.mean()).to(losses)
        return losses

    def _rarity(self, labels: Tensor) -> Tensor:
        """One over the number of images of the class of each image, or of its rarest tag."""
        rarities = self._rarities = self._rarities.to(labels.device)
        if labels.ndim == 1:
            return rarities[labels]
        rarest = torch.where(labels > 0, rarities[:-1], 0).amax(1)
        return torch.where(rarest > 0, rarest, rarities[-1])
