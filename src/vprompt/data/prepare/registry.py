"""The one table of what can be prepared: from which files, by which reader, or why not.

Hashes: torchvision's sources (MD5) and the checksums of TensorFlow Datasets (SHA-256). No reader has been run on the
real archives yet; all were run on small stand-ins in the documented formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vprompt.data.benchmarks.tasks import BenchmarkTask, find_task
from vprompt.data.prepare import fgvc, vtab_arrays, vtab_images
from vprompt.data.prepare.archives import Originals, Piece
from vprompt.data.prepare.contents import Contents
from vprompt.utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one task is prepared.

    Args:
        spec: The task: `vtab:cifar`.
        pieces: What it is made from.
        read: Makes contents of them; None where the task cannot be prepared.
        images: How many images the original has in the parts that are used.
        where: The `site`, if it is not the task's.
        needs: A Python package that vprompt does not bring.
        folder: The name of the folder that is written, if it is not the task's.
        prefix: FGVC: the folder that the names in its lists begin in.
    """

    spec: str
    pieces: Mapping[str, Piece] = field(default_factory=dict[str, Piece])
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
    def site(self) -> str:
        """Where the pieces can be had, or why the task cannot be prepared."""
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


def _archive(name: str, known: str | None, marker: str) -> Piece:
    return Piece(names={name: known}, marker=marker)


def _file(name: str, known: str | None = None) -> Piece:
    return Piece(names={name: known})


def _norb(part: str, known: str) -> Piece:
    return Piece(names={f"smallnorb-5x{part}.mat.gz": known, f"smallnorb-5x{part}.mat": None})


