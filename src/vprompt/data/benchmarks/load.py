"""A task from its lists of images: everything is looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vprompt.data.benchmarks.check import check_lists
from vprompt.data.benchmarks.lists import Layout, read_layout
from vprompt.data.benchmarks.places import Place
from vprompt.data.checked import Checked, Progress, check_images, refuse, to_dataset
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.images import probe
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.threads import in_threads
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable


def load_lists(
    place: Place,
    preprocessing: Preprocessing,
    *,
    skip_bad: bool = False,
    memory_limit: int,
    progress: Progress | None = None,
) -> Task:
    """Reads the task at a place and checks it.

    Images to train and validate on are held decoded if they fit, and then those to test on. Of those that are not held
    only the headers are read here, because they are decoded again when they are used; with `skip_bad` they are
    decoded here too, to know which to leave out.

    Args:
        place: See `vprompt.data.benchmarks.locate`.
        preprocessing: How the images are resized, and later normalised.
        skip_bad: Goes on without images that are missing or cannot be decoded.
        memory_limit: Bytes of decoded images to hold.
        progress: Called after every image with (done, total).

    Raises:
        DataError: The lists or images cannot be used.
    """
    layout, differences = open_layout(place)
    known = [[path for split in splits for path, _ in layout.splits[split]] for splits in (("train", "val"), ("test",))]
    groups = [list(dict.fromkeys(paths)) for paths in known]
    total = sum(len(paths) for paths in groups)
    checked: list[Checked] = []
    done = 0
    for paths in groups:
        report = _from(done, total, progress)
        checked.append(_checked(layout.folder, paths, preprocessing, memory_limit, report, decode_all=skip_bad))
        memory_limit -= 0 if (store := checked[-1].store) is None else store.numel()
        done += len(paths)
    bad = [f"file {printable(path)} {reason}" for part in checked for path, reason in part.bad.items()]
    refuse(layout.folder, bad, skip_bad)

    def dataset(split: str, part: Checked) -> ImageDataset | None:
        pairs = [pair for pair in layout.splits[split] if pair[0] not in part.bad]
        return to_dataset(layout.folder, preprocessing, pairs, part) if pairs else None

    train = dataset("train", checked[0])
    trained = set() if train is None else set(train.labels.tolist())
    if train is None or len(trained) < 2:
        found = f"only the class {layout.classes[trained.pop()]}" if trained else "no class"
        raise DataError(f"{_where(place)} has {found} with usable images to learn from; two or more are needed.")
    return Task(
        name=place.name,
        source=printable(place.spec),
        classes=layout.classes,
        preprocessing=preprocessing,
        train=train,
        val=dataset("val", checked[0]),
        test=dataset("test", checked[1]),
        skipped=tuple(sentence[0].upper() + sentence[1:] + "." for sentence in bad),
        differences=differences,
    )


def open_layout(place: Place) -> tuple[Layout, tuple[str, ...]]:
    """The lists of a place, and how they differ from the benchmark's.

    Raises:
        DataError: They cannot be used; the message gives the first problem.
    """
    layout = read_layout(place.folder, place.task, kind=place.kind)
    problems = check_lists(layout, place.task)
    fatal = [problem.sentence for problem in problems if problem.severity == "fatal"]
    if fatal:
        more = f" ({len(fatal) - 1} more: vprompt tasks --check {printable(place.spec)})" if len(fatal) > 1 else ""
        raise DataError(f"In {_where(place)}: {fatal[0].removesuffix('.')}{more}.")
    return layout, tuple(problem.sentence for problem in problems)


def _where(place: Place) -> str:
    return printable(str(place.folder))


def _from(start: int, total: int, progress: Progress | None) -> Progress | None:
    """Progress of one part as progress of all."""
    return None if progress is None else lambda done, _: progress(start + done, total)


def _checked(
    folder: Path,
    paths: Sequence[str],
    preprocessing: Preprocessing,
    memory_limit: int,
    progress: Callable[[int, int], None] | None,
    *,
    decode_all: bool,
) -> Checked:
    height, width = preprocessing.size
    if decode_all or len(paths) * 3 * height * width <= memory_limit:
        return check_images(folder, {"": {"": list(paths)}}, preprocessing, memory_limit, progress)
    bad: dict[str, str] = {}
    for row, reason in enumerate(in_threads(lambda path: probe(folder / path), paths)):
        if reason is not None:
            bad[paths[row]] = reason
        if progress is not None:
            progress(row + 1, len(paths))
    return Checked(store=None, rows={}, bad=bad)
