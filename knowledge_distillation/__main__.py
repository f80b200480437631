"""`python -m knowledge_distillation` is the command `distill`."""

from .cli import main

main()
