"""`python -m knowledge_distillation` is the command `distill`."""

from __future__ import annotations

from .cli.commands import main

main()
