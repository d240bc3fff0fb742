"""Stages of a run: backbone and images, training, pruning, condensing, the numbers of each model."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone, require_weights
from vprompt.backbones.info import BackboneInfo, fingerprint, num_parameters
from vprompt.backbones.names import full_name
from vprompt.backbones.quantise import quantise
from vprompt.backbones.weights import weights_origin
from vprompt.compression.condense import condense, fine_tuning_recipe, smallest_share
from vprompt.compression.gradients import attention_mass
from vprompt.compression.prune import prune
from vprompt.compression.score import score
from vprompt.compression.search import Pruned
from vprompt.data.benchmarks.tasks import transforms_of
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.notes import BALANCE
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.bundled import SOURCE as BUNDLED_TASK
from vprompt.data.tasks import open_task
from vprompt.experiments.folder import PAGE, REPORT_KEYS, RESULT, STATE, RunFolder
from vprompt.experiments.log import RunLog
from vprompt.experiments.preview import MANY_WINDOWS, augment_of, preview, windows_of
from vprompt.experiments.settings import CondenseSettings, Condensing, Pruning, Settings
from vprompt.model.cost import folded_gmacs
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.tasks.base import to_document
from vprompt.training.checkpoint import Doubled, History, load_tensors, save_tensors
from vprompt.training.evaluate import Evaluation, difference, doubled, evaluate
from vprompt.training.loader import ImageLabels, in_order, iterate
from vprompt.training.precision import emulated, in_bf16
from vprompt.training.settle import settled
from vprompt.training.trainer import fit
from vprompt.utils.devices import usable_threads
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import BackboneError, DataError, DivergedError, VPromptError
from vprompt.utils.io import read_json, write_json
from vprompt.utils.progress import Report, bar, tell
from vprompt.utils.text import line, listed
from vprompt.utils.version import __version__

Page = Callable[..., None]
"""Writes a page, as `vprompt.experiments.report.outcome.write_page` does."""


class Sources:
    """Makes backbones and opens tasks for runs, and keeps the last ones for the next run."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[object, Any]] = {}
        self.introduced: Task | None = None
        """The last task of which a run has said what was found; the runs that follow need not."""

    def backbone(self, settings: Settings) -> nn.Module:
        """The backbone that settings name, with its weights; runs leave it as it is."""
        name, precision = settings.backbone, settings.backbone_precision
        options: dict[str, Any] = {"img_size": settings.img_size, "in_chans": settings.in_chans}
        options["weights"] = settings.weights
        key = (name, precision, *options.values())
        return self._kept("backbone", key, lambda: quantise(create_backbone(name, **options), precision))

    def task(
        self, settings: Settings | CondenseSettings, preprocessing: Preprocessing, target: str | None, report: Report
    ) -> Task:
        """The images that settings name, checked and decoded, with labels for a target."""
        options: dict[str, Any] = {
            "root": settings.root,
            "columns": settings.columns,
            "target": target,
            "resize": settings.resize if isinstance(settings, Settings) else preprocessing.resize,
            "split_seed": settings.split_seed,
            "skip_bad": settings.skip_bad,
        }
        key = (settings.data, preprocessing, *options.values())
        return self._kept("task", key, lambda: open_task(settings.data, preprocessing, **options, progress=report))

    def _kept(self, what: str, key: object, make: Callable[[], Any]) -> Any:
        """The last one, where it is what is asked for; it goes before the next is made, as both might not fit."""
        if what not in self._last or self._last[what][0] != key:
            self._last.pop(what, None)
            self._last[what] = (key, make())
        return self._last[what][1]


def preprocessing_of(settings: Settings, info: BackboneInfo) -> Preprocessing:
    """Preprocessing of every image: as the backbone was trained, resized as the settings or the task say."""
    return replace(info.preprocessing, resize=settings.resize or transforms_of(settings.data).resize)


SPLITS = {"val": "validation", "test": "test"}

DOMINANT = 0.5
"""Share of attention above which prompts dominate a block: it mixes more of what all images share than of the image."""

FULL, CONDENSED = "full", "condensed"
"""Folders in that of a run: the adapter with all prompts, and the one with those that are kept, not fine-tuned."""


