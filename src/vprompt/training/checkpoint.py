"""The state of a training on disk: learned tensors and optimiser state in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vprompt.utils.errors import TrainingError
from vprompt.utils.io import write_atomically

_METADATA = "vprompt"
"""The key of the plain facts in a file's metadata."""
_OLD_METADATA = "laconic"
"""The same in files written before the library had its name."""


def save_checkpoint(
    path: Path, learned: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Writes learned parameters, the optimiser's state and plain facts (JSON) atomically."""
    tensors = {f"learned.{name}": p.detach().cpu().contiguous() for name, p in learned.items()}
    names = {id(p): name for name, p in learned.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value.detach().cpu().contiguous()
    metadata = {_METADATA: json.dumps(facts, allow_nan=False)}
    write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))


def load_checkpoint(
    path: Path,
    learned: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    check: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Fills parameters and optimiser from a checkpoint and returns its facts.

    Args:
        path: The file.
        learned: Parameters to fill.
        optimizer: Optimiser to fill.
        check: Raises if the facts are not those of this run; nothing has been changed by then.

    Raises:
        TrainingError: If the file is damaged, or was written for other parameters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            facts = json.loads(metadata[_METADATA if _METADATA in metadata else _OLD_METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged ({error}); delete it to start that stage anew."
        ) from error
    if not isinstance(facts, dict):
        raise TrainingError(f"The checkpoint {path} is damaged; delete it to start that stage anew.")
    check(facts)
    names = {key.removeprefix("learned.") for key in tensors if key.startswith("learned.")}
    shapes_fit = names == set(learned) and all(tensors[f"learned.{n}"].shape == p.shape for n, p in learned.items())
    if not shapes_fit:
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
    return facts
