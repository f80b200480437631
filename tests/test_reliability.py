"""Each numbered line of docs/reliability.md has a test of its number, and each such test a line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_line_of_the_page_is_a_test_and_every_such_test_a_line():
    lines = re.findall(r"^\| ([A-F]\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    marks = re.findall(r"pytest\.mark\.case\(([^)]*)\)", tests)
    numbers = {number for mark in marks for number in re.findall(r'"([A-F]\d+)"', mark)}
    assert len(lines) == len(set(lines)), "a number stands twice"
    assert set(lines) == numbers
