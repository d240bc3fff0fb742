"""Cut the task that vprompt ships from Fashion-MNIST: 800 train, 200 val and 2000 test images.

    python recipes/bundled_task.py --source DIR --out src/vprompt/data/fashion_mnist.npz

DIR holds the four files as published (https://github.com/zalandoresearch/fashion-mnist; Debian packages them as
`dataset-fashion-mnist`). Train and val are cut from the published train file, test from the published test file, each
class equally often. The same source and seed give the same arrays.
"""

from __future__ import annotations

import argparse
import gzip
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
PER_CLASS = {"train": 80, "val": 20, "test": 200}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One gzipped IDX file of unsigned bytes: two zero bytes, type 8, number of axes, their lengths, the data."""
    with gzip.open(path, "rb") as file:
        data = file.read()
    zeros, kind, axes = struct.unpack_from(">HBB", data)
    if (zeros, kind) != (0, 8):
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def draw(labels: NDArray[np.uint8], counts: list[int], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """For each count, that many indices of every class, no index twice, sorted by their place in the file."""
    drawn: list[list[NDArray[np.int64]]] = [[] for _ in counts]
    for label in range(CLASSES):
        order = generator.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(drawn, np.split(order, np.cumsum(counts)), strict=False):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the four .gz files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    generator = np.random.default_rng(args.seed)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for file, splits in (("train", ["train", "val"]), ("t10k", ["test"])):
        images = read_idx(args.source / f"{file}-images-idx3-ubyte.gz")
        labels = read_idx(args.source / f"{file}-labels-idx1-ubyte.gz")
        for split, chosen in zip(splits, draw(labels, [PER_CLASS[s] for s in splits], generator), strict=True):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    part = args.out.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    os.replace(part, args.out)
    for name, array in arrays.items():
        print(f"{name}: {array.shape}")


if __name__ == "__main__":
    main()
