"""What a line of a trace means: the columns of the public CSV files, the fields of the public JSON lines, stamps and lengths. Called by
`traces`."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

# The names of a column in the public traces, without regard to case: Azure's, BurstGPT's, and those of Mooncake's and Bailian's JSON lines.
STAMP = ("timestamp",)
PROMPT = ("contexttokens", "request tokens", "input_length")
OUTPUT = ("generatedtokens", "response tokens", "output_length")
TIER = ("tier",)
IMAGES = ("numimages",)
BURSTGPT = "request tokens"
"""A column of BurstGPT only, whose stamps are seconds."""
BAILIAN = "chat_id"
"""A field of Bailian's JSON lines only, whose stamps are seconds."""
KNOWN = (
    "Azure's TIMESTAMP,ContextTokens,GeneratedTokens, BurstGPT's Timestamp,Request tokens,Response tokens, or JSON lines with "
    "timestamp, input_length, output_length"
)
TOKENS_MAX = 10_000_000
STAMP_MAX = 1e20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class LineSkipped(ValueError):
    """This line is no request. The message says why in words that follow a count, without the line's own value."""


class FormatUnknown(ValueError):
    """The file's first line tells no format that is known."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a line becomes a record, a list of cells or a mapping of fields, and the keys of what is looked at in it."""

    record_of: Callable[[str], Any]
    get: Callable[[Any, Any], Any]
    stamp: int | str
    prompt: int | str
    output: int | str
    tier: int | str | None
    images: int | str | None
    seconds: str | None
    """Why stamps that are numbers are seconds, where the format says it."""
    header: bool
    """The first line is no record."""


def format_of(first: str) -> Format:
    """The format that a file's first line tells. Raises FormatUnknown."""
    if first.startswith("["):
        raise FormatUnknown("begins with '['; a JSON trace has one object a line")
    if first.startswith("{"):
        seconds = f"its lines have {BAILIAN}, as Bailian's" if f'"{BAILIAN}"' in first else None
        return Format(
            _fields, dict.get, STAMP[0], "input_length", "output_length", TIER[0], None, seconds, header=False
        )
    try:
        names = [name.strip().lower() for name in _cells(first)]
    except csv.Error:
        names = []
    stamp, prompt, output = (_index(names, of) for of in (STAMP, PROMPT, OUTPUT))
    if stamp is None or prompt is None or output is None:
        raise FormatUnknown(f"header {first[:80]!r} is none that is known: {KNOWN}")
    seconds = "BurstGPT's columns" if BURSTGPT in names else None
    tier, images = _index(names, TIER), _index(names, IMAGES)
    return Format(_row_of(len(names)), list.__getitem__, stamp, prompt, output, tier, images, seconds, header=True)


def _index(names: Sequence[str], of: Sequence[str]) -> int | None:
    return next((names.index(name) for name in of if name in names), None)


def _row_of(count: int) -> Callable[[str], list[str]]:
    def row_of(line: str) -> list[str]:
        try:
            cells = line.split(",") if '"' not in line else _cells(line)
        except csv.Error:
            raise LineSkipped("with a quote that is not closed") from None
        if len(cells) != count:
            raise LineSkipped(f"with more or fewer fields than the header's {count}")
        return cells

    return row_of


def _cells(line: str) -> list[str]:
    """A line of CSV with quotes. Each line is read alone: a quote that is not closed must not swallow what follows."""
    return next(csv.reader([line], strict=True))


def _fields(line: str) -> dict[str, Any]:
    """RecursionError passes: the caller knows the line's number."""
    try:
        fields = json.loads(line)
    except ValueError:
        raise LineSkipped("not JSON") from None
    if not isinstance(fields, dict):
        raise LineSkipped("not a JSON object")
    return fields


def dated(value: Any) -> bool:
    """Whether a stamp is written as a date rather than as a number."""
    return isinstance(value, str) and value.strip()[4:5] == "-"


def microseconds(text: str) -> int:
    """Since 1970, of a date such as `2023-11-16 18:15:46.6805900` or `2024-05-10 00:00:00.009930+00:00`; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise LineSkipped("with a stamp that is no date") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND


def number(value: Any) -> float:
    """A stamp that is a number, in whatever unit."""
    if value is None or value == "":
        raise LineSkipped("without a stamp")
    try:
        stamp = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise LineSkipped("with a stamp that is neither a date nor a number") from None
    if not 0.0 <= stamp < STAMP_MAX:
        raise LineSkipped("with a stamp that is negative or not finite")
    return stamp


def tokens(of: str, value: Any) -> int:
    """A length: a whole number, also written as `374.0`."""
    if value is None or value == "":
        raise LineSkipped(f"without {of} tokens")
    try:
        length = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        length = -1.0
    if length == 0.0:
        raise LineSkipped(f"with 0 {of} tokens")
    if not 1.0 <= length <= TOKENS_MAX or length % 1.0:
        raise LineSkipped(f"with {of} tokens that are no whole number from 1 to {TOKENS_MAX}")
    return int(length)
