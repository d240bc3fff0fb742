"""The output folder of a run: opened at the start, whole at the end; and the lock that keeps others out of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import filelock
import msgspec

from vprompt.experiments.settings import changed_settings
from vprompt.tasks.base import TARGETS, Target
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import AdapterError, DivergedError, TrainingError, VPromptError, lacks_memory
from vprompt.utils.io import read_json, write_json, writing
from vprompt.utils.text import printable

if TYPE_CHECKING:  # it imports torch, which takes seconds, and a folder may be in the way
    from vprompt.model.model import PromptedModel

RESULT, PAGE = "result.json", "report.html"

STATE = ".run"
"""Folder with the state of an unfinished run, inside its output folder."""

_FINGERPRINTS = "fingerprints"
"""Key of the fingerprints of what a run reads."""

LOG = "log.jsonl"
"""A line for each epoch of a run, as it ends."""

OWN_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", RESULT, PAGE)


class BusyError(VPromptError):
    """Another process is at work on the same run."""


@contextmanager
def locked(lock: Path, what: object, *, tidy: bool = False) -> Generator[None]:
    """Keeps other processes from working on the same, also those of machines that share the folder; ends with this one.

    Args:
        lock: A file that is made and removed; where its owner has died, however, it is taken over.
        what: Is worked on, for the message.
        tidy: Remove its folder, and those that were made for it, where nothing else is in them. Not for one that
            several share: it could go while another lock is made in it.

    Raises:
        BusyError: If another process is there first; it is named.
        StorageError: If there can be no such file.
    """
    holder = filelock.FileLock(lock)
    made = [place for place in lock.parents if not place.exists()]
    try:
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            try:
                holder.acquire(timeout=0)
            except filelock.Timeout as error:
                owner = ""
                with suppress(OSError, ValueError):
                    owner = f" ({printable(lock.read_text(encoding='utf-8')[:200])})"
                what = printable(str(what))
                raise BusyError(
                    f"Another process{owner} is at work on {what}; wait, or choose another --out."
                ) from error
        try:
            if not hasattr(holder, "pid"):  # on a disk without locks, the file is the lock and says that already
                with suppress(OSError):  # a full disk has room for a name, but not for what is in the file
                    lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            lock.unlink(missing_ok=True)
            holder.release()
    finally:
        # A folder that a user made stays.
        ours = [lock.parent] if lock.parent.name.startswith(".") else []
        for place in (*ours, *made) if tidy else ():
            with suppress(OSError):  # something is in it
                place.rmdir()


class _Source(TypedDict):
    source: str


class _Origin(TypedDict):
    data: _Source


class Result(TypedDict):
    """What tells runs apart in a result of any version."""

    backbone: str
    method: str
    seed: int
    settings: dict[str, Any]
    provenance: _Origin


class _Data(_Source, total=False):
    fingerprint: str
    skipped: list[str]
    differences: list[str]


class _Provenance(TypedDict, total=False):
    data: _Data
    weights: dict[str, str] | None


class _Pruning(TypedDict):
    tokens: float
    segments: float
    trainings: float


class _Trial(TypedDict):
    ratio: float
    difference: float


class _Condensing(TypedDict):
    trials: list[_Trial]


class _Intervals(TypedDict, total=False):
    val_accuracy: float | None
    val_interval: tuple[float, float] | None
    test_accuracy: float | None
    test_interval: tuple[float, float] | None


class _Model(_Intervals, total=False):
    val_balanced_accuracy: float
    val_majority_accuracy: float
    val_loss: float | None
    test_balanced_accuracy: float
    test_majority_accuracy: float
    prompt_counts: list[int]
    learned_params: int
    backbone_params: int
    folded_gmacs: float
    method: str
    target: str
    training_seconds: float
    converged: bool | None
    convergence: dict[str, float]
    overfits: bool
    calibration: dict[str, Any]
    epochs: int | list[dict[str, float]]


REPORT_KEYS = _Model.__annotations__.keys()
"""Keys of a result for each model in it, besides further ones that begin with `val_` or `test_`."""


class Figures(_Model, total=False):
    """Types of what a result says of a model, as far as others count on it; each may be missing."""

    seconds: float
    diverged: str
    until: int | None
    pruning: _Pruning
    condensing: _Condensing
    lost: _Intervals
    notes: list[str]
    provenance: _Provenance
    fingerprints: dict[str, str | None]


_SHOWN = ("method", "prompt_counts", "learned_params", "training_seconds", "converged", "epochs")
"""Figures that are shown of every model."""


def fits(document: object, kind: type[Any], *needed: str) -> bool:
    """Whether plain data from a file has the types of a `TypedDict`, and some of its keys that need not be there."""
    try:
        return set(needed) <= msgspec.convert(document, kind).keys()
    except (msgspec.ValidationError, UnicodeError, OverflowError):
        return False


def score_key(result: Mapping[str, Any], split: str) -> str:
    """Key of the figure that runs are compared by, in a result of any version.

    Example:
        >>> score_key({}, "test"), score_key({"target": "regression"}, "val")
        ('test_accuracy', 'val_r2')
    """
    return f"{split}_{target_of(result).headline}"


def converged_in(result: Mapping[str, Any]) -> bool | None:
    """Whether the training of a result had converged; None where that is not known.

    Earlier versions went by the falling of the loss, which is no evidence: their answer does not count.

    Example:
        >>> doubled = {"epochs": 60, "difference": 0.1, "standard_error": 0.2}
        >>> converged_in({"converged": True, "convergence": doubled}), converged_in({"converged": True})
        (True, None)
    """
    converged = result.get("converged")
    return converged if isinstance(converged, bool) and result.get("convergence") else None


def target_of(result: Mapping[str, Any]) -> type[Target]:
    """The kind of target of a result of any version; of one that is not installed any more, the usual one."""
    name = str(result.get("target"))
    return TARGETS.get(name) if name in TARGETS else SingleLabel


def result_of(folder: str) -> dict[str, Any]:
    """Result of an adapter's run, and its settings, empty where there is nothing."""
    path = Path(folder) / RESULT
    try:
        result = read_json(path) if path.is_file() else {}
    except TrainingError as error:
        raise AdapterError(
            f"{path} is damaged; remove it, and say by --data what the adapter was trained on."
        ) from error
    settings = result.get("settings")
    return {**result, "settings": settings if isinstance(settings, dict) else {}}


