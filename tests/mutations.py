"""What people write by mistake or on purpose: configs and recipes with something wrong in them, by chance."""

from __future__ import annotations

import copy
import datetime
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

Path_ = tuple[Any, ...]


class Mutated(NamedTuple):
    """A value with something else in it, and the places (keys and numbers from the root) that were touched."""

    value: Any
    places: tuple[Path_, ...]


def _nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def _in_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _laughs() -> Any:
    """Thirty lists, each of the one before it twice: a billion values in thirty objects."""
    value: list[Any] = [1]
    for _ in range(30):
        value = [value, value]
    return value


# Values of each type that YAML has, at and beyond their edges.
WRITTEN: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, -0.5, 1e308, -1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
    *("", " ", "0", "1", "1e-4", "nan", "inf", "null", "true", "no", "auto", "none", "²", "٣", "1_000", "0x_", "-"),
    *("layer1.hidden_states", "layer2.hidden_states", "output.logits", "layer1", ".", "..", "a.b", "layer1.", ".x"),
    *("layer99.hidden_states", "layer-1.hidden_states", "layer1.attention", "encoder_layer1.query", "self", "peer"),
    *("layer{1..999999999}.hidden_states", "layer{1,2}.hidden_states", "{1,2}" * 40 + ".x", "{{{}}}.x", "{.x", "a}.x"),
    *("layer{2..1}.hidden_states", "layer{1..²}.x", "layer{" + "9" * 5000 + "..1}.x", "layer" + "9" * 5000 + ".query"),
    *(
        "bert.encoder.layer.0.output",
        "bert.encoder.layer.0.output[7]",
        "bert.encoder.layer.0.output[" + "9" * 5000 + "]",
    ),
    *("mse", "kl_divergence", "cross_entropy", "crd", "linear", "cosine", "adamw_torch_fused", "multistep", "gelu"),
    *(
        "x" * 20_000,
        "é",
        "e\u0301",
        "名前",
        "\u202e",
        "\u2028",
        "\ud800",
        "a\0b",
        "\r\n",
        "\t",
        "😀",
        "$HOME",
        "~",
        "/",
    ),
    *(
        "../..",
        "/dev/null",
        "/proc/self/mem",
        "a\nb",
        "%s",
        "{}",
        "{0}",
        "!!python/object:os.system",
        "hidden_mse ",
        "./" + "x" * 300,
        "~nobody/x",
    ),
    *(
        [],
        [None],
        [[]],
        [1],
        ["a"],
        [1, "a", None],
        [0.5, 0.1],
        [{}],
        ["layer1.hidden_states", "layer2.hidden_states"],
    ),
    *({}, {"a": 1}, {1: 2}, {None: None}, {"type": "linear"}, {"type": []}, {"": ""}, {True: 1}, {"name": {}}),
    *(
        {"layers": []},
        {"layers": [0]},
        {"layers": ["a"]},
        {"layers": 10**9},
        {"model_type": []},
        {"model_type": "gpt2"},
    ),
    *(b"bytes", datetime.date(2020, 1, 31), datetime.datetime(2020, 1, 31, 12), {"a", "b"}, [("a", 1)]),
    *(_nested(60), _nested(3000), list(range(20_000))),
)
# What only Python has.
FROM_PYTHON: tuple[Any, ...] = (
    *(
        _in_itself(),
        _laughs(),
        (),
        ("a",),
        frozenset({1}),
        1j,
        object(),
        object,
        len,
        lambda: None,
        ...,
        NotImplemented,
    ),
    *(np.float32(0.5), np.int64(2), np.array([1.0, 2.0]), torch.tensor(1.0), torch.ones(2, 2), torch.nn.Linear(1, 1)),
    *(Path("a"), range(3), bytearray(b"x"), Exception("x"), iter([]), float, str, random.Random, torch.nn.MSELoss()),
)
_KEYS: tuple[Any, ...] = (
    *(
        "wieght",
        "Teacher",
        "",
        " ",
        "weight ",
        "²",
        "名",
        "a.b",
        "x" * 3000,
        "\ud800",
        "a\0b",
        "__class__",
        "<<",
        "type",
    ),
    *(
        None,
        True,
        1,
        -1,
        1.5,
        (1, 2),
        b"loss",
        datetime.date(2020, 1, 31),
        "name",
        "base",
        "stages",
        "args",
        "projection",
    ),
)
# What YAML itself offers to trip over.
_YAML: tuple[str, ...] = (
    *("&a ", "*a", "<<: *a", "!!python/object/apply:os.system ['true']", "!!binary 'x'", "!!set {a, b}", "!!int 'x'"),
    *("!!timestamp 'x'", "2020-13-45", "0x_", "1_", "0b", "0o9", "190:20:30", ".inf", ".nan", "=", "~", "!!float 'a'"),
    *("? [a, b]\n: c\n", "? {a: b}\n: c\n", "{", "}", "[", "]", "|", ">", "%YAML 9.9\n---\n", "---\n", "...\n", "- "),
    *("\t", "\0", "\ufeff", "\x85", "\u2028", '"\\ud800"', '"\\x00"', "'", '"', "#", ": ", "!!", "@", "`", "9" * 5000),
    *("[" * 3000, "{a: " * 3000, "- " * 3000, "!<tag:x> y", "&a [*a]", "a: &b {c: *b}", "key: 1\nkey: 2\n"),
)
_LAUGHS = "\n".join(
    ["laugh0: &l0 [ha, ha]", *(f"laugh{i}: &l{i} [*l{i - 1}, *l{i - 1}, *l{i - 1}]" for i in range(1, 40))]
)


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every value within a tree, its root's as well, not too deep."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in itertools.islice(pairs, 60 if len(path) < 8 else 0):
        yield from places(inner, (*path, key))


