"""Activation memory and speed of a training step: prompts as prefix against published, full fine-tuning, LoRA.

python benchmarks/memory.py [--backbone vit_base_patch16_224] [--prompts 50,100,200] [--dropout 0] [--rounds 3]
                            [--batch 2]

Activation memory is counted, not estimated: the bytes of all storages that autograd keeps for the backward pass, each
once, without parameters and images, which are there anyway; in fp32, per image. (With gradient checkpointing, what is
computed again for one block at a time comes on top.) On a GPU, the peak of the whole step as well. Then what takes the
memory with most prompts, and the time of a step: CPU time of one thread, or time on the GPU.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from common import interleaved, print_ratios, random_backbone
from torch.autograd.graph import saved_tensors_hooks

import vprompt
from vprompt.model.model import PromptedModel
from vprompt.model.wrappers import checkpointed_parts
from vprompt.utils.errors import VPromptError


def forward(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(images), labels)


def step(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor, *, checkpointed: bool = False) -> None:
    with around(model, checkpointed):
        forward(model, images, labels).backward()
    model.zero_grad()
    if images.is_cuda:
        torch.cuda.synchronize()


def around(model: PromptedModel, checkpointed: bool) -> AbstractContextManager[None]:
    return model.exchanged(checkpointed_parts(model)) if checkpointed else nullcontext()


def kept(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor, *, checkpointed: bool) -> Counter[str]:
    """Bytes that the forward pass keeps for the backward pass, by what was kept: operation and shape."""
    there = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers(), images]}
    found: dict[int, tuple[str, torch.UntypedStorage]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there and storage.data_ptr() not in found:
            operation = "an input" if tensor.grad_fn is None else tensor.grad_fn.name()
            # The storage is held, so that no other comes to lie at its address.
            found[storage.data_ptr()] = (f"{operation} {tuple(tensor.shape)}", storage)
        return tensor

    with around(model, checkpointed), saved_tensors_hooks(note, lambda tensor: tensor):
        forward(model, images, labels)
    total: Counter[str] = Counter()
    for what, storage in found.values():
        total[what] += storage.nbytes()
    return total


def peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def models(backbone: torch.nn.Module, counts: list[int], dropout: float) -> dict[str, PromptedModel]:
    found = {"full fine-tuning": vprompt.attach(backbone, vprompt.Full(), num_classes=10)}
    try:
        found["LoRA, rank 8"] = vprompt.attach(backbone, vprompt.LoRA(), num_classes=10)
    except VPromptError as error:
        print(error)
    found["no prompts, head only"] = vprompt.attach(backbone, vprompt.Linear(), num_classes=10)
    for count in counts:
        model = vprompt.attach(backbone, vprompt.VPT(count, dropout=dropout), num_classes=10)
        found |= {f"{count} prompts, prefix": model, f"{count} prompts, published": model.copy(execution="published")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--prompts", default="50,100,200")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = [int(count) for count in args.prompts.split(",")]
    found = models(random_backbone(args.backbone).to(device), counts, args.dropout)
    base = f"{max(counts)} prompts, published"
    images = torch.randn(args.batch, 3, *found[base].preprocessing.size, device=device)
    labels = torch.randint(0, 10, (args.batch,), device=device)
    variants: dict[str, Callable[[], object]] = {}
    variants |= {name: lambda model=model: step(model, images, labels) for name, model in found.items()}
    for name in (f"{max(counts)} prompts, prefix", base):
        variants[f"{name}, checkpointed"] = lambda model=found[name]: step(model, images, labels, checkpointed=True)
    memory: dict[str, Counter[str]] = {}
    for name in variants:
        model = found[name.removesuffix(", checkpointed")]
        memory[name] = kept(model, images, labels, checkpointed=name not in found)
    print(f"\nActivation memory, {args.backbone}, MiB per image, and its ratio to {base}")
    for name, parts in memory.items():
        size = sum(parts.values())
        line = f"{name:42s} {size / args.batch / 2**20:8.1f}  {size / sum(memory[base].values()):.3f}"
        print(line + (f"  peak {peak(variants[name]) / args.batch / 2**20:.1f}" if device == "cuda" else ""))
    for name in (f"{max(counts)} prompts, prefix", base):
        print(f"\nWhat takes it: {name}")
        for what, size in memory[name].most_common(9):
            print(f"{size / args.batch / 2**20:8.1f}  {what}")
    times = interleaved(variants, rounds=args.rounds, warmup=1 if device == "cuda" else 0)
    print_ratios(f"Training step, {args.backbone}, ms per image", times, base, per=args.batch)


if __name__ == "__main__":
    main()
