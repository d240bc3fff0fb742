"""Answers about any number of images, in Parquet files: by workers on Ray, and gone on with after a stop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.data.images import refusal, try_decode
from vprompt.data.scan import list_images
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

MANIFEST = ".bulk.json"

LISTING = ".images.parquet"
"""The paths of image files, in the folder of the shards."""

Answers = Callable[[Any, Sequence[Tensor]], Sequence[Mapping[str, Any]]]
"""What a model says of uint8 images (3, H, W) as plain data."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Computes shards of the answers; it goes to the workers, each of which calls `load` once.

    Args:
        load: Makes the model.
        answers: What is asked of it.
        out: Folder of the shards.
        image_column: Of Parquet files; found by what is in it when not given.
    """

    load: Callable[[], Any]
    answers: Answers
    out: Path
    image_column: str | None = None

    def schema(self, model: Any) -> Any:
        """Columns of a shard, by what the model says of an empty image: the same for all, whatever is in them."""
        import pyarrow as pa

        image = torch.zeros(model.preprocessing.shape, dtype=torch.uint8)
        [answer] = self.answers(model, [image])
        columns = pa.Table.from_pylist([_plain(answer)]).schema
        fields = [pa.field(column.name, _known(column.type)) for column in columns]
        return pa.schema([("image", pa.string()), ("error", pa.string()), *fields])

    def write(self, model: Any, schema: Any, shard: Mapping[str, Any]) -> int:
        """Writes a shard, whole or not at all; returns how many of its images could not be read."""
        import pyarrow as pa
        from pyarrow import parquet

        images, rows = list(self._images(shard)), list[dict[str, Any]]()
        read = in_threads(lambda image: try_decode(image[1], model.as_read), images)
        for start in range(0, len(images), BATCH):
            batch = list(zip(images[start : start + BATCH], read, strict=False))
            pixels = [image for _, image in batch if isinstance(image, Tensor)]
            answers = iter(self.answers(model, pixels) if pixels else ())
            for (name, _), image in batch:
                answer = {"error": refusal(name, image)} if isinstance(image, str) else next(answers)
                rows.append(_plain({"image": name, **answer}))
        table = pa.Table.from_pylist(rows, schema=schema)
        write_atomically(self.out / shard_name(shard["number"]), lambda part: parquet.write_table(table, part))
        return sum("error" in row for row in rows)

    def _images(self, shard: Mapping[str, Any]) -> Iterator[tuple[str, bytes | Path]]:
        """Names and sources of the images of a shard, which is a part of a group of rows."""
        from pyarrow import parquet

        file, base = Path(shard["file"]), Path(shard["base"])
        with parquet.ParquetFile(file) as table:
            column = image_column(table.schema_arrow, self.image_column, file)
            group = table.read_row_group(shard["group"], columns=[column]).column(column)
        for number, cell in enumerate(group.slice(shard["first"], shard["rows"]).to_pylist(), shard["start"]):
            name, source = f"{file}#{number + 1}", cell
            if isinstance(cell, dict):
                source = cell["path"] if cell.get("bytes") is None else cell["bytes"]
            if isinstance(source, str):
                source, name = base / source, source
            yield name, b"" if source is None else source


class _Worker:
    """Actor of Ray Data: a model, and the shards that it is given one after the other."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, job.load()
        self.schema = job.schema(self.model)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        shards = [dict(zip(batch, row, strict=True)) for row in zip(*map(list, batch.values()), strict=True)]
        return {"bad": [self.job.write(self.model, self.schema, shard) for shard in shards]}


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
    """Writes what a model says of images into `out/part-NNNNNN.parquet`; shards that are there are not done again.

    Rows are in the order of the images, one for each; `error` says why one could not be read.

    Args:
        job: What is computed.
        paths: Images, folders of images, or Parquet files with an image, or the path of one, in each row.
        settings: What the answers depend on beside the images.
        workers: Processes on Ray, each with a model; 0 computes in this process.
        gpus: Of each worker.
        address: Of a Ray cluster that sees the same folders; one of its own on this machine when not given.
        shard_size: Most images in a shard.
        report: Told of every shard.

    Returns:
        How many `images` and `shards` there are, and how many images are `bad`.

    Raises:
        VPromptError: The images cannot be used, or the folder has answers to another question.
    """
    if workers < 0 or shard_size < 1:
        raise VPromptError("There are at least 0 workers, and 1 image in a shard; check --workers and --shard-size.")
    check_ending(job.out / shard_name(0))  # pyarrow is there
    from pyarrow import parquet

    job.out.mkdir(parents=True, exist_ok=True)
    with locked(job.out / ".lock", job.out):
        shards = list(_shards(job, paths, shard_size))
        asked = {**settings, "shard_size": shard_size, "images": checksum(repr(shards).encode())}
        if not (job.out / MANIFEST).exists():
            write_json(job.out / MANIFEST, asked)
        elif others := [key for key, value in read_json(job.out / MANIFEST).items() if asked.get(key) != value]:
            raise VPromptError(f"{job.out} has answers with another {listed(others)}; choose another --out.")
        left = [shard for shard in shards if not (job.out / shard_name(shard["number"])).exists()]
        working = _in_ray(job, left, workers, gpus, address) if workers else _here(job, left)
        for done, _ in enumerate(working if left else (), len(shards) - len(left) + 1):
            report(done, len(shards))
        bad = [parquet.read_table(job.out / shard_name(shard["number"]), columns=["error"])[0] for shard in shards]
    count = sum(shard["rows"] for shard in shards)
    return {"images": count, "shards": len(shards), "bad": count - sum(column.null_count for column in bad)}


