"""The search for how much to prune: what is tried, on disk as it goes, and what it comes to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from laconic.batches import ImageLabels, size_of
from laconic.errors import TrainingError
from laconic.evaluation import evaluate
from laconic.files import write_atomically
from laconic.model import PromptedModel
from laconic.processes import is_main_process
from laconic.progress import Report, bar, part
from laconic.pruning.choices import (
    Choice,
    Rung,
    Trial,
    affordable,
    best_of_each_size,
    grid,
    ranked,
    rungs,
)
from laconic.pruning.importance import Importance, importance, pruned
from laconic.pruning.journal import Journal
from laconic.pruning.settings import PruneSettings
from laconic.recipe import Recipe
from laconic.train import History, fit


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning came to.

    Args:
        model: The model without what was pruned, in eval mode; the trained model itself where nothing was.
        choice: How much was pruned.
        trials: Every choice that was tried, in the order of the search.
        history: Of the training after rewinding; None where nothing was pruned.
        trainings: What scoring, search and training cost, in trainings of the whole schedule.
    """

    model: PromptedModel
    choice: Choice
    trials: list[Trial] = field(repr=False)
    history: History | None = field(repr=False)
    trainings: float


class Search:
    """One search: what was tried is kept in a journal, beside the state of the training that is going on.

    Arguments as those of `laconic.prune`.
    """

    def __init__(
        self,
        model: PromptedModel,
        train: ImageLabels,
        val: ImageLabels | None,
        early: Mapping[str, Tensor] | None,
        rewind_epoch: int,
        settings: PruneSettings,
        recipe: Recipe,
        folder: Path | None,
        progress: bool,
    ) -> None:
        self.model = model
        self.train = train
        self.val = val
        self.early = early
        self.rewind_epoch = None if early is None else rewind_epoch
        self.settings = settings
        self.recipe = recipe
        self.folder = folder
        self.progress = progress and is_main_process()
        self.trained: dict[Choice, tuple[PromptedModel, History]] = {}
        every = grid(settings.tokens, settings.segments)
        sizes = {"train": size_of(train), "val": 0 if val is None else size_of(val)}
        self.images = sizes
        self.choices = affordable(every, epochs=recipe.epochs, **sizes)
        self.rungs = rungs(recipe.epochs)
        self.stages = 2 + len(self.rungs) if len(every) > 1 else 2

    def run(self) -> Pruned:
        """Goes through all stages, or what is left of them."""
        self.worth = self._importance()
        self.journal = self._journal()
        if len(self.choices) == 1:
            return self._found(self.choices[0])
        saving = self.settings.saving
        tried = self._rung(1, Rung(choices=len(self.choices), epochs=0), self.choices)
        # What was trained already competes as it is: from the same start with the same seed it would come out the same.
        finalists = [trial for trial in tried if trial.choice == Choice()]
        candidates = best_of_each_size(tried, self.rungs[0].choices, saving=saving)
        for number, rung in enumerate(self.rungs, start=2):
            if rung is self.rungs[-1]:
                candidates = [choice for choice in candidates if choice != Choice()]
            tried = self._rung(number, rung, candidates[: rung.choices])
            candidates = [trial.choice for trial in ranked(tried, saving=saving)]
        return self._found(ranked([*finalists, *tried], saving=saving)[0].choice)

    def _importance(self) -> Importance:
        """Scores, from disk where they were found before."""
        path, settings = None if self.folder is None else self.folder / "importance.safetensors", self.settings
        blocks = range(len(self.model.prompts))
        if path is not None and path.exists():
            try:
                held = load_file(path)
                tokens, segments = ([held[f"{kind}.{block}"] for block in blocks] for kind in ("tokens", "segments"))
                return Importance(tokens=tokens, segments=segments, criterion=settings.criterion, scope=settings.scope)
            except (SafetensorError, OSError, KeyError) as error:
                raise TrainingError(f"{path} is damaged ({error}); delete it to score the prompts anew.") from error
        with bar(self._label(0, "scoring"), enabled=self.progress) as report:
            worth = importance(
                self.model,
                self.train,
                num_segments=settings.num_segments,
                criterion=settings.criterion,
                scope=settings.scope,
                seed=self.recipe.seed,
                workers=self.recipe.workers,
                report=report,
            )
        if path is not None and is_main_process():
            write_atomically(path, lambda part: save_file(_tensors(worth), part))
        return worth

    def _rung(self, stage: int, rung: Rung, choices: Sequence[Choice]) -> list[Trial]:
        """Tries every choice, or finds it in the journal."""
        known = self.journal.of(rung.epochs)
        what = f"trying {len(choices)} choices" if not rung.epochs else f"{len(choices)} x {rung.epochs} epochs"
        with bar(self._label(stage, what), enabled=self.progress, unit="img", keep=rung.epochs > 0) as report:
            for number, choice in enumerate(choices):
                if choice not in known:
                    known[choice] = self._try(choice, rung.epochs, part(report, number, len(choices)))
                    self.journal.add(known[choice])
                report(number + 1, len(choices))
        return [known[choice] for choice in choices]

    def _try(self, choice: Choice, epochs: int, report: Report) -> Trial:
        if epochs:
            small, _ = self._train(choice, epochs, report)
        else:
            small = pruned(self.model, self.worth, choice)
        assert self.val is not None
        found = evaluate(small, self.val, workers=self.recipe.workers)
        path = self._checkpoint(choice, epochs)
        if epochs < self.recipe.epochs and path is not None and is_main_process():
            path.unlink(missing_ok=True)
        return Trial(choice=choice, epochs=epochs, accuracy=found.accuracy, loss=found.loss)

    def _train(self, choice: Choice, epochs: int, progress: bool | Report) -> tuple[PromptedModel, History]:
        """The rest after pruning, from the early state; as far as its checkpoint is."""
        small = pruned(self.model, self.worth, choice, early=self.early)
        assert small.pruning is not None
        small.pruning = replace(small.pruning, rewind_epoch=self.rewind_epoch)
        whole = epochs == self.recipe.epochs
        history = fit(
            small,
            self.train,
            self.val if whole else None,
            recipe=replace(self.recipe, epochs=epochs),
            checkpoint=self._checkpoint(choice, epochs),
            resume=True,
            progress=progress,
            label=self._label(self.stages - 1, "training"),
        )
        if whole:
            self.trained[choice] = small, history
        return small, history

    def _found(self, choice: Choice) -> Pruned:
        trials = self.journal.trials
        searched = len(self.choices) > 1
        model, history = self.model.copy().eval(), None
        if choice != Choice() or not searched:
            # After a resumption a finalist is on disk only, whole: it is read, not trained.
            progress = self.progress and not searched
            model, history = self.trained.get(choice) or self._train(choice, self.recipe.epochs, progress)
        epochs = sum(trial.epochs for trial in trials) if searched else self.recipe.epochs
        looks = len(trials) * self.images["val"] / (3 * self.images["train"])
        trainings = (2 + epochs + looks) / self.recipe.epochs
        return Pruned(model=model, choice=choice, trials=trials, history=history, trainings=trainings)

    def _checkpoint(self, choice: Choice, epochs: int) -> Path | None:
        name = f"{epochs}-{choice.tokens:g}-{choice.segments:g}.safetensors"
        return None if self.folder is None or not epochs else self.folder / name

    def _label(self, stage: int, what: str) -> str:
        return f"pruning {stage + 1}/{self.stages}: {what}"

    def _journal(self) -> Journal:
        """The scores stand for model and data in it."""
        search = {
            "settings": asdict(self.settings),
            "recipe": asdict(self.recipe),
            "images": self.images,
            "rewind_epoch": self.rewind_epoch,
            "scores": hashlib.sha256(save(_tensors(self.worth))).hexdigest(),
        }
        return Journal(None if self.folder is None else self.folder / "trials.json", search)


def _tensors(worth: Importance) -> dict[str, Tensor]:
    kinds = {"tokens": worth.tokens, "segments": worth.segments}
    return {f"{kind}.{n}": scores.contiguous() for kind, held in kinds.items() for n, scores in enumerate(held)}
