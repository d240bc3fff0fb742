"""`vprompt fit`."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.cli.console import UsageError, absolute, percent, print_json, print_note, print_table
from vprompt.compression.criteria import Criterion, Scope
from vprompt.utils.distributed import is_main_process


@dataclass(frozen=True, kw_only=True)
class UnseededTraining:
    """How to train every run."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD as in the VPT paper, or AdamW, which needs less search."""
    lr: float | None = None
    """Peak learning rate; 0.005 for adamw, 5.0 (times batch size / 256) for sgd. Of that, full takes 0.04, partial
    and mlp 0.2, adapter, lora and side 0.4, and the others all."""
    weight_decay: float = 1e-4
    """Weight decay of what is learned, but for the bias of the head."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster on GPUs and on recent CPUs."""
    workers: int = 0
    """Processes that load images which do not fit in memory."""
    cache_gb: float = 2.0
    """What enters the first block with something to learn is computed once an image and kept, up to so many
    gigabytes, unless images are augmented; 0 to compute it in every epoch."""
    grad_checkpointing: bool = False
    """Use less memory and more time: compute activations again in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Training(UnseededTraining):
    """How to train."""

    seed: int = 0
    """Seeds initial values, order and dropout; equal seeds give equal numbers."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read."""

    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    resize: Literal["squash", "crop"] | None = None
    """squash: to the backbone's size, whatever the aspect ratio. crop: short side, then the centre. When left out,
    crop for FGVC's tasks and squash for all others."""
    augment: Literal["none", "crop-flip"] | None = None
    """crop-flip: train on random crops, half of them mirrored. When left out, only for FGVC's tasks."""
    split_seed: int = 0
    """Cuts the splits that a folder does not have."""
    skip_bad: bool = False
    """Go on without images and classes that cannot be used, and say how many."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Pruning after training, as E2VPT does: what is worth least goes, the rest is trained from an early state."""

    prune: bool = False
    """Prune prompts, and segments of the prompts that stay; how much is searched on the validation images, at the
    price of about four more trainings."""
    prune_tokens: float | None = None
    """Prune this share of the prompts (0.5 halves them), not one that is searched for."""
    prune_segments: float | None = None
    """Prune this share of the segments of the prompts that stay, not one that is searched for."""
    num_segments: int = 16
    """Segments that a prompt is cut into; must divide the width of the backbone."""
    saving: float = 0.08
    """Share of the validation loss that removing all prompts would be worth: with 0.08, half may cost 4 % of it."""
    rewind_epoch: int = 0
    """Train what is left from where it was after this epoch; 0 is before the first step."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.prune or self.prune_tokens is not None or self.prune_segments is not None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Train an adapter on a folder of images: class/image.jpg, with train/, val/ and test/ above where present."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """Image folder; or a task: vtab:NAME, fgvc:NAME (see `vprompt tasks`), synthetic:NAME; the bundled one when left
    out."""
    backbone: str = BUNDLED_BACKBONE
    """timm name of the vision transformer."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights of that backbone in a file (.safetensors, a PyTorch checkpoint, or a .npz of Google's ViT) instead of
    the published ones."""
    method: Literal[
        "vpt-deep",
        "vpt-shallow",
        "e2vpt",
        "linear",
        "mlp",
        "full",
        "partial",
        "bias",
        "adapter",
        "lora",
        "side",
    ] = "vpt-deep"
    """What to learn on the frozen backbone."""
    prompts: int = 20
    """Prompts per block (deep, E2VPT), or in all (shallow)."""
    kv_prompts: int = 5
    """E2VPT: prompts per block that are keys and values from the start."""
    share: Literal["key-value", "heads", "none"] = "key-value"
    """E2VPT: what those have in common: keys and values are the same, all heads have the same, or nothing."""
    layers: int = 2
    """mlp: layers of the head."""
    blocks: int = 1
    """partial: how many of the last blocks are learned."""
    reduction: int = 8
    """adapter: width of a block over that of its bottleneck."""
    rank: int = 8
    """lora: rank of the updates."""
    side_width: int = 32
    """side: channels of the first layer."""
    head_init: Literal["zero", "paper"] = "zero"
    """How the head starts: zeros, or the VPT paper's random values, which suit its SGD and high rates."""
    condense: float | None = None
    """After training, keep this share of the prompts (0.3 keeps 30 %) and fine-tune them."""
    fine_tune: bool = True
    """Fine-tune condensed prompts."""
    fine_tune_epochs: int = 20
    """Epochs of that fine-tuning."""
    criterion: Criterion = "taylor"
    """What makes a prompt worth keeping; see `vprompt condense --help`."""
    scope: Scope = "global"
    """Choose over all blocks together, inside every block, or the same for all blocks."""
    merge: bool = False
    """Merge the other prompts of a block into those that stay, instead of dropping them."""
    pruning: Pruning = Pruning()
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    training: Training = Training()
    images: Images = Images()
    out: str | None = None
    """Folder for adapter and result.json; named after the run when left out."""
    resume: bool = False
    """Go on with the run in --out, or start it where there is none."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Trains, condenses, evaluates, saves."""
        from vprompt.experiments.run import run
        from vprompt.experiments.settings import settings_from

        settings = settings_from(flat_settings(self))
        if self.merge and self.condense is None:
            raise UsageError("Only prompts that are condensed can be merged; give --condense, or leave out --merge.")
        if self.data == "" or self.out == "":
            raise UsageError("An empty name is no folder; leave DATA or --out away instead.")
        out = Path(self.out) if self.out is not None else self.default_out()
        try:
            result = run(settings, out, resume=self.resume, progress=is_main_process())
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{error} Go on with the same command and --resume (in {out}).".strip()) from error
        show_result(result, out, as_json=self.json)

    def default_out(self) -> Path:
        """A folder whose name tells the runs apart that a user is likely to make side by side."""
        data = data_name(self.data)
        sizes = {
            "vpt-deep": [f"p{self.prompts}"],
            "vpt-shallow": [f"p{self.prompts}"],
            "e2vpt": [f"p{self.prompts}", f"kv{self.kv_prompts}"],
            "mlp": [f"l{self.layers}"],
            "partial": [f"b{self.blocks}"],
            "adapter": [f"r{self.reduction}"],
            "lora": [f"r{self.rank}"],
            "side": [f"w{self.side_width}"],
        }
        parts = [data, self.method, *sizes.get(self.method, [])]
        if self.condense is not None:
            parts.append(f"keep{self.condense:g}{'-merged' * self.merge}")
        if self.pruning.wanted:
            parts.append("pruned")
        return Path("runs") / "-".join([*parts, f"seed{self.training.seed}"])


