"""Estimate of how long a plan will take: multiply-accumulates of its jobs over what this machine does in a second."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from vprompt.backbones.factory import create_backbone
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.tasks import split_sizes
from vprompt.experiments.preview import passes
from vprompt.methods.base import Method
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.cost import model_cost
from vprompt.model.records import Precision
from vprompt.training.precision import in_bf16

CALIBRATION_GMACS, CALIBRATION_SECONDS = 60.0, 0.5
"""Of one step at most, and of all steps about."""


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
    with torch.device("meta"):
        bare = create_backbone(backbone, pretrained=False, img_size=img_size)
        cost = model_cost(attach(bare, method, num_classes=1))
    return cost.prefix_gmacs


@functools.cache
def rate(backbone: str, img_size: int | None, precision: Precision, threads: int) -> float:
    """10^9 multiply-accumulates that this machine does in a second of training this backbone; measured, with random
    weights.
    """
    model = attach(create_backbone(backbone, pretrained=False, img_size=img_size), VPT(10), num_classes=10)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    device = next(model.parameters()).device
    step = 2 * _gmacs(backbone, img_size, VPT(10))
    size = max(1, min(64, round(CALIBRATION_GMACS / step)))
    images = torch.randn(size, 3, *model.preprocessing.size, device=device)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    model.train()
    before, times = torch.get_num_threads(), list[float]()
    torch.set_num_threads(threads)
    try:
        # The first steps also wake the machine up.
        while len(times) < 3 or (sum(times) < CALIBRATION_SECONDS and len(times) < 100):
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(precision, device)):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            float(loss.detach())  # waits for the device
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return step * size / statistics.median(times)


def seconds_of(jobs: Iterable[Job], *, threads: int) -> dict[str, float]:
    """Expected seconds of every job on one worker of this machine, by name."""
    seconds: dict[str, float] = {}
    for job in jobs:
        settings = job.settings
        speed = rate(settings.backbone, settings.img_size, settings.recipe.precision, threads)
        seconds[job.name] = JOB_SECONDS + gmacs_of(job) / speed
    return seconds
