"""`vprompt analyze latency`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from vprompt.cli.analyze.common import Output, numbers
from vprompt.cli.console import print_note

if TYPE_CHECKING:
    from vprompt.analysis.latency.measure import Outlook


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time with prompts and with what condensation leaves of them, over the bare backbone's (the paper's Table 4).

    Weights are random: they do not matter to time.
    """

    backbone: str = "vit_base_patch16_224"
    """timm name."""
    prompts: str = "200,100,50"
    """Prompts per block before condensation."""
    shares: str = "0.1,0.2,0.3,0.4,0.5,1"
    """Shares of them that are kept."""
    images: int | None = None
    """In a batch; 64 when left out, fewer where a device would take longer than four minutes."""
    rounds: int | None = None
    """How often each model is timed; 20 when left out, 5 on a CPU, or 3 on a slow one."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """cpu, or cuda or another accelerator; both when left out."""
    output: Output = Output()

    def run(self) -> None:
        """Times, writes, prints."""
        from vprompt.analysis.latency.measure import latencies
        from vprompt.utils.progress import bar

        with bar("timing") as report:
            found = latencies(
                self.backbone,
                prompts=numbers(self.prompts, int, "--prompts", "200,100,50"),
                shares=numbers(self.shares, float, "--shares", "0.1,0.5,1"),
                images=self.images,
                rounds=self.rounds,
                img_size=self.img_size,
                devices=None if self.device is None else [self.device],
                announce=_say,
                report=report,
            )
        self.output.show("latency", asdict(found))


def _say(outlook: Outlook) -> None:
    from vprompt.utils.text import count, duration

    print_note(
        f"{outlook.device}: {count(outlook.models, 'model')} in turn, {count(outlook.rounds, 'round')}, a batch of "
        f"{count(outlook.images, 'image')}; it will take about {duration(outlook.seconds)}."
    )
