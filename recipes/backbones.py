"""Writes src/vprompt/backbones.csv: every model of the installed timm that prompts can be put into.

    python recipes/backbones.py

Models are built on the meta device, so nothing is downloaded; takes about two minutes.
"""

import warnings

import timm
import torch

from vprompt.backbones.catalogue import FILE, Entry, write
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.utils.errors import BackboneError
from vprompt.utils.progress import bar

warnings.filterwarnings("ignore")


def main() -> None:
    """Tries every name that timm lists."""
    names = timm.list_models()
    found: list[Entry] = []
    with bar("trying models") as report:
        for done, name in enumerate(names):
            try:
                with torch.device("meta"):
                    model = create_backbone(name, pretrained=False)
                found.append(Entry.of(name, model, describe(model), tested=True))
            except BackboneError:
                pass
            report(done + 1, len(names))
    write(found)
    print(f"{len(found)} of {len(names)} models of timm {timm.__version__} in {FILE}")


if __name__ == "__main__":
    main()
