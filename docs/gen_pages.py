"""Pages of the documentation site that nobody writes: the root's documents, public names, commands.

MkDocs calls the functions `on_...` (mkdocs.yml, `hooks`). The lists come from the package: a new public name or
command gets its page by itself.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "src/vprompt/backbones/bundled/MODEL_CARD.md": "model-card.md",
}
"""Documents that lie outside docs/, and where they are on the site."""

PUBLIC_MODULES = ("vprompt", "vprompt.data")
"""Modules whose `__all__` is public."""

HELP_WIDTH = 92
"""Columns of a command's help."""

_LINK = re.compile(r"(?P<start>!?\[(?P<text>[^\]]*)\]\()(?!\w+:|#|/)(?P<target>[^)#\s]+)(?P<end>[^)]*\))")


def public_names() -> dict[str, list[str]]:
    """Public names of each public module, in alphabetical order."""
    modules = {module: importlib.import_module(module).__all__ for module in PUBLIC_MODULES}
    return {module: sorted(names, key=str.lower) for module, names in modules.items()}


def commands(*command: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command below this one with the text of its `--help`, as (("analyze", "cost"), "usage: ...")."""
    text = help_text(*command)
    if command:
        yield command, text
    _, *subcommands = re.split(r"^\W*subcommands\W*$", text, flags=re.MULTILINE)
    for name in re.findall(r"^\W*• (\S+)", "".join(subcommands), flags=re.MULTILINE):
        yield from commands(*command, name)


def help_text(*command: str) -> str:
    """The text that `vprompt COMMAND --help` prints."""
    from vprompt.cli import main

    printed = io.StringIO()
    plain = {"COLUMNS": str(HELP_WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().strip().splitlines())


def api_pages() -> dict[str, str]:
    """Place -> Markdown of the pages of public names, and of their table of contents."""
    pages: dict[str, str] = {}
    index = "# Python\n"
    for module, names in public_names().items():
        index += f"\n## {module}\n\n| name | |\n|---|---|\n"
        for name in names:
            pages[f"api/{module}.{name}.md"] = f"::: {module}.{name}\n"
            index += f"| [`{name}`]({module}.{name}.md) | {first_line(docstring(module, name))} |\n"
    return {"api/index.md": index, **pages}


def docstring(module: str, name: str) -> str:
    """The docstring of a public name; of what is neither class nor function, the text below its assignment."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        return inspect.getdoc(value) or ""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for statement, below in zip(body, [*body[1:], None], strict=True):
        match statement, below:
            case ast.ImportFrom(module=str(home), names=names), _ if name in [alias.name for alias in names]:
                return docstring(home, name)
            case ast.Assign(targets=[ast.Name(id=assigned)]), ast.Expr(ast.Constant(str(text))) if assigned == name:
                return inspect.cleandoc(text)
            case _:
                pass
    return ""


def first_line(text: str) -> str:
    """The first paragraph of a docstring, for a table."""
    paragraph, _, _ = text.partition("\n\n")
    return " ".join(paragraph.split()).replace("|", "\\|")


def command_pages() -> dict[str, str]:
    """Place -> Markdown of the pages of commands, and of their table of contents."""
    pages: dict[str, str] = {}
    index = f"# Commands\n\n```text\n{help_text()}```\n\n| options of |\n|---|\n"
    for command, text in commands():
        place = f"{'-'.join(command)}.md"
        title = f"vprompt {' '.join(command)}"
        body = f"# {title}\n\n```text\n{text}```\n"
        if "--method NAME --help" in " ".join(text.split()):
            body += "\n## Options of methods\n" + "".join(method_options(*command))
        pages[f"commands/{place}"] = f"---\nhide: [toc]\n---\n\n{body}"
        index += f"| [`{title}`]({place}) |\n"
    return {"commands/index.md": index, **pages}


def method_options(*command: str) -> Iterator[str]:
    """A section for the options of each method, for a command that has those of the one it is given."""
    from vprompt.methods.registry import METHODS

    for name in METHODS.names():
        text = re.sub(r"^ +-{20,}\n", "", help_text(*command, "--method", name), flags=re.MULTILINE)
        panel = re.search(rf"^ {re.escape(name)} options\n(.*?)(?=^ \w|\Z)", text, re.MULTILINE | re.DOTALL)
        yield f"\n### {name}\n\n" + (f"```text\n{panel[1].rstrip()}\n```\n" if panel else "None.\n")


def linked(markdown: str, source: str, page: str) -> str:
    """Markdown with its relative links as they must be on the site.

    Files of the repository that are not on the site are named without a link; MkDocs reports what is nowhere.

    Args:
        markdown: The text.
        source: The path of its file in the repository; links are relative to it.
        page: The path of its page on the site.
    """

    def place(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        if path in ROOT_PAGES or path.startswith("docs/"):
            target = ROOT_PAGES.get(path, path.removeprefix("docs/"))
            return match["start"] + posixpath.relpath(target, posixpath.dirname(page) or ".") + match["end"]
        return match["text"] if (ROOT / path).exists() else match[0]

    return _LINK.sub(place, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and their entries to the navigation."""
    from mkdocs.structure.files import File

    api, help_pages = api_pages(), command_pages()
    root = {page: linked((ROOT / source).read_text("utf-8"), source, page) for source, page in ROOT_PAGES.items()}
    for place, text in {**root, **api, **help_pages}.items():
        files.append(File.generated(config, place, content=text))
    python = [
        {module: [{name: f"api/{module}.{name}.md"} for name in names]} for module, names in public_names().items()
    ]
    shell = [{" ".join(command): f"commands/{'-'.join(command)}.md"} for command, _ in commands()]
    config.nav = [
        *(config.nav or []),
        {"Commands": ["commands/index.md", *shell]},
        {"Python": ["api/index.md", *python]},
    ]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links out of docs/ lead to the pages of the root's documents."""
    source = page.file.src_uri
    return markdown if source in ROOT_PAGES.values() else linked(markdown, f"docs/{source}", source)
