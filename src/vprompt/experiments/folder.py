"""The output folder of a run: opened at the start, whole at the end; and the lock that keeps others out of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import filelock
import msgspec

from vprompt.experiments.settings import changed_settings
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import DivergedError, TrainingError, VPromptError, lacks_memory
from vprompt.utils.io import read_json, write_json, writing
from vprompt.utils.text import printable

if TYPE_CHECKING:  # it imports torch, which takes seconds, and a folder may be in the way
    from vprompt.model.model import PromptedModel

RESULT = "result.json"

STATE = ".run"
"""Folder with the state of an unfinished run, inside its output folder."""

_FINGERPRINTS = "fingerprints"
"""Key of the fingerprints of what a run reads."""

OWN_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", RESULT)


class BusyError(VPromptError):
    """Another process is at work on the same run."""


@contextmanager
def locked(lock: Path, what: object) -> Generator[None]:
    """Keeps other processes from working on the same, also those of machines that share the folder; ends with this one.

    Args:
        lock: A file that is made and removed; where its owner has died, however, it is taken over.
        what: Is worked on, for the message.

    Raises:
        BusyError: If another process is there first; it is named.
        StorageError: If there can be no such file.
    """
    holder = filelock.FileLock(lock)
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            holder.acquire(timeout=0)
        except filelock.Timeout as error:
            owner = _owner(lock)
            raise BusyError(f"{owner} is at work on {printable(str(what))}; wait, or choose another --out.") from error
    try:
        if not hasattr(holder, "pid"):  # on a disk without locks, the file is the lock and says that already
            with suppress(OSError):  # a full disk has room for a name, but not for what is in the file
                lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.unlink(missing_ok=True)
        holder.release()


def _owner(lock: Path) -> str:
    """What the owner of a lock says of itself."""
    with suppress(OSError, ValueError):
        if said := " ".join(lock.read_text(encoding="utf-8").split())[:200]:
            return f"Another process ({printable(said)})"
    return "Another process"


Interval = tuple[float, float]


class Intervals(TypedDict, total=False):
    """Accuracies, or differences of accuracies, and their intervals; each may be missing."""

    val_accuracy: float | None
    val_interval: Interval
    test_accuracy: float | None
    test_interval: Interval


class Figures(Intervals, total=False):
    """Figures of a result that others count on, of one model; each may be missing."""

    val_balanced_accuracy: float
    val_majority_accuracy: float
    val_loss: float | None
    test_balanced_accuracy: float
    test_majority_accuracy: float
    overfits: bool
    prompt_counts: list[int]
    learned_params: int
    backbone_params: int
    folded_gmacs: float
    method: str
    training_seconds: float
    converged: bool
    epochs: int | list[dict[str, float]]
    seconds: float
    diverged: str
    until: int | None


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


class _Data(_Source):
    fingerprint: NotRequired[str]
    skipped: NotRequired[list[str]]
    differences: NotRequired[list[str]]


class _Provenance(TypedDict):
    data: _Data


class _Pruning(TypedDict):
    tokens: float
    segments: float
    trainings: float


class _Trial(TypedDict):
    ratio: float
    difference: float


class _Condensing(TypedDict):
    trials: list[_Trial]


class FinishedRun(Figures):
    """A result, as far as a command that shows it must be able to count on it."""

    backbone: str
    settings: dict[str, Any]
    provenance: _Provenance
    before: NotRequired[Figures]
    pruning: NotRequired[_Pruning]
    condensing: NotRequired[_Condensing]
    lost: NotRequired[Intervals]
    notes: NotRequired[list[str]]


_SHOWN = (
    *("method", "val_accuracy", "test_accuracy", "prompt_counts"),
    *("learned_params", "training_seconds", "converged", "epochs"),
)
"""Figures that are shown of every model."""


def fits(document: object, kind: type[Any], *needed: str) -> bool:
    """Whether plain data from a file has the types of a `TypedDict`, and some of its keys that need not be there."""
    try:
        return set(needed) <= msgspec.convert(document, kind).keys()
    except (msgspec.ValidationError, UnicodeError, OverflowError):
        return False


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
        if (self.out / RESULT).exists() or not self.is_main:
            yield self._finished(resume) if (self.out / RESULT).exists() else None
            return
        self._check(resume)
        try:
            with locked(self.state("lock"), self.out):
                self._check(resume)  # another run may just have been here
                with self._discarding():
                    if not is_begun(self.out):
                        write_json(self.state("settings.json"), self.document)
                    yield None
        finally:
            for place in (self.out / STATE, self.out):
                with suppress(OSError):  # something is in it
                    place.rmdir()

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

    def _check(self, resume: bool) -> None:
        """Raises a `TrainingError` where there is anything but a run to begin, or to go on with."""
        check_out(self.out, resume=resume)
        if is_begun(self.out):
            settings = read_json(self.state("settings.json"))
            self._compare(settings, settings.get(_FINGERPRINTS), "unfinished")

    def _finished(self, resume: bool) -> dict[str, Any]:
        check_out(self.out, resume=resume)
        result = read_json(self.out / RESULT)
        if not fits(result, FinishedRun, *_SHOWN) or not fits(result.get("before", result), Figures, *_SHOWN):
            raise TrainingError(f"{printable(str(self.out / RESULT))} is damaged; choose another --out.")
        weights = result["provenance"].get("weights")
        known = {
            "data": result["provenance"]["data"].get("fingerprint"),
            "weights": weights.get("sha256") if isinstance(weights, dict) else None,
            **(result.get(_FINGERPRINTS) or {}),
        }
        self._compare(result["settings"], known, "finished")
        self._tidy()
        return result

    @contextmanager
    def _discarding(self) -> Generator[None]:
        """On an error, deletes the state of a run that nothing was saved of, or that need not go on."""
        try:
            yield
        except Exception as error:
            if not is_begun(self.out) or isinstance(error, DivergedError):
                self._tidy()
            if lacks_memory(error) and not isinstance(error, VPromptError):
                raise TrainingError(
                    "There is not enough memory; try a smaller --batch-size, fewer prompts or a smaller backbone."
                ) from error
            raise

    def _tidy(self) -> None:
        """Removes the state but for the lock, and what a kill in the middle of writing may have left."""
        if not self.is_main:
            return
        for entry in (self.out / STATE).glob("*"):
            if entry != self.state("lock"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        with suppress(OSError):  # the lock is there
            (self.out / STATE).rmdir()
        for name in OWN_FILES:
            for part in self.out.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)

    def _compare(self, earlier: object, fingerprints: object, state: str) -> None:
        """Raises a `TrainingError` that names settings which differ; paths differ where their content does."""
        known = cast("dict[str, Any]", fingerprints if isinstance(fingerprints, dict) else {})
        settings = cast("dict[str, Any]", earlier if isinstance(earlier, dict) else {})

        def same(name: str) -> bool:
            before, now = settings.get(name), self.document.get(name)
            if name not in self.fingerprints or not isinstance(before, str) or not isinstance(now, str):
                return False
            if os.path.exists(now) and os.path.realpath(before) == os.path.realpath(now):
                return True
            return known.get(name) is not None and known[name] == self.fingerprints[name]()

        changed = [name for name in changed_settings(earlier, self.document) if not same(name)]
        if changed:
            named = ", ".join(self.flags.get(name, name) for name in changed)
            raise TrainingError(
                f"The {state} run in {printable(str(self.out))} has other settings ({named}); give the same, or choose "
                "another --out."
            )
