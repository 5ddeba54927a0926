"""An engine's answer on the wire: its head, and where its body ends. Called by the engine's connection.

Written by hand and not with httptools, because the bytes are relayed as they came (chunk framing too): only the end of the body, the
boundaries of its chunks and the bytes inside them are of interest, and an engine is no attacker. What is odd is refused.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _TEXT + rb")?\r\n")
_FIELDS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:" + _TEXT + rb"\r\n)*")
"""Of other spellings (folded lines, a blank before the colon, a lone CR or LF) a client may read other fields than the router."""
_LENGTH = re.compile(rb"[0-9]{1,18}")
_FRAMING = re.compile(rb"\r\n(transfer-encoding|content-length|connection):[ \t]*([^\r\n]*)")
_KEPT = frozenset((b"", b"close", b"keep-alive", b"content-length", b"transfer-encoding"))
"""Of the options of `connection`, what names no field that ends here: a body's framing goes with the body, whatever an engine says."""
_OWN = re.compile(
    rb"\r\n(?:connection|keep-alive|proxy-authenticate|proxy-connection|te|trailer|upgrade|access-control-[a-z-]+|(?:x-)?request-id|x-multislo-[a-z-]+):[^\r\n]*"
)
"""Ends here (RFC 9110, 7.6.1), or is written by the router."""
_AUTHORITY = re.compile(rb"(\r\n(?:content-)?location:[ \t]*)(?:https?:)?//[^/\r\n]*", re.IGNORECASE)
"""An engine knows itself by an address that is none of the client's business: a redirect stays on the router."""
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_UNBUFFERED = (
    (b"\r\nx-accel-buffering:", b"x-accel-buffering: no\r\n"),
    (b"\r\ncache-control:", b"cache-control: no-cache\r\n"),
)
"""Added to a stream of events that does not say them itself: nginx, and others after it, would collect the events."""
HEADS_REMEMBERED = 512
"""Of at most 64 KB, and commonly 200 bytes."""
CHUNK_LINE_MAX_BYTES = 1024
"""Of a chunk's size and extensions: they are a dozen bytes."""
TRAILER_MAX_BYTES = 16 * 1024


class EngineSpokeNonsense(Exception):
    """The answer is not HTTP/1.x as we know it. The engine's fault: its connection is closed."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`lines` are the header lines to be relayed, each with its line end. `length` is None for a chunked body or one that ends
    with the connection."""

    status: int
    lines: bytes
    status_line: bytes
    chunked: bool
    length: int | None
    keep_alive: bool
    event_stream: bool
    retry_after_s: float | None = None
    """Where it is a number of seconds."""


@lru_cache(HEADS_REMEMBERED)
def read_head(head: bytes) -> ResponseHead:
    """`head` ends with the line end of its last header. An engine's heads are the same for as long as its clock shows one second."""
    status_line = _STATUS.match(head)
    if status_line is None:
        raise EngineSpokeNonsense(f"status line {head[:80]!r}")
    fields = _FIELDS.match(head, status_line.end())
    assert fields is not None
    if fields.end() != len(head):
        raise EngineSpokeNonsense(f"header {head[fields.end() : fields.end() + 80]!r}")
    lower = head.lower()
    chunked = False
    length: int | None = None
    keep_alive = status_line[1] == b"1"
    options: list[bytes] = []
    for name, value in _FRAMING.findall(lower):
        if name == b"content-length":
            if _LENGTH.fullmatch(value.strip()) is None or (length is not None and length != int(value)):
                raise EngineSpokeNonsense(f"content-length {value!r}")
            length = int(value)
        elif name == b"transfer-encoding":
            if value.strip() != b"chunked":
                raise EngineSpokeNonsense(f"transfer-encoding {value!r}")
            chunked = True
        else:
            options += [option.strip() for option in value.split(b",")]
    if b"close" in options:
        keep_alive = False
    elif b"keep-alive" in options:
        keep_alive = True
    if chunked and length is not None:
        raise EngineSpokeNonsense("both content-length and transfer-encoding")
    start = status_line.end()
    lines = head[start:]
    if _OWN.search(lower) is not None:
        lines = _without_own(head[start - 2 :])
    dropped = tuple(b"%b:" % option for option in options if option not in _KEPT)
    if dropped:
        lines = b"".join(line for line in lines.splitlines(keepends=True) if not line.lower().startswith(dropped))
    retry_after = _RETRY_AFTER.search(lower)
    if b"location:" in lower:
        lines = _AUTHORITY.sub(rb"\1", b"\r\n" + lines)[2:]
    event_stream = b"text/event-stream" in lower
    if event_stream:
        lines += b"".join(line for name, line in _UNBUFFERED if name not in lower)
    return ResponseHead(
        status=int(status_line[2]),
        lines=lines,
        status_line=b"HTTP/1.1" + head[8:start],
        chunked=chunked,
        length=length,
        keep_alive=keep_alive,
        event_stream=event_stream,
        retry_after_s=None if retry_after is None else float(retry_after[1]),
    )


