"""`Replay`: plays a router's journal through a core that begins as the router's was, and compares their decisions. Called by
`multislo replay-journal`."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final

import click

from multislo_router.core.events import Event
from multislo_router.journal import End, Line, WrongLine, as_read, raised, read_header, read_line

CHOICE: Final = ("decision", "instance", "kind", "cause")
"""What the shell does, and metrics count; all other fields are figures and words."""


class Verdict(StrEnum):
    """How a decision compares with the recorded one."""

    SAME = "same"
    FIGURES = "other figures"
    """The same place, or the same refusal, by other predictions."""
    DIFFERS = "differs"


@dataclass(slots=True)
class Compared:
    """A decision about a request at one event; None: the core decided nothing about it there."""

    line: int
    seconds: float
    """Since the journal's beginning."""
    request: int | None
    """None: about the event itself, on which the core failed."""
    recorded: dict[str, Any] | None
    replayed: dict[str, Any] | None

    @property
    def verdict(self) -> Verdict:
        if self.recorded == self.replayed:
            return Verdict.SAME
        if self.recorded is None or self.replayed is None:
            return Verdict.DIFFERS
        same = all(self.recorded.get(name) == self.replayed.get(name) for name in CHOICE)
        return Verdict.FIGURES if same and self.request is not None else Verdict.DIFFERS


@dataclass(slots=True)
class Summary:
    """What a replay found."""

    version: str
    """Of the multislo that wrote the journal."""
    build: str
    in_flight: int
    events: int = 0
    decisions: int = 0
    same: int = 0
    other_figures: int = 0
    different: int = 0
    seconds: float = 0.0
    end: str | None = None
    first_difference: Compared | None = None

    def count(self, compared: Compared) -> None:
        self.decisions += 1
        verdict = compared.verdict
        self.same += verdict is Verdict.SAME
        self.other_figures += verdict is Verdict.FIGURES
        self.different += verdict is Verdict.DIFFERS
        if self.first_difference is None and verdict is not Verdict.SAME:
            self.first_difference = compared


class WrongJournal(click.ClickException):
    """It cannot be read; the message names the line."""

    exit_code = 2


class Replay:
    """Takes the lines of a journal, and yields each decision beside the recorded one. Raises `WrongJournal`."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = enumerate(lines, 1)
        _, first = next(self._lines, (1, b""))
        try:
            header, self.core = read_header(first)
        except WrongLine as error:
            raise WrongJournal(f"line 1: {error}") from None
        self.summary = Summary(header.version, header.build, header.in_flight)
        self._began = header.now

    def __iter__(self) -> Iterator[Compared]:
        for number, text in self._lines:
            if self.summary.end is not None:
                raise WrongJournal(f"line {number}: the journal has ended already")
            try:
                line = read_line(text)
            except WrongLine as error:
                cut = "" if text.endswith(b"\n") else "the file is cut off here: "
                raise WrongJournal(f"line {number}: {cut}{error}") from None
            if line.end is not None:
                self.summary.end = line.end
            elif line.status is not None:
                with suppress(Exception):
                    self.core.status(line.status)
            elif line.event is not None:
                for compared in self._play(number, line, line.event):
                    self.summary.count(compared)
                    yield compared

    def _play(self, number: int, line: Line, event: Event) -> Iterator[Compared]:
        self.summary.events += 1
        seconds = self.summary.seconds = event.now - self._began
        recorded = {decision.get("request"): decision for decision in line.decisions}
        replayed: dict[object, dict[str, Any]] = {}
        failure = None
        try:
            made = [as_read(decision) for decision in self.core.handle(event)]
            replayed = {decision.get("request"): decision for decision in made}
        except Exception as error:
            failure = raised(error)
            with suppress(Exception):
                self.core.recover(event.now if line.recovered_at is None else line.recovered_at)
        if failure or line.raised:
            was, now = ({"raised": text} if text else None for text in (line.raised, failure))
            yield Compared(number, seconds, None, was, now)
        for request in recorded | replayed:
            yield Compared(number, seconds, request, recorded.get(request), replayed.get(request))


def plain(compared: Compared) -> dict[str, Any]:
    return {"verdict": compared.verdict.value, **asdict(compared)}


def text_of(compared: Compared) -> str:
    """A decision in a line; where it is another one than recorded, that one in a second line."""
    about = "the core" if compared.request is None else f"request {compared.request}"
    start = f"{compared.seconds:+12.6f} s  {about}  "
    line = f"{start}{_words(compared.replayed)}  [{compared.verdict.value}]"
    if compared.verdict is Verdict.SAME:
        return line
    return f"{line}\n{'recorded, line ' + str(compared.line):>{len(start) - 2}}  {_words(compared.recorded)}"


def _words(made: dict[str, Any] | None) -> str:
    if made is None:
        return "nothing"
    if "raised" in made:
        return f"failed: {made['raised']}"
    where = f"{made.get('tier')}  {made.get('instance', '-')}  {made.get('decision')}"
    if "ttft_predicted_s" in made:
        return (
            f"{where} {made.get('kind')}: first token predicted after {made['ttft_predicted_s']} s, "
            f"then one every {made.get('iteration_predicted_s')} s; room {made.get('room_s')} s, load {made.get('load')}"
        )
    cause = f" {made['cause']}" if "cause" in made else ""
    return f"{where}{cause}: {made.get('reason')}"


def told(summary: Summary) -> list[str]:
    """The summary in words."""
    lines = [
        f"{summary.events} events in {summary.seconds:.3f} s, recorded by multislo {summary.version} ({summary.build}), "
        f"played by {version('multislo')}; {summary.in_flight} requests were under way before",
        f"{summary.same} of {summary.decisions} decisions are the same; {summary.other_figures} are the same choice by "
        f"other figures; {summary.different} differ",
    ]
    if summary.first_difference is not None:
        lines += ["the first that is not the same:", text_of(summary.first_difference)]
    if summary.end is None:
        lines.append("the journal has no last line: its reader or its router was stopped")
    elif summary.end != End.TIME:
        lines.append(f"the journal ended before its time: {summary.end}")
    return lines
