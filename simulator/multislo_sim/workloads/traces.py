"""Reads the two public trace formats from a path that the user names: Azure's CSV and Mooncake's JSONL. Every mistake
is reported with file, line, field, value and what is legal."""

import csv
import json
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from multislo_sim.workloads.request import Request

AZURE_FIELDS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")
# One line of a Mooncake trace lists a hash for each 512 tokens: 2,000 for the longest context. Beyond this it is no
# trace.
LINE_BYTES_MAX = 1 << 20
TOKENS_MAX = 10_000_000


class TraceInvalid(ValueError):
    """The file is not a trace that we read; the message begins with `path:line:`."""


def read_trace(path: Path, requests_max: int | None = None) -> list[Request]:
    """All requests of the file (at most the first `requests_max`), in order of arrival, the first at 0.

    The format is told by the first line: a Mooncake line is a JSON object, an Azure file begins with its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline(LINE_BYTES_MAX)
    except UnicodeDecodeError as error:
        raise TraceInvalid(f"{path}:1: not UTF-8 text (byte {error.start}); a trace is a CSV or JSONL file") from None
    except OSError as error:
        raise TraceInvalid(f"{path}: cannot be read: {error.strerror}") from None
    reader = read_mooncake if first.lstrip().startswith("{") else read_azure
    requests = reader(path, requests_max)
    if not requests:
        raise TraceInvalid(f"{path}: holds no request, at least 1 is needed")
    requests.sort(key=lambda request: request.at_s)
    start_s = requests[0].at_s
    return [Request(request.at_s - start_s, request.prompt_tokens, request.output_tokens) for request in requests]


def read_azure(path: Path, requests_max: int | None = None) -> list[Request]:
    """`TIMESTAMP,ContextTokens,GeneratedTokens`; stamps as `2023-11-16 18:15:46.6805900`, with up to 7 decimals."""
    requests: list[Request] = []
    origin: datetime | None = None
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = tuple(name.strip() for name in next(rows, []))
        if header != AZURE_FIELDS:
            raise TraceInvalid(
                f"{path}:1: header {','.join(header)[:80]!r} is neither Azure's {','.join(AZURE_FIELDS)} nor JSON"
            )
        for row in islice(rows, requests_max):
            where = f"{path}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(AZURE_FIELDS):
                raise TraceInvalid(
                    f"{where}: {len(row)} fields, must be {len(AZURE_FIELDS)} ({','.join(AZURE_FIELDS)})"
                )
            moment, fraction_s = _azure_stamp(where, row[0])
            origin = origin or moment
            at_s = (moment - origin) / timedelta(seconds=1) + fraction_s
            requests.append(
                Request(at_s, _tokens(where, AZURE_FIELDS[1], row[1]), _tokens(where, AZURE_FIELDS[2], row[2]))
            )
    return requests


def read_mooncake(path: Path, requests_max: int | None = None) -> list[Request]:
    """One JSON object a line: `timestamp` in milliseconds, `input_length`, `output_length`; other fields are not looked
    at."""
    requests: list[Request] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if requests_max is not None and len(requests) >= requests_max:
                break
            if not line.strip():
                continue
            where = f"{path}:{number}"
            if len(line) > LINE_BYTES_MAX:
                raise TraceInvalid(f"{where}: {len(line)} characters, must be at most {LINE_BYTES_MAX}")
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise TraceInvalid(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(fields, dict):
                raise TraceInvalid(f"{where}: must be a JSON object, is {line.strip()[:40]!r}")
            for name in MOONCAKE_FIELDS:
                if name not in fields:
                    raise TraceInvalid(f"{where}: {name}: missing, must be a number")
            stamp, prompt, output = (fields[name] for name in MOONCAKE_FIELDS)
            if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < 1e15:
                raise TraceInvalid(f"{where}: timestamp: {stamp!r} must be a number of milliseconds, at least 0")
            requests.append(
                Request(stamp / 1000.0, _tokens(where, "input_length", prompt), _tokens(where, "output_length", output))
            )
    return requests


def _azure_stamp(where: str, text: str) -> tuple[datetime, float]:
    """The stamp's whole seconds and its fraction: `datetime` keeps 6 decimals, the trace has 7."""
    whole, _, decimals = text.strip().partition(".")
    try:
        if decimals and not (decimals.isascii() and decimals.isdigit()):
            raise ValueError(decimals)
        # The trace names no zone, and only differences count.
        moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007
    except ValueError:
        raise TraceInvalid(f"{where}: TIMESTAMP: {text!r} must look like '2023-11-16 18:15:46.6805900'") from None
    return moment, float(f"0.{decimals}") if decimals else 0.0


def _tokens(where: str, field: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:20])
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= TOKENS_MAX:
        raise TraceInvalid(f"{where}: {field}: {value!r} must be a whole number from 1 to {TOKENS_MAX}")
    return value
