"""Answers about any number of images, in Parquet files: by workers on Ray, and gone on with after a stop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.data.images import refusal, try_decode
from vprompt.data.scan import list_images
from vprompt.data.sources.sheet import usual
from vprompt.data.threads import in_threads
from vprompt.experiments.bench import ray as cluster
from vprompt.experiments.bench.plan import Workers
from vprompt.experiments.embed import Embedder, check_ending
from vprompt.experiments.folder import locked
from vprompt.model.predict import outputs_of
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import checksum, encoded, read_json, write_atomically, write_json
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import listed, printable

BATCH = 32
"""Images per forward pass, as `vprompt predict` takes them."""

MANIFEST, LISTING = ".bulk.json", ".images.parquet"
"""In the folder of the shards: what was asked, and the paths of image files."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is computed; it goes to the workers.

    Args:
        load: Makes the model.
        answers: What it says of uint8 images (3, H, W), as plain data.
        out: Folder of the shards.
        image_column: Of Parquet files; found by what is in it when not given.
    """

    load: Callable[[], Any]
    answers: Callable[[Any, Sequence[Tensor]], Sequence[Mapping[str, Any]]]
    out: Path
    image_column: str | None = None

    def file(self, number: int) -> Path:
        """The file of a shard."""
        return self.out / f"part-{number:06}.parquet"


class Worker:
    """A model that writes shards; also an actor of Ray Data."""

    def __init__(self, job: Job) -> None:
        import pyarrow as pa

        self.job, self.model = job, job.load()
        # The same columns in all shards, whatever is in them: by what is said of an empty image.
        [answer] = job.answers(self.model, [torch.zeros(self.model.preprocessing.shape, dtype=torch.uint8)])
        columns = pa.Table.from_pylist([_plain(answer)]).schema
        text = [pa.field(name, pa.string()) for name in ("image", "error")]
        self.schema = pa.schema([*text, *(pa.field(column.name, _known(column.type)) for column in columns)])

    def __call__(self, shards: Mapping[str, Any]) -> Mapping[str, Any]:
        """Writes shards, each whole or not at all."""
        for shard in zip(*shards.values(), strict=True):
            self.write(**dict(zip(shards, shard, strict=True)))
        return {"number": shards["number"]}

    def write(self, *, number: int, file: str, base: str, group: int, first: int, rows: int, start: int) -> None:
        """Writes a shard: some rows of a group of a Parquet file, the first of which is number `start` of the file."""
        import pyarrow as pa
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            column = image_column(table.schema_arrow, self.job.image_column, file)
            cells = table.read_row_group(group, columns=[column]).column(column).slice(first, rows).to_pylist()
        cells = [cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell for cell in cells]
        names = [cell if isinstance(cell, str) else f"{file}#{row + 1}" for row, cell in enumerate(cells, start)]
        sources = [Path(base, cell) if isinstance(cell, str) else cell or b"" for cell in cells]
        read = in_threads(partial(try_decode, preprocessing=self.model.as_read), sources)
        answers = list[dict[str, Any]]()
        for begin in range(0, len(names), BATCH):
            batch = list(zip(names[begin : begin + BATCH], read, strict=False))
            pixels = [image for _, image in batch if isinstance(image, Tensor)]
            said = iter(self.job.answers(self.model, pixels) if pixels else ())
            for name, image in batch:
                answer = {"error": refusal(name, image)} if isinstance(image, str) else next(said)
                answers.append(_plain({"image": name, **answer}))
        shard = pa.Table.from_pylist(answers, schema=self.schema)
        write_atomically(self.job.file(number), lambda part: parquet.write_table(shard, part))


def run_bulk(
    job: Job,
    paths: Sequence[Path],
    settings: Mapping[str, Any],
    *,
    workers: int,
    gpus: float = 0.0,
    address: str | None = None,
    shard_size: int = 1024,
    report: Report = silent,
) -> dict[str, Any]:
    """Writes what a model says of images, in their order, into `part-NNNNNN.parquet`; those that are there stay.

    Args:
        job: What is computed.
        paths: Images, Parquet files with an image, or the path of one, in each row, and folders of either.
        settings: What the answers depend on beside the images.
        workers: Processes on Ray, each with a model; 0 computes in this process.
        gpus: Of each worker.
        address: Of a Ray cluster that sees the same folders; one of its own on this machine when not given.
        shard_size: Most images in a shard.
        report: Told of every shard.

    Returns:
        How many `images` and `shards` there are, and how many images are `bad`: their `error` says why.

    Raises:
        VPromptError: The images cannot be used, or the folder has answers to another question.
    """
    if workers < 0 or shard_size < 1:
        raise VPromptError("There are at least 0 workers, and 1 image in a shard; check --workers and --shard-size.")
    check_ending(job.file(0))  # pyarrow is there
    from pyarrow import parquet

    job.out.mkdir(parents=True, exist_ok=True)
    with locked(job.out / ".lock", job.out):
        tables = _tables(job, paths, shard_size)
        shards = list(_shards(job, tables, shard_size))
        states = [checksum(file) if file.name == LISTING else file.stat().st_size for file in tables]
        asked = {**settings, "shard_size": shard_size, "images": checksum(repr((shards, states)).encode())}
        if not (job.out / MANIFEST).exists():
            write_json(job.out / MANIFEST, asked)
        elif others := [key for key, value in read_json(job.out / MANIFEST).items() if asked.get(key) != value]:
            raise VPromptError(f"{job.out} has answers with another {listed(others)}; choose another --out.")
        if left := [shard for shard in shards if not job.file(shard["number"]).exists()]:
            worker = Worker(job)  # or a sentence, before Ray starts
            working = _in_ray(job, left, workers, gpus, address) if workers else (worker.write(**row) for row in left)
            for done, _ in enumerate(working, len(shards) - len(left) + 1):
                report(done, len(shards))
        errors = [parquet.read_table(job.file(shard["number"]), columns=["error"])[0] for shard in shards]
    bad = sum(len(column) - column.null_count for column in errors)
    return {"images": sum(map(len, errors)), "shards": len(shards), "bad": bad}


def image_column(schema: Any, name: str | None, file: str | Path) -> str:
    """The column of images of a Parquet file: that of a name, or one with bytes, or else with text.

    Of several, that with the most usual name.
    """
    import pyarrow.types as kinds

    def holds_bytes(kind: Any) -> bool:
        inside = {field.name for field in kind} if kinds.is_struct(kind) else set[str]()
        return kinds.is_binary(kind) or kinds.is_large_binary(kind) or bool(inside & {"bytes", "path"})

    images = [column.name for column in schema if holds_bytes(column.type)]
    texts = [column.name for column in schema if kinds.is_string(column.type) or kinds.is_large_string(column.type)]
    found = [column for column in images + texts if column == name] if name else images or texts
    if len(found) > 1:
        found = usual(found, "image")[:1]
    if not found:
        missing = f"has no column {name}" if name else "has no column that is clearly of images"
        raise DataError(f"{printable(str(file))} {missing}; name one of {listed(schema.names)}: --image-column.")
    return found[0]


def _tables(job: Job, paths: Sequence[Path], size: int) -> dict[Path, Path]:
    """Parquet files, and the folder that paths in each begin at; the paths of image files become such a file."""
    import pyarrow as pa
    from pyarrow import parquet

    inside = [sorted(path.glob("[!.]*.parquet")) or [path] if path.is_dir() else [path] for path in paths]
    files = [file for files in inside for file in files]
    tables = {file.absolute(): file.absolute().parent for file in files if file.suffix == ".parquet"}
    if images := [file for file in files if file.suffix != ".parquet"]:
        table = pa.table({"image": [encoded(str(file)).decode() for file in list_images(images)]})
        listing = job.out.absolute() / LISTING
        write_atomically(listing, lambda part: parquet.write_table(table, part, row_group_size=size))
        tables[listing] = Path.cwd()
    return tables


def _shards(job: Job, tables: Mapping[Path, Path], size: int) -> Iterator[dict[str, Any]]:
    """What `Worker.write` takes for each shard."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    for file, base in tables.items():
        try:
            about, start = parquet.read_metadata(file), 0
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{printable(str(file))} cannot be read as Parquet ({printable(str(error))}).") from error
        image_column(about.schema.to_arrow_schema(), job.image_column, file)
        for group, count in enumerate(about.row_group(group).num_rows for group in range(about.num_row_groups)):
            for first in range(0, count, size):
                rows = {"first": first, "rows": min(size, count - first), "start": start + first}
                yield {"number": number, "file": str(file), "base": str(base), "group": group, **rows}
                number += 1
            start += count


