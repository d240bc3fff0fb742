"""The tasks of VTAB-1k and FGVC: names, sizes, prompts, and where their data can be had; no torch, no disk."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from vprompt.data.preprocessing import Augment, Resize
from vprompt.utils.errors import DataError

Suite = Literal["vtab", "fgvc"]

Group = Literal["natural", "specialized", "structured", "fgvc"]

SUITE_TITLES: dict[Suite, str] = {"vtab": "VTAB-1k", "fgvc": "FGVC"}

_LISTS: dict[Suite, str] = {
    "vtab": "copies with these lists are linked from https://github.com/luogen1996/RepAdapter",
    "fgvc": "the JSON files are linked from https://github.com/KMnP/vpt",
}


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """What the benchmark's results are made with.

    Args:
        resize: See `vprompt.data.preprocessing.Preprocessing`.
        augment: What training images go through: nothing, or random crops and flips.
    """

    resize: Resize
    augment: Augment


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One task of a benchmark.

    Args:
        suite: The benchmark.
        name: Short name, unique in the suite; for VTAB-1k that of its folder.
        title: Name for people.
        group: Group of tasks that averages are made over.
        classes: Their number.
        train: Images to learn from while choosing settings.
        val: Images to choose by.
        test: Images to test on.
        prompts: Prompts per block of VPT-Deep on ViT-B/16; two numbers where two public sources differ.
        site: Where the images come from.
        aliases: Other names.
        folders: Other names of its folder; case, hyphens and underscores are nothing.
    """

    suite: Suite
    name: str
    title: str
    group: Group
    classes: int
    train: int = 800
    val: int = 200
    test: int
    prompts: tuple[int, ...]
    site: str
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """What a user writes: `vtab:cifar`."""
        return f"{self.suite}:{self.name}"

    @property
    def folder_names(self) -> tuple[str, ...]:
        """What its folder may be called; `fold` makes more of each."""
        return (self.name, *self.folders)

    @property
    def source(self) -> str:
        """Where the data can be had, as the end of a sentence."""
        return f"the images come from {self.site}, and {_LISTS[self.suite]}"

    @property
    def transforms(self) -> Transforms:
        """What the benchmark's results are made with."""
        return _FGVC if self.suite == "fgvc" else _PLAIN


_PLAIN = Transforms(resize="squash", augment="none")

_FGVC = Transforms(resize="crop", augment="crop-flip")


def benchmark_tasks(suite: Suite | None = None, group: Group | None = None) -> tuple[BenchmarkTask, ...]:
    """The tasks in the order of the papers' tables.

    Sizes: Zhai et al. 2019 (arXiv 1910.04867) and Jia et al. 2022 (arXiv 2203.12119), whose validation images of FGVC
    are a tenth of the official training images. Prompts: the latter and its published settings.

    Example:
        >>> [task.name for task in benchmark_tasks(group="fgvc")]
        ['cub', 'nabirds', 'flowers', 'dogs', 'cars']
    """
    return tuple(task for task in _TASKS if suite in (None, task.suite) and group in (None, task.group))


def find_task(spec: str) -> BenchmarkTask:
    """The task that `spec` names, also by an alias; case, hyphens and underscores are nothing.

    Raises:
        DataError: There is none.

    Example:
        >>> find_task("VTAB:dSprites-Orientation").spec
        'vtab:dsprites_ori'
    """
    suite, colon, name = spec.partition(":")
    suite = suite.strip().lower()
    if colon and (found := _BY_NAME.get((suite, fold(name)))) is not None:
        return found
    if colon and suite not in SUITE_TITLES:
        raise DataError(f"There is no benchmark {suite!r}; tasks are called vtab:NAME or fgvc:NAME.")
    # A name without its suite is compared with all.
    known = {alias: task.spec for (of, alias), task in _BY_NAME.items() if not colon or of == suite}
    close = difflib.get_close_matches(fold(name if colon else spec), known, n=6, cutoff=0.6)
    near = list(dict.fromkeys(known[alias] for alias in close))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`vprompt tasks` lists those there are."
    raise DataError(f"There is no benchmark task {spec!r}; {hint}")


