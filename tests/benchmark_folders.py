"""Small tasks in the layouts of VTAB-1k and FGVC, written with real images, no two of them equal."""

import itertools
import json

from PIL import Image

from vprompt.data.preprocessing import Preprocessing

PLAIN = Preprocessing(size=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VTAB = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
SIZES = {"train": 9, "val": 3, "test": 6}
_NUMBERS = itertools.count()


def write_image(file, label=0):
    """An image whose red is its class, and whose green and blue are its own."""
    number = next(_NUMBERS)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (7, 5), (label, number // 256, number % 256)).save(file)


def write_lines(file, pairs, end="\n"):
    file.write_bytes("".join(f"{path} {label}{end}" for path, label in pairs).encode("utf-8", "surrogateescape"))


def vtab(folder, classes=3, sizes=SIZES, suffix="png"):
    """A task as VTAB-1k has it, with classes in turn."""
    lists = {}
    for split, size in sizes.items():
        lists[split] = [(f"images/{split}/{i:06}.{suffix}", i % classes) for i in range(size)]
        for path, label in lists[split]:
            write_image(folder / path, label)
        write_lines(folder / VTAB[split], lists[split])
    write_lines(folder / "train800val200.txt", lists["train"] + lists["val"])
    return folder


def fgvc(folder, ids=(3, 10, 20), sizes=SIZES, below=""):
    """A task as FGVC has it, with images in a folder for each class, which may lie below another one."""
    for split, size in sizes.items():
        known = {f"{ids[i % len(ids)]} kind/{split} {i}.jpg": ids[i % len(ids)] for i in range(size)}
        for path, number in known.items():
            write_image(folder / below / path, ids.index(number))
        (folder / f"{split}.json").write_text(json.dumps(known))
    return folder


def read_list(folder, split):
    return [tuple(line.rsplit(" ", 1)) for line in (folder / VTAB[split]).read_text().splitlines()]


def colours(dataset):
    """The red of every image, which is its class, beside its label."""
    import torch

    first = dataset.pixels(torch.arange(len(dataset)))[:, 0, 0, 0]
    return list(zip(first.tolist(), dataset.labels.tolist(), strict=True))
