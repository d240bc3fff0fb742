"""Deep prompts as a tuner of PEFT: tokens that are put before those of each block and taken away behind it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

from vprompt.backbones.huggingface.base import pair
from vprompt.methods.layers.prompts import init_bound
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.model import PromptedModel
from vprompt.utils.errors import VPromptError

BLOCKS = r"(?!(.*\.)?(text_model|decoder)\.)(.*\.)?(layers|encoder\.layers?|model\.layer)\.\d+"
"""Pattern of the names of a vision transformer's blocks in transformers."""

TOLERANCE = 1e-3
"""Largest difference of logits of both libraries, relative to their norm."""


def _new_type(name: str) -> Any:
    """A member that PEFT's closed list of methods gets."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        type.__setattr__(PeftType, name, member)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
    return PeftType(name)


@dataclass
class VPTConfig(PeftConfig):
    """Deep visual prompts for `peft.get_peft_model`.

    Args:
        num_prompts: Prompts in each block, at least 1.
        target_modules: Names of the blocks, or a pattern; found when not given.
        exclude_modules: Names that are passed over.
        modules_to_save: Modules that are trained whole, such as `["classifier"]`.

    Source: VPT (arXiv 2203.12119).
    """

    num_prompts: int = 10
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _new_type("VPT")
        VPT(self.num_prompts)  # checks it


class PromptedBlock(nn.Module, BaseTunerLayer):
    """A block of transformers with prompts (P, D) of each adapter; those of several active ones stand side by side."""

    adapter_layer_names = ("vpt_prompts",)

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.base_layer = block
        self.vpt_prompts = nn.ParameterDict()

    def add(self, name: str, count: int, bound: float, *, inference: bool) -> None:
        """Adds prompts of an adapter, drawn from uniform(-bound, bound)."""
        like = next(self.base_layer.parameters())
        width = next(part for part in self.base_layer.modules() if isinstance(part, nn.LayerNorm)).normalized_shape[0]
        self.vpt_prompts[name] = nn.Parameter(like.new_empty(count, width).uniform_(-bound, bound))
        self.set_adapter(self.active_adapters, inference_mode=inference)

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        """As the block's, of which the prompts' outputs are dropped."""
        active = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.vpt_prompts]
        before = [self.vpt_prompts[name].to(hidden_states).expand(len(hidden_states), -1, -1) for name in active]
        count = sum(prompts.shape[1] for prompts in before)
        out: Any = self.base_layer(torch.cat([*before, hidden_states], dim=1), *arguments, **options)
        return out[:, count:] if isinstance(out, Tensor) else (out[0][:, count:], *out[1:])


class VPTModel(BaseTuner):
    """PEFT's tuner of deep prompts."""

    prefix = "vpt_"
    tuner_layer_cls = PromptedBlock

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        del model_config
        peft_config.target_modules = peft_config.target_modules or BLOCKS
        return peft_config

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: nn.Module, *_: Any, **__: Any
    ) -> None:
        block = target if isinstance(target, PromptedBlock) else PromptedBlock(target)
        if block is not target:
            setattr(parent, target_name, block)
            block.set_adapter(self.active_adapters)
        config: Any = self.model.config
        patch = pair(getattr(config, "vision_config", config).patch_size)
        width = next(block.base_layer.parameters()).shape[-1]
        bound = init_bound(patch, width)
        block.add(adapter_name, peft_config.num_prompts, bound, inference=peft_config.inference_mode)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        del child  # blocks have no weight of their own to hand over
        setattr(parent, child_name, new_module)


TARGETS_OF = {"multi_label_classification": "multi-label", "regression": "regression"}
"""By what transformers calls a problem; what is none of these is about classes."""

register_peft_method(name=_new_type("VPT").lower(), config_cls=VPTConfig, model_cls=VPTModel)


@torch.no_grad()
def to_vprompt(model: PeftModel) -> PromptedModel:
    """A model that PEFT trained, as one of vprompt: to condense, fold, export and serve it.

    Args:
        model: With the method of `VPTConfig`, on a model of transformers with a linear `classifier` on the feature that
            vprompt knows; not changed.

    Returns:
        A model of the same logits in eval mode; its backbone has the name of the base model.

    Raises:
        VPromptError: If it is another, or the logits differ.
    """
    name = str(model.active_adapter)
    config, whole = model.peft_config[name], copy.deepcopy(model).eval()
    blocks = [part for part in whole.modules() if isinstance(part, PromptedBlock)]
    head: Any = getattr(whole.get_base_model(), "classifier", None)
    head = getattr(head, "modules_to_save", {name: head})[name]
    if not isinstance(config, VPTConfig) or not isinstance(head, nn.Linear):
        raise VPromptError("Only a model with a VPTConfig of vprompt.peft and a linear classifier can be taken over.")
    prompts = [block.vpt_prompts[name] for block in blocks]
    labels = model.config.id2label
    base: Any = copy.deepcopy(whole).unload()
    target = TARGETS_OF.get(str(getattr(model.config, "problem_type", None)))
    classes = [labels[number] for number in range(len(labels))]
    prompted = attach(base, VPT(config.num_prompts), classes=classes, target=target).eval()
    state = {f"prompts.{number}": values for number, values in enumerate(prompts)}
    learned = {**state, "head.weight": head.weight, "head.bias": head.bias}
    if {key: value.shape for key, value in learned.items()} != {k: v.shape for k, v in prompted.learned.items()}:
        raise VPromptError(
            f"The classifier of {type(base).__name__} has {head.in_features} features and vprompt's has "
            f"{prompted.head.in_features}, or some blocks have no prompts; only a classifier on the feature and "
            "prompts in all blocks are taken over."
        )
    prompted.restore({key: value.detach().clone() for key, value in learned.items()})
    like = next(prompted.backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *prompted.info.preprocessing.shape, generator=generator).to(like)
    theirs, ours = whole(pixel_values=images).logits, prompted(images)
    if not float((ours - theirs).norm()) <= TOLERANCE * float(theirs.norm()):
        raise VPromptError(
            f"The classifier of {type(base).__name__} reads other features than vprompt's, or several adapters are "
            "active; attach anew, or activate one."
        )
    return prompted
