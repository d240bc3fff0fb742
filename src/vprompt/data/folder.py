"""An image folder as a task: every file is looked at before anything is trained."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.checked import DEFAULT_MEMORY_LIMIT, Checked, Progress, check_images, refuse, to_dataset
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import UNSPLIT, Splits, scan
from vprompt.data.split import stratified
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable


def load_folder(
    root: str | Path,
    preprocessing: Preprocessing,
    *,
    split_seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Task:
    """Reads `root/CLASS/...`, or `root/{train,val,test}/CLASS/...`, or the lists of a benchmark, and checks all of it.

    Without splits, every class is cut into 64 % train, 16 % val and 20 % test; with `train` but no `val`, 20 % of
    train become val. Shares are rounded, and every class keeps a train image. Labels follow the sorted class names.
    Lists as VTAB-1k (train800.txt, val200.txt, test.txt) or FGVC (train.json, ...) has them say all that themselves.

    Args:
        root: The folder.
        preprocessing: How the images are resized, and later normalised.
        split_seed: Decides which files go where when a split is cut.
        skip_bad: Goes on without files that cannot be decoded, empty classes and classes that train does not have.
        memory_limit: Decoded images are held when they take no more bytes than this.
        progress: Called after every image with (done, total).

    Returns:
        The task; with `skip_bad`, `skipped` says what was left out.

    Raises:
        DataError: There is something wrong, and it is not to be skipped; or fewer than two classes are left.
    """
    # Not at the top: what reads lists is made of what this module has.
    from vprompt.data.benchmarks.load import load_lists
    from vprompt.data.benchmarks.places import place_at

    folder = Path(root)
    if (place := place_at(root)) is not None:
        return load_lists(place, preprocessing, skip_bad=skip_bad, memory_limit=memory_limit, progress=progress)
    listing = scan(folder)
    splits = listing.splits
    if not any(files for classes in splits.values() for files in classes.values()):
        hint = "put the images of each class in a folder of its own"
        raise DataError(f"The image folder {printable(str(root))} has no class folder with images; {hint}.")
    problems = _prune(splits)
    refuse(folder, problems, skip_bad)
    _require_classes(folder, splits)

    checked = check_images(folder, splits, preprocessing, memory_limit, progress)
    bad = [f"file {printable(path)} {reason}" for path, reason in checked.bad.items()]
    refuse(folder, bad, skip_bad)
    for classes in splits.values():
        for name in classes:
            classes[name] = [path for path in classes[name] if path not in checked.bad]
    problems += bad + _prune(splits)
    _require_classes(folder, splits)

    splits = cut(splits, split_seed)
    return _task(folder, preprocessing, splits, checked, skipped=[*problems, *listing.notes])


def _prune(splits: Splits) -> list[str]:
    """Takes out classes without images, classes that train lacks and splits without classes; says which."""
    problems: list[str] = []
    train = splits.get("train", splits.get(UNSPLIT, {}))
    listed, known = set(train), {name for name, files in train.items() if files}
    for split, classes in list(splits.items()):
        for name, files in list(classes.items()):
            if not files:
                where = "" if split == UNSPLIT else f" in {split}"
                problems.append(f"class {printable(name)} has no usable image{where}")
            elif name not in listed:
                problems.append(f"class {printable(name)} is in {split} but not in train")
            if not files or name not in known:
                del classes[name]
        if not classes and classes is not train:
            problems.append(f"the {split} folder has no usable class")
            del splits[split]
    return problems


def _require_classes(root: Path, splits: Splits) -> None:
    classes = sorted(splits.get("train", splits.get(UNSPLIT, {})))
    if len(classes) < 2:
        found = f"only the class {printable(classes[0])}" if classes else "no class"
        raise DataError(f"{printable(str(root))} has {found} with usable images to learn from; two or more are needed.")


def cut(splits: Splits, seed: int) -> Splits:
    """Cuts the splits that a folder does not have; see `load_folder`."""
    if UNSPLIT in splits:
        return stratified(splits[UNSPLIT], {"val": 16, "test": 20}, rest="train", seed=seed)
    if "val" not in splits:
        return splits | stratified(splits["train"], {"val": 20}, rest="train", seed=seed)
    return splits


def _task(root: Path, preprocessing: Preprocessing, splits: Splits, checked: Checked, *, skipped: list[str]) -> Task:
    names = sorted(splits["train"])
    label_of = {name: label for label, name in enumerate(names)}

    def dataset(split: str) -> ImageDataset | None:
        pairs = [(path, label_of[name]) for name, paths in sorted(splits.get(split, {}).items()) for path in paths]
        return to_dataset(root, preprocessing, pairs, checked) if pairs else None

    train = dataset("train")
    assert train is not None  # every class keeps a train image
    return Task(
        name=printable(root.resolve().name),
        source=printable(str(root)),
        classes=tuple(printable(name) for name in names),
        preprocessing=preprocessing,
        train=train,
        val=dataset("val"),
        test=dataset("test"),
        skipped=tuple(sentence[0].upper() + sentence[1:] + "." for sentence in skipped),
    )
