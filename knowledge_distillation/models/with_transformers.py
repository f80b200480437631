"""Transformers knows the models of this package once both are imported, whichever comes first.

Nothing is imported for it: where a module of transformers that lists configs or models is not there yet, it is waited
for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from . import register

_AUTO = "transformers.models.auto"


def register_with_transformers() -> None:
    """Register configs and models, each now or once the module that lists them is imported."""
    _once_imported(f"{_AUTO}.configuration_auto", lambda: import_module(".configs", __package__))
    _once_imported(f"{_AUTO}.modeling_auto", register)


def _once_imported(name: str, then: Callable[[], Any]) -> None:
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Waiting(name, then))


class _Waiting(MetaPathFinder):
    """Finds its module as every other finder would, and calls `then` when it has been imported."""

    def __init__(self, name: str, then: Callable[[], Any]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._followed(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec

    def _followed(self, run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def run_then(module: ModuleType) -> None:
            run(module)
            self.then()

        return run_then
