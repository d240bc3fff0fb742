"""The state of a training on disk: learned tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vprompt.model.records import Recipe
from vprompt.utils.errors import TrainingError
from vprompt.utils.io import write_atomically
from vprompt.utils.serialization import options_of

_METADATA = "vprompt"
"""Key of the plain facts in a file's metadata."""
_OLD_METADATA = "laconic"
"""The same in files written before the library had its name."""

STATE = {"step", "sums", "history"}
"""The entries of the progress of a training."""

EXECUTION_SETTINGS = frozenset(name for name, option in options_of(Recipe).items() if option.place)
"""Settings of a recipe that change the execution and not the result; they may change when a run is resumed."""


def save_checkpoint(
    path: Path,
    learned: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    run: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Writes a training atomically.

    Args:
        path: The file.
        learned: The parameters that are trained.
        optimizer: Their optimiser.
        run: Facts of the run, which may be resumed only with the same; JSON.
        state: `STATE`; JSON.
    """
    tensors = {f"learned.{name}": p.detach().cpu().contiguous() for name, p in learned.items()}
    names = {id(p): name for name, p in learned.items()}
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value.detach().cpu().contiguous()
    metadata = {_METADATA: json.dumps({"run": run, "state": state}, allow_nan=False)}
    write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))


def load_checkpoint(
    path: Path, learned: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, *, run: dict[str, Any]
) -> dict[str, Any]:
    """Fills parameters and optimiser from a checkpoint; nothing is changed if it does not fit.

    Args:
        path: The file.
        learned: Parameters to fill.
        optimizer: Optimiser to fill.
        run: Facts of this run.

    Returns:
        `STATE`.

    Raises:
        TrainingError: If the file is damaged, or was written by another run or for other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            facts = json.loads(metadata[_METADATA if _METADATA in metadata else _OLD_METADATA])
            saved, state = dict(facts["run"]), dict(facts["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if set(state) != STATE:
            raise ValueError("it does not say how far the training is")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged ({error}); delete it to start that stage anew."
        ) from error
    # Data without a fingerprint, on either side, is taken on trust.
    known = [key for key in run if key != "data" or (saved.get(key) and run[key])]
    changed = sorted(key for key in known if _comparable(saved.get(key)) != _comparable(run[key]))
    if changed:
        raise TrainingError(
            f"The checkpoint {path} belongs to a run with other settings ({', '.join(changed)}); give the settings of "
            "that run, or start a new one elsewhere."
        )
    names = {key.removeprefix("learned.") for key in tensors if key.startswith("learned.")}
    if names != set(learned) or any(tensors[f"learned.{n}"].shape != p.shape for n, p in learned.items()):
        raise TrainingError(f"The checkpoint {path} was written for other prompts or another head.")
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(tensors[f"learned.{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            parameter = learned[name]
            # Step counters stay on the CPU; what has the parameter's shape goes where the parameter is.
            place = parameter.device if value.shape == parameter.shape else value.device
            optimizer.state[parameter][slot] = value.to(place)
    return state


def _comparable(fact: Any) -> Any:
    """A fact of a run without `EXECUTION_SETTINGS`."""
    if not isinstance(fact, dict):
        return fact
    settings = cast("dict[str, Any]", fact)
    return {key: value for key, value in settings.items() if key not in EXECUTION_SETTINGS}
