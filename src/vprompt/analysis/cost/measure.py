"""What a method costs: multiply-accumulates and parameters, counted on the model itself without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vprompt.analysis.counts import Kept, even, kept_counts, same, with_counts
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import num_parameters
from vprompt.backbones.meta import shapes_only
from vprompt.methods.linear import Linear
from vprompt.model.attach import attach
from vprompt.model.cost import (
    Cost,
    Executions,
    adapter_bytes,
    check_prompts,
    executions,
)
from vprompt.model.model import PromptedModel
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, silent

PROMPTS = (0, 50, 100, 150, 200)

ORIGINALS = (200, 100, 50)

WINDOW_PROMPTS = (0, 5, 10, 25, 50)

WINDOW_ORIGINALS = (50, 25, 10)

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What prompts add to the cost of an image, and what that says about condensing them.

    Args:
        overhead: Cost with prompts over cost without, less one.
        condense: Whether it is above the threshold, so that condensing is worth it.
    """

    overhead: float
    condense: bool


@dataclass(frozen=True, kw_only=True)
class PromptCost(Cost):
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
class CondensedCost(Kept):
    """Cost of one image with the prompts that condensation left, in 10^9 multiply-accumulates, without the classifier.

    Args:
        published_gmacs: As in `Cost`.
        published_gmacs_with_biases: With one more multiply-accumulate for every bias that a linear layer adds.
        prefix_gmacs: As in `Cost`.
        folded_gmacs: As in `Cost`.
    """

    published_gmacs: float
    published_gmacs_with_biases: float
    prefix_gmacs: float
    folded_gmacs: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What prompts cost on a backbone, before and after condensation.

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


def costs(
    backbone: str,
    *,
    prompts: Sequence[int] | None = None,
    originals: Sequence[int] | None = None,
    shares: Sequence[float] = SHARES,
    counts: Sequence[int] | None = None,
    original: int | None = None,
    shallow: bool = False,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int = 100,
    threshold: float = 0.1,
    report: Report = silent,
) -> Costs:
    """What prompts cost before and after condensation; needs no weights and no download.

    Args:
        backbone: A timm name.
        prompts: Prompts per block (deep), or in all (shallow); 0, 50, 100, 150 and 200 when not given, 0, 5, 10, 25
            and 50 where blocks see windows.
        originals: Prompts per block that are condensed; 200, 100 and 50 when not given, 50, 25 and 10 with windows.
        shares: Shares of them to keep, above 0 and up to 1.
        counts: Prompts that a trained and condensed model has in each block.
        original: Prompts that it had in every block before, where that is known.
        shallow: Count shallow instead of deep prompts.
        img_size: Input size in pixels where it should differ from the pre-training size.
        num_classes: Of the head, for the numbers of learned parameters.
        threshold: Overhead above which condensing is worth it.
        report: Called after every model that was counted.

    Returns:
        `Costs`.

    Raises:
        BackboneError: If the backbone is unknown or not supported.
        VPromptError: If a number is out of range, or the counts do not fit the backbone.

    Example:
        >>> found = costs("vit_tiny_patch16_224", prompts=[100], originals=[100], shares=[0.1])
        >>> row = found.prompts[0]
        >>> f"{row.rule.overhead:.1%} {row.published.overhead:.1%} {row.folded.overhead:.1%}", row.folded.condense
        ('50.8% 60.5% -0.3%', False)

    Source: Prompt Condensation (arXiv 2305.17223), Tables 1 and 5, and "Practical Implementation" in section 6.3. The
    paper's text leaves the threshold to the reader. Its Table 1 counts products only; its Table 5 is met where every
    bias counts as one more.
    """
    if not 0 <= threshold < float("inf"):
        raise VPromptError(f"The threshold is an overhead of at least 0, such as 0.1, not {threshold}.")
    with shapes_only():
        model = create_backbone(backbone, pretrained=False, img_size=img_size)
    info = attach(model, Linear(), num_classes=num_classes).info
    blocks, windows = len(info.blocks), info.stages is not None
    prompts = (WINDOW_PROMPTS if windows else PROMPTS) if prompts is None else prompts
    originals = (WINDOW_ORIGINALS if windows else ORIGINALS) if originals is None else originals
    check_prompts(prompts)
    alike = {number: same(number, blocks, shallow=shallow) for number in prompts}
    kept = [row for number in originals for row in kept_counts(number, shares, blocks, shallow=shallow)]
    if counts is not None and len(counts) != blocks:
        raise VPromptError(
            f"The backbone {backbone!r} has {blocks} blocks and there are counts for {len(counts)}; give one for each."
        )
    given = [] if counts is None else _given(counts, original, shallow=shallow)
    models = {
        row: with_counts(model, row, shallow=shallow, num_classes=num_classes)
        for row in [(0,) * blocks, *alike.values(), *(row.counts for row in [*kept, *given])]
    }
    found: dict[tuple[int, ...], Executions] = {}
    for done, (row, prompted) in enumerate(models.items(), start=1):
        found[row] = executions(prompted)
        report(done, len(models))
    bare = found[(0,) * blocks].published_gmacs
    return Costs(
        backbone=backbone,
        img_size=info.preprocessing.size,
        blocks=blocks,
        depth="shallow" if shallow else "deep",
        tokens=info.attended,
        backbone_params=num_parameters(model),
        num_classes=num_classes,
        threshold=threshold,
        bare_gmacs=bare,
        prompts=tuple(_prompt_cost(n, models[row], found[row], bare, threshold) for n, row in alike.items()),
        condensed=tuple(CondensedCost(**vars(row), **found[row.counts]._asdict()) for row in kept),
        given=tuple(CondensedCost(**vars(row), **found[row.counts]._asdict()) for row in given),
    )


def _given(counts: Sequence[int], original: int | None, *, shallow: bool) -> list[Kept]:
    """Real counts, and the same number of prompts spread evenly."""
    most = None if original is None else original * (1 if shallow else len(counts))
    share = sum(counts) / most if most else None
    found = [Kept(original=original, share=share, where="given", counts=tuple(counts))]
    if not shallow:
        found.append(replace(found[0], where="even", counts=even(sum(counts), len(counts))))
    return found


def _prompt_cost(number: int, model: PromptedModel, found: Executions, bare: float, threshold: float) -> PromptCost:
    def extra(overhead: float) -> Extra:
        return Extra(overhead=overhead, condense=overhead > threshold)

    return PromptCost(
        prompts=number,
        published_gmacs=found.published_gmacs,
        prefix_gmacs=found.prefix_gmacs,
        folded_gmacs=found.folded_gmacs,
        prompt_params=sum(p.numel() for p in model.prompts),
        head_params=sum(p.numel() for p in model.head.parameters()),
        adapter_bytes=adapter_bytes(model),
        rule=extra(number / model.info.attended),
        published=extra(found.published_gmacs / bare - 1),
        folded=extra(found.folded_gmacs / bare - 1),
    )
