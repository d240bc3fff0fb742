"""Times of every execution before and after condensation, as in the paper's Table 4, on each kind of device here."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vprompt.analysis.base import Host
from vprompt.analysis.counts import Retained, retained_counts, with_counts
from vprompt.analysis.latency import Latency
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo, describe
from vprompt.model import latency as timing
from vprompt.utils.devices import device_named, found_devices
from vprompt.utils.errors import VPromptError, lacks_memory
from vprompt.utils.progress import Report, part
from vprompt.utils.text import count, duration

MOST_IMAGES = 64
"""The paper's batch."""

SECONDS = 240.0
"""Seconds that a device may take in all, unless the number of images is given."""

Execution = Literal["published", "prefix", "folded"]


@dataclass(frozen=True, kw_only=True)
class Timed(Retained, timing.Latency):
    """Time of one model: milliseconds for the batch, and their ratio to those of the bare backbone.

    Args:
        execution: Prompts as tokens, as keys and values that are computed, or as constants.
    """

    execution: Execution


@dataclass(frozen=True, kw_only=True)
class Series:
    """Models that were timed in turn.

    Args:
        original: Prompts per block before condensation.
        bare_milliseconds: The backbone without prompts, as timm runs it; for the batch, the median.
        times: Of all other models.
    """

    original: int
    bare_milliseconds: float
    times: tuple[Timed, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """All times on one device.

    Args:
        device: Its kind.
        name: What it calls itself.
        threads: Of the processor that worked; None elsewhere.
        images: In a batch.
        rounds: That were counted.
        series: One for each number of prompts.
    """

    device: str
    name: str
    threads: int | None
    images: int
    rounds: int
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Times of a backbone with prompts.

    Args:
        backbone: Its name.
        img_size: Height and width of its input.
        blocks: How many it has.
        dtype: Of weights and images.
        matmul_precision: What torch may do to products of 32 bits on an accelerator.
        torch: Its version.
        devices: What was measured on each.
    """

    backbone: str
    img_size: tuple[int, int]
    blocks: int
    dtype: str
    matmul_precision: str
    torch: str
    devices: tuple[DeviceTimes, ...]


def run(options: Latency, host: Host) -> Latencies:
    """Times the bare backbone and every execution of the prompts that condensation leaves, in turn, round by round.

    Weights do not matter to time, so they are random. On a CPU one thread works, and its processor time is counted.

    Raises:
        BackboneError: If the backbone is unknown or not supported.
        VPromptError: If a number is out of range, or there is no such device.

    Example:
        >>> small = {"images": 1, "rounds": 1, "device": "cpu", "img_size": 32}
        >>> result = Latency(backbone="test_vit", prompts=(4,), shares=(0.5,), **small).run()
        >>> [(time.where, time.execution) for time in result.devices[0].series[0].times][:3]
        [('local', 'published'), ('local', 'prefix'), ('local', 'folded')]

    Source: Prompt Condensation (arXiv 2305.17223), Table 4.
    """
    if not options.prompts or not options.shares:
        raise VPromptError("There is nothing to time: give at least one number of prompts and one share of them.")
    for name, number in (("images", options.images), ("rounds", options.rounds)):
        if number is not None and number < 1:
            raise VPromptError(f"The number of {name} must be at least 1, not {number}.")
    model = create_backbone(options.backbone, pretrained=False, img_size=options.img_size).eval().requires_grad_(False)
    info = describe(model)
    retained = {number: retained_counts(number, options.shares, len(info.blocks)) for number in options.prompts}
    places = found_devices() if options.device is None else [device_named(options.device)]
    devices: list[DeviceTimes] = []
    with host.bar("timing") as report:
        for number, device in enumerate(places):
            try:
                rounds, batch = _prepare(model.to(device), info, retained, device, options, host)
                devices.append(_measure(model, retained, device, batch, rounds, part(report, number, len(places))))
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                kind = device.type
                raise VPromptError(f"The device {kind!r} has too little memory; give fewer --images.") from error
    return Latencies(
        backbone=options.backbone,
        img_size=info.preprocessing.size,
        blocks=len(info.blocks),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        matmul_precision=torch.get_float32_matmul_precision(),
        torch=torch.__version__,
        devices=tuple(devices),
    )


def _prepare(
    model: nn.Module,
    info: BackboneInfo,
    retained: Mapping[int, Sequence[Retained]],
    device: torch.device,
    options: Latency,
    host: Host,
) -> tuple[int, Tensor]:
    """Number of rounds, and a batch of images, by the time of the bare backbone; says how long all will take."""
    on_cpu, images, rounds = device.type == "cpu", options.images, options.rounds
    tried = 1 if on_cpu else images or MOST_IMAGES
    batch = torch.randn(tried, *info.preprocessing.shape, device=device)
    timing.latency({"": model}, batch, rounds=1)
    started = time.perf_counter()
    timing.latency({"": model}, batch, rounds=1)
    each = (time.perf_counter() - started) / 2 / tried
    # As tokens, prompts cost about what as many other tokens would; otherwise next to nothing.
    rows = [row for series in retained.values() for row in series]
    work = len(retained) + sum(3 + sum(row.counts) / (info.attended * len(row.counts)) for row in rows)
    if rounds is None:
        rounds = 20 if not on_cpu else 5 if each * work * 6 <= SECONDS else 3
    per_image = each * work * (1 + rounds)
    if images is None:
        images = max(1, min(MOST_IMAGES, int(SECONDS / per_image)))
    host.note(
        f"{device.type}: {count(len(retained) + 3 * len(rows), 'model')} in turn, {count(rounds, 'round')}, a batch of "
        f"{count(images, 'image')}; it will take about {duration(per_image * images)}."
    )
    return rounds, torch.randn(images, *info.preprocessing.shape, device=device)


def _measure(
    model: nn.Module,
    retained: Mapping[int, Sequence[Retained]],
    device: torch.device,
    batch: Tensor,
    rounds: int,
    report: Report,
) -> DeviceTimes:
    images, series = len(batch), list[Series]()
    for number, (original, rows) in enumerate(retained.items()):
        variants: dict[str, Callable[[Tensor], Tensor]] = {"": model}
        for place, row in enumerate(rows):
            variants |= {f"{place} {execution}": run for execution, run in _variants(model, row).items()}
        times = timing.latency(variants, batch, rounds=rounds, report=part(report, number, len(retained)))
        for name, summary in times.items():
            times[name] = replace(summary, milliseconds=summary.milliseconds * images)
        timed = [
            Timed(**vars(row), **vars(times[f"{place} {execution}"]), execution=execution)
            for place, row in enumerate(rows)
            for execution in get_args(Execution)
        ]
        series.append(Series(original=original, bare_milliseconds=times[""].milliseconds, times=tuple(timed)))
    return DeviceTimes(
        device=device.type,
        name=_name(device),
        threads=1 if device.type == "cpu" else None,
        images=images,
        rounds=rounds,
        series=tuple(series),
    )


def _variants(model: nn.Module, row: Retained) -> dict[Execution, Callable[[Tensor], Tensor]]:
    prompted = with_counts(model, row.counts)
    published = prompted.copy(execution="published").eval()
    return {"published": published, "prefix": prompted, "folded": prompted.fold()}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
