"""A journal of the core, line by line: everything that a router told its core, and what the core decided. Written by
`shell/recording.py` while somebody reads `/debug/journal`, read by `multislo replay-journal`.

Line 1 is the `Header`, with the core's whole state. Each further line is JSON too, with one of these keys first:

    event    its type and fields; `decisions` if there were some, or `raised` and `recovered_at` where the core failed on it
    status   when the core was asked for its status, which brings its beliefs up to date
    end      the last line: why the journal ended, and how many events it has

Events hold lengths, times and numbers of requests, never a prompt or an answer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from importlib.metadata import version
from typing import Any, Final, get_args

import msgspec

from multislo_router.build import build
from multislo_router.core.decisions import Decision
from multislo_router.core.events import Event, FleetChanged, InstanceSpec, InstanceState, Outcome, Scheduler
from multislo_router.core.machine import RouterCore
from multislo_router.state import WrongState, core_of, state_of

FORMAT: Final = 1
"""Changes when an older program would misread a journal."""

EVENTS: Final[dict[str, type]] = {kind.__name__: kind for kind in get_args(Event)}
_FIELDS: Final = {
    kind: tuple([field.name for field in fields(kind)]) for kind in (*get_args(Event), *get_args(Decision))
}
_encode: Final = msgspec.json.Encoder().encode

_TYPES: Final[dict[str, Any]] = {
    "now": float,
    **dict.fromkeys(("instance", "id"), str),
    "tier": str | None,
    **dict.fromkeys(("request", "tokens", "sequence", "choices", "prompt_tokens", "epoch"), int),
    **dict.fromkeys(("running", "waiting", "kv_tokens"), int),
    **dict.fromkeys(("output_tokens_max", "batch_tokens", "kv_tokens_max", "tokens_total"), int | None),
    **dict.fromkeys(("streaming", "prefilled"), bool),
    "prompts": tuple[int, ...],
    "outcome": Outcome,
    "state": InstanceState,
    "scheduler": Scheduler | None,
}
"""Of each field by its name; names in `_s` are seconds. (Compiled classes do not tell the types of their fields.)"""
_SECONDS: Final = float | None


class End(StrEnum):
    """Why a journal ended."""

    TIME = "time"
    EVENTS = "events"
    """It is as long as a journal may be."""
    SLOW_READER = "slow_reader"
    ROUTER_CLOSING = "router_closing"
    ROUTER_FAILED = "router_failed"
    """An event could not be written."""


class WrongLine(ValueError):
    """A line that is no part of a journal; the message says what is wrong with it."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a core must know to go on from where the journal begins."""

    journal: int = FORMAT
    version: str
    """Of multislo."""
    build: str
    at: float
    """Unix time of the first event, or just before it."""
    now: float
    """The same on the clock of the events."""
    in_flight: int
    """Requests that had begun before."""
    state: list[Any]
    """The core as it was: `state.py`."""


@dataclass(slots=True)
class Line:
    """Any line but the first. Just one of `event`, `status` and `end` is set."""

    event: Event | None = None
    decisions: Sequence[dict[str, Any]] = ()
    raised: str | None = None
    recovered_at: float | None = None
    status: float | None = None
    end: str | None = None


# -- writing -----------------------------------------------------------------------------------------------------------


def header_line(core: RouterCore, at: float, now: float) -> bytes:
    """`at`: Unix time; `now`: the same on the clock of the events."""
    header = Header(
        version=version("multislo"),
        build=build(),
        at=at,
        now=now,
        in_flight=len(core.requests),
        state=state_of(core),
    )
    return _encode(header) + b"\n"


def event_line(event: Event, decisions: Sequence[Decision]) -> bytes:
    line = {"event": type(event).__name__, **_plain(event)}
    if decisions:
        line["decisions"] = [_told(decision) for decision in decisions]
    return _encode(line) + b"\n"


def raised_line(event: Event, error: Exception, recovered_at: float) -> bytes:
    line = {"event": type(event).__name__, **_plain(event), "raised": raised(error), "recovered_at": recovered_at}
    return _encode(line) + b"\n"


def status_line(now: float) -> bytes:
    return _encode({"status": now}) + b"\n"


def end_line(why: End, events: int) -> bytes:
    return _encode({"end": why.value, "events": events}) + b"\n"


def raised(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _told(decision: Decision) -> dict[str, Any]:
    return {"decision": type(decision).__name__, **_plain(decision)}


def _plain(record: Event | Decision) -> dict[str, Any]:
    if isinstance(record, FleetChanged):
        return asdict(record)
    return {name: getattr(record, name) for name in _FIELDS[type(record)]}


# -- reading -----------------------------------------------------------------------------------------------------------


def read_header(text: bytes) -> tuple[Header, RouterCore]:
    """Raises `WrongLine`."""
    try:
        found = msgspec.json.decode(text)
        journal = found.get("journal") if isinstance(found, dict) else None
        if journal != FORMAT:
            raise WrongLine(f"no journal of a router, or one of another format: journal {journal!r} must be {FORMAT}")
        header: Header = msgspec.convert(found, Header)
        return header, core_of(header.state)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WrongLine(str(error)) from None
    except WrongState as error:
        raise WrongLine(f"{error}; multislo {header.version} wrote it, this is {version('multislo')}") from None


def read_line(text: bytes) -> Line:
    """Raises `WrongLine`."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
        if "event" not in found:
            return msgspec.convert(found, _Marker).line()
        decisions = msgspec.convert(found.pop("decisions", []), list[dict[str, Any]])
        for decision in decisions:
            msgspec.convert(decision.get("request"), int | None)
        failure = msgspec.convert(found.pop("raised", None), str | None)
        recovered_at = msgspec.convert(found.pop("recovered_at", None), float | None)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WrongLine(str(error)) from None
    name = found.pop("event")
    if not isinstance(name, str) or name not in EVENTS:
        raise WrongLine(f"event: {name!r} must be one of {', '.join(EVENTS)}")
    return Line(_made(EVENTS[name], found, name), decisions, failure, recovered_at)


def as_read(decision: Decision) -> dict[str, Any]:
    """A decision as it would be read from a journal."""
    return msgspec.json.decode(_encode(_told(decision)), type=dict[str, Any])


class _Marker(msgspec.Struct):
    status: float | None = None
    end: str | None = None

    def line(self) -> Line:
        if (self.status is None) == (self.end is None):
            raise WrongLine("it must have one of the keys event, status and end")
        return Line(status=self.status, end=self.end)


def _made(kind: type, found: object, path: str) -> Any:
    """An event, or part of one, from its fields."""
    if not isinstance(found, dict):
        raise WrongLine(f"{path}: must be an object")
    try:
        return kind(**{name: _value(name, value, f"{path}.{name}") for name, value in found.items()})
    except TypeError as error:  # A field too few or too many.
        raise WrongLine(f"{path}: {error}") from None


def _value(name: str, found: object, path: str) -> Any:
    try:
        if name == "instances":
            specs = msgspec.convert(found, list[Any])
            return [_made(InstanceSpec, spec, f"{path}[{index}]") for index, spec in enumerate(specs)]
        return msgspec.convert(found, _TYPES.get(name, _SECONDS if name.endswith("_s") else Any))
    except msgspec.ValidationError as error:
        raise WrongLine(f"{path}: {error}") from None
