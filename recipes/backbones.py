"""Writes src/vprompt/backbones/backbones.csv: every model of the installed timm that prompts can be put into.

    python recipes/backbones.py

Models are built on the meta device, so nothing is downloaded; takes about two minutes.
"""

import csv
import warnings
from dataclasses import asdict, fields

import timm
import torch

from vprompt.backbones.catalogue import FILE, Entry
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.utils.errors import BackboneError
from vprompt.utils.progress import bar

warnings.filterwarnings("ignore")


def main() -> None:
    """Tries every name that timm lists."""
    names = timm.list_models()
    entries: list[Entry] = []
    with bar("trying models") as report:
        for done, name in enumerate(names):
            try:
                with torch.device("meta"):
                    model = create_backbone(name, pretrained=False)
                entries.append(Entry.of(name, model, describe(model), tested=True))
            except BackboneError:
                pass
            report(done + 1, len(names))
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Entry)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in sorted(entries, key=lambda entry: entry.name))
    print(f"{len(entries)} of {len(names)} models of timm {timm.__version__} in {FILE}")


if __name__ == "__main__":
    main()
