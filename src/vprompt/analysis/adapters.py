"""Adapters of an analysis: opened one after the other, each measured by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vprompt.analysis.base import Host
from vprompt.analysis.options import Adapters
from vprompt.experiments.finished import Trained, find_adapters, open_trained
from vprompt.experiments.stages import Sources
from vprompt.utils.errors import VPromptError

T = TypeVar("T")


def measure_each(adapters: Adapters, host: Host, measure: Callable[[Trained], T]) -> list[T]:
    """Measurements of every adapter; one that fails does not end the others.

    Args:
        adapters: Where they are, and on which images.
        host: Told of adapters that failed, once all others are measured.
        measure: Measures one.

    Raises:
        VPromptError: If there is no adapter, or all of them fail; what was wrong with the first.
    """
    where = {"data": adapters.data, "root": adapters.root, "weights": adapters.weights}
    places, sources, backbone = find_adapters(adapters.places), Sources(), None
    measured: list[T] = []
    failures: list[VPromptError] = []
    for place in places:
        try:
            trained = open_trained(place, sources, **where, backbone=backbone, progress=host.progress)
            backbone = trained.model.backbone
            measured.append(measure(trained))
        except VPromptError as error:
            failures.append(error)
    if not measured:
        raise failures[0]
    if failures:
        host.fail(VPromptError(f"{len(failures)} of {len(places)} adapters have no result, the first: {failures[0]}"))
    return measured
