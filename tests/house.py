"""The house as it stands: rooms, floors, arrows between rooms, circles, lines of code; and the way through it.

python tests/house.py [PACKAGE]    every import of a package, and its size
python tests/house.py --way        one entry and one hidden state, followed through a tiny run
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "knowledge_distillation"
FLOORS = (
    {"errors"},
    {"config", "losses", "storage", "kernels"},
    {"features"},
    {"objective", "teachers", "evaluation", "models", "data"},
    {"plan", "presets"},
    {"training", "tasks"},
    {"recipes", "data_free", "exporting", "__init__"},
    {"cli"},
    {"__main__"},
)
CORE = ("config", "features", "objective", "plan", "teachers", "training", "storage")
NOT_CORE = ("cache_", "cached")  # what the names of the teachers' cache files begin with
LONG = 400


# --- the files and what they import ------------------------------------------------------------------------------


@dataclass
class House:
    """A package as its files import each other.

    Args:
        arrows: (room, room it imports from) -> the places of those imports.
        circles: files, within a room or across rooms, that import each other in a circle.
        code: file -> its lines without blanks, comments and docstrings.
        lines: file -> all its lines.
    """

    arrows: dict[tuple[str, str], list[str]]
    circles: list[list[str]]
    code: dict[str, int]
    lines: dict[str, int]

    @property
    def rooms(self) -> list[str]:
        return sorted({room_of(file) for file in self.code})

    @property
    def up(self) -> dict[tuple[str, str], list[str]]:
        """The arrows that do not run strictly down; those of a room that has no floor are among them."""
        floors = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
        return {
            (one, other): places
            for (one, other), places in self.arrows.items()
            if one not in floors or other not in floors or floors[one] <= floors[other]
        }

    @property
    def code_by_room(self) -> Counter[str]:
        by_room: Counter[str] = Counter()
        for file, number in self.code.items():
            by_room[room_of(file)] += number
        return by_room

    @property
    def core(self) -> int:
        """Lines of code of the rooms that distillation cannot do without."""
        files = (file for file in self.code if room_of(file) in CORE)
        return sum(self.code[f] for f in files if not (f.startswith("teachers/") and _name(f).startswith(NOT_CORE)))

    @property
    def long_files(self) -> dict[str, int]:
        return {file: n for file, n in self.lines.items() if n > LONG}


def read(package: Path = PACKAGE) -> House:
    """Every import of every file: at the top, inside functions, for types only, and by a name in a string."""
    files = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    graph: dict[str, set[str]] = {file: set() for file in files}
    for file, source in sorted(files.items()):
        for line, target in imports(file, source, files, package.name):
            if target != file:
                graph[file].add(target)
            if room_of(target) != room_of(file):
                arrows[room_of(file), room_of(target)].append(f"{file}:{line}")
    code = {file: code_lines(source) for file, source in files.items()}
    return House(dict(arrows), circles_of(graph), code, {file: s.count("\n") for file, s in files.items()})


def room_of(file: str) -> str:
    """A folder of the package's root, or a file of it."""
    return file.split("/")[0].removesuffix(".py")


def _name(file: str) -> str:
    return file.rsplit("/", 1)[-1]


def imports(file: str, source: str, files: Any, package: str) -> Iterator[tuple[int, str]]:
    """(line, file of the package) of each import of a file."""
    here = file.split("/")[:-1]
    tree = ast.parse(source)
    by_name = file.endswith("__init__.py") and "import_module" in source
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = here[: len(here) - (node.level - 1)] + module
            elif module and module[0] == package:
                base = module[1:]
            else:
                continue
            for alias in node.names:
                yield node.lineno, _file([*base, alias.name], files) or _file(base, files) or "/".join(base)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    yield node.lineno, _file(alias.name.split(".")[1:], files) or alias.name
        elif by_name and isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            found = _file([*here, *node.value.lstrip(".").split(".")], files)
            if found and not found.endswith("__init__.py"):
                yield node.lineno, found


def _file(parts: list[str], files: Any) -> str | None:
    """The file of a module's dotted name."""
    path = "/".join(parts)
    names = (f"{path}.py", f"{path}/__init__.py") if path else ("__init__.py",)
    return next((name for name in names if name in files), None)