def backbone_for(
    data: str | None, *, root: str | None = None, weights: str | None = None, out: Path | None = None
) -> tuple[str, str | None]:
    """The backbone of a run for which none is named, and a sentence where it is not the one that it should be.

    Tasks that come with the library have the bundled one. A user's own images have `small`; where its weights cannot
    be had, they have the bundled one as well.

    Args:
        data: See `Settings`, as `root` and `weights`.
        root: Folder of benchmarks.
        weights: File with weights: then they are those of `small`.
        out: Folder of an earlier run that goes on, with the backbone that it began with.
    """
    files = [] if out is None else [out / STATE / "settings.json", out / RESULT]
    for file in filter(Path.is_file, files):
        document = read_json(file)
        if isinstance(name := document.get("backbone"), str):
            return name, None
    small = full_name("small")
    query = Query(spec=BUNDLED_TASK if data is None else data, root=root)
    listings = (source.find(query) for source in SOURCES if getattr(source, "renders", False))
    if any(listing is not None and listing.rendered is not None for listing in listings):
        return BUNDLED_BACKBONE, None
    if weights is not None:
        return small, None
    try:
        require_weights(small)
    except BackboneError:
        return BUNDLED_BACKBONE, (
            f"Offline: the weights of the backbone small ({small}) are neither in the cache nor to be had from the "
            "Hub, so the bundled one takes its place, which is for trials and knows far less. Go online once, or "
            "give --backbone small --weights FILE; --backbone bundled asks for this one."
        )
    return small, None


