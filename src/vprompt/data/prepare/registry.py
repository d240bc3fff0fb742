"""Recipes: the files that a task is prepared from and its reader, or the reason why it cannot be prepared.

The files are in `pieces.csv`, with hashes from torchvision's sources (MD5) and the checksums of TensorFlow Datasets
(SHA-256). No reader has been run on the real archives yet, only on small stand-ins in the documented formats.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

from vprompt.data.benchmarks.tasks import BenchmarkTask, find_task
from vprompt.data.prepare import fgvc, vtab_arrays, vtab_images
from vprompt.data.prepare.archives import Originals, Piece
from vprompt.data.prepare.contents import Contents
from vprompt.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe of one task.

    Args:
        spec: The task: `vtab:cifar`.
        read: Makes contents of its pieces; None where the task cannot be prepared.
        images: Number of images that the original has in the parts that are used.
        where: The `site`, if it is not the task's.
        needs: A Python package that vprompt does not bring.
        folder: The name of the folder that is written, if it is not the task's.
        prefix: FGVC: the folder that the names in its lists begin in.
    """

    spec: str
    read: Callable[[Originals], Contents] | None = None
    images: int = 0
    where: str = ""
    needs: str = ""
    folder: str = ""
    prefix: str = ""

    @property
    def task(self) -> BenchmarkTask:
        """The benchmark's task."""
        return find_task(self.spec)

    @property
    def pieces(self) -> Mapping[str, Piece]:
        """The files that it is prepared from."""
        return _PIECES.get(self.spec, {})

    @property
    def site(self) -> str:
        """Address of the pieces, or the reason why the task cannot be prepared."""
        return self.where or self.task.site


def recipe_of(spec: str) -> Recipe:
    """The recipe of a task.

    Raises:
        DataError: There is no such task, or it cannot be prepared.

    Example:
        >>> recipe_of("fgvc:cub").folder
        'CUB_200_2011'
    """
    task = find_task(spec)
    recipe = next(recipe for recipe in RECIPES if recipe.spec == task.spec)
    if recipe.read is None:
        raise DataError(f"{recipe.spec} cannot be prepared by vprompt: {recipe.where}.")
    return recipe


def _read_pieces() -> dict[str, dict[str, Piece]]:
    """The pieces in `pieces.csv` by task and key; rows with the same key are other names of one piece."""
    pieces: dict[str, dict[str, Piece]] = {}
    table = resources.files("vprompt.data.prepare").joinpath("pieces.csv").read_text("utf-8")
    for row in csv.DictReader(table.splitlines()):
        for spec in row["tasks"].split():
            known = pieces.setdefault(spec, {})
            names = known[row["piece"]].names if row["piece"] in known else {}
            names = {**names, row["name"]: row["hash"] or None}
            known[row["piece"]] = Piece(names=names, marker=row["marker"])
    return pieces


_PIECES = _read_pieces()

RECIPES = (
    Recipe(
        spec="vtab:cifar",
        read=vtab_arrays.cifar,
        images=60_000,
        where="https://www.cs.toronto.edu/~kriz/cifar.html (the binary version: the Python version is pickled)",
    ),
    Recipe(spec="vtab:caltech101", read=vtab_images.caltech101, images=9144),
    Recipe(spec="vtab:dtd", read=vtab_images.dtd, images=5640),
    Recipe(spec="vtab:oxford_flowers102", read=vtab_images.oxford_flowers102, images=8189, needs="scipy"),
    Recipe(spec="vtab:oxford_iiit_pet", read=vtab_images.oxford_iiit_pet, images=7349),
    Recipe(
        spec="vtab:svhn",
        read=vtab_arrays.svhn,
        images=99_289,
        where="http://ufldl.stanford.edu/housenumbers (format 2)",
        needs="scipy",
    ),
    Recipe(spec="vtab:sun397", read=vtab_images.sun397, images=108_753),
    Recipe(
        spec="vtab:patch_camelyon",
        read=vtab_arrays.patch_camelyon,
        images=327_680,
        where="https://github.com/basveeling/pcam (unpack each .h5.gz to .h5)",
        needs="h5py",
    ),
    Recipe(
        spec="vtab:eurosat", read=vtab_images.eurosat, images=27_000, where="https://github.com/phelber/EuroSAT (RGB)"
    ),
    Recipe(
        spec="vtab:resisc45",
        read=vtab_images.resisc45,
        images=31_500,
        where="Cheng et al. 2017 (arXiv 1703.00121); unpack NWPU-RESISC45.rar, or give a .zip of it",
    ),
    Recipe(
        spec="vtab:diabetic_retinopathy",
        where="its images need an account at Kaggle (https://www.kaggle.com/c/diabetic-retinopathy-detection) and one "
        "fixed conversion of TensorFlow Datasets (btgraham-300); a ready copy of VTAB-1k has them",
    ),
    Recipe(spec="vtab:clevr_count", read=vtab_images.clevr_count, images=85_000),
    Recipe(spec="vtab:clevr_dist", read=vtab_images.clevr_dist, images=85_000),
    Recipe(
        spec="vtab:dmlab",
        where="its images are only given out through TensorFlow Datasets (dmlab 2.0.0); a ready copy of VTAB-1k has "
        "them",
    ),
    Recipe(
        spec="vtab:kitti",
        read=vtab_images.kitti,
        images=7481,
        where="https://www.cvlibs.net/datasets/kitti/eval_object.php",
    ),
    Recipe(spec="vtab:dsprites_loc", read=vtab_arrays.dsprites_loc, images=737_280),
    Recipe(spec="vtab:dsprites_ori", read=vtab_arrays.dsprites_ori, images=737_280),
    Recipe(spec="vtab:smallnorb_azi", read=vtab_arrays.smallnorb_azi, images=48_600),
    Recipe(spec="vtab:smallnorb_ele", read=vtab_arrays.smallnorb_ele, images=48_600),
    Recipe(
        spec="fgvc:cub",
        read=fgvc.birds,
        images=11_788,
        where="https://data.caltech.edu/records/65de6-vp158",
        folder="CUB_200_2011",
        prefix="images/",
    ),
    Recipe(
        spec="fgvc:nabirds",
        read=fgvc.birds,
        images=48_562,
        where="https://dl.allaboutbirds.org/nabirds (after accepting its terms)",
        prefix="images/",
    ),
    Recipe(spec="fgvc:flowers", read=fgvc.flowers, images=8189, needs="scipy", folder="OxfordFlower"),
    Recipe(spec="fgvc:dogs", read=fgvc.dogs, images=20_580, needs="scipy", folder="Stanford-dogs", prefix="Images/"),
    Recipe(
        spec="fgvc:cars",
        read=fgvc.cars,
        images=16_185,
        where="no longer given out at https://ai.stanford.edu/~jkrause/cars/car_dataset.html; use a copy of it",
        needs="scipy",
        folder="Stanford-cars",
    ),
)
"""All tasks, in the order of the papers' tables."""
