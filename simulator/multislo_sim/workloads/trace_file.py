"""A trace's file as numbered lines: plain or gzip, UTF-8, one bounded line in memory at a time. Called by `traces`."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import IO, cast

# A Mooncake line has a hash for each 512 tokens: 2,000 for the longest context, 16 kB. A longer line is not a request.
LINE_MAX = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
Lines = Iterator[tuple[int, str]]


class TraceInvalid(ValueError):
    """The file is not a trace that can be read; the message begins with `path:` or `path:line:`."""


def numbered_lines(path: Path) -> Lines:
    """The lines that are not blank, without their ends, numbered from 1. Raises TraceInvalid where the file cannot be read on."""
    number = 0
    try:
        # Opened once, so that a pipe works too. A byte that is not UTF-8 spoils its own line only, so it is replaced.
        with (
            path.open("rb") as raw,
            gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZIP_MAGIC) else nullcontext(raw) as plain,
            TextIOWrapper(cast(IO[bytes], plain), encoding="utf-8-sig", errors="replace") as text,
        ):
            while line := text.readline(LINE_MAX + 1):
                number += 1
                if len(line) > LINE_MAX:
                    raise TraceInvalid(f"{path}:{number}: more than {LINE_MAX} characters in one line")
                if number == 1 and ("\0" in line or "\ufffd" in line):
                    raise TraceInvalid(f"{path}:1: not UTF-8 text; a trace is a CSV or JSONL file, plain or gzip")
                if line := line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceInvalid(f"{path}:{number + 1}: the gzip data is broken or cut off: {error}") from None
    except OSError as error:
        raise TraceInvalid(f"{path}: cannot be read: {error.strerror or error}") from None
