"""A folded model as one graph: the start of every format."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_arg

from vprompt.exporters.base import OUTPUT
from vprompt.model.model import FoldedModel

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Notes of the graph that name files and classes of this machine."""


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
    shapes = ({0: Dim("batch", min=1, max=max_batch)},)
    with torch.no_grad():
        traced = torch.export.export(_Named(model).eval(), (images,), dynamic_shapes=shapes).module(check_guards=False)
        program = torch.export.export(fold_constants(traced), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    program.graph.output_node().meta[OUTPUT] = model.target.answer if include_preprocessing else "logits"
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
