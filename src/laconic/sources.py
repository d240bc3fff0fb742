"""Where a run's backbone and images come from."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from laconic.backbone import BackboneInfo
from laconic.creation import create_backbone
from laconic.data import Task, open_task, transforms_of
from laconic.preprocessing import Preprocessing
from laconic.progress import Report
from laconic.settings import CondenseSettings, Settings


class Sources:
    """Makes backbones and opens tasks for runs; a subclass may keep them from one run to the next."""

    def backbone(self, settings: Settings) -> nn.Module:
        """The backbone that settings name, with its weights; runs leave it as it is."""
        return create_backbone(settings.backbone, img_size=settings.img_size, weights=settings.weights)

    def task(self, settings: Settings | CondenseSettings, preprocessing: Preprocessing, report: Report) -> Task:
        """The images that settings name, checked and decoded."""
        return open_task(
            settings.data,
            preprocessing,
            root=settings.root,
            split_seed=settings.split_seed,
            skip_bad=settings.skip_bad,
            progress=report,
        )


def preprocessing_of(settings: Settings, info: BackboneInfo) -> Preprocessing:
    """What is done to every image: as the backbone was trained, resized as the settings or the task say."""
    return replace(info.preprocessing, resize=settings.resize or transforms_of(settings.data).resize)
