"""Every kind of task has its row on the page, with its model, its metric and its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowledge_distillation import tasks

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_has_its_row(name):
    task = tasks.find_task(name)
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert f"`{task.primary_metric}`" in rows[0]
    if "the same" not in rows[0]:
        assert f"`{task.auto_class}`" in rows[0]
    if task.options:
        assert all(f"`{option}`" in rows[1] for option in task.options)
    assert len(rows) == 1 + bool(task.options)
    assert task.name == name
