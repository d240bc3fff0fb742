"""The search for how much to prune, and its journal on disk, from which it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
from safetensors.torch import save
from torch import Tensor

from vprompt.compression.choices import Budget, Choice, PruneSettings, Trial, best_of_each_size, grid, ranked, spread
from vprompt.compression.importance import Importance, cut, importance, pruned
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.checkpoint import EXECUTION_SETTINGS, History, load_tensors, save_tensors
from vprompt.training.evaluate import evaluate
from vprompt.training.loader import ImageLabels, identity, size_of
from vprompt.training.trainer import fit
from vprompt.utils.distributed import gathered, is_main_process
from vprompt.utils.errors import DivergedError, TrainingError, VPromptError
from vprompt.utils.io import checksum, read_json, verified, with_checksum, write_json
from vprompt.utils.progress import Report, bar
from vprompt.utils.serialization import flat

_REMEDY = "delete its folder to search anew"


class Journal:
    """The trials of a search, in order.

    Args:
        path: The file; None writes none.
        identity: Facts that tell this search from others, as plain data.

    Raises:
        TrainingError: If the file is damaged, or the journal of another search.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.trials: list[Trial] = []
        if path is None or not path.exists():
            return
        document = read_json(path)
        if not same_search(document.get("search"), identity):
            raise TrainingError(f"{path} is of another search; give its model and settings, or another folder.")
        try:
            if "checksum" in document and not verified(document):
                raise VPromptError("Its checksum is another.")
            self.trials = msgspec.convert(document["trials"], list[Trial])
        except (KeyError, msgspec.ValidationError, VPromptError) as error:
            raise TrainingError(f"{path} is damaged; {_REMEDY}.") from error

    def of(self, epochs: int) -> dict[Choice, Trial]:
        """The trials with so many epochs."""
        return {trial.choice: trial for trial in self.trials if trial.epochs == epochs}

    def add(self, trial: Trial) -> None:
        """Records a trial, also on disk."""
        self.trials.append(trial)
        if self.path is not None and is_main_process():
            document = {"search": self.identity, "trials": [asdict(trial) for trial in self.trials]}
            write_json(self.path, with_checksum(document))


def delete_search(folder: Path) -> None:
    """Removes what a search left in a folder; other files stay."""
    for pattern in ("trials.json", "importance.safetensors", "[0-9]*-[0-9]*.safetensors"):
        for file in folder.glob(pattern):
            file.unlink()


