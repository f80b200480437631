"""The README.md of a folder: renewed where this package wrote it, left alone where a person did."""

from __future__ import annotations

from pathlib import Path

README = "README.md"
MARK = "<!-- knowledge_distillation wrote this page and renews it. Take this line out, and it stays as it is. -->"


def is_a_persons(folder: Path) -> bool:
    """Whether a folder has a README.md that is not ours to write."""
    try:
        return MARK not in (folder / README).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # not to be read, or not text as we write it
        return True