def is_begun(out: Path) -> bool:
    """Whether there is the state of a run to go on from."""
    return any((out / STATE).glob("*.safetensors"))


def check_out(out: Path, *, resume: bool) -> None:
    """Raises a `TrainingError` for a folder that no run may be written to, in no time.

    Args:
        out: The folder.
        resume: A run in it is to go on.
    """
    shown = printable(str(out))
    if out.exists() and not out.is_dir():
        raise TrainingError(f"The output folder {shown} is a file; choose another --out.")
    if (out / RESULT).exists():
        if not resume:
            raise TrainingError(f"{shown} holds a finished run; choose another --out (its numbers are in {RESULT}).")
    elif is_begun(out):
        if not resume:
            raise TrainingError(f"{shown} holds an unfinished run; add --resume to go on, or choose another --out.")
    elif taken := [name for name in OWN_FILES if (out / name).exists()]:
        raise TrainingError(f"{shown} has a {taken[0]} that this run would overwrite; choose another --out.")


class RunFolder:
    """The folder of a run: hidden state while it goes on, adapter and result.json when it is done.

    Args:
        out: The folder.
        settings: What the run does, as plain data; a resumed run must have the same.
        flags: Setting -> what the command calls it, where that is something else.
        fingerprints: Setting that is a path -> what tells the fingerprint of the content there; a run may go on with a
            copy of it elsewhere.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        *,
        flags: Mapping[str, str] | None = None,
        fingerprints: Mapping[str, Callable[[], str | None]] | None = None,
    ) -> None:
        self.out = out
        self.flags = flags or {}
        self.fingerprints = fingerprints or {}
        self.document: dict[str, Any] = json.loads(json.dumps(settings))
        self.is_main = is_main_process()

    def state(self, name: str) -> Path:
        """Place of a stage's state, by the name of a file or of a folder."""
        return self.out / STATE / name

    @contextmanager
    def opened(self, *, resume: bool) -> Generator[dict[str, Any] | None]:
        """Makes the folder this run's own while it goes on; no other process gets in.

        On an error, the state of a run that nothing was saved of, or that need not go on, is deleted.

        Yields:
            The result when resuming a run that is finished; then nothing is left to do.

        Raises:
            BusyError: If another process is at work in it.
            TrainingError: If something else is in the way, or there was not enough memory.
        """
        finished = self._checked(resume)
        if finished is not None or not self.is_main:
            yield finished
            return
        with locked(self.state("lock"), self.out, tidy=True):
            if (finished := self._checked(resume)) is not None:  # another run has just ended here
                yield finished
                return
            try:
                if not is_begun(self.out):
                    write_json(self.state("settings.json"), self.document)
                yield None
            except Exception as error:
                if not is_begun(self.out) or isinstance(error, DivergedError):
                    self._tidy()
                if lacks_memory(error) and not isinstance(error, VPromptError):
                    raise TrainingError(
                        "There is not enough memory; try a smaller --batch-size, fewer prompts or a smaller backbone."
                    ) from error
                raise

    def finish(self, model: PromptedModel, result: dict[str, Any]) -> None:
        """Writes the adapter, then the result, then deletes the state."""
        if self.is_main:
            model.save_pretrained(self.out)
            write_json(self.out / RESULT, result)
            self._tidy()

    def record(self, **known: str) -> None:
        """Writes down the fingerprints of what a run reads, for one that goes on elsewhere.

        Args:
            **known: Those that are known already, by the names of settings.

        Raises:
            TrainingError: If the run that goes on was begun with something else.
        """
        if not self.is_main:
            return
        begun = read_json(self.state("settings.json"))
        earlier, others = begun.get(_FINGERPRINTS), self.fingerprints.keys() - known
        now = known | {name: digest for name in others if (digest := self.fingerprints[name]()) is not None}
        changed = [name for name in now if isinstance(earlier, dict) and earlier.get(name) != now[name]]
        if changed and is_begun(self.out):
            raise TrainingError(
                f"The {changed[0]} of the unfinished run in {printable(str(self.out))} has changed since; start anew "
                "in another --out."
            )
        write_json(self.state("settings.json"), {**begun, _FINGERPRINTS: now})

    def _checked(self, resume: bool) -> dict[str, Any] | None:
        """The result where the run is finished; raises a `TrainingError` where something else is in the way."""
        path = self.out / RESULT
        if path.exists():
            check_out(self.out, resume=resume)
            result = read_json(path)
            models = (result, result.get("before", result))
            if not fits(result, Result) or not all(
                fits(model, Figures, *_SHOWN) and {score_key(model, "val"), score_key(model, "test")} <= model.keys()
                for model in models
            ):
                raise TrainingError(f"{printable(str(path))} is damaged; choose another --out.")
            data, weights = result["provenance"]["data"], result["provenance"].get("weights") or {}
            known = {"data": data.get("fingerprint"), "weights": weights.get("sha256")}
            self._compare(result["settings"], known | result.get(_FINGERPRINTS, {}), "finished")
            self._tidy()
            return result
        if self.is_main:
            check_out(self.out, resume=resume)
            if is_begun(self.out):
                settings = read_json(self.state("settings.json"))
                self._compare(settings, settings.get(_FINGERPRINTS), "unfinished")
        return None

    def _tidy(self) -> None:
        """Removes the state but for the lock, and what a kill in the middle of writing may have left."""
        if not self.is_main:
            return
        for entry in (self.out / STATE).glob("*"):
            if entry != self.state("lock"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        with suppress(OSError):  # the lock is there
            (self.out / STATE).rmdir()
        for name in (*OWN_FILES, LOG):
            for part in self.out.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)

    def _compare(self, earlier: dict[str, Any], fingerprints: object, state: str) -> None:
        """Raises a `TrainingError` that names settings which differ; paths differ where their content does."""

        def same(name: str) -> bool:
            before, now = earlier.get(name), self.document.get(name)
            if name not in self.fingerprints or not isinstance(before, str) or not isinstance(now, str):
                return False
            if os.path.exists(now) and os.path.realpath(before) == os.path.realpath(now):
                return True
            known = fingerprints.get(name) if isinstance(fingerprints, dict) else None
            return known is not None and known == self.fingerprints[name]()

        changed = [name for name in changed_settings(earlier, self.document) if not same(name)]
        if changed:
            named, out = ", ".join(self.flags.get(name, name) for name in changed), printable(str(self.out))
            raise TrainingError(
                f"The {state} run in {out} has other settings ({named}); give the same, or choose another --out."
            )
