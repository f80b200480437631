"""A sweep as a table and as a heat map, for a terminal and for files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from .sweep import Sweep

_SHADES = " ░▒▓█"


def table_of(result: Sweep) -> Any:
    """A rich table: a line for each combination, the best first."""
    from rich import box
    from rich.table import Table

    title = f"best {result.metric}, {len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _columns(result):
        table.add_column(column, justify="right")
    for cells in _cells(result):
        table.add_row(*cells)
    return table


def heat_table(result: Sweep) -> Any:
    """The heat map as a rich table, shaded by characters: darker is better."""
    from rich import box
    from rich.table import Table

    rows, columns = axes_of(result)
    values = heat_of(result)
    scores = [value for line in values for value in line if value is not None]
    title = f"{result.metric}: {rows} down" + (f", {columns} across" if columns else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(f"{rows} \\ {columns}" if columns else rows, justify="right")
    for value in result.grid[columns] if columns else [""]:
        table.add_column(str(value), justify="right")
    for value, line in zip(result.grid[rows], values, strict=True):
        table.add_row(str(value), *(_shaded(one, scores, result.greater_is_better) for one in line))
    return table


def markdown_of(result: Sweep) -> str:
    """The table, and the best student, as markdown."""
    columns = _columns(result)
    lines = [f"| {' | '.join(cells)} |" for cells in [columns, ["---:"] * len(columns), *_cells(result)]]
    best = f"\nBest student: `{result.best.relative_to(result.folder).as_posix()}`\n" if result.best else ""
    missing = "".join(f"\nNo score: `{run}`" for run in result.missing)
    return "\n".join([f"# Best {result.metric}\n", *lines, best]) + missing


def picture_of(result: Sweep) -> str | None:
    """The heat map as SVG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows, columns = axes_of(result)
    down, across = list(result.grid[rows]), list(result.grid[columns]) if columns else [""]
    values = [[float("nan") if one is None else one for one in line] for line in heat_of(result)]
    figure = Figure(figsize=(2.2 + 0.9 * len(across), 1.6 + 0.6 * len(down)), layout="constrained")
    plot = figure.add_subplot()
    image = plot.imshow(values, cmap="viridis" if result.greater_is_better else "viridis_r", aspect="auto")
    plot.set_xticks(range(len(across)), map(str, across))
    plot.set_yticks(range(len(down)), map(str, down))
    plot.set_xlabel(columns)
    plot.set_ylabel(rows)
    for y, line in enumerate(heat_of(result)):
        for x, value in enumerate(line):
            if value is None:
                continue
            plot.text(
                x, y, f"{value:.4f}", ha="center", va="center", color="white", bbox={"alpha": 0.3, "fc": "black"}
            )
    figure.colorbar(image, label=result.metric)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def axes_of(result: Sweep) -> tuple[str, str]:
    """The keys of rows and columns: the first two of the grid, and temperature always across; columns may be empty."""
    first, second = [*result.grid, ""][:2]
    return (second, first) if first == "temperature" and second else (first, second)


def heat_of(result: Sweep) -> list[list[float | None]]:
    """The mean score at each place; of further keys of the grid their best."""
    rows, columns = axes_of(result)
    best: dict[tuple[str, str], float | None] = {}
    for row in result.rows:  # the best come first
        best.setdefault((str(row.values[rows]), str(row.values[columns]) if columns else ""), row.mean)
    across = [str(value) for value in result.grid[columns]] if columns else [""]
    return [[best.get((str(value), other)) for other in across] for value in result.grid[rows]]


def _shaded(value: float | None, scores: Sequence[float], greater: bool) -> str:
    if value is None:
        return "-"
    low, high = min(scores), max(scores)
    place = (value - low) / (high - low) if high > low else 1.0
    return f"{value:.4f} {_SHADES[round((place if greater else 1 - place) * (len(_SHADES) - 1))]}"


def _columns(result: Sweep) -> list[str]:
    of_seeds = ["±", *(f"seed {seed}" for seed in result.seeds)] if len(result.seeds) > 1 else []
    return [*result.grid, result.metric, *of_seeds]


def _cells(result: Sweep) -> list[list[str]]:
    lines = []
    for row in result.rows:
        of_seeds = [row.spread, *(row.scores.get(seed) for seed in result.seeds)] if len(result.seeds) > 1 else []
        numbers = ["-" if value is None else f"{value:.4f}" for value in [row.mean, *of_seeds]]
        lines.append([*map(str, row.values.values()), *numbers])
    return lines