def _in_ray(
    job: Job, shards: Sequence[Mapping[str, Any]], workers: int, gpus: float, address: str | None
) -> Iterator[Any]:
    """Ray Data gives shards to actors, and starts those again that end, with the shards that they had."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or it warns of what Ray Data does itself
    ray = cluster.import_ray()
    if begun := not ray.is_initialized():
        cluster.connect(ray, address, Workers(gpus=gpus), workers)
    try:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.print_on_execution_start = False, False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1)
        data = ray.data.from_items([*shards], override_num_blocks=len(shards))
        how: Any = {"batch_size": 1, "compute": pool, "num_cpus": 1, "num_gpus": gpus}
        yield from data.map_batches(Worker, fn_constructor_args=(job,), **how).iter_rows()
    except Exception as error:  # of Ray, with those of the workers in it
        raise VPromptError(f"A worker failed: {cluster.last_line(error)}. The same command goes on.") from error
    finally:
        if begun:
            ray.shutdown()


def predictions(top: int, model: Any, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Answers of a `Classifier`, as those of `vprompt predict`."""
    return [answer for outputs in outputs_of(model, images) for answer in model.target.answers(outputs, top)]


def features(model: Embedder, images: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Features of a backbone or an adapter, as those of `vprompt embed`."""
    return [{"features": row} for row in model(model.preprocessing.normalise(torch.stack([*images]))).cpu().numpy()]


def _plain(value: Any) -> Any:
    """A value as Parquet has it: pairs of a name and a number by keys, text that is UTF-8."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        pairs = all(isinstance(item, tuple) and isinstance(item[0], str) for item in value)
        return [{"name": _plain(item[0]), "value": item[1]} if pairs else _plain(item) for item in value]
    return encoded(value).decode() if isinstance(value, str) else value


def _known(kind: Any) -> Any:
    """A type of a column; text where an empty list has not told it."""
    import pyarrow as pa

    return pa.list_(_known(kind.value_type)) if pa.types.is_list(kind) else pa.string() if kind == pa.null() else kind