def check_start(data: bytes) -> None:
    """Of a head that is incomplete: what does not begin as one need not be waited for."""
    if b"\n" in data and _STATUS.match(data) is None:
        raise EngineSpokeNonsense(f"status line {data[:80]!r}")


def _without_own(lines: bytes) -> bytes:
    """`lines` begins with the line end of the status line."""
    kept = []
    at = 0
    for own in _OWN.finditer(lines.lower()):
        kept.append(lines[at : own.start()])
        at = own.end()
    kept.append(lines[at:])
    return b"".join(kept)[2:]


class ResponseBody(Protocol):
    """`feed` returns what may be relayed now, framing and all; `pieces` are the bytes of content in it."""

    pieces: list[bytes]
    done: bool

    def feed(self, data: bytes) -> bytes: ...

    @property
    def whole(self) -> bool:
        """Whether the relayed bytes end where something else may be put in (between two chunks)."""
        ...

    @property
    def ends_with_connection(self) -> bool: ...


class SizedBody:
    __slots__ = ("_left", "done", "pieces")

    whole = False
    ends_with_connection = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.pieces: list[bytes] = []
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise EngineSpokeNonsense(f"{-self._left} bytes beyond the end of the body")
        self.done = not self._left
        self.pieces = [data]
        return data


class UnsizedBody:
    """Ends with its connection."""

    __slots__ = ("done", "pieces")

    whole = False
    ends_with_connection = True

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.done = False

    def feed(self, data: bytes) -> bytes:
        self.pieces = [data]
        return data


class ChunkedBody:
    """Relays whole chunks, so that an error event can be put in after any of them; only of a chunk larger than `hold_max_bytes`
    also parts. An engine sends each event as one chunk, so that nearly all data are exactly one."""

    __slots__ = ("_held", "_hold_max_bytes", "_left", "done", "pieces")

    ends_with_connection = False

    def __init__(self, hold_max_bytes: int) -> None:
        self._hold_max_bytes = hold_max_bytes
        self._held = b""
        self._left = 0
        """Bytes of a chunk that is being relayed in parts, its line end included."""
        self.pieces: list[bytes] = []
        self.done = False

    @property
    def whole(self) -> bool:
        return not self._left

    def feed(self, data: bytes) -> bytes:
        self.pieces = pieces = []
        if self._held:
            data = self._held + data
            self._held = b""
        at = self._feed_left(data) if self._left else 0
        size = len(data)
        while at < size:
            line = _CHUNK.match(data, at)
            if line is None:
                if b"\r\n" in data[at : at + CHUNK_LINE_MAX_BYTES] or size - at > CHUNK_LINE_MAX_BYTES:
                    raise EngineSpokeNonsense(f"chunk size {data[at : at + 20]!r}")
                break
            start = line.end()
            length = int(line[1], 16)
            if not length:
                at = self._end(data, at, start)
                break
            end = start + length
            if end + 2 > size:
                if length <= self._hold_max_bytes:
                    break
                self._left = end + 2 - size
                pieces.append(data[start:end])
                return data
            if data[end : end + 2] != b"\r\n":
                raise EngineSpokeNonsense("a chunk does not end where it should")
            pieces.append(data[start:end])
            at = end + 2
        if at == size:
            return data
        self._held = data[at:]
        return data[:at]

    def _feed_left(self, data: bytes) -> int:
        """Takes what belongs to a chunk that is relayed in parts; where it ends in `data`."""
        content = data[: max(0, self._left - 2)]
        if content:
            self.pieces.append(content)
        at = min(self._left, len(data))
        self._left -= at
        return at

    def _end(self, data: bytes, at: int, start: int) -> int:
        """The last chunk begins at `at`; behind it come trailers and an empty line. Where they end, or `at` while they are incomplete."""
        end = start + 2 if data[start : start + 2] == b"\r\n" else data.find(b"\r\n\r\n", start) + 4
        if end > len(data) or end == 3:
            if len(data) - start > TRAILER_MAX_BYTES:
                raise EngineSpokeNonsense("endless trailers")
            return at
        if end < len(data):
            raise EngineSpokeNonsense(f"{len(data) - end} bytes beyond the end of the body")
        self.done = True
        return end


def body_of(head: ResponseHead, method: bytes, hold_max_bytes: int) -> ResponseBody:
    if method == b"HEAD" or head.status in (204, 304):
        return SizedBody(0)
    if head.chunked:
        return ChunkedBody(hold_max_bytes)
    return UnsizedBody() if head.length is None else SizedBody(head.length)