def transforms_of(spec: str | None) -> Transforms:
    """How the images of what a user wrote as DATA are resized, and augmented in training, unless asked otherwise.

    Example:
        >>> transforms_of("fgvc:cub").augment, transforms_of("vtab:cifar").augment, transforms_of(None).resize
        ('crop-flip', 'none', 'squash')
    """
    return _FGVC if suite_of(spec) == "fgvc" else _PLAIN


def suite_of(spec: object) -> Suite | None:
    """The suite that a spec begins with, if any.

    Example:
        >>> suite_of("VTAB:cifar"), suite_of("images/vtab")
        ('vtab', None)
    """
    prefix, colon, _ = str(spec).partition(":")
    suite = prefix.strip().lower()
    if not colon:
        return None
    return "vtab" if suite == "vtab" else "fgvc" if suite == "fgvc" else None


def fold(name: str) -> str:
    """A name without what people write differently.

    Example:
        >>> fold("Stanford-dogs") == fold("stanford_Dogs")
        True
    """
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _vtab(
    group: Group,
    name: str,
    title: str,
    classes: int,
    test: int,
    prompts: tuple[int, ...],
    site: str,
    aliases: tuple[str, ...] = (),
) -> BenchmarkTask:
    return BenchmarkTask(
        suite="vtab",
        group=group,
        name=name,
        title=title,
        classes=classes,
        test=test,
        prompts=prompts,
        site=site,
        aliases=aliases,
    )


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"

_CLEVR = "https://cs.stanford.edu/people/jcjohns/clevr"

_DSPRITES = "https://github.com/google-deepmind/dsprites-dataset"

_NORB = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"