def flat_settings(command: object) -> dict[str, Any]:
    """The settings among a command's options, also those in its groups, by their flat names."""
    from vprompt.experiments.settings import setting_types

    known, flat = setting_types(), dict[str, Any]()
    for field in fields(command):  # pyright: ignore[reportArgumentType]
        value = getattr(command, field.name)
        if is_dataclass(value):
            flat |= flat_settings(value)
        elif field.name in known:
            flat[field.name] = absolute(value) if field.name == "weights" else value
    return flat


def data_name(data: str | None) -> str:
    """What a run's folder is called after its DATA."""
    return Path(data).resolve().name.replace(":", "-") if data else "fashion-mnist"


def show_result(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Prints a finished run: a table of before and after, where it lies, what to do next."""
    if not is_main_process():
        return
    if as_json:
        print_json(result)
        return
    after = "pruned" if "pruning" in result else "condensed"
    stages = [("all prompts", result["before"]), (after, result)] if "before" in result else [("", result)]
    rows = [
        [
            " ".join(filter(None, [stage["method"], name])),
            percent(stage["val_accuracy"]),
            percent(stage["test_accuracy"]),
            str(sum(stage["prompt_counts"])),
            _learned(stage),
            f"{stage['training_seconds']:.0f} s",
        ]
        for name, stage in stages
    ]
    print_table(
        f"{result['provenance']['data']['source']} on {result['backbone']}",
        ["method", "val", "test", "prompts", "learned", "time"],
        rows,
    )
    counts = [stage["prompt_counts"] for _, stage in stages]
    if len(stages) > 1 or len(set(counts[0])) > 1:
        rows = [[str(block), *map(str, row)] for block, row in enumerate(zip(*counts, strict=True))]
        print_table("Prompts in each block", ["block", *(name or "prompts" for name, _ in stages)], rows)
    if all("folded_gmacs" in stage for _, stage in stages):
        costs = [" ".join(filter(None, [f"{stage['folded_gmacs']:.3g}", name])) for name, stage in stages]
        print_note(f"GMACs per image, folded: {', '.join(costs)}.")
    if found := result.get("pruning"):
        shares = f"{percent(found['tokens'])} of the prompts and {percent(found['segments'])} of the others' segments"
        print_note(f"Pruned {shares}. All of it cost as much as {found['trainings']:.1f} trainings.")
    skipped = result["provenance"]["data"]["skipped"]
    if skipped:
        print_note(f"Skipped {len(skipped)}: {skipped[0]}" + (" ..." if len(skipped) > 1 else ""))
    differences = result["provenance"]["data"].get("differences", [])
    if differences:
        more = f" ({len(differences) - 1} more in result.json)" if len(differences) > 1 else ""
        from vprompt.experiments.bench.tasks import known

        source = result["provenance"]["data"]["source"]
        what = "Not the benchmark's own data" if known(source) else "About the data"
        print_note(f"{what}: {differences[0]}{more}")
    for name, stage in stages:
        if not stage["converged"] and stage["epochs"]:
            which = f" ({name})" if name else ""
            print_note(f"The loss{which} was still falling at the end; more epochs may help.")
    print_note(f"Adapter and result.json are in {out}. Next: vprompt predict {out} IMAGE")


def _learned(stage: dict[str, Any]) -> str:
    """Learned numbers, and what share of the backbone's they are, where the result says it."""
    share = f" ({100 * stage['learned_params'] / stage['backbone_params']:.2f} %)" if "backbone_params" in stage else ""
    return f"{stage['learned_params']:,}{share}"
