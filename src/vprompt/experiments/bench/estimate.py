"""Estimate of how long a plan will take: multiply-accumulates of its jobs over what this machine does in a second."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import cast

import torch
from torch.utils.data import TensorDataset

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.meta import shapes_only
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.tasks import split_sizes
from vprompt.experiments.preview import passes, seconds_per_image
from vprompt.methods.base import Method
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.cost import model_cost
from vprompt.model.records import Precision, Recipe
from vprompt.training.loader import ImageLabels

JOB_SECONDS = 1.0
"""That a job takes besides."""


def gmacs_of(job: Job) -> float:
    """10^9 multiply-accumulates of a job: passes of its training, of what follows it, and of its evaluation."""
    settings = job.settings
    sizes = split_sizes(settings.data, settings.root)
    learned, seen = passes(settings, *sizes, until=job.until, trained=job.first is not None)
    forward = _gmacs(settings.backbone, settings.img_size, settings.method)
    return forward * (learned * (1 + settings.method.backward_cost) + seen)


@functools.cache
def _gmacs(backbone: str, img_size: int | None, method: Method) -> float:
    """Of one image's forward pass while training."""
    with shapes_only():
        bare = create_backbone(backbone, pretrained=False, img_size=img_size)
        cost = model_cost(attach(bare, method, num_classes=1))
    return cost.prefix_gmacs


@functools.cache
def rate(backbone: str, img_size: int | None, precision: Precision, threads: int) -> float:
    """10^9 multiply-accumulates that this machine does in a second of training this backbone; measured, with random
    weights.
    """
    model = attach(create_backbone(backbone, pretrained=False, img_size=img_size), VPT(10), num_classes=10)
    tensors = torch.randn(64, 3, *model.preprocessing.size), torch.zeros(64, dtype=torch.int64)
    images = cast("ImageLabels", TensorDataset(*tensors))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return 2 * _gmacs(backbone, img_size, VPT(10)) / seconds_per_image(model, images, Recipe(precision=precision))
    finally:
        torch.set_num_threads(before)


def seconds_of(jobs: Iterable[Job], *, threads: int) -> dict[str, float]:
    """Expected seconds of every job on one worker of this machine, by name."""
    seconds: dict[str, float] = {}
    for job in jobs:
        settings = job.settings
        speed = rate(settings.backbone, settings.img_size, settings.recipe.precision, threads)
        seconds[job.name] = JOB_SECONDS + gmacs_of(job) / speed
    return seconds
