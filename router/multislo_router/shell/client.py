"""The router's side towards one client: reads requests strictly (httptools), one answer at a time and in order, and ends connections
that misbehave. Made by the gateway's server for each connection."""

import asyncio
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from multislo_router.shell.errors import Fault, Reason, error_response
from multislo_router.shell.internal_errors import Seam
from multislo_router.shell.keys import check_key
from multislo_router.shell.request_head import RequestHead, is_http_1_0
from multislo_router.shell.routes import OPEN

if TYPE_CHECKING:
    from multislo_router.shell.exchange import Exchange
    from multislo_router.shell.gateway import Gateway

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NEVER = float("inf")


class Dropped(asyncio.Protocol):
    """A connection that is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


class ClientConnection(asyncio.Protocol):
    """`exchange` is the request being answered; others of the same connection wait for it. `deadline`: when the gateway's sweep shall
    call `expired`."""

    __slots__ = (
        "_advancing",
        "_backlog",
        "_backlog_bytes",
        "_body",
        "_body_bytes",
        "_body_deadline",
        "_continue_due",
        "_deaf",
        "_errors",
        "_fault",
        "_gateway",
        "_head",
        "_headers",
        "_owes",
        "_parser",
        "_quiet_bytes",
        "_reading_bytes",
        "_settings",
        "_url",
        "_waiting",
        "closing",
        "deadline",
        "exchange",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._errors = gateway.errors
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head: RequestHead | None = None
        """Of the request whose body is being read."""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_deadline = NEVER
        self._quiet_bytes = 0
        """Read without getting on: of a head, or of chunk framing and trailers without a byte of content."""
        self._reading_bytes = 0
        self._waiting: deque[tuple[RequestHead, bytes]] = deque()
        self._fault: Fault | None = None
        """What ends this connection, once the requests before it are answered."""
        self._backlog: list[bytes] = []
        """Bytes that came while a request is being answered, not looked at yet. Beyond a head's size the socket is not read; what one
        read of the socket brings bounds `_waiting` as well."""
        self._backlog_bytes = 0
        self._continue_due = False
        self._deaf = False
        """Nothing more is read as a request."""
        self._advancing = False
        self._owes = False
        """A request was begun, and neither answered nor made an exchange."""
        self.exchange: Exchange | None = None
        self.closing = False
        self.deadline = NEVER

    # -- the transport's calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        try:
            self._made()
        except Exception as error:
            self._errors.failed(Seam.CLIENT, error, self)

    def _made(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.set_write_buffer_limits(high=self._settings.write_buffer_max_bytes)
        self.deadline = time.monotonic() + self._settings.idle_timeout_s
        if not self._gateway.admit(self):
            self._fault = Fault(Reason.CONNECTIONS_FULL, "too many connections", retry_after_s=1.0)
            self._deaf = True
            self._advance()

    def data_received(self, data: bytes) -> None:
        try:
            self._received(data)
        except Exception as error:
            self._errors.failed(Seam.CLIENT, error, self)

    def _received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self.exchange is not None or self._waiting:
            self._backlog.append(data)
            self._backlog_bytes += len(data)
            if self._backlog_bytes > self._settings.header_max_bytes:
                self.transport.pause_reading()
            return
        between = self.between
        if between:
            known = self._gateway.heads.find(data)
            if known is not None:
                head, end = known
                self._begin(head, data[end:])
                return
        self._read(data)
        if between and self.between and len(self._waiting) == 1 and not self._deaf:
            self._gateway.heads.remember(data, self._waiting[0][0])
        self._advance()

    def eof_received(self) -> None:
        # Half-closed counts as gone: a client that left and one that only will not write any more look the same, and generating for
        # the first would cost more than refusing the second.
        if self.exchange is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        try:
            self.closing = True
            self._deaf = True
            self._waiting.clear()
            self._gateway.left(self)
            if exchange is not None:
                exchange.client_gone()
        except Exception as error:
            self._gateway.left(self)
            self._errors.failed(Seam.CLIENT, error, exchange)

    def pause_writing(self) -> None:
        self.deadline = time.monotonic() + self._settings.reader_stall_timeout_s
        exchange = self.exchange
        if exchange is not None:
            try:
                exchange.pause()
            except Exception as error:
                self._errors.failed(Seam.CLIENT, error, exchange)

    def resume_writing(self) -> None:
        exchange = self.exchange
        if exchange is not None:
            self.deadline = NEVER
            try:
                exchange.resume()
            except Exception as error:
                self._errors.failed(Seam.CLIENT, error, exchange)

    # -- reading requests ----------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        content = self._body_bytes
        self._reading_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request before it is answered as if it had not asked; nothing after it could be read.
            self._deaf = True
            if self._waiting:
                self._waiting[-1][0].keep_alive = False
        except httptools.HttpParserError as error:
            self._deaf = True
            if self._fault is None and isinstance(error, httptools.HttpParserCallbackError):
                self._errors.report(Seam.CLIENT, error)
                self._fault = Fault(Reason.INTERNAL, "the router failed on this request")
            elif self._fault is None:
                self._fault = Fault(Reason.MALFORMED, f"not a well-formed HTTP/1.1 request: {error}")
            return
        if self._waiting and self.between:
            return
        self._bound(data, content)

    def _bound(self, data: bytes, content: int) -> None:
        """A request is still incomplete: bounds its head's size, and the time until its next byte."""
        settings = self._settings
        now = time.monotonic()
        if self._head is None:
            if not self._quiet_bytes:
                self.deadline = now + settings.head_timeout_s
            self._quiet_bytes += len(data)
        else:
            if self._body_deadline == NEVER:
                self._body_deadline = now + settings.body_timeout_s
            self.deadline = min(now + settings.body_gap_timeout_s, self._body_deadline)
            self._quiet_bytes = self._quiet_bytes + len(data) if self._body_bytes == content else 0
        if self._quiet_bytes > settings.header_max_bytes:
            self._deaf = True
            message = f"request line and headers exceed {settings.header_max_bytes} bytes"
            self._fault = Fault(Reason.HEAD_TOO_LARGE, message)

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        try:
            head = self._head = RequestHead(
                method=method,
                target=self._gateway.routes.find(method, self._url),
                http_1_0=is_http_1_0(parser.get_http_version()),
                keep_alive=parser.should_keep_alive(),
            )
            head.read(self._headers, keep_credentials=not self._settings.api_keys)
            head.cors = self._gateway.cors.lines(head)
            self._check(head)
        except Fault as fault:
            self._fault = fault
            raise

    def _check(self, head: RequestHead) -> None:
        """What can be refused before a byte of the body has been read."""
        settings = self._settings
        if self._quiet_bytes + self._reading_bytes > settings.header_max_bytes:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > settings.header_max_bytes:
                message = f"request line and headers exceed {settings.header_max_bytes} bytes"
                raise Fault(Reason.HEAD_TOO_LARGE, message)
        self._quiet_bytes = 0
        head.check()
        if self._settings.api_keys and head.target.route not in OPEN:
            check_key(self._settings.api_keys, head)
        if head.content_length is not None and head.content_length > settings.body_max_bytes:
            raise self._too_large()
        if head.expect is not None:
            if head.expect != b"100-continue":
                raise Fault(Reason.EXPECTATION_FAILED, "expect: only 100-continue is known", param="expect")
            self._continue_due = head.has_body and not head.http_1_0

    def _too_large(self) -> Fault:
        return Fault(Reason.BODY_TOO_LARGE, f"the body exceeds {self._settings.body_max_bytes} bytes")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._settings.body_max_bytes:
            self._fault = self._too_large()
            raise self._fault

    def on_message_complete(self) -> None:
        head = self._head
        assert head is not None
        body = self._body
        self._waiting.append((head, body[0] if len(body) == 1 else b"".join(body)))
        self._head = None
        self._url = b""
        self._quiet_bytes = 0
        self._continue_due = False
        self._body_deadline = NEVER
        if body:
            self._body = []
            self._body_bytes = 0

    # -- answering -----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Answers what waits, in order, until one request needs an engine. A loop and not a recursion: many requests that are
        answered at once may come in one packet."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.exchange is None and not self.closing:
                if self._waiting:
                    self._begin(*self._waiting.popleft())
                elif self._fault is not None:
                    self._refuse(self._fault)
                elif self._backlog and not self._deaf:
                    data = b"".join(self._backlog)
                    self._backlog = []
                    if self._backlog_bytes > self._settings.header_max_bytes and not self.transport.is_closing():
                        self.transport.resume_reading()
                    self._backlog_bytes = 0
                    self._read(data)
                else:
                    break
        finally:
            self._advancing = False
        if self._continue_due and self.exchange is None and not self._deaf:
            self._continue_due = False
            if not self._body_bytes:
                self.write(CONTINUE)

    def _begin(self, head: RequestHead, body: bytes) -> None:
        self.deadline = NEVER
        self._owes = True
        self._gateway.begin(self, head, body)
        self._owes = False

    def _refuse(self, fault: Fault) -> None:
        """The last answer of this connection. It is read on for a moment: closing it with unread bytes would reset it, and the
        client would never see the answer."""
        self._gateway.counters.faults[fault.reason] += 1
        self.closing = True
        self._deaf = True
        self.deadline = time.monotonic() + self._settings.linger_timeout_s
        if not self.transport.is_closing():
            cors = b"" if self._head is None else self._head.cors
            self.transport.write(error_response(fault, self._gateway.new_request_id(), close=True, extra=cors))
            self.transport.write_eof()

    def write(self, data: bytes) -> None:
        # A transport that is closing raises; that it is lost is said only later.
        if not self.transport.is_closing():
            self.transport.write(data)

    def answer(self, data: bytes, *, close: bool) -> None:
        """A whole answer."""
        self._owes = False
        self.write(data)
        self.finished(close=close)

    def finished(self, *, close: bool) -> None:
        """The answer is complete."""
        self.exchange = None
        if close or self._gateway.closing:
            self.close()
            return
        self.deadline = time.monotonic() + self._settings.idle_timeout_s
        if self._waiting or self._backlog or self._fault is not None or self._continue_due:
            self._advance()

    def close(self) -> None:
        """Closes once everything written has been sent, or the client has stopped reading."""
        self.closing = True
        self._deaf = True
        self.deadline = time.monotonic() + self._settings.reader_stall_timeout_s
        self.transport.close()

    def cut(self) -> None:
        """Ends an answer that cannot be completed, visibly: with a reset, never with a clean end."""
        self.exchange = None
        self.closing = True
        self._deaf = True
        if self.transport.is_closing():
            return
        linger_off = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_off)
        self.transport.abort()

    def crashed(self) -> None:
        """The router itself failed on what this client sent."""
        exchange = self.exchange
        if exchange is not None:
            exchange.crashed()
        elif self.closing:
            self.transport.abort()
        elif self._owes:
            self._owes = False
            self._refuse(Fault(Reason.INTERNAL, "the router failed on this request"))
        else:
            self.close()

    def drop(self) -> None:
        """Even its error could not be told."""
        self.transport.abort()

    @property
    def stuck(self) -> bool:
        """Nothing would ever end its connection. Asked between two turns of the event loop."""
        if self.exchange is not None:
            return self.exchange.over
        return self.deadline == NEVER and not self._waiting

    @property
    def between(self) -> bool:
        """No request is half read."""
        return self._head is None and not self._url and not self._quiet_bytes

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self.exchange is None and not self._waiting and self.between

    def expired(self) -> None:
        """The deadline has passed."""
        if self.closing or self.exchange is not None:
            self.transport.abort()  # it lingers, or does not read its answer
        elif self.idle:
            self.close()
        else:
            self._fault = Fault(Reason.TIMEOUT, "the request did not arrive in time")
            self._deaf = True
            self._advance()
