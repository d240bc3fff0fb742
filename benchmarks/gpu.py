"""What the README claims, on one GPU in under nine minutes: one JSON file and one Markdown file.

python benchmarks/gpu.py [--out gpu] [--minutes 8] [--backbone vit_base_patch16_224] [--device cuda]

Sections in the order of their importance, each with a limit; what was not reached is said. Variants run in turn in one
process, and ratios are to one of them in the same round: median, lowest and highest. Weights are random. `--tiny` runs
the whole path with small sizes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from common import random_backbone
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vprompt
from vprompt.model.model import PromptedModel

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    batches: tuple[int, ...] = (1, 64, 256)
    prompts: tuple[int, ...] = (50, 200)
    rounds: int = 15
    training_batch: int = 32
    images: int = 64
    adapters: tuple[int, ...] = (1, 10, 100)
    bank_batch: int = 100
    engine_batches: tuple[int, ...] = (1, 64)
    compiled_batches: tuple[int, ...] = (1, 64)
    compiler: str = "inductor"


TINY = Sizes(
    batches=(1, 2),
    prompts=(2, 4),
    rounds=1,
    training_batch=2,
    images=4,
    adapters=(1, 2),
    bank_batch=2,
    engine_batches=(1,),
    compiled_batches=(1,),
    compiler="eager",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant: its time in every round and the ratios to the base's; memory where that was measured."""

    name: str
    ms: list[float]
    ratios: list[float]
    mib: float | None = None


@dataclass(kw_only=True)
class Table:
    """Variants that were measured in turn."""

    title: str
    base: str
    rows: list[Row] = field(default_factory=list[Row])
    note: str = ""


