"""Memory of a training, counted on shapes: no weights, no device and no time are needed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.meta import copied
from vprompt.backbones.names import BackbonePrecision
from vprompt.methods.base import Method
from vprompt.model.attach import attach
from vprompt.model.wrappers import checkpointed_parts

ROOM = 10**9
"""Bytes of a card that are left to its driver, to libraries and to gaps between tensors."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes that a training takes.

    Args:
        weights: Of the backbone, as it is held.
        state: Of all that is learned: values, gradients and AdamW's two moments.
        step: At the peak of a step on a batch of some size: activations kept for the backward pass, and what comes
            and goes.
        image: Of these, what one more image adds.
        batch: That size.
    """

    weights: int
    state: int
    step: int
    image: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.state + self.step

    def most_images(self, size: int) -> int:
        """The largest batch for which so many bytes of memory have room; 0 where not one image has."""
        free = size - ROOM - self.total
        return max(0, self.batch + int(free // self.image))


def training_memory(
    backbone: str,
    method: Method,
    precision: BackbonePrecision = "fp32",
    *,
    batch: int = 32,
    num_classes: int = 100,
    img_size: int | None = None,
    bf16: bool = True,
    grad_checkpointing: bool = False,
) -> TrainingMemory:
    """Counts the memory of a training with fused attention, as on a GPU, by running a step on shapes.

    Args:
        backbone: timm name.
        method: The method.
        precision: How the backbone's linear layers are held.
        batch: Images of a step, at least 1.
        num_classes: Classes of the head.
        img_size: Input size, where it should differ from the backbone's own.
        bf16: Compute in bf16, as autocast does; else in float32.
        grad_checkpointing: Compute activations again in the backward pass.

    Raises:
        VPromptError: If there is no such backbone, or the method does not fit it.

    Example:
        >>> from vprompt.methods.vpt import VPT
        >>> plain, int4 = (training_memory("test_vit", VPT(4), held, batch=2) for held in ("fp32", "int4"))
        >>> int4.weights < plain.weights / 2, int4.total < plain.total
        (True, True)
    """
    with torch.device("meta"):
        made = create_backbone(backbone, pretrained=False, img_size=img_size)
        model = attach(made, method, num_classes=num_classes, backbone_precision=precision)
    held = sum(tensor.nbytes for tensor in [*model.backbone.parameters(), *model.backbone.buffers()])
    learned = sum(p.nbytes for p in model.learned.values())
    mode, peaks = FakeTensorMode(), list[int]()

    def on_device(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    fake = copied(model, on_device).train()
    for size in (batch, batch + 1):
        with ExitStack() as stack:
            stack.enter_context(mode)
            stack.enter_context(sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION))  # keys of prompts join those of tokens
            stack.enter_context(_FusedAttention())
            if grad_checkpointing:
                stack.enter_context(fake.exchanged(checkpointed_parts(fake)))
            images = torch.empty(size, *fake.preprocessing.shape)
            live = stack.enter_context(_Live())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = fake(images).float().logsumexp(1).mean()
            loss.backward()
            fake.zero_grad()
            peaks.append(live.peak + images.nbytes)
    state, image = 4 * learned, max(1, peaks[1] - peaks[0])
    return TrainingMemory(weights=held, state=state, step=peaks[0], image=image, batch=batch)


class _FusedAttention(TorchFunctionMode):
    """Attention as one operation that keeps its inputs, output and sums, on every device."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = (tensor.to(args[2].dtype) for tensor in args)
        options = {name: value for name, value in (kwargs or {}).items() if name in ("attn_mask", "scale")}
        if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
            options["attn_mask"] = options["attn_mask"].to(v.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, **options)[0]


class _Live(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        old = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if id(storage) not in old and storage not in self.seen:
                self.seen.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return found

    def _gone(self, size: int) -> None:
        self.bytes -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
