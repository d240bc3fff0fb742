"""What fits on a card? The memory of a training step, counted on shapes, with the backbone held in each precision.

python benchmarks/training_memory.py [NAME ...] [--prompts 50] [--batch-size 32] [--json FILE] [--fp32]
                                     [--grad-checkpointing]

A step is run on tensors that have shapes and no numbers, so it takes no memory, no GPU and no weights. Counted are: the
backbone as it is held; what is learned, its gradients and AdamW's moments; and the peak of all other tensors of forward
and backward pass, with attention fused as on a GPU. One GB (10^9 bytes) of a card is left to its driver, to libraries
and to the gaps between tensors. Computes in bf16 (autocast), or with --fp32 in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vprompt
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.names import BackbonePrecision
from vprompt.model.model import PromptedModel
from vprompt.model.wrappers import checkpointed_parts

NAMES = (
    "vit_large_patch16_224",
    "vit_giant_patch14_224",
    "vit_gigantic_patch14_224",
    "vit_giant_patch14_dinov2.lvd142m",
)
CARDS = (8, 16, 24)
ROOM = 10**9


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes: the backbone, what is learned, the peak of a step on a batch, and what one more image adds to it."""

    weights: int
    learned: int
    step: int
    image: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.learned + self.step

    def most_images(self, size: int) -> int:
        """The largest batch for which so many bytes have room."""
        return max(0, self.batch + (size - ROOM - self.total) // self.image)


def training_memory(
    name: str, method: vprompt.Method, precision: BackbonePrecision, *, batch: int, bf16: bool, checkpointed: bool
) -> TrainingMemory:
    with torch.device("meta"):
        backbone = create_backbone(name, pretrained=False)
        backbone.reset_classifier(0)  # type: ignore[operator]  # vprompt never uses it
        model = vprompt.attach(backbone, method, num_classes=100, backbone_precision=precision)
    held = sum(tensor.nbytes for tensor in [*model.backbone.parameters(), *model.backbone.buffers()])
    learned = sum(parameter.nbytes for parameter in model.learned.values())
    mode, peaks = FakeTensorMode(), list[int]()
    fake = on_fake_device(model, mode).train()
    for size in (batch, batch + 1):
        with ExitStack() as stack:
            stack.enter_context(mode)
            stack.enter_context(sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION))  # keys of prompts join those of tokens
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused))
            if checkpointed:
                stack.enter_context(fake.exchanged(checkpointed_parts(fake)))
            images = torch.empty(size, *fake.preprocessing.shape)
            live = stack.enter_context(Live())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = fake(images).float().logsumexp(1).mean()
            loss.backward()
            fake.zero_grad()
            peaks.append(live.peak + images.nbytes)
    # Gradients are in the peak: two moments and the values themselves come on top.
    return TrainingMemory(weights=held, learned=3 * learned, step=peaks[0], image=peaks[1] - peaks[0], batch=batch)


def on_fake_device(model: PromptedModel, mode: FakeTensorMode) -> PromptedModel:
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        with mode:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype)
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(model, memo)


def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention as one operation that keeps its inputs, its output and its sums."""
    mask = None if attn_mask is None else attn_mask.to(v.dtype)
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return run(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=options.get("scale"))[0]


class Live(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = storages((args, kwargs))
        found = func(*args, **(kwargs or {}))
        for storage in storages(found):
            if storage not in self.seen and all(storage is not old for old in given):
                self.seen.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return found

    def gone(self, size: int) -> None:
        """Counts a tensor that went."""
        self.bytes -= size


def storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def tables(document: dict[str, Any]) -> Iterator[str]:
    """What the backbone, what is learned and a step take, and how many images fit."""
    cards = " | ".join(f"images in {card} GB" for card in CARDS)
    batch = document["rows"][0]["batch"]
    yield f"| backbone | held in | backbone GB | learned GB | step of {batch} GB | all GB | {cards} |"
    yield f"|---|---|{'---:|' * (4 + len(CARDS))}"
    for row in document["rows"]:
        sizes = [f"{row[part] / 1e9:.2f}" for part in ("weights", "learned", "step", "total")]
        most = [str(row[f"images_in_{card}_gb"]) for card in CARDS]
        yield f"| {' | '.join([row['backbone'], row['held_in'], *sizes, *most])} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--grad-checkpointing", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.names:
        for precision in get_args(BackbonePrecision):
            found = training_memory(
                name,
                vprompt.VPT(options.prompts),
                precision,
                batch=options.batch_size,
                bf16=not options.fp32,
                checkpointed=options.grad_checkpointing,
            )
            most = {f"images_in_{card}_gb": found.most_images(card * 10**9) for card in CARDS}
            rows.append({"backbone": name, "held_in": precision, **asdict(found), "total": found.total, **most})
    about = {"prompts": options.prompts, "bf16": not options.fp32, "checkpointed": options.grad_checkpointing}
    document = {**about, "rows": rows}
    print(*tables(document), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