class Bench:
    """The device, the backbone, and the time there is.

    Args:
        backbone: Name of a timm model.
        device: Where to measure.
        sizes: How much.
        seconds: Until when everything must be done.
    """

    def __init__(self, backbone: str, device: torch.device, sizes: Sizes, seconds: float) -> None:
        self.device, self.sizes = device, sizes
        self.started = time.monotonic()
        self.end = self.limit = self.started + seconds
        self.name = backbone
        self.backbone = random_backbone(backbone).to(device)
        self.shape = vprompt.attach(self.backbone, num_classes=1).preprocessing.shape

    def images(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random images on the device."""
        return torch.randn(count, *self.shape, device=self.device).to(dtype)

    def attached(self, method: Any, backbone: nn.Module | None = None) -> PromptedModel:
        """The backbone, or another, with a method."""
        return vprompt.attach(self.backbone if backbone is None else backbone, method, num_classes=10)

    def out_of_time(self) -> bool:
        """Whether the section is to end."""
        return time.monotonic() > self.limit

    def seconds(self, run: Run) -> float:
        """What a run takes until the device is done."""
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, run: Run) -> float | None:
        """MiB that a run needs beside what is there already."""
        if self.device.type != "cuda":
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def measured(self, title: str, variants: dict[str, Run], base: str, *, memory: bool = False) -> Table:
        """Times variants in turn, for as many rounds as there is time for, and one at least."""
        table = Table(title=title, base=base)
        for run in variants.values():  # compiles, and chooses kernels
            run()
            run()
        peaks = {name: self.peak(run) if memory else None for name, run in variants.items()}
        # Launching a single pass takes as long as waiting for it: several at once, where they are short.
        repeats = max(1, min(20, int(0.02 / max(self.seconds(variants[base]), 1e-6))))
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(self.sizes.rounds):
            if number and self.out_of_time():
                table.note = f"{number} of {self.sizes.rounds} rounds: the time was up"
                break
            for name, run in variants.items():
                times[name].append(self.seconds(lambda run=run: [run() for _ in range(repeats)]) / repeats)
        for name, of_one in times.items():
            ratios = [ours / theirs for ours, theirs in zip(of_one, times[base], strict=True)]
            table.rows.append(Row(name=name, ms=[1000 * s for s in of_one], ratios=ratios, mib=peaks[name]))
        return table


PLAIN = "timm's plain forward"


def inference(bench: Bench, *, compiled: bool) -> Iterator[Table]:
    """Folded prompts against timm's forward."""
    sizes = bench.sizes

    def ready(model: nn.Module) -> nn.Module:
        compile_: Any = torch.compile
        return compile_(model, backend=sizes.compiler, dynamic=False) if compiled else model

    for dtype in (torch.float32, torch.bfloat16):
        backbone = random_backbone(bench.name).to(bench.device, dtype)
        models = {PLAIN: ready(backbone)}
        for count in sizes.prompts[-1:] if compiled else sizes.prompts:  # to compile one takes half a minute
            models[f"{count} prompts, folded"] = ready(bench.attached(vprompt.VPT(count), backbone).fold())
        if not compiled:
            published = bench.attached(vprompt.VPT(max(sizes.prompts)), backbone).copy(execution="published")
            models[f"{max(sizes.prompts)} prompts, as published"] = published.eval()
        for batch in sizes.compiled_batches if compiled else sizes.batches:
            images = bench.images(batch, dtype)
            kind = f"{'fp32' if dtype == torch.float32 else 'bf16'}{', compiled' * compiled}"
            with torch.inference_mode():
                variants: dict[str, Run] = {name: partial(model, images) for name, model in models.items()}
                yield bench.measured(f"Inference, {kind}, batch {batch}", variants, PLAIN)


def step(model: PromptedModel, images: Tensor, labels: Tensor, *, bf16: bool) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    model.zero_grad()


def training(bench: Bench) -> Iterator[Table]:
    """A training step by method, and the memory that it takes."""
    count, batch = max(bench.sizes.prompts), bench.sizes.training_batch
    prefix = bench.attached(vprompt.VPT(count, dropout=0.0))
    base = f"{count} prompts, as published"
    methods = {"head only": vprompt.Linear(), "LoRA, rank 8": vprompt.LoRA(), "full": vprompt.Full()}
    models = {
        base: prefix.copy(execution="published").train(),
        f"{count} prompts, prefix": prefix,
        "1 prompt, prefix": bench.attached(vprompt.VPT(1, dropout=0.0)),
        **{name: bench.attached(method) for name, method in methods.items()},
    }
    images, labels = bench.images(batch), torch.arange(batch, device=bench.device) % 10
    for bf16 in (True, False):
        variants: dict[str, Run] = {
            name: partial(step, model, images, labels, bf16=bf16) for name, model in models.items()
        }
        kind = "bf16" if bf16 else "fp32"
        yield bench.measured(f"A training step, {kind}, batch {batch}", variants, base, memory=True)


def condensing(bench: Bench) -> Iterator[Table]:
    """Prompt Condensation's Table 4: a training against a scoring and the fine-tuning of what is retained."""
    count, images = max(bench.sizes.prompts), bench.images(bench.sizes.images)
    labels = torch.arange(len(images), device=bench.device) % 10
    model = bench.attached(vprompt.VPT(count))
    data = TensorDataset(images.cpu(), labels.cpu())
    small = vprompt.condense(model, data, ratio=0.3, criterion="random", fine_tune=False).train()
    variants: dict[str, Run] = {
        "a step of training": partial(step, model.train(), images, labels, bf16=False),
        "scoring": partial(vprompt.score, model, data),
        "a step of fine-tuning, 30 % retained": partial(step, small, images, labels, bf16=False),
    }
    title = f"Condensing, {count} prompts, {len(images)} images at once, fp32"
    table = bench.measured(title, variants, "a step of training", memory=True)
    _, scoring, tuning = (statistics.median(row.ratios) for row in table.rows)
    share = f"Scoring and 20 epochs of fine-tuning take {scoring / 100 + tuning / 5:.1%} of 100 epochs of training."
    table.note = f"{table.note}. {share}" if table.note else share
    yield table


def banks(bench: Bench) -> Iterator[Table]:
    """A mixed batch of many adapters."""
    images = bench.images(bench.sizes.bank_batch)
    for count in bench.sizes.adapters:
        bank = vprompt.Bank(bench.backbone)
        for number in range(count):
            model = bench.attached(vprompt.VPT(20))
            kept = [torch.arange(1 + number % 20)] * len(model.prompts)
            bank.add(f"a{number}", model.keep(kept))
        names = [f"a{row % count}" for row in range(len(images))]

        def one_by_one(bank: vprompt.Bank = bank, names: Sequence[str] = names) -> None:
            for row, name in enumerate(names):
                bank(images[row : row + 1], [name])

        with torch.inference_mode():
            variants: dict[str, Run] = {
                PLAIN: partial(bench.backbone, images),
                "mixed in one batch": partial(bank, images, names),
                "one by one": one_by_one,
            }
            yield bench.measured(f"Bank, {count} adapters, {len(images)} images, fp32", variants, PLAIN)


def engines(bench: Bench) -> Iterator[Table]:
    """An exported adapter in ONNX Runtime, on the GPU where its CUDA provider is there."""
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    runtime: Any = onnxruntime
    provider = "CUDAExecutionProvider" if bench.device.type == "cuda" else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {provider}")
    model = bench.attached(vprompt.VPT(max(bench.sizes.prompts))).fold().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        vprompt.export(model.cpu(), path)
        model.to(bench.device)
        session = runtime.InferenceSession(str(path), providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(f"ONNX Runtime could not start its {provider}")
    name = session.get_inputs()[0].name
    for batch in bench.sizes.engine_batches:
        images = bench.images(batch)
        array = images.cpu().numpy()
        with torch.inference_mode():
            variants: dict[str, Run] = {
                "eager, folded": lambda images=images: model(images),
                "ONNX Runtime, with copies": lambda array=array: session.run(None, {name: array}),
            }
            yield bench.measured(f"Engines, fp32, batch {batch}, {provider}", variants, "eager, folded")


SECTIONS: tuple[tuple[str, Callable[[Bench], Iterator[Table]], float], ...] = (
    ("inference", partial(inference, compiled=False), 0.25),
    ("training", training, 0.2),
    ("condensing", condensing, 0.1),
    ("bank", banks, 0.15),
    ("inference, compiled", partial(inference, compiled=True), 0.3),
    ("engines", engines, 0.15),
)
"""Name, function, and the most of all the time that it may take; what one leaves is the later ones'."""


def measure(bench: Bench) -> tuple[list[Table], list[str]]:
    """All tables for which there was time, and sentences about the rest."""
    tables, left, whole = list[Table](), list[str](), bench.end - bench.started
    for name, section, share in SECTIONS:
        now = time.monotonic()
        if now > bench.end:
            left.append(f"{name}: not begun, the time was up.")
            continue
        bench.limit = min(bench.end, now + share * whole)
        try:
            for table in section(bench):
                tables.append(table)
                print(shown(table), flush=True)
                if bench.out_of_time():
                    left.append(f"{name}: the time was up after “{table.title}”; what follows there was not measured.")
                    break
        except Exception as error:  # the other sections are still worth having
            left.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return tables, left


def shown(table: Table) -> str:
    """A table as Markdown."""
    lines = [f"\n### {table.title}\n", f"| | ms | ratio to {table.base} | MiB |", "|---|---|---|---|"]
    for row in table.rows:
        ratio = f"{statistics.median(row.ratios):.3f} ({min(row.ratios):.3f}-{max(row.ratios):.3f})"
        memory = "" if row.mib is None else f"{row.mib:,.0f}"
        lines.append(f"| {row.name} | {statistics.median(row.ms):.2f} | {ratio} | {memory} |")
    return "\n".join([*lines, *([f"\n{table.note}"] if table.note else [])])


def machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu", help="of OUT.json and OUT.md")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    bench = Bench(args.backbone, device, TINY if args.tiny else Sizes(), 60 * args.minutes)
    tables, left = measure(bench)
    facts = {
        "machine": machine(device),
        "backbone": args.backbone,
        "versions": {"vprompt": vprompt.__version__, "torch": torch.__version__, "timm": cast("Any", timm).__version__},
        "seconds": round(time.monotonic() - bench.started, 1),
    }
    document = {**facts, "tables": [asdict(table) for table in tables], "left": left}
    Path(f"{args.out}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    head = f"# {args.backbone} on {facts['machine']}\n\n{json.dumps(facts['versions'])}, {facts['seconds']} seconds.\n"
    missing = "\n".join(["\n## Not measured\n", *(f"- {line}" for line in left)]) if left else ""
    Path(f"{args.out}.md").write_text(f"{head}{''.join(map(shown, tables))}\n{missing}\n", encoding="utf-8")
    print(missing)


if __name__ == "__main__":
    main()
