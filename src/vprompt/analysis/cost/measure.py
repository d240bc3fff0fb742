"""Costs of a backbone with prompts: multiply-accumulates and parameters, counted on the model without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vprompt.analysis.base import Host
from vprompt.analysis.cost import Cost
from vprompt.analysis.counts import Retained, even, retained_counts, same, with_counts
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import num_parameters
from vprompt.methods.linear import Linear
from vprompt.model import cost as counting
from vprompt.model.attach import attach
from vprompt.model.config import read_config
from vprompt.model.model import PromptedModel
from vprompt.model.tensors import CONFIG_FILE, read_bytes
from vprompt.utils.errors import VPromptError

BACKBONE = "vit_base_patch16_224"

PROMPTS, ORIGINALS = (0, 50, 100, 150, 200), (200, 100, 50)

WINDOW_PROMPTS, WINDOW_ORIGINALS = (0, 5, 10, 25, 50), (50, 25, 10)


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Overhead of prompts for one image, and what that says about condensing them.

    Args:
        overhead: Cost with prompts over cost without, less one.
        condense: Whether it is above the threshold, so that condensing is worth it.
    """

    overhead: float
    condense: bool


@dataclass(frozen=True, kw_only=True)
class PromptCost(counting.Cost):
    """A number of prompts per block: what they cost, and whether to condense them.

    Args:
        head_params: Learned numbers in the classifier.
        adapter_bytes: Size of the adapter's file of tensors, in 32 bits.
        rule: By the paper's rule, (N + P) / N - 1 for N tokens.
        published: By the multiply-accumulates as published.
        folded: By those of folded prompts, against the backbone as timm runs it.
    """

    head_params: int
    adapter_bytes: int
    rule: Extra
    published: Extra
    folded: Extra


@dataclass(frozen=True, kw_only=True)
class CondensedCost(Retained, counting.Executions):
    """Cost of one image with the prompts that condensation left."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Cost of prompts on a backbone, before and after condensation.

    Args:
        backbone: Its name.
        img_size: Height and width of its input.
        blocks: How many it has.
        depth: `"deep"` or `"shallow"`.
        tokens: N of the rule, the tokens that a query sees without prompts.
        backbone_params: Its numbers without a classifier.
        num_classes: Of the head.
        threshold: Overhead above which condensing is worth it.
        bare_gmacs: The backbone as timm runs it.
        prompts: One entry for each number of prompts.
        condensed: What is left of larger numbers of prompts, local and, by a profile that stands in, global.
        given: Real counts, and as many prompts spread evenly; empty without real counts.
        kv_prompts: Key-value prompts of every block, beside all of these.
    """

    backbone: str
    img_size: tuple[int, int]
    blocks: int
    depth: str
    tokens: int
    backbone_params: int
    num_classes: int
    threshold: float
    bare_gmacs: float
    prompts: tuple[PromptCost, ...]
    condensed: tuple[CondensedCost, ...]
    given: tuple[CondensedCost, ...]
    kv_prompts: int = 0


