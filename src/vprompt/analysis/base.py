"""Analyses: their options, what they run, how their results are shown, and the registry that finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec

from vprompt.analysis.options import Output, RunsOutput, Training
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, bar
from vprompt.utils.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vprompt.experiments.bench.plan import Plan
    from vprompt.experiments.bench.store import Store
    from vprompt.report.document import Block, Charts

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class View(Generic[R]):
    """Title, words, tables and picture of one kind of analysis.

    Args:
        title: Of its section.
        answer: The result in one or two sentences, figures first.
        tables: Its numbers, all of them readable without the picture.
        figure: Its picture: charts, or a figure of matplotlib.
        result: Type that `run` returns, which the others are given; plain data if left out.
    """

    title: str
    answer: Callable[[R], str]
    tables: Callable[[R], Sequence[Block]]
    figure: Callable[[R], Charts | Figure]
    result: Any = Any

    def read(self, document: Any) -> R:
        """The result in the plain data that its JSON file has.

        Raises:
            msgspec.ValidationError: If something lacks, or is of another type.
        """
        return msgspec.convert(document, self.result)


class Host:
    """Surroundings of a running analysis: progress, remarks, failures and trainings. This one is silent."""

    progress: bool = False
    """Whether bars are shown."""

    def bar(self, label: str) -> AbstractContextManager[Report]:
        """A progress bar for a piece of work."""
        return bar(label, enabled=self.progress)

    def note(self, text: str) -> None:
        """A remark for whoever waits."""

    def fail(self, error: VPromptError) -> None:
        """A failure that leaves a result to show; raised at once here."""
        raise error

    def train(self, plan: Plan, store: Store, training: Training) -> bool:
        """Runs what is not done of a plan; whether the results are to be read."""
        from vprompt.experiments.bench.bench import engine_of, overview, run_plan

        if not training.read_only:
            todo = overview(plan, store, root=training.root, workers=training.workers, estimate=False)
            with engine_of(plan, store.address, workers=training.workers) as engine:
                run_plan(todo, store, engine, retry_failed=training.retry_failed)
        return True


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An analysis: a frozen keyword-only dataclass of its options, with its name and what it does.

    The options are those of `vprompt analyze NAME`, the first paragraph of the docstring is the help. A folder of this
    package is an analysis if its `__init__.py` registers one; then `run` is `run(options, host)` of `measure.py` beside
    it, and the view is `VIEW` of `report.py`, so that listing options imports neither torch nor matplotlib. One in a
    single file has methods of its own.
    """

    name: ClassVar[str]
    """Of the command, and of the files that it writes."""
    order: ClassVar[int] = 100
    """Place among others on a page, smallest first."""

    output: Output = field(default_factory=Output)

    def check(self) -> None:
        """Raises a `VPromptError`, before anything is run, for groups of options that cannot be meant."""
        for option in fields(self):
            if check := getattr(getattr(self, option.name), "check", None):
                check()

    def run(self, host: Host = Host()) -> Any:  # noqa: B008 - it has no state
        """Measures.

        Returns:
            A dataclass of plain data, or None where there is nothing to show.

        Raises:
            VPromptError: If an option is out of range, or nothing can be measured.
        """
        return import_module(f"{type(self).__module__}.measure").run(self, host)

    @classmethod
    def view(cls) -> View[Any]:
        """The view of its result."""
        return import_module(f"{cls.__module__}.report").VIEW


@dataclass(frozen=True, kw_only=True)
class Study(Analysis):
    """Options of an analysis that trains: a plan of the bench, and what is read of its runs.

    In the folder of one, `measure.py` has `plan_of(options)` and `read(options, store)` instead of `run`.
    """

    training: Training = field(default_factory=Training)
    output: RunsOutput = field(default_factory=RunsOutput)

    def run(self, host: Host = Host()) -> Any:  # noqa: B008 - it has no state
        """Trains what is not trained, and reads it; None where it is only to be shown."""
        from vprompt.experiments.bench.store import open_store

        measure, store = import_module(f"{type(self).__module__}.measure"), open_store(self.output.out)
        return measure.read(self, store) if host.train(measure.plan_of(self), store, self.training) else None


analyses: Registry[type[Analysis]] = Registry("analysis", "vprompt.analysis", "vprompt.analyses", folders=True)
"""All analyses: folders of this package, entry points of others, and plugins."""


def in_order() -> list[type[Analysis]]:
    """All analyses as they follow each other on a page."""
    return sorted(analyses, key=lambda analysis: (analysis.order, analysis.name))
