"""A folded model as one graph: the start of every format."""

from __future__ import annotations

from collections.abc import Mapping
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
from vprompt.exporters.base import SIGNATURE
from vprompt.methods.layers.inject import attention_at, prefix_parts
from vprompt.model.model import FoldedModel

ENGINE_AXES = {
    "images": {0: "batch"},
    "prefix_keys": {0: "batch", 1: "prompts"},
    "prefix_values": {0: "batch", 1: "prompts"},
    "prefix_mask": {0: "batch", 2: "prompts"},
    "head_weight": {0: "classes"},
    "head_bias": {0: "classes"},
}
"""Inputs of an engine, and which of their axes may be of any length."""

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Notes of the graph that name files and classes of this machine."""


class Engine(nn.Module):
    """A frozen backbone whose prompts and head come in beside the images.

    `sizes` says how many numbers the keys of a prompt are by block, and the values.
    """

    def __init__(self, backbone: nn.Module, info: BackboneInfo) -> None:
        super().__init__()
        with torch.no_grad():
            pairs = [
                attention_at(backbone, info, block).key_values(torch.zeros(1, 1, width))[:2]
                for block, width in enumerate(info.widths)
            ]
        self._shapes = [[tuple(heads_1H1d.shape[1::2]) for heads_1H1d in side] for side in zip(*pairs, strict=True)]
        self.sizes = [[heads * width for heads, width in shapes] for shapes in self._shapes]
        self._prefixes: list[list[KeyValue]] = [[]]
        self._view: Any = graft(backbone, prefix_parts(backbone, info, lambda block: partial(self._prefix, block)))

    def _prefix(self, block: int, attention: PrefixAttention, batch: int) -> KeyValue:
        return self._prefixes[0][block]

    def forward(
        self,
        images: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_mask: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, C); inputs as `vprompt.export_engine` says."""
        sides = [
            [
                part.unflatten(-1, shape).transpose(1, 2)
                for part, shape in zip(all.split(sizes, -1), shapes, strict=True)
            ]
            for all, sizes, shapes in zip((prefix_keys, prefix_values), self.sizes, self._shapes, strict=True)
        ]
        self._prefixes[0] = [KeyValue(*three) for three in zip(*sides, prefix_mask.unbind(1), strict=True)]
        features = self._view.forward_head(self._view.forward_features(images), pre_logits=True)
        self._prefixes[0] = []
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
    return _captured(_Named(model), (images,), {"images": {0: "batch"}}, [output], {"batch": max_batch})


def capture_engine(engine: Engine, info: BackboneInfo, *, max_batch: int, max_prompts: int) -> ExportedProgram:
    """The graph of an engine on the CPU in float32, for batches and numbers of prompts up to those given."""
    keys, values = map(sum, engine.sizes)
    shapes = ((2, 3, keys), (2, 3, values), (2, len(info.blocks), 3), (5, info.num_features), (5,))
    given = tuple(torch.zeros(shape) for shape in ((2, *info.preprocessing.shape), *shapes))
    most = {"batch": max_batch, "prompts": max(max_prompts, 4), "classes": 2**20}
    return _captured(engine, given, ENGINE_AXES, ["features", "logits"], most)


def _captured(
    module: nn.Module,
    given: tuple[Tensor, ...],
    axes: Mapping[str, dict[int, str]],
    outputs: list[str],
    most: Mapping[str, int],
) -> ExportedProgram:
    """The graph of a module, whose inputs have axes of any length up to the most of their kind."""
    dims = {name: Dim(name, min=1, max=largest) for name, largest in most.items()}
    shapes = tuple({axis: dims[kind] for axis, kind in kinds.items()} for kinds in axes.values())
    with torch.no_grad():
        traced = torch.export.export(module.eval(), given, dynamic_shapes=shapes).module(check_guards=False)
        program = torch.export.export(fold_constants(traced), given, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    program.graph.output_node().meta[SIGNATURE] = (dict(axes), outputs)
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