def at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated(value: Any, chance: random.Random, values: tuple[Any, ...] = WRITTEN) -> Mutated:
    """A copy with one to three things changed: values, keys, types, structure."""
    value = copy.deepcopy(value)
    touched = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        path = chance.choice([path for path in itertools.islice(places(value), 3000) if path] or [()])
        if not path:
            return Mutated(chance.choice(values), ((),))
        parent, key = at(value, path[:-1]), path[-1]
        new = chance.choice(_CHANGES)(parent, key, chance, values, value)
        touched.append(path if new is None else (*path, new))
        if not isinstance(value, (dict, list)):
            break
    return Mutated(value, tuple(touched))


def _replace(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> None:
    parent[key] = chance.choice(values)


def _leave_out(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> None:
    del parent[key]


def _rename(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> Any:
    if isinstance(parent, dict):
        name = chance.choice(_KEYS)
        if isinstance(key, str) and chance.random() < 0.5 and len(key) > 1:
            place = chance.randrange(len(key) - 1)
            name = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
        parent[name] = parent.pop(key)
        return name
    else:
        parent.insert(0, chance.choice(values))
    return None


def _add(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> Any:
    if isinstance(parent, dict):
        name = chance.choice(_KEYS)
        parent[name] = chance.choice(values)
        return name
    parent.append(chance.choice(values))
    return None


def _wrap(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> None:
    inner = parent[key]
    text = str(inner) if isinstance(inner, (str, float, bool)) else "[1, 2]"
    parent[key] = chance.choice(([inner], [inner, inner], {"a": inner}, {"type": inner}, text, [[inner]]))


def _double(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> Any:
    if isinstance(parent, list):
        parent[key:key] = [parent[key]] * chance.choice((1, 1, 50))
        return None
    name = chance.choice(_KEYS)
    parent[name] = parent[key]
    return name


def _swap(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> None:
    parent[key] = at(root, chance.choice(list(itertools.islice(places(root), 3000))))


def _spoil(parent: Any, key: Any, chance: random.Random, values: tuple[Any, ...], root: Any) -> None:
    """Change a text in its middle, or a number a little or much."""
    inner = parent[key]
    if isinstance(inner, str) and len(inner) < 200:
        place = chance.randrange(len(inner) + 1)
        piece = chance.choice(
            ("", " ", ".", "{", "}", ",", "1", "²", "\0", "\ud800", "é", "[0]", "{1,2}", "-", "/", "x")
        )
        parent[key] = inner[:place] + piece + inner[place + chance.choice((0, 1)) :]
    elif isinstance(inner, (int, float)) and not isinstance(inner, bool):
        change: Callable[[Any], Any] = chance.choice(
            (lambda v: -v, lambda v: v + 1, lambda v: v * 10**6, lambda v: v / 3, str, lambda v: int(v) ** 50)
        )
        try:
            parent[key] = change(inner)
        except (ArithmeticError, ValueError):
            parent[key] = 0
    else:
        parent[key] = chance.choice(values)


_CHANGES = (_replace, _replace, _replace, _leave_out, _rename, _add, _wrap, _double, _swap, _spoil, _spoil)


def as_yaml(value: Any) -> str:
    """A tree as YAML; of one that YAML cannot write, as nested lists."""
    try:
        return yaml.dump(value, Dumper=yaml.SafeDumper, allow_unicode=True)
    except (yaml.YAMLError, RecursionError):
        return "[" * 3000


def mangled(text: str, chance: random.Random) -> bytes:
    """The text of a YAML file with one to three things done to it as text."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        place, piece = chance.randrange(len(text) + 1), chance.choice(_YAML)
        line = chance.randrange(len(lines))
        match chance.randrange(9):
            case 0:
                text = text[:place] + piece + text[place:]
            case 1:
                text = text[:place]
            case 2:
                text = "\n".join(lines[:line] + [lines[line]] * 2 + lines[line + 1 :])
            case 3:
                text = "\n".join(lines[:line] + [" " + lines[line]] + lines[line + 1 :])
            case 4:
                text = "\n".join(lines[:line] + [piece] + lines[line:])
            case 5 | 6:
                key, colon, _ = lines[line].partition(":")
                text = "\n".join(lines[:line] + [f"{key}{colon} {piece}"] + lines[line + 1 :])
            case 7:
                text = text[:place] + text[place + chance.randrange(20) :]
            case 8:
                text = chance.choice(
                    (f"{_LAUGHS}\n{text}", f"{text}\n{_LAUGHS}", text.replace(": ", ":", 1), text[::-1])
                )
    data = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        place = chance.randrange(len(data) + 1)
        data = data[:place] + bytes([chance.randrange(256)]) + data[place:]
    return data
