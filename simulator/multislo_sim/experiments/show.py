"""Output of experiments: rows as a table, a report as JSON, a figure as PNG. Also runs their parts in processes. Called by every
experiment."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import click
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from multislo_router.build import build
from multislo_sim.experiments.asked import Asked

Key = TypeVar("Key")
Result = TypeVar("Result")
Draw = Callable[[Figure], None]
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
"""Paul Tol's bright scheme: told apart by the colour-blind, too."""


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Numbers are put right; None is shown as a dash. Format floats beforehand where three digits do not suit."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table


def cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show(asked: Asked, report: Mapping[str, Any], tables: Sequence[Table], draw: Draw | None = None) -> None:
    """The report as JSON or its tables on stdout, and its figure where `--png` says."""
    if asked.as_json:
        click.echo(json.dumps({**report, "build": build()}))
    else:
        console = Console()
        for table in tables:
            console.print(table)
    # Last: a path that cannot be written must not cost the result of hours.
    if asked.png is not None and draw is not None:
        save(asked.png, draw)


def save(path: Path, draw: Draw, size: tuple[float, float] = (9.0, 5.0)) -> None:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise click.UsageError(f"--png: {path}: {error.strerror}") from error


def told(text: str) -> None:
    """Progress: to stderr."""
    Console(stderr=True).print(text, style="dim", highlight=False)


def run_each(work: Callable[..., Result], parts: Mapping[Key, tuple[Any, ...]], jobs: int) -> dict[Key, Result]:
    """`work(*arguments)` of each part, in processes where `jobs` is more than one; in the parts' order. `work` is a module's function
    and all that goes in and out must be picklable."""
    started = time.monotonic()
    found: dict[Key, Result] = {}

    def done(key: Key, result: Result) -> None:
        found[key] = result
        told(f"{key}: {time.monotonic() - started:.0f} s")

    if jobs == 1 or len(parts) < 2:
        for key, arguments in parts.items():
            done(key, work(*arguments))
        return found
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, *arguments): key for key, arguments in parts.items()}
        for future in as_completed(running):
            done(running[future], future.result())
    return {key: found[key] for key in parts}
