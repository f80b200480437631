"""Rooms import from lower floors only, and no files import each other in a circle (`python tests/house.py`)."""

from __future__ import annotations

import re
from pathlib import Path

import house
import pytest


@pytest.fixture(scope="module")
def package() -> house.House:
    return house.read()


def _of(folder: Path, files: dict[str, str]) -> house.House:
    """A package of these files."""
    for name, source in files.items():
        path = folder / "knowledge_distillation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return house.read(folder / "knowledge_distillation")


def test_every_import_runs_down(package):
    assert package.up == {}


def test_no_files_import_each_other_in_a_circle(package):
    assert package.circles == []


def test_a_file_fits_on_a_few_screens(package):
    assert package.long_files == {}


def test_rooms_and_floors_are_few(package):
    assert 18 <= len(package.rooms) <= 22
    assert len(house.FLOORS) <= 9


def test_the_tests_lie_as_the_rooms_do(package):
    folders = {
        path.relative_to(Path(__file__).parent).parts[0] for path in Path(__file__).parent.glob("*/**/test_*.py")
    }
    assert folders <= {*package.rooms, "examples"}


def test_the_page_has_every_room_on_its_floor(package):
    page = (Path(__file__).parents[1] / "docs" / "house.md").read_text(encoding="utf-8")
    table = {
        room.removesuffix(".py"): int(floor) for floor, room in re.findall(r"^\| (\d) \| `([\w.]+)` \|", page, re.M)
    }
    floors = {room: number for number, rooms in enumerate(house.FLOORS, 1) for room in rooms}
    assert table == {room: floors[room] for room in package.rooms}


def test_the_files_that_the_page_names_are_there():
    root = Path(__file__).parents[1]
    named = re.findall(r"`([\w/]+/[\w/]*(?:\.py)?)`", (root / "docs" / "house.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not ((root / name).exists() or (house.PACKAGE / name).exists())] == []


@pytest.mark.parametrize(
    "source",
    [
        "from ..plan.bind import bind",
        "from .. import plan",
        "import knowledge_distillation.plan.bind",
        "from knowledge_distillation.plan import bind",
        "def later():\n    from ..plan.bind import bind",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..plan.bind import Plan",
    ],
    ids=["relative", "room", "absolute", "absolute-from", "in-a-function", "for-types"],
)
def test_an_import_that_runs_up_is_seen(tmp_path, source):
    found = _of(tmp_path, {"plan/__init__.py": "", "plan/bind.py": "", "config/parse.py": source})
    line = source.count("\n") + 1
    assert found.up == {("config", "plan"): [f"config/parse.py:{line}"]}


def test_an_import_across_a_floor_is_seen(tmp_path):
    files = {"config/a.py": "", "losses/b.py": "from ..config.a import x"}
    assert list(_of(tmp_path, files).up) == [("losses", "config")]


def test_a_room_without_a_floor_is_seen(tmp_path):
    files = {"errors.py": "", "odd/a.py": "from ..errors import x"}
    assert list(_of(tmp_path, files).up) == [("odd", "errors")]


def test_a_name_in_a_string_is_an_import_too(tmp_path):
    table = 'from importlib import import_module\n_ROOMS = {"run": "cli.commands"}'
    assert list(_of(tmp_path, {"__init__.py": table, "cli/commands.py": ""}).up) == [("__init__", "cli")]


def test_a_circle_inside_a_room_is_seen(tmp_path):
    files = {"a": "from .b import x", "b": "def f():\n    from . import c", "c": "from .a import x"}
    assert _of(tmp_path, {f"plan/{name}.py": source for name, source in files.items()}).circles == [
        ["plan/a.py", "plan/b.py", "plan/c.py"]
    ]


def test_lines_of_code_are_counted_without_blanks_comments_and_docstrings():
    source = '"""Of a file."""\n\n# why\nx = [\n    1,\n]\n\n\ndef f():\n    """Of a function.\n\n    Long.\n    """\n'
    assert house.code_lines(source + '    return """a\nb"""\n') == 3 + 1 + 2
