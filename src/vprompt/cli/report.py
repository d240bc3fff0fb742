"""The command `vprompt report`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vprompt.cli.console import UsageError, print_json, print_note


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the results of a benchmark as one HTML page that needs nothing else, and as Markdown, CSV and LaTeX; what
    `vprompt analyze` left in its folder follows in sections of its own."""

    runs: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Folder or URL that `vprompt bench` wrote to; or a folder with results of `fit`, `condense` or `compare` in it."""
    plan: str | None = None
    """Plan to report, where several were run there."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for report.html, report.md, report.csv and report.tex; RUNS itself when left out."""
    json: bool = False
    """Print the aggregated numbers as JSON."""

    def run(self) -> None:
        """Collects, writes, says where."""
        from vprompt.analysis.page import analysis_sections, read_analyses
        from vprompt.experiments import report as benchmark
        from vprompt.experiments.bench.collect import study_of
        from vprompt.report.document import Picture
        from vprompt.utils.io import write_bytes, write_text

        if self.out is None and "://" in self.runs:
            raise UsageError("The results are not on this machine; give a folder for the report by --out.")
        study = study_of(self.runs, plan=self.plan)
        out = Path(self.out or self.runs)
        more = [] if "://" in self.runs else analysis_sections(read_analyses(Path(self.runs)))
        texts = {
            "html": benchmark.page(study, more),
            "md": benchmark.markdown(study, more),
            "csv": benchmark.csv_rows(study),
            "tex": benchmark.latex(study),
        }
        for ending, text in texts.items():
            write_text(out / f"report.{ending}", text)
        for picture in (block for section in more for block in section.blocks if isinstance(block, Picture)):
            write_bytes(out / picture.file, picture.png)
        states = [cell["state"] for cell in study["cells"]]
        counts = {state: states.count(state) for state in ("finished", "failed", "missing")}
        if self.json:
            files = [str(out / f"report.{ending}") for ending in texts]
            methods = [asdict(method) for method in benchmark.aggregate(study)]
            chosen = [asdict(each) for each in benchmark.selections(benchmark.read(study))]
            print_json({"name": study["name"], **counts, "methods": methods, "selection": chosen, "files": files})
            return
        print_note(", ".join(f"{count} {state}" for state, count in counts.items() if count) + ".")
        print_note(f"In {out}: {', '.join(f'report.{ending}' for ending in texts)}. Open report.html in a browser.")
