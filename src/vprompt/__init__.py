"""Visual prompt tuning of vision transformers: train, condense, fold.

>>> import vprompt
>>> vprompt.VPT(num_prompts=10).name
'vpt-deep'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vprompt.utils.version import __version__ as __version__

if TYPE_CHECKING:
    from vprompt import data as data
    from vprompt.compression.choices import PruneSettings as PruneSettings
    from vprompt.compression.condense import condense as condense
    from vprompt.compression.prune import prune as prune
    from vprompt.compression.score import score as score
    from vprompt.compression.select import select as select
    from vprompt.compression.select import select_segments as select_segments
    from vprompt.experiments.embed import embed as embed
    from vprompt.exporters.engine import export_adapter as export_adapter
    from vprompt.exporters.engine import export_engine as export_engine
    from vprompt.exporters.export import export as export
    from vprompt.exporters.exported import load_exported as load_exported
    from vprompt.methods.adapter import Adapter as Adapter
    from vprompt.methods.adapter_plus import AdapterPlus as AdapterPlus
    from vprompt.methods.bpt import BPT as BPT
    from vprompt.methods.cvpt import CVPT as CVPT
    from vprompt.methods.e2vpt import E2VPT as E2VPT
    from vprompt.methods.finetune import Bias as Bias
    from vprompt.methods.finetune import Full as Full
    from vprompt.methods.finetune import Partial as Partial
    from vprompt.methods.linear import MLP as MLP
    from vprompt.methods.linear import Linear as Linear
    from vprompt.methods.lora import LoRA as LoRA
    from vprompt.methods.pae import PAE as PAE
    from vprompt.methods.pro_vpt import PROVPT as PROVPT
    from vprompt.methods.side import Side as Side
    from vprompt.methods.vfpt import VFPT as VFPT
    from vprompt.methods.vpt import VPT as VPT
    from vprompt.model.attach import attach as attach
    from vprompt.model.attach import open_data as open_data
    from vprompt.model.load import load as load
    from vprompt.model.model import FoldedModel as FoldedModel
    from vprompt.model.model import PromptedModel as PromptedModel
    from vprompt.model.records import Recipe as Recipe
    from vprompt.serving.bank.bank import Bank as Bank
    from vprompt.serving.bank.engine import Engine as Engine
    from vprompt.training.evaluate import evaluate as evaluate
    from vprompt.training.trainer import fit as fit
    from vprompt.utils.errors import VPromptError as VPromptError

# torch takes seconds to import: names are looked up where they live when they are first used.
_HOMES = {
    "Adapter": "methods.adapter",
    "AdapterPlus": "methods.adapter_plus",
    "BPT": "methods.bpt",
    "Bank": "serving.bank.bank",
    "Bias": "methods.finetune",
    "CVPT": "methods.cvpt",
    "E2VPT": "methods.e2vpt",
    "Engine": "serving.bank.engine",
    "FoldedModel": "model.model",
    "Full": "methods.finetune",
    "Linear": "methods.linear",
    "LoRA": "methods.lora",
    "MLP": "methods.linear",
    "PAE": "methods.pae",
    "PROVPT": "methods.pro_vpt",
    "Partial": "methods.finetune",
    "PromptedModel": "model.model",
    "PruneSettings": "compression.choices",
    "Recipe": "model.records",
    "Side": "methods.side",
    "VFPT": "methods.vfpt",
    "VPT": "methods.vpt",
    "VPromptError": "utils.errors",
    "attach": "model.attach",
    "condense": "compression.condense",
    "data": "data",
    "embed": "experiments.embed",
    "evaluate": "training.evaluate",
    "export": "exporters.export",
    "export_adapter": "exporters.engine",
    "export_engine": "exporters.engine",
    "fit": "training.trainer",
    "load": "model.load",
    "load_exported": "exporters.exported",
    "open_data": "model.attach",
    "prune": "compression.prune",
    "score": "compression.score",
    "select": "compression.select",
    "select_segments": "compression.select",
}

if not TYPE_CHECKING:  # type checkers read the imports above
    __all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = import_module(f"vprompt.{_HOMES[name]}")
        return home if _HOMES[name] == name else getattr(home, name)
    try:
        return import_module(f"vprompt.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"vprompt.{name}":
            raise AttributeError(f"module 'vprompt' has no attribute {name!r}") from None
        raise


def __dir__() -> list[str]:
    return ["__version__", *_HOMES]
