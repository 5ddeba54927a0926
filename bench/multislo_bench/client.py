"""A client cheap enough to measure with: one `asyncio.Protocol` per connection that counts server-sent events by their bytes and
parses JSON only at a stream's ends. The replay calls it."""

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from multislo_bench.record import Outcome, Record

# Of an error's body we keep the beginning: its code is there, and a proxy's error page may be long.
ERROR_BYTES_MAX = 4096
# An event with one token is 100 to 400 bytes. Beyond this the server does not speak what we count.
EVENT_BYTES_MAX = 1 << 20
# Where one of these is, an event may hold no token. Inside JSON text its quotes would be escaped, so content cannot fake one.
ENDS = (b'"completion_tokens"', b"[DONE]", b'"finish_reason":"', b'"finish_reason": "', b'"error"')


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The parsed target of requests."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: str
    path: str

    @staticmethod
    def of(url: str, path: str) -> "Endpoint":
        """`url` as the user gave it, with or without `/v1`. Raises ValueError with what is wrong."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} must look like http://HOST:PORT")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        base = parts.path.rstrip("/").removesuffix("/v1")
        return Endpoint(parts.hostname, port, tls, parts.netloc.rpartition("@")[2], base + path)


@dataclass(slots=True)
class Client:
    """Keeps connections alive between requests and opens a new one whenever none is idle: arrivals never wait."""

    endpoint: Endpoint
    api_key: str | None = None
    idle: list["Connection"] = field(default_factory=list)
    busy: set["Connection"] = field(default_factory=set)
    connecting: set[asyncio.Task[None]] = field(default_factory=set)

    def send(self, record: Record, headers: bytes, body: bytes, ended: Callable[[], None]) -> None:
        """Sends the request now; `ended` is called once, when the record is complete."""
        message = self._head(len(body)) + headers + b"\r\n" + body
        sent_at = perf_counter()
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                connection.begin(record, sent_at, message, ended)
                return
        self.connect(record, sent_at, message, ended)

    def connect(self, record: Record, sent_at: float, message: bytes, ended: Callable[[], None]) -> None:
        """Opens a new connection for a request whose time runs since `sent_at`."""
        task = asyncio.get_running_loop().create_task(self._connect(record, sent_at, message, ended))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    def close(self) -> None:
        for task in self.connecting:
            task.cancel()
        for connection in (*self.idle, *self.busy):
            connection.give_up(Outcome.UNFINISHED)

    async def _connect(self, record: Record, sent_at: float, message: bytes, ended: Callable[[], None]) -> None:
        to, loop = self.endpoint, asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), to.host, to.port, ssl=to.tls)
        except OSError as error:
            record.outcome, record.cause = Outcome.FAILED, f"connect: {error.strerror or error}"
            ended()
            return
        connection.begin(record, sent_at, message, ended)

    def _head(self, body_bytes: int) -> bytes:
        key = f"authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        return (
            f"POST {self.endpoint.path} HTTP/1.1\r\nhost: {self.endpoint.authority}\r\n{key}"
            f"content-type: application/json\r\naccept: text/event-stream\r\ncontent-length: {body_bytes}\r\n"
        ).encode()


class Connection(asyncio.Protocol):
    """One connection, one request at a time. The httptools parser calls the `on_*` methods from within `feed_data`."""

    __slots__ = (
        "_client",
        "_done",
        "_ended",
        "_fresh",
        "_message",
        "_now",
        "_parser",
        "_record",
        "_rest",
        "_sent_at",
        "_separator",
        "_status",
        "_transport",
        "_usage_tokens",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._record: Record | None = None
        self._ended: Callable[[], None] = _nothing
        self._message = b""
        self._sent_at = 0.0
        self._now = 0.0
        self._fresh = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports derive from no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, record: Record, sent_at: float, message: bytes, ended: Callable[[], None]) -> None:
        assert self._transport is not None
        self._record, self._sent_at, self._message, self._ended = record, sent_at, message, ended
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._separator = b""
        self._rest = b""
        self._done = False
        self._usage_tokens = 0
        self._client.busy.add(self)
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter() - self._sent_at
        if self._record is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}"[:100])
            self.abort()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A piece of the stream: usually one event or a few whole ones, with one token each."""
        record = self._record
        if record is None:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._status != 200:
            self._rest = data[:ERROR_BYTES_MAX]
            return
        separator = self._separator
        if not separator or not data.endswith(separator):
            self._examine(record, data)
            return
        for mark in ENDS:
            if mark in data:
                self._examine(record, data)
                return
        record.received(self._now, data.count(separator))

    def _examine(self, record: Record, data: bytes) -> None:
        """The slow way, for the ends of a stream and for events cut by the network: each event is parsed."""
        if not self._separator:
            self._separator = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n" if b"\n\n" in data else b""
        *events, self._rest = data.split(self._separator) if self._separator else [data]
        if len(self._rest) > EVENT_BYTES_MAX:
            self._fail(f"an event of more than {EVENT_BYTES_MAX} bytes")
            self.abort()
            return
        tokens = 0
        for event in events:
            kind = _event(event)
            if isinstance(kind, str):
                self._fail(kind)
                self.abort()
                return
            tokens += kind.tokens
            self._done = self._done or kind.done
            self._usage_tokens = kind.usage_tokens or self._usage_tokens
        if tokens:
            record.received(self._now, tokens)

    def on_message_complete(self) -> None:
        reusable = self._parser.should_keep_alive()
        self._finish()
        if reusable and self.usable:
            self._fresh = False
            self._client.idle.append(self)
        else:
            self.abort()

    def _finish(self) -> None:
        record = self._record
        if record is None:
            return
        if self._status != 200:
            refused = self._status in (429, 503)
            record.outcome = Outcome.REFUSED if refused else Outcome.FAILED
            record.cause = f"{self._status} {_error_code(self._rest)}".strip()
        elif not self._done:
            self._fail(f"stream ended without [DONE] after {record.tokens} tokens")
            return
        else:
            got = max(record.tokens, self._usage_tokens)
            record.outcome = Outcome.COMPLETED if got >= record.output_tokens else Outcome.TRUNCATED
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._client.idle:
            self._client.idle.remove(self)
        record = self._record
        if record is None:
            return
        if self._done:
            self._finish()
        elif not self._fresh and self._status == 0:
            # The server closed an idle connection while we wrote to it: no byte of an answer came, so it is sent again.
            self._record = None
            self._client.busy.discard(self)
            self._client.connect(record, self._sent_at, self._message, self._ended)
        else:
            self._fail(f"connection closed after {record.tokens} tokens")

    def _fail(self, cause: str) -> None:
        if self._record is not None:
            self._record.outcome, self._record.cause = Outcome.FAILED, cause
            self._end()

    def _end(self) -> None:
        self._record = None
        self._message = b""
        self._client.busy.discard(self)
        self._ended()

    def give_up(self, outcome: Outcome) -> None:
        """Ends the running request as `outcome` and closes the connection."""
        if self._record is not None:
            self._record.outcome = outcome
            self._end()
        self.abort()

    def age_s(self, now: float) -> float:
        return now - self._sent_at

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(slots=True)
class _Event:
    tokens: int = 0
    done: bool = False
    usage_tokens: int = 0


def _event(event: bytes) -> _Event | str:
    """What an event holds, or the cause of failure that it tells."""
    data = b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    if not data:
        return _Event()
    if data == b"[DONE]":
        return _Event(done=True)
    try:
        fields = json.loads(data)
    except ValueError:
        return f"an event that is not JSON: {data[:60]!r}"
    if "error" in fields:
        return f"error event: {_error_code(data)}"
    usage = fields.get("usage") or {}
    choices = fields.get("choices") or []
    if not choices:
        return _Event(usage_tokens=int(usage.get("completion_tokens") or 0))
    delta = choices[0].get("delta")
    # A chat stream opens with an event that has a role and no token, and may close with one that has only a reason.
    empty = delta is not None and not any(value for key, value in delta.items() if key != "role")
    if empty and (choices[0].get("finish_reason") is None or not delta):
        return _Event()
    if delta is None and choices[0].get("finish_reason") is not None and not choices[0].get("text"):
        return _Event()
    return _Event(tokens=1)


def _error_code(body: bytes) -> str:
    """The most exact name in an OpenAI error body, or the beginning of what came instead."""
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or error.get("message"))[:80]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:80].decode("ascii", "replace").strip()


def _nothing() -> None:
    return
