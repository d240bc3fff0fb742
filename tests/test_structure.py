"""The house: few rooms, imports that only go down, no circle between files; `make check` holds the order of the rooms."""

from graphlib import TopologicalSorter

import grimp
import pytest

MOST_ROOMS = 14


@pytest.fixture(scope="module")
def running():
    """Imports that run, those inside functions included."""
    return grimp.build_graph("vprompt", exclude_type_checking_imports=True, cache_dir=None)


@pytest.fixture(scope="module")
def written():
    """All imports, those for annotations only included."""
    return grimp.build_graph("vprompt", cache_dir=None)


def below(graph, modules):
    return {module: graph.find_modules_directly_imported_by(module) - {"vprompt"} for module in modules}


def test_few_rooms_and_nothing_loose_at_the_door(written):
    rooms = written.find_children("vprompt") - {"vprompt.__main__"}
    assert len(rooms) <= MOST_ROOMS
    assert {room for room in rooms if not written.find_children(room)} == set()


def test_no_circle_of_files(running):
    modules = running.modules - {"vprompt"}
    tuple(TopologicalSorter(below(running, modules)).static_order())  # a CycleError shows the circle


def test_no_circle_of_rooms_even_for_annotations(written):
    arrows = {}
    for module, imported in below(written, written.modules - {"vprompt", "vprompt.__main__"}).items():
        rooms = {name.split(".")[1] for name in imported}
        arrows.setdefault(module.split(".")[1], set()).update(rooms - {module.split(".")[1]})
    tuple(TopologicalSorter(arrows).static_order())
