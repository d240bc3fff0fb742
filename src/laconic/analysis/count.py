"""Multiply-accumulates and bytes, counted on a model whose weights are not needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from laconic.head import MLPHead
from laconic.meta import QuickShapes
from laconic.model import FoldedModel, PromptedModel

_SAFETENSORS_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def gmacs(model: PromptedModel | FoldedModel) -> float:
    """10^9 multiply-accumulates of what the classifier sees of one image, counted as the model runs."""
    return gmacs_and_biases(model)[0]


def gmacs_and_biases(model: PromptedModel | FoldedModel) -> tuple[float, float]:
    """10^9 multiply-accumulates of one image without the classifier, and 10^9 additions of linear layers' biases.

    Args:
        model: On the meta device, or it runs for real.
    """
    biases = 0

    def addmm(bias: Sequence[int], rows: Sequence[int], columns: Sequence[int], **_: Any) -> int:
        nonlocal biases
        biases += rows[0] * columns[1]
        return 2 * rows[0] * rows[1] * columns[1]

    model.requires_grad_(False)
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *model.preprocessing.size, device=parameter.device, dtype=parameter.dtype)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: addmm})
    with QuickShapes(), counter, torch.no_grad():
        features = model.features(image)
        if isinstance(model.head, MLPHead):
            model.head.represent(features)
    return counter.get_total_flops() / 2e9, biases / 1e9


def adapter_bytes(model: PromptedModel) -> int:
    """Size of the file of tensors that `model.save_pretrained` writes; pruned segments' masks are not counted.

    The card and the configuration beside it take a few thousand bytes more.

    Example:
        >>> import timm, laconic
        >>> adapter_bytes(laconic.attach(timm.create_model("test_vit"), laconic.VPT(1), num_classes=2))
        2648
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(model.learned.items()):  # as safetensors has them
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _SAFETENSORS_TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end
