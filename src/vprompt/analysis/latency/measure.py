"""Time of every execution before and after condensation, as the paper's Table 4 has it, on each kind of device here."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vprompt.analysis.counts import Kept, kept_counts, with_counts
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo, describe
from vprompt.model.latency import Latency, latency
from vprompt.utils.devices import device_named, found_devices
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, part, silent

PROMPTS = (200, 100, 50)

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)

MOST_IMAGES = 64
"""The paper's batch."""

SECONDS = 240.0
"""What a device may take in all, unless the number of images is given."""

How = Literal["published", "prefix", "folded"]


@dataclass(frozen=True, kw_only=True)
class Timed(Kept):
    """Time of one model, for one batch.

    Args:
        execution: Prompts as tokens, as keys and values that are computed, or as constants.
        ratio: Of its time to that of the bare backbone in the same round, the median over the rounds.
        spread: Lowest and highest ratio of the middle half of the rounds.
        milliseconds: For the batch, the median.
    """

    execution: How
    ratio: float
    spread: tuple[float, float]
    milliseconds: float


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


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is about to be measured on a device, and about how long it will take."""

    device: str
    models: int
    images: int
    rounds: int
    seconds: float


def latencies(
    backbone: str,
    *,
    prompts: Sequence[int] = PROMPTS,
    shares: Sequence[float] = SHARES,
    images: int | None = None,
    rounds: int | None = None,
    img_size: int | None = None,
    devices: Sequence[str] | None = None,
    announce: Callable[[Outlook], None] = lambda outlook: None,
    report: Report = silent,
) -> Latencies:
    """Times the bare backbone and every execution of the prompts that condensation leaves, in turn, round by round.

    Weights do not matter to time, so they are random. On a CPU one thread works, and its processor time is counted.

    Args:
        backbone: A timm name.
        prompts: Prompts per block before condensation.
        shares: Of them that are kept, above 0 and up to 1; local, and global by the profile of `kept_counts`.
        images: In a batch; 64 when not given, fewer where a device would take longer than four minutes.
        rounds: That are counted, after one that is not; 20 when not given, 5 on a CPU, or 3 on a slow one.
        img_size: Input size in pixels where it should differ from the pre-training size.
        devices: Such as "cpu" and "cuda"; the CPU and the accelerator, where there is one, when not given.
        announce: Called before each device.
        report: Called after every batch.

    Returns:
        `Latencies`.

    Raises:
        BackboneError: If the backbone is unknown or not supported.
        VPromptError: If a number is out of range, or there is no such device.

    Example:
        >>> found = latencies("test_vit", prompts=[4], shares=[0.5], images=1, rounds=1, devices=["cpu"], img_size=32)
        >>> [(time.where, time.execution) for time in found.devices[0].series[0].times][:3]
        [('local', 'published'), ('local', 'prefix'), ('local', 'folded')]

    Source: Prompt Condensation (arXiv 2305.17223), Table 4.
    """
    if not prompts or not shares:
        raise VPromptError("There is nothing to time: give at least one number of prompts and one share of them.")
    for name, number in (("images", images), ("rounds", rounds)):
        if number is not None and number < 1:
            raise VPromptError(f"The number of {name} must be at least 1, not {number}.")
    model = create_backbone(backbone, pretrained=False, img_size=img_size).eval().requires_grad_(False)
    info = describe(model)
    kept = {number: kept_counts(number, shares, len(info.blocks)) for number in prompts}
    places = found_devices() if devices is None else [device_named(name) for name in devices]
    found: list[DeviceTimes] = []
    for number, device in enumerate(places):
        with _enough_memory(device):
            outlook, batch = _prepare(model.to(device), info, kept, device, images, rounds)
            announce(outlook)
            found.append(_measure(model, kept, device, batch, outlook, part(report, number, len(places))))
    return Latencies(
        backbone=backbone,
        img_size=info.preprocessing.size,
        blocks=len(info.blocks),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        matmul_precision=torch.get_float32_matmul_precision(),
        torch=torch.__version__,
        devices=tuple(found),
    )


@contextmanager
def _enough_memory(device: torch.device) -> Generator[None]:
    try:
        yield
    except RuntimeError as error:  # the processor's allocator has no error of its own
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise VPromptError(f"The device {device.type!r} has too little memory; give fewer --images.") from error
        raise


def _prepare(
    model: nn.Module,
    info: BackboneInfo,
    kept: dict[int, list[Kept]],
    device: torch.device,
    images: int | None,
    rounds: int | None,
) -> tuple[Outlook, Tensor]:
    """How many images and rounds, by the time that the bare backbone takes, and how long all will take."""
    on_cpu = device.type == "cpu"
    tried = 1 if on_cpu else images or MOST_IMAGES
    batch = torch.randn(tried, 3, *info.preprocessing.size, device=device)
    latency({"": model}, batch, rounds=1)
    started = time.perf_counter()
    latency({"": model}, batch, rounds=1)
    each = (time.perf_counter() - started) / 2 / tried
    # As tokens, prompts cost about what as many other tokens would; otherwise next to nothing.
    rows = [row for series in kept.values() for row in series]
    work = len(kept) + sum(3 + sum(row.counts) / (info.attended * len(row.counts)) for row in rows)
    if rounds is None:
        rounds = 20 if not on_cpu else 5 if each * work * 6 <= SECONDS else 3
    per_image = each * work * (1 + rounds)
    if images is None:
        images = max(1, min(MOST_IMAGES, int(SECONDS / per_image)))
    outlook = Outlook(
        device=device.type,
        models=len(kept) + 3 * len(rows),
        images=images,
        rounds=rounds,
        seconds=per_image * images,
    )
    return outlook, torch.randn(images, 3, *info.preprocessing.size, device=device)


def _measure(
    model: nn.Module,
    kept: dict[int, list[Kept]],
    device: torch.device,
    batch: Tensor,
    outlook: Outlook,
    report: Report,
) -> DeviceTimes:
    series: list[Series] = []
    for number, (original, rows) in enumerate(kept.items()):
        variants: dict[str, Callable[[Tensor], Tensor]] = {"": model}
        for place, row in enumerate(rows):
            variants |= {f"{place} {how}": run for how, run in _variants(model, row).items()}
        times = latency(variants, batch, rounds=outlook.rounds, report=part(report, number, len(kept)))
        timed = [
            _timed(row, how, times[f"{place} {how}"], len(batch))
            for place, row in enumerate(rows)
            for how in get_args(How)
        ]
        bare = times[""].milliseconds * len(batch)
        series.append(Series(original=original, bare_milliseconds=bare, times=tuple(timed)))
    return DeviceTimes(
        device=device.type,
        name=_name(device),
        threads=1 if device.type == "cpu" else None,
        images=len(batch),
        rounds=outlook.rounds,
        series=tuple(series),
    )


def _variants(model: nn.Module, row: Kept) -> dict[How, Callable[[Tensor], Tensor]]:
    prompted = with_counts(model, row.counts)
    published = prompted.copy(execution="published").eval()
    return {"published": published, "prefix": prompted, "folded": prompted.fold()}


def _timed(row: Kept, how: How, found: Latency, images: int) -> Timed:
    return Timed(
        **vars(row),
        execution=how,
        ratio=found.ratio,
        spread=found.spread,
        milliseconds=found.milliseconds * images,
    )


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
