"""Walk every family that transformers has, and say what holds for each.

    python tests/every_family.py                 # all, a line each
    python tests/every_family.py llama t5        # these
    python tests/every_family.py --table         # all, into the tables of docs/families.md

Each family has a process of its own, forked off this one, with limits of memory and time: what a family does to
transformers' settings, or to memory, ends with it. All of them take about ten minutes of one core.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
SECONDS, BYTES = 180, 5 << 30  # of a family
BEGIN, END = "<!-- made by tests/every_family.py -->", "<!-- to here -->"
RESULTS = ("works", "works without attention", "refused", "falls short", "not built")


def walk(families: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What `family_checks.check` finds of each family, in a process of its own."""
    import accelerate  # noqa: F401  (once, for all that are forked off)
    import torch
    from family_checks import check

    torch.set_num_threads(1)
    for family in families:
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
            signal.alarm(SECONDS)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            try:
                os.write(send, json.dumps(check(family)).encode())
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        lost = {"family": family, "faults": [], "not_built": f"the process ended by {_signal(status)}"}
        yield json.loads(answer) if answer else lost


def _signal(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"the limit of {SECONDS} s" if number == signal.SIGALRM else signal.Signals(number).name
    return f"exit {os.waitstatus_to_exitcode(status)}"


def result_of(found: Mapping[str, Any]) -> str:
    """Which of `RESULTS` came out."""
    if "not_built" in found:
        return "not built"
    if found["faults"]:
        return "falls short"
    if "loss" not in found:
        return "refused"
    return "works" if found["maps"] else "works without attention"


def reason_of(found: Mapping[str, Any]) -> str:
    """Why a family's result is not simply `works`, in one line."""
    result = result_of(found)
    if result == "not built":
        return found["not_built"]
    if result == "falls short":
        return "; ".join(found["faults"])
    if result == "refused":
        return "; ".join(found["refused"]) or found.get("cut", "")
    if result == "works without attention":
        return "; ".join(found["notes"]) or "the model gives out no attention maps"
    return ""


# --- the page ----------------------------------------------------------------------------------------------------

_SHORT = {"counts nothing": "no", "changes the model's own output": "its own", "counts": "yes"}
_COLUMNS = {
    "works": ("family", "class", "hidden states", "maps", "right", "left", "cut"),
    "works without attention": ("family", "class", "hidden states", "right", "left", "cut", "why"),
    "refused": ("family", "class", "why"),
    "falls short": ("family", "class", "what"),
    "not built": ("family", "class", "why"),
}


def tables(walked: Iterable[Mapping[str, Any]]) -> str:
    """The counts, and a table for each result."""
    groups: dict[str, list[Mapping[str, Any]]] = {result: [] for result in RESULTS}
    for found in walked:
        groups[result_of(found)].append(found)
    total = sum(map(len, groups.values()))
    lines = ["| result | families |", "|---|---:|"]
    lines += [f"| {result} | {len(group)} |" for result, group in groups.items()] + [f"| all | {total} |"]
    for result, group in groups.items():
        if group:
            columns = _COLUMNS[result]
            lines += ["", f"### {result[0].upper()}{result[1:]}", "", _row(columns), _row(["---"] * len(columns))]
            lines += [_row([_cell(found, column) for column in columns]) for found in group]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: Mapping[str, Any], column: str) -> str:
    """A cell of a family's row: one line, without what Markdown would read as a table or as a link."""
    values = {
        "class": found.get("class", "-"),
        "hidden states": str(found.get("states", "-")),
        "maps": str(found.get("maps", "-")),
        "right": _SHORT.get(found.get("right", ""), "-"),
        "left": _SHORT.get(found.get("left", ""), "-"),
        "cut": found.get("cut", "-").removeprefix("refused: ConfigError: "),
        "family": f"`{found['family']}`",
    }
    text = values[column] if column in values else reason_of(found)
    text = text.replace(found.get("class", "\0"), "it").removeprefix("it ") if column in ("cut", "why") else text
    text = re.sub(r"[|<>\[\]*`]", " ", text) if column in ("cut", "why", "what") else text
    return text if len(text) <= 160 else f"{text[:157]}…"


def results_on(page: str) -> dict[str, str]:
    """Family -> its result, as a page has them."""
    found, result = {}, ""
    for line in page.splitlines():
        if line.startswith("### "):
            result = line.removeprefix("### ").lower()
        elif match := re.match(r"\| `([^`]+)` \|", line):
            found[match[1]] = result
    return found


def worse(walked: Iterable[Mapping[str, Any]], page: str) -> list[str]:
    """The families that came out worse than a page says, with what is the matter; those it lacks among them."""
    order = ("works", "works without attention", "refused", "not built", "falls short")
    known = results_on(page)
    lines = []
    for found in walked:
        before, now = known.get(found["family"], "not there"), result_of(found)
        if before == "not there" or order.index(now) > order.index(before):
            lines.append(f"{found['family']}: {before} on the page, now {now}: {reason_of(found)}")
    return lines


def main(arguments: list[str]) -> None:
    from family_models import families

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    named = [name for name in arguments if not name.startswith("--")]
    walked = []
    for found in walk(named or families()):
        walked.append(found)
        print(f"{found['family']}: {result_of(found)} {reason_of(found)}", flush=True)
    if "--table" in arguments:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n\n{tables(walked)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
