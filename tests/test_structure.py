"""Few rooms, imports that only go down, no circle between files; `make check` holds the order of the rooms."""

import re
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

import vprompt

MOST_ROOMS = 15


@pytest.fixture(scope="module")
def running():
    """Imports that run, those inside functions included."""
    return grimp.build_graph("vprompt", exclude_type_checking_imports=True, cache_dir=None)


@pytest.fixture(scope="module")
def written():
    """All imports, those for annotations only included."""
    return grimp.build_graph("vprompt", include_external_packages=True, cache_dir=None)


def below(graph, modules):
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in modules}
    return {module: {name for name in names if name.startswith("vprompt.")} for module, names in arrows.items()}


def test_few_rooms_and_nothing_loose_at_the_door(written):
    rooms = written.find_children("vprompt") - {"vprompt.__main__"}
    assert len(rooms) <= MOST_ROOMS
    assert {room for room in rooms if not written.find_children(room)} == set()


def test_no_circle_of_files(running):
    modules = running.modules - {"vprompt"}
    tuple(TopologicalSorter(below(running, modules)).static_order())  # a CycleError shows the circle


def test_no_circle_of_rooms_even_for_annotations(written):
    arrows = {}
    for module, imported in below(written, written.find_descendants("vprompt") - {"vprompt.__main__"}).items():
        rooms = {name.split(".")[1] for name in imported}
        arrows.setdefault(module.split(".")[1], set()).update(rooms - {module.split(".")[1]})
    tuple(TopologicalSorter(arrows).static_order())


def test_what_is_imported_is_declared(written):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    declared = {normal(re.match(r"[\w-]+", name)[0]) for name in [*project["dependencies"], *extras]}
    outside = written.modules - written.find_descendants("vprompt") - {"vprompt"} - sys.stdlib_module_names
    packages = {name: {*map(normal, places)} for name, places in packages_distributions().items()}
    assert {name for name in outside if not declared & packages.get(name, set())} == set()


def normal(name):
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("module", ["vprompt.model.load", "vprompt.data", "vprompt.experiments.run"])
def test_plots_are_imported_where_one_is_drawn(written, module):
    """They take most of a second, which whoever loads a model or trains without a page need not wait for."""
    reached, new = set(), {module}
    while new:
        reached |= new
        new = {name for one in new & written.modules for name in at_once(written, one)} - reached
    assert {"torch", "vprompt.report.colours"} <= reached
    assert "matplotlib" not in reached


def at_once(graph, module):
    """What a module imports when it is imported itself: not in a function, and not for annotations."""
    if not (file := file_of(module)).exists():
        return set()
    lines, room = file.read_text("utf-8").splitlines(), {module.rpartition(".")[0]} - {""}
    found = graph.find_modules_directly_imported_by(module)
    details = {name: graph.get_import_details(importer=module, imported=name) for name in found}
    return room | {
        name for name in found if any(not lines[each["line_number"] - 1][0].isspace() for each in details[name])
    }


def file_of(module):
    place = Path(vprompt.__file__).parents[1].joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