def same_search(recorded: object, identity: dict[str, Any]) -> bool:
    """True for the recorded facts of this search; data without a fingerprint, on either side, is taken on trust."""
    if not isinstance(recorded, dict):
        return False
    facts = cast("dict[str, Any]", recorded)
    recipe = cast("dict[str, Any]", facts.get("recipe") or {})
    recipe = {name: value for name, value in recipe.items() if name not in EXECUTION_SETTINGS}  # earlier ones had them
    facts = {**facts, "recipe": recipe}
    data = zip(facts.get("data", ()), identity["data"], strict=False)
    trusted = all(None in pair or pair[0] == pair[1] for pair in data)
    return trusted and {**facts, "data": None} == {**identity, "data": None}


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The outcome of `vprompt.prune`.

    Args:
        model: The pruned model in eval mode; a copy of the trained one where nothing was pruned.
        choice: Shares to prune; `model.pruning` has those in whole prompts and segments.
        trials: Every choice that was tried, in the order of the search.
        history: Of the training after rewinding; None where nothing was pruned.
        trainings: Cost of scoring, search and training, in trainings of the whole schedule.
    """

    model: PromptedModel
    choice: Choice
    trials: list[Trial] = field(repr=False)
    history: History | None = field(repr=False)
    trainings: float


@dataclass(kw_only=True)
class Search:
    """One search; its trials are in a journal, beside the checkpoints of its trainings.

    Every choice is evaluated without training it again. The best one of each of seven sizes competes, and the size is
    bisected: a size is trained from the rewind weights, and the next one is smaller if it was better than all before,
    else larger. Arguments as those of `vprompt.prune`.
    """

    model: PromptedModel
    train: ImageLabels
    val: ImageLabels | None
    early: Mapping[str, Tensor] | None
    rewind_epoch: int | None
    settings: PruneSettings
    recipe: Recipe
    folder: Path | None
    progress: bool

    def __post_init__(self) -> None:
        self.trained: dict[Choice, tuple[PromptedModel, History]] = {}
        self.images = {"train": size_of(self.train), "val": 0 if self.val is None else size_of(self.val)}
        self.choices = grid(self.settings.tokens, self.settings.segments)
        self.budget = Budget.of(len(self.choices), epochs=self.recipe.num_epochs, **self.images)
        self.stages = 2 + self.budget.trainings if len(self.choices) > 1 else 2

    def run(self) -> Pruned:
        """Runs all stages, or those that are left of them."""
        self.identity = self._identity()
        self.scores = self._importance()
        self.journal = Journal(self._file("trials.json"), self.identity)
        if len(self.choices) == 1:
            model, history = self._trained(self.choices[0], self.progress)
            return self._pruned(self.choices[0], model, history)
        evaluated = self._evaluate_choices()
        # What was trained already competes as it is.
        best = next((trial for trial in evaluated if trial.kept == 1), None)
        smaller = [trial for trial in evaluated if trial.kept < 1]
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
            return self._pruned(Choice(), self.model.copy().eval(), None)
        model, history = self._trained(best.choice, False)
        return self._pruned(best.choice, model, history)

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def _importance(self) -> Importance:
        """Scores, read from disk where an earlier run wrote them."""
        path, settings = self._file("importance.safetensors"), self.settings
        if path is not None and path.exists():
            return self._read_importance(path)
        with bar(self._label(0, "scoring"), enabled=self.progress) as report:
            scores = importance(
                self.model,
                self.train,
                num_segments=settings.num_segments,
                criterion=settings.criterion,
                scope=settings.scope,
                seed=self.recipe.seed,
                workers=self.recipe.workers,
                report=report,
            )
        scores = gathered(scores)[0]
        if path is not None and is_main_process():
            tensors = {f"tokens.{n}": values for n, values in enumerate(scores.tokens)}
            tensors |= {f"segments.{n}": values for n, values in enumerate(scores.segments)}
            save_tensors(path, tensors, {"search": self.identity})
        return scores

    def _read_importance(self, path: Path) -> Importance:
        tensors, facts = load_tensors(path, _REMEDY)
        if not same_search(facts.get("search"), self.identity):
            raise TrainingError(f"{path.parent} holds another search; give its model and settings, or another folder.")
        blocks, kinds = range(len(self.model.prompts)), ("tokens", "segments")
        try:
            tokens, segments = ([tensors[f"{kind}.{n}"] for n in blocks] for kind in kinds)
        except KeyError as error:
            raise TrainingError(f"{path} is damaged ({error} is missing); {_REMEDY}.") from error
        return Importance(
            tokens=tokens, segments=segments, criterion=self.settings.criterion, scope=self.settings.scope
        )

    def _evaluate_choices(self) -> list[Trial]:
        """Evaluates choices of all sizes without training them again; those in the journal are taken from there."""
        cuts = {choice: cut(self.scores, choice) for choice in self.choices}
        shares = {(part.pruned_tokens, part.pruned_segments): choice for choice, part in reversed(cuts.items())}
        ordered = sorted(shares.values(), key=lambda choice: (-cuts[choice].share, choice.tokens))
        chosen = spread(ordered, self.budget.evaluations)
        known = self.journal.of(0)
        with bar(self._label(1, f"trying {len(chosen)} choices"), enabled=self.progress) as report:
            for number, choice in enumerate(chosen):
                if choice not in known:
                    known[choice] = self._evaluate(choice, pruned(self.model, self.scores, choice), 0)
                report(number + 1, len(chosen))
        return [known[choice] for choice in chosen]

    def _train_trial(self, choice: Choice, stage: int) -> Trial:
        """Trains and evaluates the model that a choice leaves; a trial in the journal is taken from there."""
        known = self.journal.of(self.recipe.num_epochs)
        if choice in known:
            return known[choice]
        part = cut(self.scores, choice)
        prompts, segments = (100 * (1 - share) for share in (part.pruned_tokens, part.pruned_segments))
        label = self._label(stage, f"{prompts:.0f} % of the prompts, {segments:.0f} % of each")
        try:
            with bar(label, enabled=self.progress, unit="img", keep=True) as report:
                small, _ = self._trained(choice, report)
        except DivergedError:
            return self._evaluate(choice, None, self.recipe.num_epochs)
        return self._evaluate(choice, small, self.recipe.num_epochs)

    def _evaluate(self, choice: Choice, model: PromptedModel | None, epochs: int) -> Trial:
        """Evaluates and records a choice; None is a training that diverged."""
        accuracy, loss = 0.0, float("nan")
        if model is not None and self.val is not None:
            evaluation = evaluate(model, self.val, workers=self.recipe.workers)
            accuracy, loss = evaluation.score, evaluation.loss
        share = cut(self.scores, choice).share
        finite = loss if abs(loss) < float("inf") else None
        trial = gathered(Trial(choice=choice, kept=share, epochs=epochs, accuracy=accuracy, loss=finite))[0]
        self.journal.add(trial)
        return trial

    def _trained(self, choice: Choice, progress: bool | Report) -> tuple[PromptedModel, History]:
        """The model that a choice leaves, trained from the rewind weights; resumed from its checkpoint."""
        if choice in self.trained:
            return self.trained[choice]
        small = pruned(self.model, self.scores, choice, early=self.early)
        assert small.pruning is not None
        small.pruning = replace(small.pruning, rewind_epoch=self.rewind_epoch)
        history = fit(
            small,
            self.train,
            self.val if self.recipe.watches else None,
            recipe=self.recipe,
            checkpoint=self._file(f"{choice.tokens:g}-{choice.segments:g}.safetensors"),
            resume=True,
            progress=progress,
            label=self._label(self.stages - 1, "training"),
        )
        self.trained[choice] = small, history
        return small, history

    def _pruned(self, choice: Choice, model: PromptedModel, history: History | None) -> Pruned:
        trials = self.journal.trials
        epochs = sum(trial.epochs for trial in trials) if trials else self.recipe.num_epochs
        evaluations = len(trials) * self.images["val"] / (3 * self.images["train"])
        trainings = (2 + epochs + evaluations) / self.recipe.num_epochs
        return Pruned(model=model, choice=choice, trials=trials, history=history, trainings=trainings)

    def _label(self, stage: int, text: str) -> str:
        return f"pruning {stage + 1}/{self.stages}: {text}"

    def _identity(self) -> dict[str, Any]:
        """Facts by which state on disk is known to be of this search."""
        values = {f"now.{name}": value for name, value in self.model.state().items()}
        values |= {f"early.{name}": value for name, value in (self.early or {}).items()}
        tensors = {name: value.cpu().contiguous() for name, value in values.items()}
        document = {
            "settings": asdict(self.settings),
            "recipe": flat(self.recipe, places=False),
            "images": self.images,
            "data": [identity(self.train), None if self.val is None else identity(self.val)],
            "rewind_epoch": self.rewind_epoch,
            "values": checksum(save(tensors)),
        }
        return json.loads(json.dumps(document))
