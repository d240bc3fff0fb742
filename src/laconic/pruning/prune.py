"""E²VPT's pruning as one call: score, search how much to prune, rewind, train what is left."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from laconic.batches import ImageLabels, size_of
from laconic.condensation import Criterion, Scope
from laconic.errors import LaconicError, TrainingError
from laconic.evaluation import evaluate
from laconic.files import write_atomically
from laconic.model import PromptedModel, check_segments
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
from laconic.recipe import Recipe
from laconic.train import History, fit


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How to prune.

    Args:
        tokens: Share of the prompts to remove, 0 to below 1; searched on validation data when not given.
        segments: Share of the segments of the prompts that stay; searched when not given.
        num_segments: R, into which a prompt is cut; must divide every width of the backbone.
        criterion: See `laconic.score`.
        scope: See `laconic.select`; `"shared"` is one mask for all blocks.
        saving: Validation accuracy that removing all prompts would be worth: with 0.04, half of them may cost two
            points. With 200 images, choices that are equally good differ by as much.

    Raises:
        LaconicError: If a value is out of range.
    """

    tokens: float | None = None
    segments: float | None = None
    num_segments: int = 16
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    saving: float = 0.04

    def __post_init__(self) -> None:
        grid(self.tokens, self.segments)
        if self.criterion == "cls-similarity":
            raise LaconicError("The criterion 'cls-similarity' is about whole prompts; prune by 'taylor'.")
        if self.num_segments < 1:
            raise LaconicError(f"A prompt has at least one segment, not {self.num_segments}.")
        if not 0 <= self.saving <= 1:
            raise LaconicError(f"What removing all prompts is worth lies between 0 and 1, not {self.saving}.")


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


def prune(
    model: PromptedModel,
    train: ImageLabels,
    val: ImageLabels | None = None,
    *,
    early: Mapping[str, Tensor] | None = None,
    rewind_epoch: int = 0,
    settings: PruneSettings | None = None,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Pruned:
    """Removes the prompts, and the segments of prompts, that are worth least, and trains the rest from an early state.

    How much to remove is searched on validation data at the price of about four trainings: every choice is evaluated
    as trained, the best of eight sizes are trained for an eighth of the schedule, four of them for a quarter, two for
    all of it, and the better one competes with the model as it was.

    Args:
        model: A trained model with prompts; it is not changed.
        train: What to score and train on; as for `laconic.fit`.
        val: What the search is decided on; not needed where both shares are given.
        early: What `model.state()` was at `rewind_epoch`; training goes on from the trained values when not given.
        rewind_epoch: Epoch of `early`, for the record; 0 is before the first step.
        settings: How to prune.
        recipe: How to train; that of the model when not given.
        folder: Keeps the state of the search, so that it can be resumed.
        resume: Go on with the search in `folder`.
        progress: Show bars on standard error.

    Returns:
        A `Pruned`.

    Raises:
        LaconicError: If the model has no prompts or an argument is out of range.
        TrainingError: If `folder` holds another search.
        Interrupted: On Ctrl-C, after the state was saved.

    Example:
        >>> import timm, torch, laconic
        >>> model = laconic.attach(timm.create_model("test_vit", img_size=32), laconic.E2VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> early = model.state()
        >>> _ = laconic.fit(model, data, recipe=laconic.Recipe(epochs=1))
        >>> found = prune(model, data, early=early, settings=PruneSettings(tokens=0.5, segments=0.25))
        >>> sum(found.model.prompt_counts), sum(p.numel() for p in found.model.prompts)
        (12, 576)

    Source: E²VPT (arXiv 2307.13770), section 3.3; successive halving instead of a search over all choices.
    """
    settings = settings or PruneSettings()
    if not any(model.prompt_counts):
        raise LaconicError("There is nothing to prune: the model has no prompts that pass the projections.")
    check_segments(settings.num_segments, model.info)
    recipe = recipe or model.recipe or Recipe()
    if recipe.epochs < 1:
        raise LaconicError("What is left after pruning is trained again, which takes at least one epoch.")
    if val is None and len(grid(settings.tokens, settings.segments)) > 1:
        raise LaconicError("The search for how much to prune needs validation data; give both shares instead.")
    place = None if folder is None else Path(folder)
    if place is not None and not resume and is_main_process():
        shutil.rmtree(place, ignore_errors=True)
    return _Search(model, train, val, early, rewind_epoch, settings, recipe, place, progress).run()


class _Search:
    """One search: what was tried is kept in a journal, beside the state of the training that is going on."""

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
