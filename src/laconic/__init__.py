"""Visual prompt tuning of vision transformers: train, condense, fold.

>>> import laconic
>>> laconic.VPT(num_prompts=10).name
'vpt-deep'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from laconic.adapter import load as load
    from laconic.attachment import attach as attach
    from laconic.bank import Bank as Bank
    from laconic.baselines import MLP as MLP
    from laconic.baselines import Adapter as Adapter
    from laconic.baselines import Bias as Bias
    from laconic.baselines import Full as Full
    from laconic.baselines import Linear as Linear
    from laconic.baselines import LoRA as LoRA
    from laconic.baselines import Partial as Partial
    from laconic.baselines import Side as Side
    from laconic.condensation import condense as condense
    from laconic.condensation import score as score
    from laconic.condensation import select as select
    from laconic.condensation import select_segments as select_segments
    from laconic.errors import LaconicError as LaconicError
    from laconic.evaluation import evaluate as evaluate
    from laconic.exporting import export as export
    from laconic.exporting import load_exported as load_exported
    from laconic.methods import E2VPT as E2VPT
    from laconic.methods import VPT as VPT
    from laconic.model import FoldedModel as FoldedModel
    from laconic.model import PromptedModel as PromptedModel
    from laconic.pruning import PruneSettings as PruneSettings
    from laconic.pruning import prune as prune
    from laconic.recipe import Recipe as Recipe
    from laconic.train import fit as fit

# torch takes seconds to import: names are looked up where they live when they are first used.
_HOMES = {
    "LaconicError": "errors",
    "Bank": "bank",
    "E2VPT": "methods",
    "VPT": "methods",
    "Adapter": "baselines",
    "Bias": "baselines",
    "Full": "baselines",
    "Linear": "baselines",
    "LoRA": "baselines",
    "MLP": "baselines",
    "Partial": "baselines",
    "Side": "baselines",
    "FoldedModel": "model",
    "PromptedModel": "model",
    "attach": "attachment",
    "Recipe": "recipe",
    "fit": "train",
    "evaluate": "evaluation",
    "score": "condensation",
    "select": "condensation",
    "select_segments": "condensation",
    "PruneSettings": "pruning",
    "prune": "pruning",
    "condense": "condensation",
    "load": "adapter",
    "export": "exporting",
    "load_exported": "exporting",
}

__all__ = [
    "E2VPT",
    "MLP",
    "VPT",
    "Adapter",
    "Bank",
    "Bias",
    "FoldedModel",
    "Full",
    "LaconicError",
    "Linear",
    "LoRA",
    "Partial",
    "PromptedModel",
    "PruneSettings",
    "Recipe",
    "Side",
    "attach",
    "condense",
    "evaluate",
    "export",
    "fit",
    "load",
    "load_exported",
    "prune",
    "score",
    "select",
    "select_segments",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"laconic.{_HOMES[name]}"), name)
    try:
        return import_module(f"laconic.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"laconic.{name}":
            raise AttributeError(f"module 'laconic' has no attribute {name!r}") from None
        raise


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