_FLOWERS = {
    "images": _archive("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "jpg/image_00001.jpg"),
    "labels": _file("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
    "parts": _file("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
}

_CLEVR = {
    "images": _archive("CLEVR_v1.0.zip", "b11922020e72d0cd9154779b2d3d07d2", "scenes/CLEVR_train_scenes.json"),
}

_DSPRITES = {"images": _archive("dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", None, "latents_classes.npy")}

_PCAM = {
    f"{part}_{kind}": _file(f"camelyonpatch_level_2_split_{name}_{kind}.h5")
    for part, name in {"train": "train", "val": "valid", "test": "test"}.items()
    for kind in "xy"
}

_TRAINING, _TESTING = "46789x9x18x6x2x96x96-training", "01235x9x18x6x2x96x96-testing"

_NORB = {
    "train_images": _norb(f"{_TRAINING}-dat", "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873"),
    "train_info": _norb(f"{_TRAINING}-info", "de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32"),
    "test_images": _norb(f"{_TESTING}-dat", "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474"),
    "test_info": _norb(f"{_TESTING}-info", "16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2"),
}

RECIPES = (
    Recipe(
        spec="vtab:cifar",
        read=vtab_arrays.cifar,
        images=60_000,
        where="https://www.cs.toronto.edu/~kriz/cifar.html (the binary version: the Python version is pickled)",
        pieces={
            "images": _archive(
                "cifar-100-binary.tar.gz",
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                "fine_label_names.txt",
            )
        },
    ),
    Recipe(
        spec="vtab:caltech101",
        read=vtab_images.caltech101,
        images=9144,
        pieces={
            "images": Piece(
                names={
                    "caltech-101.zip": "3138e1922a9193bfa496528edbbc45d0",
                    "101_ObjectCategories.tar.gz": "af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
                },
                marker="accordion/image_0001.jpg",
            )
        },
    ),
    Recipe(
        spec="vtab:dtd",
        read=vtab_images.dtd,
        images=5640,
        pieces={"images": _archive("dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "labels/train1.txt")},
    ),
    Recipe(
        spec="vtab:oxford_flowers102",
        read=vtab_images.oxford_flowers102,
        images=8189,
        pieces=_FLOWERS,
        needs="scipy",
    ),
    Recipe(
        spec="vtab:oxford_iiit_pet",
        read=vtab_images.oxford_iiit_pet,
        images=7349,
        pieces={
            "images": _archive("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "images/Abyssinian_1.jpg"),
            "lists": _archive("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "annotations/trainval.txt"),
        },
    ),
    Recipe(
        spec="vtab:svhn",
        read=vtab_arrays.svhn,
        images=99_289,
        where="http://ufldl.stanford.edu/housenumbers (format 2)",
        pieces={
            "train": _file("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            "test": _file("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        },
        needs="scipy",
    ),
    Recipe(
        spec="vtab:sun397",
        read=vtab_images.sun397,
        images=108_753,
        pieces={"images": _archive("SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a", "ClassName.txt")},
    ),
    Recipe(
        spec="vtab:patch_camelyon",
        read=vtab_arrays.patch_camelyon,
        images=327_680,
        where="https://github.com/basveeling/pcam (unpack each .h5.gz to .h5)",
        pieces=_PCAM,
        needs="h5py",
    ),
    Recipe(
        spec="vtab:eurosat",
        read=vtab_images.eurosat,
        images=27_000,
        where="https://github.com/phelber/EuroSAT (RGB)",
        pieces={"images": _archive("EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387", "AnnualCrop/AnnualCrop_1.jpg")},
    ),
    Recipe(
        spec="vtab:resisc45",
        read=vtab_images.resisc45,
        images=31_500,
        where="Cheng et al. 2017 (arXiv 1703.00121); unpack NWPU-RESISC45.rar, or give a .zip of it",
        pieces={"images": _archive("NWPU-RESISC45.zip", None, "airplane/airplane_001.jpg")},
    ),
    Recipe(
        spec="vtab:diabetic_retinopathy",
        where="its images need an account at Kaggle (https://www.kaggle.com/c/diabetic-retinopathy-detection) and one "
        "fixed conversion of TensorFlow Datasets (btgraham-300); a ready copy of VTAB-1k has them",
    ),
    Recipe(spec="vtab:clevr_count", read=vtab_images.clevr_count, images=85_000, pieces=_CLEVR),
    Recipe(spec="vtab:clevr_dist", read=vtab_images.clevr_dist, images=85_000, pieces=_CLEVR),
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
        pieces={
            "images": _archive(
                "data_object_image_2.zip",
                "351c5a2aa0cd9238b50174a3a62b846bc5855da256b82a196431d60ff8d43617",
                "training/image_2/000000.png",
            ),
            "labels": _archive(
                "data_object_label_2.zip",
                "4efc76220d867e1c31bb980bbf8cbc02599f02a9cb4350effa98dbb04aaed880",
                "training/label_2/000000.txt",
            ),
            "mapping": _archive(
                "devkit_object.zip",
                "cfde67e531832618ea0fd4844f91e34a45068025e2bef79e278cb812dc2537d0",
                "mapping/train_rand.txt",
            ),
        },
    ),
    Recipe(spec="vtab:dsprites_loc", read=vtab_arrays.dsprites_loc, images=737_280, pieces=_DSPRITES),
    Recipe(spec="vtab:dsprites_ori", read=vtab_arrays.dsprites_ori, images=737_280, pieces=_DSPRITES),
    Recipe(spec="vtab:smallnorb_azi", read=vtab_arrays.smallnorb_azi, images=48_600, pieces=_NORB),
    Recipe(spec="vtab:smallnorb_ele", read=vtab_arrays.smallnorb_ele, images=48_600, pieces=_NORB),
    Recipe(
        spec="fgvc:cub",
        read=fgvc.birds,
        images=11_788,
        where="https://data.caltech.edu/records/65de6-vp158",
        pieces={
            "images": _archive(
                "CUB_200_2011.tgz",
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
            )
        },
        folder="CUB_200_2011",
        prefix="images/",
    ),
    Recipe(
        spec="fgvc:nabirds",
        read=fgvc.birds,
        images=48_562,
        where="https://dl.allaboutbirds.org/nabirds (after accepting its terms)",
        pieces={"images": _archive("nabirds.tar.gz", None, "hierarchy.txt")},
        prefix="images/",
    ),
    Recipe(spec="fgvc:flowers", read=fgvc.flowers, images=8189, pieces=_FLOWERS, needs="scipy", folder="OxfordFlower"),
    Recipe(
        spec="fgvc:dogs",
        read=fgvc.dogs,
        images=20_580,
        pieces={
            "images": _archive(
                "images.tar",
                "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
                "Images/n02085620-Chihuahua/n02085620_10074.jpg",
            ),
            "lists": _archive(
                "lists.tar", "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c", "train_list.mat"
            ),
        },
        needs="scipy",
        folder="Stanford-dogs",
        prefix="Images/",
    ),
    Recipe(
        spec="fgvc:cars",
        read=fgvc.cars,
        images=16_185,
        where="no longer given out at https://ai.stanford.edu/~jkrause/cars/car_dataset.html; use a copy of it",
        pieces={
            "train": _archive(
                "cars_train.tgz",
                "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                "cars_train/00001.jpg",
            ),
            "test": _archive(
                "cars_test.tgz",
                "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                "cars_test/00001.jpg",
            ),
            "lists": _archive(
                "car_devkit.tgz",
                "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                "cars_train_annos.mat",
            ),
            "test_lists": _file(
                "cars_test_annos_withlabels.mat", "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05"
            ),
        },
        needs="scipy",
        folder="Stanford-cars",
    ),
)
"""All tasks, in the order of the papers' tables."""
