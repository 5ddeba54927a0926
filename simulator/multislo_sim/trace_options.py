"""The command-line options of a trace: its path, its time unit and the part that is read. Every command that reads one has these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import click

from multislo_api.duration import parse_duration_s
from multislo_sim.workloads.traces import Part, TimeUnit, Trace, read_trace

Command = TypeVar("Command", bound=Callable[..., Any])
TRACE = "CSV of Azure or BurstGPT, JSON lines of Mooncake or Bailian, plain or .gz"


class Seconds(click.ParamType[float]):
    """Seconds as a number, or a duration such as `36h` or `1m30s`."""

    name = "TIME"

    def __init__(self, above: bool = False) -> None:
        self._above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            seconds = parse_duration_s(text) if text[-1:].isalpha() else float(text)
        except ValueError:
            seconds = -1.0
        if not 0.0 <= seconds < 1e9 or (self._above and seconds == 0.0):
            least = "greater than 0" if self._above else "at least 0"
            self.fail(f"{value!r} must be seconds or a duration such as 90, 1m30s or 36h, {least}", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class AskedTrace:
    """The trace that a command line names, and what of it."""

    path: Path
    part: Part

    def read(
        self, *, lengths_only: bool = False, tiers: Sequence[str] | None = None, requests_max: int | None = None
    ) -> Trace:
        return read_trace(self.path, self.part, lengths_only=lengths_only, tiers=tiers, requests_max=requests_max)


def trace_options(used: str, duration: str | None = "--duration") -> Callable[[Command], Command]:
    """Gives a command `--trace`, `--time-unit`, `--from` and `duration` (None: it bounds the part itself), and an argument `trace`: an
    AskedTrace or None. `used` says what the command takes from the trace."""
    options = [
        click.option("--trace", type=click.Path(path_type=Path), help=f"{TRACE}; {used}."),
        click.option(
            "--time-unit",
            type=click.Choice([unit.value for unit in TimeUnit]),
            help="Unit of numeric stamps. Default: by the format or the rate; the trace is refused if it may be ms or s.",
        ),
        click.option("--from", "from_s", type=Seconds(), help="Begin this far into the trace, such as 36h."),
    ]
    if duration is not None:
        part = Seconds(above=True)
        options.append(click.option(duration, "part_s", type=part, help="Read only this much of the trace."))

    def wrap(command: Command) -> Command:
        @wraps(command)
        def with_trace(*args: Any, **given: Any) -> Any:
            path, unit = given.pop("trace"), given.pop("time_unit")
            from_s, part_s = given.pop("from_s"), given.pop("part_s", None)
            if path is None:
                for option, value in (("--time-unit", unit), ("--from", from_s), (str(duration), part_s)):
                    if value is not None:
                        raise click.UsageError(f"{option} is for a trace: give --trace PATH, too")
                return command(*args, trace=None, **given)
            part = Part(from_s or 0.0, inf if part_s is None else part_s, None if unit is None else TimeUnit(unit))
            return command(*args, trace=AskedTrace(path, part), **given)

        wrapped: Any = with_trace
        for option in reversed(options):
            wrapped = option(wrapped)
        made: Command = wrapped
        return made

    return wrap
