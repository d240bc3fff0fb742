"""The state of a training on disk: learned tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vprompt.model.records import Recipe
from vprompt.utils.errors import TrainingError
from vprompt.utils.io import checksum, write_atomically
from vprompt.utils.serialization import options_of, parse
from vprompt.utils.text import printable
from vprompt.utils.version import FORMER_NAME

_METADATA = "vprompt"
"""Key of the plain facts in a file's metadata."""


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """The evidence for convergence: what twice the epochs change in the loss of the same validation images.

    Args:
        epochs: Of the longer training, which began as the other did.
        difference: Its mean loss minus the other's.
        standard_error: Of that difference, image by image.
    """

    epochs: int
    difference: float
    standard_error: float

    @property
    def converged(self) -> bool:
        """Whether the change is no larger than its standard error."""
        return abs(self.difference) <= self.standard_error


@dataclass(kw_only=True)
class History:
    """The course of a training: one row per epoch (`epoch`, `loss`, `accuracy`, `lr`, sometimes `val_accuracy`).

    Of another target than classes, they are the figures that it is trained and compared by.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    doubled: Doubled | None = None

    def __repr__(self) -> str:
        figures = "".join(f", {name} {value:.3g}" for name, value in (self.rows or [{}])[-1].items() if name != "epoch")
        return f"History({len(self.rows)} epochs{figures}, {self.seconds:.1f} seconds)"

    @property
    def converged(self) -> bool | None:
        """Whether twice the epochs change nothing that could be told; None where no such training was made.

        The loss of one training does not say: it flattens because the learning rate falls to zero.
        """
        return None if self.doubled is None else self.doubled.converged

    @property
    def overfits(self) -> bool:
        """True where the loss on the validation images has risen by more than 5 % since its lowest."""
        losses = [row["val_loss"] for row in self.rows if "val_loss" in row]
        return bool(losses) and losses[-1] > 1.05 * min(losses)

    @property
    def validated(self) -> list[dict[str, float]]:
        """The rows of epochs after which the validation images were looked at."""
        return [row for row in self.rows if any(name.startswith("val_") for name in row)]

    @property
    def best(self) -> dict[str, float]:
        """The first row with the best figures on the validation images; empty without any."""
        return max(self.validated, key=merit, default={})

    @property
    def waited(self) -> int:
        """Number of validations since the best one."""
        validated = self.validated
        return len(validated) - 1 - validated.index(self.best) if validated else 0

    def rule(self, recipe: Recipe | None) -> str:
        """Which weights of the training were kept, and after how many epochs."""
        if recipe is None or not self.rows:
            return "last epoch"
        last = len(self.rows)
        rule = f"best epoch on the validation images, {self.best['epoch']:.0f}" if recipe.best_epoch else "last epoch"
        rule += f", stopped early after {last} of {recipe.num_epochs}" * (last < recipe.num_epochs)
        return rule + f", moving average of the weights ({recipe.ema:g})" * (recipe.ema > 0)


def merit(row: Mapping[str, float]) -> tuple[float, float]:
    """The score of a validation, and the loss where that is the same: by these it is better than others."""
    scores = [value for name, value in row.items() if name.startswith("val_") and name != "val_loss"]
    return max(scores, default=-math.inf), -row.get("val_loss", math.inf)


@dataclass(frozen=True, kw_only=True)
class State:
    """The progress of a training: steps done, sums of this epoch, what was before, whether it computes in bf16.

    Of prompts that move, also how many were last planted in each block.
    """

    step: int
    sums: tuple[float, float]
    history: History
    bf16: bool | None = None  # earlier versions did not say
    planted: tuple[int, ...] = ()


class _Facts(TypedDict):
    run: dict[str, Any]
    state: State


EXECUTION_SETTINGS = frozenset(name for name, option in options_of(Recipe).items() if option.place)
"""Settings of a recipe that change the execution and not the result; they may change when a run is resumed."""


def save_checkpoint(
    path: Path,
    learned: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    run: dict[str, Any],
    state: State,
    copies: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a training atomically.

    Args:
        path: The file.
        learned: The parameters that are trained, and other numbers that training changes.
        optimizer: Their optimiser.
        run: Facts of the run, which may be resumed only with the same; JSON.
        state: The progress; JSON.
        copies: Further values of the parameters by what they are, such as a moving average.
    """
    tensors = {f"{kind}.{name}": value for kind, values in (copies or {}).items() for name, value in values.items()}
    tensors |= {f"learned.{name}": p.data for name, p in learned.items()}
    names = {id(p): name for name, p in learned.items()}
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value
    save_tensors(path, tensors, {"run": run, "state": asdict(state)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors of a run that goes on, and plain facts about them, atomically and with a checksum."""
    text = json.dumps(facts, allow_nan=False)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_METADATA: text, "checksum": tensors_checksum(whole, text)}
    data = save(whole, metadata)  # not save_file, which takes no path that is not UTF-8
    write_atomically(path, lambda part: part.write_bytes(data))


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote, verified; earlier versions wrote no checksum.

    Args:
        path: The file.
        remedy: What to do about a damaged one, for the message.

    Raises:
        TrainingError: If it is damaged.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
        metadata: dict[str, str] = parse(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
        text = metadata.get(_METADATA, metadata.get(FORMER_NAME, ""))
        if "checksum" in metadata and metadata["checksum"] != tensors_checksum(tensors, text):
            raise ValueError("its checksum is another")
        facts = parse(text) if text else {key: parse(value) for key, value in metadata.items()}
        return tensors, dict(facts)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise TrainingError(f"{printable(str(path))} is damaged ({error}); {remedy}.") from error


def tensors_checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of a text, and of names, types, shapes and values of tensors on the CPU, in hex."""
    parts: list[bytes | memoryview] = [text.encode()]
    for name, tensor in sorted(tensors.items()):
        parts.append(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        parts.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return checksum(*parts)


def load_checkpoint(
    path: Path,
    learned: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    run: dict[str, Any],
    epochs: int,
    steps_per_epoch: int,
    copies: Mapping[str, dict[str, Tensor]] | None = None,
    take_counts: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> State:
    """Fills parameters and optimiser from a checkpoint; nothing is changed if it does not fit.

    Args:
        path: The file.
        learned: Parameters to fill.
        optimizer: Optimiser to fill.
        run: Facts of this run.
        epochs: Of the whole training.
        steps_per_epoch: Of it.
        copies: Filled with what `save_checkpoint` was given.
        take_counts: Where prompts move between blocks: gets the saved values, and gives the parameters to fill, with as
            many prompts in each block.

    Raises:
        TrainingError: If the file is damaged, or was written by another run or for other parameters.
    """
    remedy = "delete it to start that stage anew"
    tensors, facts = load_tensors(path, remedy)
    damaged = f"The checkpoint {printable(str(path))} is damaged"
    try:
        typed = msgspec.convert(facts, _Facts)
    except (msgspec.ValidationError, OverflowError) as error:
        raise TrainingError(f"{damaged} ({error}); {remedy}.") from error
    saved, state = typed["run"], typed["state"]
    # Data without a fingerprint, on either side, is taken on trust.
    known = [key for key in run if key != "data" or (saved.get(key) and run[key])]
    changed = sorted(key for key in known if _comparable(saved.get(key)) != _comparable(run[key]))
    if changed:
        raise TrainingError(
            f"The checkpoint {path} belongs to a run with other settings ({', '.join(changed)}); give the settings of "
            "that run, or start a new one elsewhere."
        )
    step, rows = state.step, state.history.rows
    if not 0 <= step <= epochs * steps_per_epoch or len(rows) != step // steps_per_epoch:
        raise TrainingError(f"{damaged} (step {step} and {len(rows)} epochs do not go together); {remedy}.")
    own = {key.removeprefix("learned."): value for key, value in tensors.items() if key.startswith("learned.")}
    learned = learned if take_counts is None else take_counts(own)

    def shapes(values: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        moving = take_counts is not None
        return {name: value.shape[moving and name.startswith("prompts.") :] for name, value in values.items()}

    for kind, values in (copies or {}).items():
        values |= {key.removeprefix(f"{kind}."): tensors[key] for key in tensors if key.startswith(f"{kind}.")}
        if values and shapes(values) != shapes(learned):
            raise TrainingError(f"{damaged} (the {kind} values have gaps); {remedy}.")
    if own.keys() != learned.keys() or any(own[n].shape != p.shape for n, p in learned.items()):
        raise TrainingError(f"The checkpoint {path} was written for other prompts or another head.")
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            slots.setdefault(name, {})[slot] = value
    fitting = slots.keys() <= learned.keys() and all(
        value.shape in (learned[name].shape, ()) for name in slots for value in slots[name].values()
    )
    if not fitting or len({frozenset(of_one) for of_one in slots.values()}) > 1:
        raise TrainingError(f"{damaged} (the optimiser's state has gaps); {remedy}.")
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(own[name])
    for name, of_one in slots.items():
        parameter = learned[name]
        for slot, value in of_one.items():
            # Step counters stay on the CPU; what has the parameter's shape goes where the parameter is.
            place = parameter.device if value.shape == parameter.shape else value.device
            optimizer.state[cast("nn.Parameter", parameter)][slot] = value.to(place)
    return state


def _comparable(fact: Any) -> Any:
    """A fact of a run without `EXECUTION_SETTINGS`."""
    if not isinstance(fact, dict):
        return fact
    settings = cast("dict[str, Any]", fact)
    return {key: value for key, value in settings.items() if key not in EXECUTION_SETTINGS}
