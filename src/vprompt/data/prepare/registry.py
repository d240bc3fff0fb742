"""The one table of what can be prepared: from which files, by which reader, or why not.

Hashes: torchvision's sources (MD5) and the checksums of TensorFlow Datasets (SHA-256). No reader has been run on the
real archives yet; all were run on small stand-ins in the documented formats.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vprompt.data.prepare import fgvc as fine
from vprompt.data.prepare import vtab_arrays as tensors
from vprompt.data.prepare import vtab_images as pictures
from vprompt.data.prepare.archives import Found, Piece
from vprompt.data.prepare.contents import Contents
from vprompt.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one task is prepared.

    Args:
        suite: The benchmark.
        name: The task's name in it.
        where: Where the pieces can be had, or why the task cannot be prepared.
        pieces: What it is made from.
        read: Makes contents of them; None where the task cannot be prepared.
        images: How many images the original has in the parts that are used.
        needs: A Python package that vprompt does not bring.
        folder: The name of the folder that is written.
        prefix: FGVC: the folder that the names in its lists begin in.
    """

    suite: Literal["vtab", "fgvc"]
    name: str
    where: str
    pieces: Mapping[str, Piece] = field(default_factory=dict[str, Piece])
    read: Callable[[Found], Contents] | None = None
    images: int = 0
    needs: str = ""
    folder: str = ""
    prefix: str = ""

    @property
    def spec(self) -> str:
        """What a user writes: `vtab:cifar`."""
        return f"{self.suite}:{self.name}"