_TASKS = (
    _vtab(
        "natural", "cifar", "CIFAR-100", 100, 10000, (10,), "https://www.cs.toronto.edu/~kriz/cifar.html", ("cifar100",)
    ),
    _vtab(
        "natural",
        "caltech101",
        "Caltech101",
        102,
        6084,
        (10,),
        "https://data.caltech.edu/records/mzrjq-6wc02",
        ("caltech",),
    ),
    _vtab("natural", "dtd", "DTD", 47, 1880, (10,), f"{_OXFORD}/dtd", ("textures", "describable_textures")),
    _vtab(
        "natural",
        "oxford_flowers102",
        "Flowers102",
        102,
        6149,
        (1,),
        f"{_OXFORD}/flowers/102",
        ("flowers102", "flowers", "oxford_flowers"),
    ),
    _vtab("natural", "oxford_iiit_pet", "Pets", 37, 3669, (1,), f"{_OXFORD}/pets", ("pets", "pet", "oxford_pets")),
    _vtab("natural", "svhn", "SVHN", 10, 26032, (50,), "http://ufldl.stanford.edu/housenumbers", ("svhn_cropped",)),
    _vtab("natural", "sun397", "Sun397", 397, 21750, (5,), "https://vision.princeton.edu/projects/2010/SUN", ("sun",)),
    _vtab(
        "specialized",
        "patch_camelyon",
        "Patch Camelyon",
        2,
        32768,
        (100,),
        "https://github.com/basveeling/pcam",
        ("camelyon", "pcam"),
    ),
    _vtab("specialized", "eurosat", "EuroSAT", 10, 5400, (100,), "https://github.com/phelber/EuroSAT"),
    _vtab("specialized", "resisc45", "Resisc45", 45, 6300, (10,), "Cheng et al. 2017 (arXiv 1703.00121)", ("resisc",)),
    _vtab(
        "specialized",
        "diabetic_retinopathy",
        "Retinopathy",
        5,
        42670,
        (1,),
        "https://www.kaggle.com/c/diabetic-retinopathy-detection",
        ("retinopathy", "diabetic_retinopathy_detection"),
    ),
    _vtab("structured", "clevr_count", "Clevr count", 8, 15000, (100, 50), _CLEVR, ("clevr_count_all", "clevr_counts")),
    _vtab(
        "structured",
        "clevr_dist",
        "Clevr distance",
        6,
        15000,
        (200,),
        _CLEVR,
        ("clevr_distance", "clevr_closest_object_distance"),
    ),
    _vtab("structured", "dmlab", "DMLab", 6, 22735, (100,), "https://github.com/google-research/task_adaptation"),
    _vtab(
        "structured",
        "kitti",
        "KITTI distance",
        4,
        711,
        (100, 50),
        "https://www.cvlibs.net/datasets/kitti",
        ("kitti_dist", "kitti_distance", "kitti_closest_vehicle_distance"),
    ),
    _vtab(
        "structured",
        "dsprites_loc",
        "dSprites location",
        16,
        73728,
        (100, 10),
        _DSPRITES,
        ("dsprites_location", "dsprites_label_x_position", "dspr_loc"),
    ),
    _vtab(
        "structured",
        "dsprites_ori",
        "dSprites orientation",
        16,
        73728,
        (100, 50),
        _DSPRITES,
        ("dsprites_orientation", "dsprites_label_orientation", "dspr_ori"),
    ),
    _vtab(
        "structured",
        "smallnorb_azi",
        "SmallNORB azimuth",
        18,
        12150,
        (200,),
        _NORB,
        ("smallnorb_azimuth", "smallnorb_label_azimuth", "snorb_azi", "snorb_azimuth"),
    ),
    _vtab(
        "structured",
        "smallnorb_ele",
        "SmallNORB elevation",
        9,
        12150,
        (200,),
        _NORB,
        ("smallnorb_elevation", "smallnorb_label_elevation", "snorb_ele", "snorb_elevation"),
    ),
    BenchmarkTask(
        suite="fgvc",
        name="cub",
        title="CUB-200-2011",
        group="fgvc",
        classes=200,
        train=5394,
        val=600,
        test=5794,
        prompts=(10,),
        site="https://www.vision.caltech.edu/datasets/cub_200_2011",
        aliases=("cub200", "cub_200_2011", "cub2011"),
        folders=("CUB_200_2011", "CUB200"),
    ),
    BenchmarkTask(
        suite="fgvc",
        name="nabirds",
        title="NABirds",
        group="fgvc",
        classes=555,
        train=21536,
        val=2393,
        test=24633,
        prompts=(50,),
        site="https://dl.allaboutbirds.org/nabirds",
        aliases=("na_birds", "nabirds555"),
    ),
    BenchmarkTask(
        suite="fgvc",
        name="flowers",
        title="Oxford Flowers",
        group="fgvc",
        classes=102,
        train=1020,
        val=1020,
        test=6149,
        prompts=(5,),
        site=f"{_OXFORD}/flowers/102",
        aliases=("oxford_flowers", "oxford_flower", "flowers102", "oxford_flowers102"),
        folders=("OxfordFlowers", "OxfordFlower", "OxfordFlowers102"),
    ),
    BenchmarkTask(
        suite="fgvc",
        name="dogs",
        title="Stanford Dogs",
        group="fgvc",
        classes=120,
        train=10800,
        val=1200,
        test=8580,
        prompts=(100,),
        site="http://vision.stanford.edu/aditya86/ImageNetDogs",
        aliases=("stanford_dogs",),
        folders=("Stanford-dogs",),
    ),
    BenchmarkTask(
        suite="fgvc",
        name="cars",
        title="Stanford Cars",
        group="fgvc",
        classes=196,
        train=7329,
        val=815,
        test=8041,
        prompts=(200,),
        site="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        aliases=("stanford_cars",),
        folders=("Stanford-cars",),
    ),
)

_BY_NAME = {(task.suite, fold(name)): task for task in _TASKS for name in (task.name, *task.aliases)}