class Stages:
    """The stages of one run, each of which goes on where its checkpoint stands."""

    def __init__(
        self,
        folder: RunFolder,
        settings: Settings | CondenseSettings,
        preprocessing: Preprocessing,
        target: str | None,
        progress: bool | Report,
        sources: Sources,
        page: Page | None = None,
    ) -> None:
        self.folder = folder
        self.page = page
        self.settings = settings
        self.sources = sources
        self.bars = progress is True
        self.progress = progress
        self.started = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.evaluations: list[dict[str, Evaluation]] = []
        self.notes: list[str] = []
        self.weights: dict[str, str] | None = None
        torch.set_num_threads(usable_threads())
        with bar("reading images", enabled=self.bars) as report:
            self.task = sources.task(settings, preprocessing, target, report)
        self.train_images, self.val = training_images(self.task, settings)
        self.log = RunLog(folder.out, folder.document, settings.track)
        if settings.condense is not None and settings.condense.ratio == "auto" and self.val is None:
            raise DataError(
                f"{self.task.source} has no validation images on which to choose how much to condense; give a share "
                "instead of auto."
            )
        sure = self.task.target.answer == "probabilities" and not self.task.target.dense
        if settings.check_convergence and self.val is None:
            lack = "validation images to tell convergence by; leave out --check-convergence."
            raise DataError(f"{self.task.source} has no {lack}")
        if settings.calibrate and (self.val is None or not sure):
            lack = "validation images to calibrate on" if self.val is None else "probabilities of images to calibrate"
            raise DataError(f"{self.task.source} has no {lack}; leave out --calibrate.")

    def introduce(self, model: PromptedModel, recipe: Recipe) -> None:
        """Says on standard error what was found, and what will be done with it; notes where the weights are from."""
        self.weights = weights_origin(model.backbone)
        if model.info.name == BUNDLED_BACKBONE and self.task.train.paths is not None:
            self.notes.append("The backbone is the bundled one, for trials: --backbone small knows far more.")
        if self.task.target.dense and (looks := windows_of(self.train_images)) > MANY_WINDOWS:
            self.notes.append(f"An image is seen in about {looks:.0f} windows: --resize fit makes that fewer.")
        slow = emulated(recipe.precision, model.device)
        if self.bars and slow:
            tell([slow])
        if self.bars and self.sources.introduced is not self.task:
            lines = preview(model, self.task, self.train_images, self.settings, recipe)
            done = BALANCE if recipe.balance != "none" else None
            notes = (note for note in self.task.summary.notes if note != done)
            about_data = [note for note in notes if not note.startswith("Passed over")]
            tell([*lines, *about_data, *self.notes])
            self.sources.introduced = self.task
        self.notes += [slow] * bool(slow)

    def settle(self, model: PromptedModel, *, search: bool = True) -> Recipe:
        """The recipe with the numbers that are found on the data, which its result names as well.

        Args:
            model: What will be trained.
            search: With the learning rate, which takes a while.
        """
        options: dict[str, Any] = {"file": self.folder.state("settled.json"), "resume": True, "progress": self.progress}
        tested = [split for split in (self.val, self.task.test) if split is not None]
        options |= {"spent": time.monotonic() - self.started, "after": sum(map(len, tested)), "search": search}
        recipe, facts = settled(fit, model, self.train_images, self.val, self._recipe(model), **options)
        self.facts |= facts
        if search and "lr_search" in facts:
            rates = listed([f"{row['lr']:g}" for row in facts["lr_search"]])
            self.notes.append(f"The learning rate is {recipe.lr:g}, the best on the validation images of {rates}.")
        return recipe

    def _recipe(self, model: PromptedModel) -> Recipe:
        return self.settings.recipe if isinstance(self.settings, Settings) else fine_tuning_recipe(model)

    def train(
        self,
        model: PromptedModel,
        recipe: Recipe,
        stage: str,
        at_epoch: Callable[[int], None] | None = None,
        *,
        checkpoint: Path | None = None,
        until: int | None = None,
    ) -> History:
        """Trains what there is to learn, or up to an epoch; the state is kept in the run's folder by default."""
        doubles = self.settings.check_convergence and stage in ("training", "fine-tuning") and checkpoint is None
        twin = model.copy() if doubles else None
        history = fit(
            model,
            self.train_images,
            self.val,
            recipe=recipe,
            checkpoint=checkpoint or self.folder.state(f"{stage}.safetensors"),
            resume=True,
            progress=self.progress,
            label=stage,
            at_epoch=at_epoch,
            until=until,
            log=None if checkpoint is not None else self.log.stage(stage),
        )
        if twin is not None and self.val is not None and history.rows:
            history.doubled = self._doubled(model, twin, self.val, recipe, stage)
        return history

    def _doubled(
        self, model: PromptedModel, twin: PromptedModel, val: ImageDataset, recipe: Recipe, stage: str
    ) -> Doubled | None:
        """What twice the epochs change on the validation images; None where they end in no number."""
        longer, label = replace(recipe, epochs=2 * recipe.num_epochs), f"{stage}, twice as long"
        options: dict[str, Any] = {"resume": True, "progress": self.progress, "label": label}
        state = self.folder.state(f"{stage}-doubled.safetensors")
        try:
            fit(twin, self.train_images, val, recipe=longer, checkpoint=state, **options)
        except DivergedError:
            return None
        ends = (self._evaluated(each, val, "validation").losses for each in (model, twin))
        return doubled(*ends, epochs=longer.num_epochs)

    def train_and_record(self, model: PromptedModel, recipe: Recipe, rewind_epoch: int) -> History:
        """Trains with all prompts and records on the way the values to rewind to."""
        early = self._early
        if rewind_epoch > recipe.num_epochs:
            raise VPromptError(f"There is no epoch {rewind_epoch} to rewind to: the training has {recipe.num_epochs}.")

        def record(epochs: int) -> None:
            if epochs == rewind_epoch and is_main_process():
                save_tensors(early, model.state(), {})

        return self.train(model, recipe, "training", record)

    def prune(
        self,
        model: PromptedModel,
        recipe: Recipe,
        settings: Pruning,
        early: dict[str, torch.Tensor] | None = None,
    ) -> Pruned:
        """Prunes a trained model and trains what is left from its early values; those recorded where none are given.

        Prompts that moved in training have none: what is left of them goes on from where it is.
        """
        if early is None:
            early = load_tensors(self._early, "start the run anew in another --out")[0]
        return prune(
            model,
            self.train_images,
            self.val,
            early=None if model.method.relocates else early,
            rewind_epoch=settings.rewind_epoch,
            settings=settings,
            recipe=recipe,
            folder=self.folder.state("pruning") / "search",
            resume=True,
            progress=self.bars,
        )

    @property
    def _early(self) -> Path:
        return self.folder.state("pruning") / "early.safetensors"

    def condense(
        self, model: PromptedModel, settings: Condensing, recipe: Recipe, *, keep: bool
    ) -> tuple[PromptedModel, History]:
        """The model with the prompts that are kept, fine-tuned if the settings say so.

        Args:
            model: With all prompts.
            settings: How.
            recipe: Of the fine-tuning.
            keep: Leave the model that is not fine-tuned in a folder of its own.
        """
        started = time.monotonic()
        with bar("scoring", enabled=self.bars) as report:
            scores = score(
                model,
                self.train_images,
                criterion=settings.criterion,
                seed=recipe.seed,
                workers=recipe.workers,
                report=report,
            )
        self.facts["scoring_seconds"] = round(time.monotonic() - started, 3)

        def condensed(ratio: float) -> PromptedModel:
            return condense(
                model,
                self.train_images,
                ratio=ratio,
                criterion=settings.criterion,
                scope=settings.scope,
                merge=settings.merge,
                fine_tune=False,
                scores=scores,
            )

        def tuned(ratio: float, stage: str) -> tuple[float, PromptedModel, History]:
            small = condensed(ratio)
            return ratio, small, self.train(small, recipe, stage) if settings.fine_tune else History()

        if settings.ratio == "auto":
            val = self.val
            assert val is not None  # as is checked at the start

            def attempt(ratio: float) -> tuple[tuple[float, PromptedModel, History], Evaluation]:
                made = tuned(ratio, f"fine-tuning-{ratio:g}")
                return made, self._evaluated(made[1], val, "validation")

            best, trials = smallest_share(self._evaluated(model, val, "validation"), attempt)
            ratio, small, history = best or (1.0, condensed(1.0), History())
            self.facts["condensing"] = {"ratio": ratio, "trials": trials}
        else:
            ratio, small, history = tuned(settings.ratio, "fine-tuning")
        if small.condensation is not None:
            self.facts["scores"] = peak = small.condensation.peak
            if peak["tied"]:
                alone = f"Prompts that were kept by their place alone: {peak['tied']} of {sum(small.prompt_counts)}"
                self.notes.append(f"{alone}; they score no higher than others that went.")
        if keep and history.rows and is_main_process():
            condensed(ratio).save_pretrained(self.folder.out / CONDENSED)
        return small, history

    def keep(self, model: PromptedModel, report: dict[str, Any], settings: Settings) -> None:
        """Leaves the model with all prompts, whose report is given, as a finished run in a folder of its own."""
        if is_main_process():
            model.save_pretrained(self.folder.out / FULL)
            whole = replace(settings, condense=None, prune=None).to_flat()
            facts = {"backbone": settings.backbone, "seed": settings.recipe.seed, "settings": whole}
            origin = self._provenance(model, History(rows=report["epochs"]))
            write_json(self.folder.out / FULL / RESULT, {**report, **facts, "provenance": origin})

    def report(self, model: PromptedModel, history: History) -> dict[str, Any]:
        """The numbers of one model; the only place where test data is read."""
        report: dict[str, Any] = {}
        splits = self._splits.items()
        evaluations = {split: self._evaluated(model, data, SPLITS[split]) for split, data in splits}
        if "val" in evaluations and (self.settings.calibrate or "temperature" in (to_document(model.target) or {})):
            model.target = model.target.calibrated(evaluations["val"].logits, evaluations["val"].labels)
            report["calibration"] = {}
            for split, found in evaluations.items():
                evaluations[split] = replace(found, target=model.target)
                pair = {"before": self.task.target, "after": model.target}
                trust = {when: target.trust(found.logits, found.labels) for when, target in pair.items()}
                report["calibration"][split] = trust
        self.evaluations.append(evaluations)
        for split in SPLITS:
            report |= {f"{split}_{model.target.headline}": None, f"{split}_loss": None}
            if split in evaluations:
                report |= {f"{split}_{key}": value for key, value in evaluations[split].figures.items()}
        return {
            **report,
            "prompt_counts": model.prompt_counts,
            "learned_params": model.num_learned,
            "backbone_params": num_parameters(model.backbone),
            "folded_gmacs": round(folded_gmacs(model), 6),
            "method": model.method.name,
            "target": model.target.name,
            "training_seconds": round(history.seconds, 1),
            "converged": history.converged,
            **({} if history.doubled is None else {"convergence": asdict(history.doubled)}),
            "overfits": history.overfits,
            "epochs": history.rows,
        }

    def report_in(self, folder: Path) -> dict[str, Any] | None:
        """The numbers that a run left in a folder; None where there are none, or those of other images."""
        path = folder / RESULT
        result = read_json(path) if path.is_file() else {}
        if result.get("provenance", {}).get("data", {}).get("fingerprint") != self.task.fingerprint():
            return None
        return {key: value for key, value in result.items() if key in REPORT_KEYS or key.startswith(("val_", "test_"))}

    def finish(self, model: PromptedModel, history: History, facts: dict[str, Any]) -> dict[str, Any]:
        """Writes adapter and result."""
        report = self.report(model, history)
        for split, evaluation in self.evaluations[-1].items():
            self.notes += evaluation.remarks(SPLITS[split])
        if len(self.evaluations) > 1:
            facts = {**facts, "lost": self._lost(*self.evaluations[-2:])}
        recipe, device = model.recipe or self._recipe(model), model.device
        facts = {**facts, **self._attention(model)}
        result = {
            **report,
            **facts,
            **self.facts,
            "notes": self.notes,
            "machine": {
                "device": str(device),
                "precision": "bf16" if in_bf16(recipe.precision, device) else "fp32",
                "threads": torch.get_num_threads(),
                "batch_size": recipe.batch,
            },
            "settings": self.folder.document,
            "provenance": self._provenance(model, history),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        result = json.loads(json.dumps(result))
        self.log.close()
        self.folder.finish(model, result)
        if self.page is not None and is_main_process() and self.evaluations[-1]:
            out, seen = self.folder.out, self.evaluations[-1]
            try:
                self.page(out / PAGE, model, seen, self._splits, result, adapter=str(out), data=self.settings.data)
            except Exception as error:
                result["notes"].append(f"There is no {PAGE} ({type(error).__name__}: {line(error)}).")
                write_json(self.folder.out / RESULT, result)
        return result

    def _attention(self, model: PromptedModel) -> dict[str, Any]:
        """Attention that prompts take in every block on the first images to validate on; noted where it is much."""
        if not any(model.prompt_counts) and not len(model.kv_prompts):
            return {}
        data = self.val or self.train_images
        images, _ = next(iter(iterate(data, in_order(min(len(data), 16), 16), device=model.device, model=model)))
        mass = attention_mass(model, images)
        both = [sum(pair) for pair in mass]
        if many := sum(share > DOMINANT for share in both):
            self.notes.append(
                f"Prompts take up to {100 * max(both):.0f} % of a block's attention, in {many} of {len(both)} blocks "
                "more than the image, and they are the same for all images; fewer prompts leave it more."
            )
        visual, key_value = ([round(share, 4) for share in shares] for shares in zip(*mass, strict=True))
        return {"attention": {"prompts": visual, "kv_prompts": key_value}}

    @staticmethod
    def _lost(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]) -> dict[str, Any]:
        """Score that fewer prompts cost, on the same images; below 0 where they gained some."""
        lost: dict[str, Any] = {}
        for split in after:
            change, (low, high) = difference(after[split], before[split])
            if math.isfinite(change):
                lost |= {f"{split}_{after[split].target.headline}": change, f"{split}_interval": [low, high]}
        return lost

    def _provenance(self, model: PromptedModel, history: History) -> dict[str, Any]:
        task, summary = self.task, self.task.summary
        splits = {"train": task.train, "val": task.val, "test": task.test}
        return {
            "data": {
                "source": task.source,
                "fingerprint": task.fingerprint(),
                "classes": list(task.classes),
                "images": {name: None if split is None else len(split) for name, split in splits.items()},
                "skipped": list(task.skipped),
                "differences": list(task.differences),
                "per_split": {split: dict(counts) for split, counts in summary.per_split.items()},
                "passed_over": {reason: len(names) for reason, names in summary.passed_over.items()},
                "notes": list(summary.notes),
                "sample": summary.sample,
            },
            "preprocessing": asdict(task.preprocessing),
            "trained_on": {"images": len(self.train_images), "augment": self.train_images.augment},
            "backbone_fingerprint": fingerprint(model.backbone),
            "weights": self.weights,
            "epoch_rule": f"{history.rule(model.recipe)}; test data "
            + ("read once, at the end" if self.settings.test else "not read"),
            "versions": {
                "vprompt": __version__,
                "torch": torch.__version__,
                **{name: version(name) for name in ("timm", "accelerate", "numpy")},
            },
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": next(model.parameters()).device.type,
        }

    @property
    def _splits(self) -> dict[str, ImageDataset]:
        splits = {"val": self.val, "test": self.task.test if self.settings.test else None}
        return {split: images for split, images in splits.items() if images is not None}

    def _evaluated(self, model: PromptedModel, data: ImageLabels, name: str) -> Evaluation:
        with bar(f"evaluating ({name})", enabled=self.bars) as report:
            return evaluate(model, data, report=report)


def training_images(task: Task, settings: Settings | CondenseSettings) -> tuple[ImageDataset, ImageDataset | None]:
    """Images that a run trains on, and those left to validate on."""
    train, val = task.train, task.val
    if settings.train_on == "train+val":
        if val is None:
            raise DataError(f"{task.source} has no validation images to train on as well.")
        train, val = train.joined(val), None
    return train.with_augment(augment_of(settings, train)), val