def recipe_of(spec: str) -> Recipe:
    """The recipe of a task.

    Raises:
        DataError: There is no such task, or it cannot be prepared.

    Example:
        >>> recipe_of("fgvc:cub").folder
        'CUB_200_2011'
    """
    known = {recipe.spec: recipe for recipe in RECIPES}
    found = known.get(spec.lower())
    if found is None:
        close = difflib.get_close_matches(spec.lower(), known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`vprompt prepare --list` shows those there are."
        raise DataError(f"There is no task {spec!r}; {hint}")
    if found.read is None:
        raise DataError(f"{found.spec} cannot be prepared by vprompt: {found.where}.")
    return found


def _vtab(
    name: str,
    read: Callable[[Found], Contents],
    images: int,
    where: str,
    pieces: Mapping[str, Piece],
    *,
    needs: str = "",
) -> Recipe:
    return Recipe(
        suite="vtab", name=name, read=read, images=images, where=where, pieces=pieces, needs=needs, folder=name
    )


def _piece(name: str, known: str | None = None, marker: str = "") -> Piece:
    return Piece(names={name: known}, marker=marker)


_FLOWERS = {
    "images": _piece("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "jpg/image_00001.jpg"),
    "labels": _piece("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
    "parts": _piece("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
}

_FLOWERS_SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"

_CLEVR = {
    "images": _piece("CLEVR_v1.0.zip", "b11922020e72d0cd9154779b2d3d07d2", "scenes/CLEVR_train_scenes.json"),
}

_CLEVR_SITE = "https://cs.stanford.edu/people/jcjohns/clevr"

_DSPRITES = {"images": _piece("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")}

_DSPRITES_SITE = "https://github.com/google-deepmind/dsprites-dataset"

_PCAM_PARTS = {"train": "train", "val": "valid", "test": "test"}

_PCAM = {
    f"{part}_{kind}": _piece(f"camelyonpatch_level_2_split_{name}_{kind}.h5")
    for part, name in _PCAM_PARTS.items()
    for kind in "xy"
}


def _norb(part: str, known: str) -> Piece:
    return Piece(names={f"smallnorb-5x{part}.mat.gz": known, f"smallnorb-5x{part}.mat": None})


_TRAINING, _TESTING = "46789x9x18x6x2x96x96-training", "01235x9x18x6x2x96x96-testing"

_NORB = {
    "train_images": _norb(f"{_TRAINING}-dat", "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873"),
    "train_info": _norb(f"{_TRAINING}-info", "de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32"),
    "test_images": _norb(f"{_TESTING}-dat", "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474"),
    "test_info": _norb(f"{_TESTING}-info", "16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2"),
}

_NORB_SITE = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"

RECIPES = (
    _vtab(
        "cifar",
        tensors.cifar,
        60_000,
        "https://www.cs.toronto.edu/~kriz/cifar.html (the binary version: the Python version is pickled)",
        {
            "images": _piece(
                "cifar-100-binary.tar.gz",
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                "fine_label_names.txt",
            )
        },
    ),
    _vtab(
        "caltech101",
        pictures.caltech101,
        9144,
        "https://data.caltech.edu/records/mzrjq-6wc02",
        {
            "images": Piece(
                names={
                    "caltech-101.zip": "3138e1922a9193bfa496528edbbc45d0",
                    "101_ObjectCategories.tar.gz": "af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
                },
                marker="accordion/image_0001.jpg",
            )
        },
    ),
    _vtab(
        "dtd",
        pictures.dtd,
        5640,
        "https://www.robots.ox.ac.uk/~vgg/data/dtd",
        {"images": _piece("dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "labels/train1.txt")},
    ),
    _vtab("oxford_flowers102", pictures.oxford_flowers102, 8189, _FLOWERS_SITE, _FLOWERS, needs="scipy"),
    _vtab(
        "oxford_iiit_pet",
        pictures.oxford_iiit_pet,
        7349,
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
        {
            "images": _piece("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "images/Abyssinian_1.jpg"),
            "lists": _piece("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "annotations/trainval.txt"),
        },
    ),
    _vtab(
        "svhn",
        tensors.svhn,
        99_289,
        "http://ufldl.stanford.edu/housenumbers (format 2)",
        {
            "train": _piece("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            "test": _piece("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        },
        needs="scipy",
    ),
    _vtab(
        "sun397",
        pictures.sun397,
        108_753,
        "https://vision.princeton.edu/projects/2010/SUN",
        {"images": _piece("SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a", "ClassName.txt")},
    ),
    _vtab(
        "patch_camelyon",
        tensors.patch_camelyon,
        327_680,
        "https://github.com/basveeling/pcam (unpack each .h5.gz to .h5)",
        _PCAM,
        needs="h5py",
    ),
    _vtab(
        "eurosat",
        pictures.eurosat,
        27_000,
        "https://github.com/phelber/EuroSAT (RGB)",
        {"images": _piece("EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", "AnnualCrop/AnnualCrop_1.jpg")},
    ),
    _vtab(
        "resisc45",
        pictures.resisc45,
        31_500,
        "Cheng et al. 2017 (arXiv 1703.00121); unpack NWPU-RESISC45.rar, or give a .zip of it",
        {"images": _piece("NWPU-RESISC45.zip", None, "airplane/airplane_001.jpg")},
    ),
    Recipe(
        suite="vtab",
        name="diabetic_retinopathy",
        where="its images need an account at Kaggle (https://www.kaggle.com/c/diabetic-retinopathy-detection) and one "
        "fixed conversion of TensorFlow Datasets (btgraham-300); a ready copy of VTAB-1k has them",
    ),
    _vtab("clevr_count", pictures.clevr_count, 85_000, _CLEVR_SITE, _CLEVR),
    _vtab("clevr_dist", pictures.clevr_dist, 85_000, _CLEVR_SITE, _CLEVR),
    Recipe(
        suite="vtab",
        name="dmlab",
        where="its images are only given out through TensorFlow Datasets (dmlab 2.0.0); a ready copy of VTAB-1k has "
        "them",
    ),
    _vtab(
        "kitti",
        pictures.kitti,
        7481,
        "https://www.cvlibs.net/datasets/kitti/eval_object.php",
        {
            "images": _piece(
                "data_object_image_2.zip",
                "351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617",
                "training/image_2/000000.png",
            ),
            "labels": _piece(
                "data_object_label_2.zip",
                "4efc76220d867e1c31bb980bbf8cbc02599f02a9cb4350effa98dbb04aaed880",
                "training/label_2/000000.txt",
            ),
            "mapping": _piece(
                "devkit_object.zip",
                "cfde67e531832618ea0fd4844f91e34a45068025e2bef79e278cb812dc2537d0",
                "mapping/train_rand.txt",
            ),
        },
    ),
    _vtab("dsprites_loc", tensors.dsprites_loc, 737_280, _DSPRITES_SITE, _DSPRITES),
    _vtab("dsprites_ori", tensors.dsprites_ori, 737_280, _DSPRITES_SITE, _DSPRITES),
    _vtab("smallnorb_azi", tensors.smallnorb_azi, 48_600, _NORB_SITE, _NORB),
    _vtab("smallnorb_ele", tensors.smallnorb_ele, 48_600, _NORB_SITE, _NORB),
    Recipe(
        suite="fgvc",
        name="cub",
        where="https://data.caltech.edu/records/65de6-vp158",
        pieces={
            "images": _piece(
                "CUB_200_2011.tgz",
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
            )
        },
        read=fine.cub,
        images=11_788,
        folder="CUB_200_2011",
        prefix="images/",
    ),
    Recipe(
        suite="fgvc",
        name="nabirds",
        where="https://dl.allaboutbirds.org/nabirds (after accepting its terms)",
        pieces={"images": _piece("nabirds.tar.gz", None, "hierarchy.txt")},
        read=fine.nabirds,
        images=48_562,
        folder="nabirds",
        prefix="images/",
    ),
    Recipe(
        suite="fgvc",
        name="flowers",
        where=_FLOWERS_SITE,
        pieces=_FLOWERS,
        read=fine.flowers,
        images=8189,
        needs="scipy",
        folder="OxfordFlower",
    ),
    Recipe(
        suite="fgvc",
        name="dogs",
        where="http://vision.stanford.edu/aditya86/ImageNetDogs",
        pieces={
            "images": _piece(
                "images.tar",
                "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
                "Images/n02085620-Chihuahua/n02085620_10074.jpg",
            ),
            "lists": _piece(
                "lists.tar", "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c", "train_list.mat"
            ),
        },
        read=fine.dogs,
        images=20_580,
        needs="scipy",
        folder="Stanford-dogs",
        prefix="Images/",
    ),
    Recipe(
        suite="fgvc",
        name="cars",
        where="no longer given out at https://ai.stanford.edu/~jkrause/cars/car_dataset.html; use a copy of it",
        pieces={
            "train": _piece(
                "cars_train.tgz",
                "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                "cars_train/00001.jpg",
            ),
            "test": _piece(
                "cars_test.tgz",
                "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                "cars_test/00001.jpg",
            ),
            "lists": _piece(
                "car_devkit.tgz",
                "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                "cars_train_annos.mat",
            ),
            "test_lists": _piece(
                "cars_test_annos_withlabels.mat", "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05"
            ),
        },
        read=fine.cars,
        images=16_185,
        needs="scipy",
        folder="Stanford-cars",
    ),
)
"""All tasks, in the order of the papers' tables."""