def shard_name(number: int) -> str:
    """Name of the file of a shard."""
    return f"part-{number:06}.parquet"


def image_column(schema: Any, name: str | None, file: Path) -> str:
    """The column of images of a Parquet file: that of a name, or the first with bytes, or else with text."""
    import pyarrow.types as kinds

    fields = {column.name: column.type for column in schema}
    found = [key for key, kind in fields.items() if kinds.is_struct(kind) or kinds.is_binary(kind)]
    found += [key for key, kind in fields.items() if kinds.is_large_binary(kind) or kinds.is_string(kind)]
    found = [key for key in found if name in (None, key)]
    if not found:
        raise DataError(f"{printable(str(file))} has no column {name or 'of images'}; name one of {listed([*fields])}.")
    return found[0]


def _shards(job: Job, paths: Sequence[Path], size: int) -> Iterator[dict[str, Any]]:
    """Parts of groups of rows of Parquet files; the paths of image files become such a file."""
    import pyarrow as pa
    from pyarrow import parquet

    inside = [sorted(path.glob("[!.]*.parquet")) or [path] if path.is_dir() else [path] for path in paths]
    files = [file for files in inside for file in files]
    tables = [(file, file.parent) for file in files if file.suffix == ".parquet"]
    if images := [file for file in files if file.suffix != ".parquet"]:
        names = [os.fspath(file) for file in list_images(images)]
        listing = job.out / LISTING
        table = pa.table({"image": [encoded(name).decode() for name in names]})
        write_atomically(listing, lambda part: parquet.write_table(table, part, row_group_size=size))
        tables.append((listing, Path.cwd()))
    number = 0
    for file, base in tables:
        state = checksum(file) if file.name == LISTING else file.stat().st_size
        try:
            metadata = parquet.read_metadata(file)
            image_column(metadata.schema.to_arrow_schema(), job.image_column, file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{printable(str(file))} cannot be read as Parquet ({printable(str(error))}).") from error
        start = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            for first in range(0, rows, size):
                part = {"file": str(file.absolute()), "base": str(base.absolute()), "group": group, "first": first}
                yield {
                    "number": number,
                    **part,
                    "rows": min(size, rows - first),
                    "start": start + first,
                    "state": state,
                }
                number += 1
            start += rows


def _here(job: Job, shards: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    worker = _Worker(job) if shards else None
    for shard in shards if worker else ():
        yield worker({key: [value] for key, value in shard.items()})


def _in_ray(
    job: Job, shards: Sequence[Mapping[str, Any]], workers: int, gpus: float, address: str | None
) -> Iterator[Any]:
    """Ray Data gives shards to actors, and starts those again that end, with the shards that they had."""
    if not shards:
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or it warns of what Ray Data does itself
    ray = cluster.import_ray()
    begun = not ray.is_initialized()
    if begun:
        cluster.connect(ray, address, Workers(gpus=gpus), workers)
    try:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.print_on_execution_start = False, False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1)
        yield from (
            ray.data.from_items([*shards], override_num_blocks=len(shards))
            .map_batches(_Worker, fn_constructor_args=(job,), batch_size=1, compute=pool, num_cpus=1, num_gpus=gpus)
            .iter_rows()
        )
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
