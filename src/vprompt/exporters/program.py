"""A folded model as one graph: the start of every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_arg

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.exporters.base import AXES, OUTPUT
from vprompt.methods.layers.inject import prefix_parts
from vprompt.model.model import FoldedModel

Shapes = tuple[tuple[int, int], tuple[int, int]]
"""Number and width of the heads of a block's keys, and of its values."""

ENGINE_AXES = {
    "images": {0: "batch"},
    "prefix_keys": {0: "batch", 1: "prompts"},
    "prefix_values": {0: "batch", 1: "prompts"},
    "prefix_mask": {0: "batch", 2: "prompts"},
    "head_weight": {0: "classes"},
    "head_bias": {0: "classes"},
}
"""Inputs of an engine, and which of their axes may be of any length."""

MOST_CLASSES = 2**20
"""Of all adapters in a batch."""

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Notes of the graph that name files and classes of this machine."""


class Engine(nn.Module):
    """A frozen backbone whose prompts and head come in beside the images.

    Args:
        backbone: The timm model.
        info: Its description.
        shapes: Number and width of the heads of keys, and of values, of every block.
    """

    def __init__(self, backbone: nn.Module, info: BackboneInfo, shapes: Sequence[Shapes]) -> None:
        super().__init__()
        self.shapes = shapes
        self.given: list[list[KeyValue]] = [[]]
        self.view: Any = graft(backbone, prefix_parts(backbone, info, lambda block: partial(self._prefix, block)))

    def _prefix(self, block: int, attention: PrefixAttention, batch: int) -> KeyValue:
        return self.given[0][block]

    def forward(
        self,
        images: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_mask: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, C) of images (B, 3, H, W).

        Args:
            images: Normalised.
            prefix_keys: Of every image and prompt, the keys of all blocks one after the other: (B, P, A).
            prefix_values: The values, (B, P, A).
            prefix_mask: What is added to the logits of each key, (B, L, P).
            head_weight: Of all heads that are asked, one below the other: (C, F).
            head_bias: (C,).
        """
        sizes = [[heads * width for heads, width in pair] for pair in self.shapes]
        both = zip(
            prefix_keys.split([size for size, _ in sizes], -1),
            prefix_values.split([size for _, size in sizes], -1),
            prefix_mask.unbind(1),
            self.shapes,
            strict=True,
        )
        self.given[0] = [
            KeyValue(keys.unflatten(-1, of_keys).transpose(1, 2), values.unflatten(-1, of_values).transpose(1, 2), mask)
            for keys, values, mask, (of_keys, of_values) in both
        ]
        features = self.view.forward_head(self.view.forward_features(images), pre_logits=True)
        self.given[0] = []
        return features, F.linear(features, head_weight, head_bias)


class _Named(nn.Module):
    """The model, with the name that its input has in files; of pixels (B, H, W, 3) it gives what its target says."""

    def __init__(self, model: FoldedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if images.is_floating_point():
            return self.model(images)
        logits = self.model(self.model.preprocessing.normalise(images.permute(0, 3, 1, 2)))
        return self.model.target.activate(logits)


def capture(model: FoldedModel, *, max_batch: int, include_preprocessing: bool = False) -> ExportedProgram:
    """The graph of a model for batches of any size up to `max_batch`, with all that is constant computed.

    Args:
        model: On the CPU, in float32.
        max_batch: Largest batch.
        include_preprocessing: Take uint8 pixels (B, H, W, 3) and give probabilities or values (B, C).

    Returns:
        A program that takes `images` (B, 3, H, W), normalised, and gives logits (B, C). It holds no weights that it
        does not use, and no paths.
    """
    images = torch.zeros(2, *model.preprocessing.shape)  # a batch of 1 would be taken for a constant
    if include_preprocessing:
        images = images.byte().permute(0, 2, 3, 1).contiguous()
    output = model.target.answer if include_preprocessing else "logits"
    return _captured(_Named(model), {"images": images}, {"images": {0: "batch"}}, (output,), {"batch": max_batch})


def capture_engine(engine: Engine, shape: tuple[int, int, int], *, max_batch: int, max_prompts: int) -> ExportedProgram:
    """The graph of an engine, for batches and numbers of prompts up to those given, as `capture` gives it.

    Args:
        engine: On the CPU, in float32.
        shape: Of an image.
        max_batch: Largest batch.
        max_prompts: Most prompts of a block.
    """
    keys, values = (sum(heads * width for heads, width in pair) for pair in zip(*engine.shapes, strict=True))
    features = engine.view.num_features
    inputs = {
        "images": torch.zeros(2, *shape),
        "prefix_keys": torch.zeros(2, 3, keys),
        "prefix_values": torch.zeros(2, 3, values),
        "prefix_mask": torch.zeros(2, len(engine.shapes), 3),
        "head_weight": torch.zeros(5, features),
        "head_bias": torch.zeros(5),
    }
    most = {"batch": max_batch, "prompts": max_prompts, "classes": MOST_CLASSES}
    return _captured(engine, inputs, ENGINE_AXES, ("features", "logits"), most)


def _captured(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, dict[int, str]],
    outputs: tuple[str, ...],
    most: Mapping[str, int],
) -> ExportedProgram:
    """The graph of a module whose inputs have axes of any length up to the most of their kind."""
    dims = {name: Dim(name, min=1, max=largest) for name, largest in most.items()}
    shapes, values = tuple({axis: dims[of] for axis, of in axes[name].items()} for name in inputs), (*inputs.values(),)
    with torch.no_grad():
        traced = torch.export.export(module.eval(), values, dynamic_shapes=shapes).module(check_guards=False)
        program = torch.export.export(fold_constants(traced), values, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    program.graph.output_node().meta.update({OUTPUT: outputs, AXES: dict(axes)})
    return program


def fold_constants(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with what does not depend on its input computed once.

    timm resamples positions in the graph even where their size stays, with operators that few formats know.
    """
    graph, values = module.graph, dict[fx.Node, Any]()
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # pyright: ignore[reportPrivateUsage]
            graph.erase_node(node)
        elif node.op == "get_attr":
            values[node] = attrgetter(node.target)(module)
        elif node.op == "call_function" and node.all_input_nodes and all(n in values for n in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)  # pyright: ignore[reportGeneralTypeIssues]
            values[node] = node.target(*args, **kwargs)
    folded = [node for node, value in values.items() if node.op == "call_function" and isinstance(value, Tensor)]
    for number, node in enumerate(folded):
        if all(user in values for user in node.users):
            continue
        name = f"constant_{number}"
        module.register_buffer(name, values[node].detach().clone(memory_format=torch.contiguous_format))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)  # takes only the weights that the graph still names
