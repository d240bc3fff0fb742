"""What a search has tried so far, on disk, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from vprompt.compression.choices import Budget, Choice, Trial, best_of_each_size, grid, ranked, spread
from vprompt.compression.importance import Importance, cut, importance, pruned
from vprompt.compression.settings import PruneSettings
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.evaluate import evaluate
from vprompt.training.loader import ImageLabels, identity, size_of
from vprompt.training.trainer import History, fit
from vprompt.utils.distributed import agreed, is_main_process
from vprompt.utils.errors import DivergedError, TrainingError, VPromptError
from vprompt.utils.io import read_json, write_atomically, write_json
from vprompt.utils.progress import Report, bar


class Journal:
    """The trials of a search, in order.

    Args:
        path: The file; None keeps nothing.
        search: By what the search is known, as plain data.

    Raises:
        TrainingError: If the file is damaged, or the journal of another search.
    """

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path = path
        self.search = search
        self.trials: list[Trial] = []
        if path is None or not path.exists():
            return
        document = read_json(path)
        if not same_search(document.get("search"), search):
            raise TrainingError(f"{path} is of another search; give its model and settings, or another folder.")
        try:
            self.trials = [_trial(row) for row in document["trials"]]
        except (TypeError, KeyError, VPromptError) as error:
            raise TrainingError(f"{path} is damaged; delete its folder to search anew.") from error

    def of(self, epochs: int) -> dict[Choice, Trial]:
        """What was tried with so many epochs."""
        return {trial.choice: trial for trial in self.trials if trial.epochs == epochs}

    def add(self, trial: Trial) -> None:
        """Notes a trial, also on disk."""
        self.trials.append(trial)
        if self.path is not None and is_main_process():
            write_json(self.path, {"search": self.search, "trials": [asdict(trial) for trial in self.trials]})


def _trial(row: dict[str, Any]) -> Trial:
    return Trial(
        choice=Choice(tokens=row["choice"]["tokens"], segments=row["choice"]["segments"]),
        kept=row["kept"],
        epochs=row["epochs"],
        accuracy=row["accuracy"],
        loss=row["loss"],
    )


def same_search(known: object, mine: dict[str, Any]) -> bool:
    """Whether state on disk is of a search; data without a fingerprint, on either side, is taken on trust."""
    if not isinstance(known, dict):
        return False
    found = cast("dict[str, Any]", known)
    data = zip(found.get("data", ()), mine["data"], strict=False)
    trusted = all(None in pair or pair[0] == pair[1] for pair in data)
    return trusted and {**found, "data": None} == {**mine, "data": None}


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning came to.

    Args:
        model: The model without what was pruned, in eval mode; a copy of the trained one where nothing was.
        choice: How much was pruned; what it came to says `model.pruning`.
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

    Every choice is looked at as trained, without its pruned part. What is worth most at each of seven sizes stays in
    the race, and the size is bisected: a size is trained from the early state, and the next one is smaller if it was
    better than all before, else larger. Arguments as those of `vprompt.prune`.
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
        self.images = {"train": size_of(train), "val": 0 if val is None else size_of(val)}
        self.choices = grid(settings.tokens, settings.segments)
        self.budget = Budget.of(len(self.choices), epochs=recipe.epochs, **self.images)
        self.stages = 2 + self.budget.trainings if len(self.choices) > 1 else 2

    def run(self) -> Pruned:
        """Goes through all stages, or what is left of them."""
        self.identity = self._identity()
        self.worth = self._importance()
        self.journal = Journal(None if self.folder is None else self.folder / "trials.json", self.identity)
        if len(self.choices) == 1:
            model, history = self._trained(self.choices[0], self.progress)
            return self._found(self.choices[0], model, history)
        tried = self._look()
        # What was trained already competes as it is.
        best = next((trial for trial in tried if trial.kept == 1), None)
        smaller = [trial for trial in tried if trial.kept < 1]
        sizes = best_of_each_size(smaller, 2**self.budget.trainings - 1, saving=self.settings.saving)
        low, high, stage = 0, len(sizes), 2
        while low < high and stage < self.stages:
            middle = (low + high) // 2
            trial = self._train_trial(sizes[middle], stage)
            if best is None or ranked([best, trial], saving=self.settings.saving)[0] is trial:
                best, low = trial, middle + 1
            else:
                high = middle
            stage += 1
        if best is None or best.kept == 1:
            return self._found(Choice(), self.model.copy().eval(), None)
        model, history = self._trained(best.choice, False)
        return self._found(best.choice, model, history)

    def _importance(self) -> Importance:
        """Scores, from disk where they were found before."""
        path, settings = None if self.folder is None else self.folder / "importance.safetensors", self.settings
        if path is not None and path.exists():
            return self._read_importance(path)
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
        worth = agreed(worth)
        if path is not None and is_main_process():
            kinds = {"tokens": worth.tokens, "segments": worth.segments}
            held = {f"{kind}.{n}": t.contiguous() for kind, scores in kinds.items() for n, t in enumerate(scores)}
            metadata = {"search": json.dumps(self.identity, sort_keys=True)}
            write_atomically(path, lambda part: save_file(held, part, metadata=metadata))
        return worth

    def _read_importance(self, path: Path) -> Importance:
        blocks = range(len(self.model.prompts))
        try:
            with safe_open(path, framework="pt") as file:
                search = json.loads(file.metadata()["search"])
                tokens, segments = ([file.get_tensor(f"{kind}.{n}") for n in blocks] for kind in ("tokens", "segments"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} is damaged ({error}); delete its folder to search anew.") from error
        if not same_search(search, self.identity):
            raise TrainingError(f"{path.parent} holds another search; give its model and settings, or another folder.")
        return Importance(
            tokens=tokens, segments=segments, criterion=self.settings.criterion, scope=self.settings.scope
        )

    def _look(self) -> list[Trial]:
        """Evaluates choices of all sizes as trained, or finds them in the journal."""
        cuts = {choice: cut(self.worth, choice) for choice in self.choices}
        different = {(found.tokens, found.removed): choice for choice, found in reversed(cuts.items())}
        ordered = sorted(different.values(), key=lambda choice: (-cuts[choice].share, choice.tokens))
        chosen = spread(ordered, self.budget.looks)
        known = self.journal.of(0)
        with bar(self._label(1, f"trying {len(chosen)} choices"), enabled=self.progress) as report:
            for number, choice in enumerate(chosen):
                if choice not in known:
                    small = pruned(self.model, self.worth, choice)
                    known[choice] = self._judged(choice, small, 0)
                report(number + 1, len(chosen))
        return [known[choice] for choice in chosen]

    def _train_trial(self, choice: Choice, stage: int) -> Trial:
        """Trains what a choice leaves, or finds it in the journal."""
        known = self.journal.of(self.recipe.epochs)
        if choice in known:
            return known[choice]
        stays = cut(self.worth, choice)
        what = f"{100 * (1 - stays.tokens):.0f} % of the prompts, {100 * (1 - stays.removed):.0f} % of each"
        try:
            with bar(self._label(stage, what), enabled=self.progress, unit="img", keep=True) as report:
                small, _ = self._trained(choice, report)
        except DivergedError:
            return self._judged(choice, None, self.recipe.epochs)
        return self._judged(choice, small, self.recipe.epochs)

    def _judged(self, choice: Choice, model: PromptedModel | None, epochs: int) -> Trial:
        """Notes what became of a choice; None is a training that diverged."""
        accuracy, loss = 0.0, float("nan")
        if model is not None and self.val is not None:
            found = evaluate(model, self.val, workers=self.recipe.workers)
            accuracy, loss = found.accuracy, found.loss
        kept = cut(self.worth, choice).share
        finite = loss if abs(loss) < float("inf") else None
        trial = agreed(Trial(choice=choice, kept=kept, epochs=epochs, accuracy=accuracy, loss=finite))
        self.journal.add(trial)
        return trial

    def _trained(self, choice: Choice, progress: bool | Report) -> tuple[PromptedModel, History]:
        """What a choice leaves, trained from the early state; as far as its checkpoint is."""
        if choice in self.trained:
            return self.trained[choice]
        small = pruned(self.model, self.worth, choice, early=self.early)
        assert small.pruning is not None
        small.pruning = replace(small.pruning, rewind_epoch=self.rewind_epoch)
        name = f"{choice.tokens:g}-{choice.segments:g}.safetensors"
        history = fit(
            small,
            self.train,
            recipe=self.recipe,
            checkpoint=None if self.folder is None else self.folder / name,
            resume=True,
            progress=progress,
            label=self._label(self.stages - 1, "training"),
        )
        self.trained[choice] = small, history
        return small, history

    def _found(self, choice: Choice, model: PromptedModel, history: History | None) -> Pruned:
        trials = self.journal.trials
        epochs = sum(trial.epochs for trial in trials) if trials else self.recipe.epochs
        looks = len(trials) * self.images["val"] / (3 * self.images["train"])
        trainings = (2 + epochs + looks) / self.recipe.epochs
        return Pruned(model=model, choice=choice, trials=trials, history=history, trainings=trainings)

    def _label(self, stage: int, what: str) -> str:
        return f"pruning {stage + 1}/{self.stages}: {what}"

    def _identity(self) -> dict[str, Any]:
        """By what the state on disk is known to be of this search."""
        values = {f"now.{name}": value for name, value in self.model.state().items()}
        values |= {f"early.{name}": value for name, value in (self.early or {}).items()}
        held = {name: value.cpu().contiguous() for name, value in values.items()}
        document = {
            "settings": asdict(self.settings),
            "recipe": asdict(self.recipe),
            "images": self.images,
            "data": [identity(self.train), None if self.val is None else identity(self.val)],
            "rewind_epoch": self.rewind_epoch,
            "values": hashlib.sha256(save(held)).hexdigest(),
        }
        return json.loads(json.dumps(document))