def circles_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of files that reach each other."""
    reached = {file: _reached_from(file, graph) for file in graph}
    circles = {
        tuple(sorted(other for other in found if file in reached[other]))
        for file, found in reached.items()
        if file in found
    }
    return [list(circle) for circle in sorted(circles)]


def _reached_from(file: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [*graph[file]]
    while ahead:
        other = ahead.pop()
        if other not in found and other in graph:
            found.add(other)
            ahead += graph[other]
    return found


def code_lines(source: str) -> int:
    """The lines that are neither blank, nor a comment, nor a docstring."""
    silent = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def print_house(house: House) -> None:
    sizes = house.code_by_room
    print("floor  rooms (lines of code)")
    for number, rooms in reversed([*enumerate(FLOORS, 1)]):
        present = ", ".join(f"{room} ({sizes[room]})" for room in sorted(rooms) if room in sizes)
        print(f"{number:5}  {present}")
    homeless = set(sizes) - set().union(*FLOORS)
    print(f"\n{len(house.rooms)} rooms, {len(FLOORS)} floors, {len(house.arrows)} arrows, {len(house.up)} not down")
    for (one, other), places in sorted(house.up.items()):
        print(f"  {one} -> {other}: {', '.join(places)}")
    if homeless:
        print(f"rooms without a floor: {', '.join(sorted(homeless))}")
    print(f"{len(house.circles)} circles of files")
    for circle in house.circles:
        print(f"  {', '.join(circle)}")
    print(f"lines of code: {sum(house.code.values())}, of them the core: {house.core}")
    print(f"files above {LONG} lines: {', '.join(f'{f} ({n})' for f, n in house.long_files.items()) or 'none'}")


# --- the way of one entry and of one hidden state ----------------------------------------------------------------

MARK = "the_entry"


@dataclass
class Way:
    """The calls that were handed a thing, by their files in the order of the calls."""

    files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        moves = sum(one != other for one, other in zip(self.files, self.files[1:], strict=False))
        return f"{len(set(self.files)):3} files, {moves:4} moves, {len(self.files):4} calls"


@contextmanager
def followed(package: Path, is_it: Callable[[Any], bool]) -> Iterator[Way]:
    """Every call into the package one of whose arguments is the thing, or holds it directly."""
    way = Way()
    inside = f"{package}/"

    def look(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(inside):
            return
        number = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        values = frame.f_locals
        arguments = [values[name] for name in code.co_varnames[:number] if name in values]
        if any(is_it(value) or any(map(is_it, held_by(value))) for value in arguments):
            way.files.append(code.co_filename.removeprefix(inside))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield way
    finally:
        sys.setprofile(before)


def held_by(value: Any) -> list[Any]:
    """What a container or an object holds itself."""
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [*value]
    try:
        return [*object.__getattribute__(value, "__dict__").values()]
    except (AttributeError, TypeError):
        return []


def is_entry(value: Any) -> bool:
    """The marked entry: as it was written, parsed, or bound."""
    if isinstance(value, dict):
        return _is_mark(value.get("name"))
    try:
        own = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return False
    entry = own.get("entry")
    return _is_mark(own.get("name")) or (entry is not None and type(entry).__name__ == "Entry" and is_entry(entry))


def _is_mark(name: Any) -> bool:
    return isinstance(name, str) and name == MARK


def follow() -> dict[str, Way]:
    """What is followed and when -> its way: the marked entry, the teacher's hidden state that it compares with, and
    every call of a run that has no other entry."""
    import torch
    from runs import batches, bert, distiller

    import knowledge_distillation

    package = Path(knowledge_distillation.__file__).parent
    teacher = bert(layers=2, width=16)
    hidden: list[torch.Tensor] = []  # kept alive, or another tensor would lie where it lay
    teacher.bert.encoder.layer[1].register_forward_hook(
        lambda module, args, output: hidden.append(output[0] if isinstance(output, tuple) else output)
    )

    def is_hidden(value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or not hidden:
            return False
        memory = value.untyped_storage().data_ptr()
        return any(memory == one.untyped_storage().data_ptr() for one in hidden)

    entry = {"teacher": "layer2.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": MARK}
    others = [
        {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"},
        {"student": "output.logits", "loss": "cross_entropy"},
    ]
    ways: dict[str, Way] = {}
    kinds: dict[str, tuple[list[dict[str, Any]], Callable[[Any], bool]]] = {
        "entry": ([entry, *others], is_entry),
        "hidden state": ([entry, *others], is_hidden),
        "run of the entry alone": ([entry], lambda value: True),
    }
    for what, (config, is_it) in kinds.items():
        student = bert(layers=1, width=8)
        with followed(package, is_it) as ways[f"{what}, construction"]:
            run = distiller(config, teacher, student, train_dataloader=batches(1), num_train_epochs=9)
        with followed(package, is_it) as ways[f"{what}, plan"]:
            run.plan()
        run.train_epoch()  # what a first step does once is no part of a step
        hidden.clear()
        with followed(package, is_it) as ways[f"{what}, one step"]:
            run.train_epoch()
        run.close()
        hidden.clear()
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE)
    parser.add_argument("--way", action="store_true", help="count the way of one entry and of one hidden state")
    options = parser.parse_args()
    if options.way:
        for what, way in follow().items():
            print(f"{what:38} {way}")
    else:
        print_house(read(options.package))


if __name__ == "__main__":
    main()
