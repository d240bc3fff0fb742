"""`vprompt analyze cost`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vprompt.cli.analyze.common import Output, numbers
from vprompt.cli.console import UsageError
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What prompts cost before and after condensation (the paper's Tables 1 and 5), and whether condensing is worth it.

    It is counted, without weights or data.
    """

    backbone: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """timm name; vit_base_patch16_224 when left out."""
    prompts: str | None = None
    """Prompts per block (deep), or in all (shallow); 0,50,100,150,200 when left out, 0,5,10,25,50 with windows."""
    originals: str | None = None
    """Prompts per block that are condensed; 200,100,50 when left out, 50,25,10 with windows."""
    shares: str = "0.1,0.2,0.3,0.4,0.5,1"
    """Shares of them that are kept."""
    counts: str | None = None
    """Prompts that a condensed model has in each block, such as 14,6,18,21,13,19,27,10,20,10,19,3."""
    adapter: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Take the counts, the backbone and its size from this adapter."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    shallow: bool = False
    """Count shallow instead of deep prompts."""
    classes: int | None = None
    """Of the head, for the numbers of learned parameters; 100 when left out, those of the adapter with one."""
    threshold: float = 0.1
    """What prompts may add to the cost before condensing is worth it."""
    output: Output = Output()

    def run(self) -> None:
        """Counts, writes, prints."""
        from vprompt.analysis.cost.measure import costs
        from vprompt.utils.progress import bar

        options = self._of_adapter() if self.adapter is not None else self._of_options()
        with bar("counting") as report:
            found = costs(
                **options,
                prompts=_whole(self.prompts, "--prompts", "0,50,100"),
                originals=_whole(self.originals, "--originals", "200,100,50"),
                shares=numbers(self.shares, float, "--shares", "0.1,0.5,1"),
                threshold=self.threshold,
                report=report,
            )
        self.output.show("cost", asdict(found))

    def _of_options(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone or "vit_base_patch16_224",
            "img_size": self.img_size,
            "shallow": self.shallow,
            "counts": _whole(self.counts, "--counts", "14,6,18", distinct=False),
            "num_classes": 100 if self.classes is None else self.classes,
        }

    def _of_adapter(self) -> dict[str, Any]:
        """What the configuration of an adapter says; its tensors and its backbone's weights are not needed."""
        from vprompt.methods.vpt import VPT
        from vprompt.model.config import read_config
        from vprompt.model.tensors import CONFIG_FILE, read_bytes

        taken = {"NAME": self.backbone, "--counts": self.counts, "--img-size": self.img_size, "--classes": self.classes}
        double = [option for option, value in {**taken, "--shallow": self.shallow or None}.items() if value is not None]
        if double:
            raise UsageError(f"--adapter says what {double[0]} says too; leave one of them out.")
        file = Path(self.adapter or "") / CONFIG_FILE
        config = read_config(read_bytes(file), str(file))
        if not isinstance(config.method, VPT) or not any(config.prompt_counts) or config.num_segments > 1:
            raise VPromptError(f"The adapter {self.adapter} has no whole prompts of VPT; give one that has.")
        before = config.condensation.scores if config.condensation is not None else ()
        return {
            "backbone": config.backbone.name,
            "img_size": config.backbone.img_size,
            "shallow": config.method.depth == "shallow",
            "counts": config.prompt_counts,
            "original": max((len(scores) for scores in before), default=None),
            "num_classes": config.num_classes,
        }


def _whole(text: str | None, option: str, example: str, *, distinct: bool = True) -> list[int] | None:
    return None if text is None else numbers(text, int, option, example, distinct=distinct)
