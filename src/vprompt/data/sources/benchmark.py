"""Tasks of VTAB-1k and FGVC, and other tasks whose images lie beside lists of them."""

from __future__ import annotations

from vprompt.data.benchmarks.check import check_lists
from vprompt.data.benchmarks.lists import read_layout
from vprompt.data.benchmarks.places import locate
from vprompt.data.listing import Item, Listing
from vprompt.data.sources.base import SOURCES, Query
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable


class Benchmark:
    """`vtab:NAME`, `fgvc:NAME`, and folders that have lists as these have."""

    name = "benchmark"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`; the lists always have all splits."""
        if (place := locate(query.spec, query.root)) is None:
            return None
        layout = read_layout(place.folder, place.task)
        problems = check_lists(layout, place.task)
        fatal = [problem.sentence for problem in problems if problem.severity == "fatal"]
        where = printable(str(place.folder))
        if fatal:
            more = f" ({len(fatal) - 1} more: vprompt tasks --check {printable(place.spec)})" if len(fatal) > 1 else ""
            raise DataError(f"In {where}: {fatal[0].removesuffix('.')}{more}.")
        return Listing(
            name=place.name,
            source=printable(place.spec),
            where=where,
            splits={
                split: [Item(path, layout.classes[label]) for path, label in pairs]
                for split, pairs in layout.splits.items()
            },
            files=layout.folder,
            classes=layout.classes,
            differences=tuple(problem.sentence for problem in problems),
        )


SOURCES.register(Benchmark())