def run(options: Cost, host: Host) -> Costs:
    """Counts what prompts cost before and after condensation; needs no weights and no download.

    Raises:
        BackboneError: If the backbone is unknown or not supported.
        VPromptError: If a number is out of range, or the counts do not fit the backbone.

    Example:
        >>> result = Cost(backbone="vit_tiny_patch16_224", prompts=(100,), originals=(100,), shares=(0.1,)).run()
        >>> row = result.prompts[0]
        >>> f"{row.rule.overhead:.1%} {row.published.overhead:.1%} {row.folded.overhead:.1%}", row.folded.condense
        ('50.8% 60.5% -0.3%', False)

    Source: Prompt Condensation (arXiv 2305.17223), Tables 1 and 5, and "Practical Implementation" in section 6.3. The
    paper's text leaves the threshold to the reader. Its Table 1 counts products only; its Table 5 is met where every
    bias counts as one more.
    """
    if not 0 <= options.threshold < float("inf"):
        raise VPromptError(f"The threshold is an overhead of at least 0, such as 0.1, not {options.threshold}.")
    original = None
    if options.adapter is not None:
        options, original = _of_adapter(options, options.adapter)
    name, shallow = options.backbone or BACKBONE, options.shallow
    classes = 100 if options.classes is None else options.classes
    with torch.device("meta"):
        backbone = create_backbone(name, pretrained=False, img_size=options.img_size)
    info = attach(backbone, Linear(), num_classes=classes).info
    blocks, windows = len(info.blocks), info.stages is not None
    prompts = (WINDOW_PROMPTS if windows else PROMPTS) if options.prompts is None else options.prompts
    originals = (WINDOW_ORIGINALS if windows else ORIGINALS) if options.originals is None else options.originals
    counting.check_prompts(prompts)
    alike = {number: same(number, blocks, shallow=shallow) for number in prompts}
    retained = [row for number in originals for row in retained_counts(number, options.shares, blocks, shallow=shallow)]
    given = _given(name, options, original, blocks)
    if shallow and options.kv_prompts:
        raise VPromptError("Key-value prompts stand beside deep ones; leave out --kv-prompts, or --shallow.")
    models = {
        row: with_counts(backbone, row, shallow=shallow, kv_prompts=options.kv_prompts, num_classes=classes)
        for row in [*alike.values(), *(row.counts for row in [*retained, *given])]
    }
    costs: dict[tuple[int, ...], counting.Executions] = {}
    with host.bar("counting") as report:
        for done, (row, prompted) in enumerate(models.items(), start=1):
            costs[row] = counting.executions(prompted)
            report(done, len(models))
    bare = counting.executions(attach(backbone, Linear(), num_classes=classes)).published_gmacs
    return Costs(
        backbone=name,
        img_size=info.preprocessing.size,
        blocks=blocks,
        depth="shallow" if shallow else "deep",
        tokens=info.attended,
        backbone_params=num_parameters(backbone),
        num_classes=classes,
        threshold=options.threshold,
        bare_gmacs=bare,
        prompts=tuple(_prompt_cost(n, models[row], costs[row], bare, options.threshold) for n, row in alike.items()),
        condensed=tuple(CondensedCost(**vars(row), **vars(costs[row.counts])) for row in retained),
        given=tuple(CondensedCost(**vars(row), **vars(costs[row.counts])) for row in given),
        kv_prompts=options.kv_prompts,
    )


def _of_adapter(options: Cost, folder: str) -> tuple[Cost, int | None]:
    """Configuration of an adapter, and the prompts it had in every block before condensation.

    Its tensors and its backbone's weights are not needed.
    """
    file = Path(folder) / CONFIG_FILE
    config = read_config(read_bytes(file), str(file))
    method = config.method
    whole = method.riding != "nothing" and not getattr(method, "num_kv_prompts", 0) and config.num_segments == 1
    if not whole or not any(config.prompt_counts):
        raise VPromptError(f"The adapter {folder} has no whole prompts of VPT; give one that has.")
    scores = config.condensation.scores if config.condensation is not None else ()
    taken = replace(
        options,
        backbone=config.backbone.name,
        img_size=config.backbone.img_size,
        shallow=method.riding == "tokens",
        counts=config.prompt_counts,
        classes=config.num_classes,
    )
    return taken, max((len(block) for block in scores), default=None)


def _given(name: str, options: Cost, original: int | None, blocks: int) -> list[Retained]:
    """Real counts, if there are any, and the same number of prompts spread evenly."""
    if (counts := options.counts) is None:
        return []
    if len(counts) != blocks:
        raise VPromptError(
            f"The backbone {name!r} has {blocks} blocks and there are counts for {len(counts)}; give one for each."
        )
    most = None if original is None else original * (1 if options.shallow else blocks)
    share = sum(counts) / most if most else None
    given = Retained(original=original, share=share, where="given", counts=tuple(counts))
    return [given] if options.shallow else [given, replace(given, where="even", counts=even(sum(counts), blocks))]


def _prompt_cost(
    number: int, prompted: PromptedModel, costs: counting.Executions, bare: float, threshold: float
) -> PromptCost:
    def extra(overhead: float) -> Extra:
        return Extra(overhead=overhead, condense=overhead > threshold)

    return PromptCost(
        prompts=number,
        published_gmacs=costs.published_gmacs,
        prefix_gmacs=costs.prefix_gmacs,
        folded_gmacs=costs.folded_gmacs,
        prompt_params=sum(p.numel() for p in (*prompted.prompts, *prompted.kv_prompts)),
        head_params=sum(p.numel() for p in prompted.head.parameters()),
        adapter_bytes=counting.adapter_bytes(prompted),
        rule=extra(number / prompted.info.attended),
        published=extra(costs.published_gmacs / bare - 1),
        folded=extra(costs.folded_gmacs / bare - 1),
    )
