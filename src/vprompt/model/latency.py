"""Time per image, measured so that variants can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vprompt.utils.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per image: the median over the rounds, and its ratio to the first variant (median of the rounds').

    Args:
        milliseconds: Per image.
        ratio: To the first variant; 1 for itself.
        spread: Lowest and highest ratio of the middle half of the rounds.
    """

    milliseconds: float
    ratio: float
    spread: tuple[float, float]


@torch.inference_mode()
def latency(
    variants: Mapping[str, Callable[[Tensor], Tensor]],
    images_BCHW: Tensor,
    *,
    rounds: int = 10,
    report: Report = silent,
) -> dict[str, Latency]:
    """Times variants in turn, round by round, so that a machine that slows down slows all of them.

    On a CPU it counts the processor time of one thread, elsewhere the wall clock between synchronisations.

    Args:
        variants: Name -> what to call with the images; the first is what the others are compared with.
        images_BCHW: One batch.
        rounds: After one that is not counted.
        report: Called after every call of a variant.

    Returns:
        Name -> `Latency`.

    Example:
        >>> times = latency({"a": lambda x: x @ x, "b": lambda x: x @ x}, torch.zeros(8, 8), rounds=3)
        >>> times["a"].ratio
        1.0
    """
    on_cpu = images_BCHW.device.type == "cpu"
    threads = torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in variants}
    try:
        if on_cpu:
            torch.set_num_threads(1)
        for number in range(1 + rounds):
            for done, (name, run) in enumerate(variants.items(), start=1 + number * len(variants)):
                started = _clock(on_cpu)
                run(images_BCHW)
                if number:
                    times[name].append(_clock(on_cpu) - started)
                report(done, (1 + rounds) * len(variants))
    finally:
        torch.set_num_threads(threads)
    base = next(iter(times.values()))
    return {name: _summary(measured, base, len(images_BCHW)) for name, measured in times.items()}


def _clock(on_cpu: bool) -> float:
    if on_cpu:
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def _summary(times: list[float], base: list[float], images: int) -> Latency:
    ratios = [own / other if other else 1.0 for own, other in zip(times, base, strict=True)]
    quarter = len(ratios) // 4
    middle = sorted(ratios)[quarter : len(ratios) - quarter]
    return Latency(
        milliseconds=1000 * statistics.median(times) / images,
        ratio=statistics.median(ratios),
        spread=(middle[0], middle[-1]),
    )
