"""Analyses on disk: a JSON document and a picture each, and one page for all that lie in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vprompt.analysis.base import View, analyses, in_order
from vprompt.report.document import Block, Charts, Code, Fold, Paragraph, Picture, Section
from vprompt.report.html import html_page
from vprompt.report.markdown import markdown_page
from vprompt.report.plots import described, png, png_of
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import pretty_json, write_bytes, write_text
from vprompt.utils.text import line, lines
from vprompt.utils.version import __version__


def write_analysis(out: Path, name: str, result: Mapping[str, Any], *, command: str = "") -> list[Path]:
    """Writes NAME.json and NAME.png, and analyses.html and analyses.md with all analyses of the folder.

    Args:
        out: The folder; an analysis of that name in it is replaced.
        name: Of the analysis.
        result: Plain data.
        command: What made it.

    Returns:
        The files.
    """
    made = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"analysis": name, "vprompt": __version__, "made": made, "command": command, "result": dict(result)}
    text = pretty_json(document) + "\n"
    view = analyses.get(name).view()
    picture = _picture(name, view, view.read(json.loads(text)["result"]))
    write_text(out / f"{name}.json", text)
    write_bytes(out / picture.file, picture.png)
    sections = [_section(each, picture if each["analysis"] == name else None) for each in read_analyses(out)]
    write_text(out / "analyses.html", html_page("Analyses", f"made {made} by vprompt {__version__}", sections))
    write_text(out / "analyses.md", markdown_page("Analyses", sections))
    return [out / file for file in (f"{name}.json", f"{name}.png", "analyses.html", "analyses.md")]


def read_analyses(folder: Path) -> list[dict[str, Any]]:
    """The documents of the analyses that lie in a folder, in the order of a page; others' files are passed over.

    Raises:
        VPromptError: If a file cannot be read, or an analysis has no result.
    """
    paths = {analysis.name: folder / f"{analysis.name}.json" for analysis in in_order()}
    documents = (_read(path, name) for name, path in paths.items() if path.is_file())
    return [document for document in documents if document is not None]


def refuse_others(folder: Path, name: str) -> None:
    """Raises a VPromptError where an analysis would replace a file that is none."""
    path = folder / f"{name}.json"
    if path.is_file() and _read(path, name) is None:
        raise VPromptError(f"{path} is there already and is no analysis; choose another folder by --out.")


def _read(path: Path, name: str) -> dict[str, Any] | None:
    """The document of an analysis; None where the file is something else."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VPromptError(
            f"{path} cannot be read ({error}); remove it, and run `vprompt analyze {name}` again."
        ) from error
    if not isinstance(document, dict) or document.get("analysis") != name:  # pyright: ignore[reportUnknownMemberType]
        return None
    if "result" not in document:
        raise VPromptError(f"{path} has no result; remove it, and run `vprompt analyze {name}` again.")
    return document  # pyright: ignore[reportUnknownVariableType]


def analysis_sections(documents: Sequence[Mapping[str, Any]]) -> list[Section]:
    """A section for each analysis: its answer, its picture, its numbers, and how it was made.

    Raises:
        VPromptError: If a document lacks what its section shows.
    """
    return [_section(document) for document in documents]


def _section(document: Mapping[str, Any], picture: Picture | None = None) -> Section:
    """Of a document whose picture may have been drawn already, which is what takes time."""
    name = document["analysis"]
    view = analyses.get(name).view()
    try:
        result = view.read(document["result"])
        numbers = Fold("Numbers", list(view.tables(result)))
        blocks: list[Block] = [Paragraph(view.answer(result)), picture or _picture(name, view, result), numbers]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VPromptError(
            f"The analysis {name} lacks what its section shows ({type(error).__name__}: {error}); run "
            f"`vprompt analyze {name}` again."
        ) from error
    made = line(f"vprompt {document.get('vprompt') or document.get('laconic')}, {document.get('made')}", 80)
    command = lines(document.get("command"), 2000)
    return Section(
        key=f"analysis-{name}",
        title=view.title,
        blocks=[*blocks, Fold("Made by", [Code(f"{command}\n{made}".strip())])],
    )


def _picture(name: str, view: View[Any], result: Any) -> Picture:
    drawn = view.figure(result)
    if isinstance(drawn, Charts):
        image, alt = png(drawn), "; ".join(chart.alt or described(chart) for chart in drawn.charts)
    else:
        image, alt = png_of(drawn), view.title
    return Picture(png=image, alt=line(alt, 300), file=f"{name}.png")
