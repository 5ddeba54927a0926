"""The router's side towards one client: one answer at a time and in order, and an end for connections that misbehave. Made by the gateway's
server for each connection; what a request is, `request_reader` knows."""

import asyncio
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from multislo_router.shell.errors import Dialect, Fault, Reason, error_response
from multislo_router.shell.internal_errors import Seam
from multislo_router.shell.keep_alive import CLIENT, has_left, watch_peer
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.request_reader import PIECE_BYTES, RequestReader

if TYPE_CHECKING:
    from multislo_router.shell.exchange import Exchange
    from multislo_router.shell.gateway import Gateway

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NEVER: Final = float("inf")


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
        "_backlog_at",
        "_backlog_bytes",
        "_errors",
        "_gateway",
        "_held_bytes",
        "_owes",
        "_paused",
        "_reader",
        "_request_deadline",
        "_settings",
        "closing",
        "deadline",
        "exchange",
        "transport",
        "unread",
    )

    transport: asyncio.Transport

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._errors = gateway.errors
        self._reader = RequestReader(gateway.rules)
        self._request_deadline = NEVER
        """Until when the head, or the whole body, that is being read must have come."""
        self._backlog: deque[bytes] = deque()
        """Bytes that came while a request is being answered, or while the client reads no answers; not looked at yet. Beyond a head's size
        the socket is not read."""
        self._backlog_at = 0
        """Of the first of them, what was looked at."""
        self._backlog_bytes = 0
        self._held_bytes = 0
        """What the gateway counts for this connection."""
        self._paused = False
        """The socket is not read."""
        self.unread = False
        """The client leaves so much unread that nothing more is answered yet."""
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
        watch_peer(self.transport.get_extra_info("socket"), CLIENT)
        self.transport.set_write_buffer_limits(high=self._settings.write_buffer_max_bytes)
        self.deadline = time.monotonic() + self._settings.idle_timeout_s
        if not self._gateway.admit(self):
            self._reader.fault = Fault(Reason.CONNECTIONS_FULL, "too many connections", retry_after_s=1.0)
            self._reader.ended = True
            self._advance()

    def data_received(self, data: bytes) -> None:
        try:
            self._received(data)
        except Exception as error:
            self._errors.failed(Seam.CLIENT, error, self)

    def _received(self, data: bytes) -> None:
        reader = self._reader
        if reader.ended:
            return
        fresh = self.exchange is None and not self._backlog and not self.unread and reader.between
        if fresh:
            known = self._gateway.heads.find(data)
            if known is not None and self._gateway.rules.held.takes(len(data)):
                head, end = known
                self._begin(head, data[end:])
                if len(data) > PIECE_BYTES:
                    self.count_held()
                return
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self.exchange is None and not self.unread:
            self._read()
            if fresh and not self._backlog and reader.between and len(reader.requests) == 1 and not reader.ended:
                self._gateway.heads.remember(data, reader.requests[0][0])
            self._advance()
        if not self._gateway.rules.held.takes(self._backlog_bytes):
            reader.overflow()
            self._drop_backlog()
        self._pause_or_resume()
        self.count_held()

    def eof_received(self) -> None:
        # Half-closed counts as gone: a client that left and one that only will not write any more look the same, and generating for
        # the first would cost more than refusing the second.
        if self.exchange is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        try:
            self.closing = True
            self._gateway.left(self)
            self._forget()
            if exchange is not None:
                exchange.client_gone()
        except Exception as error:
            self._gateway.left(self)
            self._errors.failed(Seam.CLIENT, error, exchange)

    def pause_writing(self) -> None:
        self.unread = True
        self.deadline = time.monotonic() + self._settings.reader_stall_timeout_s
        exchange = self.exchange
        if exchange is not None:
            try:
                exchange.pause()
            except Exception as error:
                self._errors.failed(Seam.CLIENT, error, exchange)

    def resume_writing(self) -> None:
        self.unread = False
        if self.closing:
            return
        exchange = self.exchange
        try:
            if exchange is not None:
                self.deadline = NEVER
                exchange.resume()
            else:
                self._rest()
                self._advance()
                self.count_held()
        except Exception as error:
            self._errors.failed(Seam.CLIENT, error, self)

    # -- reading requests ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads on until a request is complete, or there is nothing to read."""
        reader = self._reader
        while self._backlog and not reader.requests and not reader.ended:
            first = self._backlog[0]
            at = self._backlog_at
            end = reader.piece_end(first, at)
            if end >= len(first):
                self._backlog.popleft()
                self._backlog_at = 0
            else:
                self._backlog_at = end
            piece = first[at:end] if at or end < len(first) else first
            was_body = reader.head is not None
            reader.feed(piece)
            self._backlog_bytes -= len(piece)
            if was_body != (reader.head is not None) or reader.requests:
                self._request_deadline = NEVER
        if reader.ended:
            self._drop_backlog()
        elif not reader.between:
            self._expect_rest()

    def _rest(self) -> None:
        """Nothing is being answered: sets until when something must come."""
        settings = self._settings
        self.deadline = time.monotonic() + (settings.reader_stall_timeout_s if self.unread else settings.idle_timeout_s)
        if not self.unread and not self._reader.between:
            self._expect_rest()

    def _pause_or_resume(self) -> None:
        """Reads the socket unless enough waits already."""
        paused = self._backlog_bytes > self._settings.header_max_bytes
        if paused != self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _expect_rest(self) -> None:
        """A request is half read: bounds the time until its next byte, and until its last."""
        settings = self._settings
        now = time.monotonic()
        body = self._reader.head is not None
        if self._request_deadline == NEVER:
            self._request_deadline = now + (settings.body_timeout_s if body else settings.head_timeout_s)
        self.deadline = self._request_deadline
        if body:
            self.deadline = min(now + settings.body_gap_timeout_s, self._request_deadline)

    def count_held(self) -> None:
        """Tells the gateway what this connection holds of requests."""
        if self._backlog_at:
            # What was read of it is not kept: a large body may be in it.
            self._backlog[0] = self._backlog[0][self._backlog_at :]
            self._backlog_at = 0
        reader = self._reader
        held = self._backlog_bytes + reader.body_bytes + reader.quiet_bytes
        if self.exchange is not None:
            held += len(self.exchange.body)
        if held != self._held_bytes:
            self._gateway.rules.held.used += held - self._held_bytes
            self._held_bytes = held

    def _forget(self) -> None:
        """Nothing more is read: what was is dropped."""
        self._reader.close()
        self._drop_backlog()
        self.count_held()

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_at = self._backlog_bytes = 0

    # -- answering -----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Answers what waits, in order, until one request needs an engine, or the client reads no answers. A loop and not a recursion: many
        requests that are answered at once may come in one packet."""
        if self._advancing:
            return
        reader = self._reader
        self._advancing = True
        try:
            while self.exchange is None and not self.closing and not self.unread:
                if reader.requests:
                    self._begin(*reader.requests.popleft())
                elif reader.fault is not None:
                    self._refuse(reader.fault)
                elif self._backlog:
                    self._read()
                else:
                    break
        finally:
            self._advancing = False
        if self._paused:
            self._pause_or_resume()
        if reader.continue_due and self.exchange is None and not reader.ended:
            reader.continue_due = False
            if not reader.body_bytes:
                self.write(CONTINUE)

    def _begin(self, head: RequestHead, body: bytes) -> None:
        self.deadline = self._request_deadline = NEVER
        self._owes = True
        self._gateway.begin(self, head, body)
        self._owes = False

    def _refuse(self, fault: Fault) -> None:
        """The last answer of this connection. It is read on for a moment: closing it with unread bytes would reset it, and the
        client would never see the answer."""
        self._gateway.counters.faults[fault.reason] += 1
        self.closing = True
        self.deadline = time.monotonic() + self._settings.linger_timeout_s
        head = self._reader.head
        cors = b"" if head is None else head.cors
        dialect = Dialect.OPENAI if head is None else head.target.dialect
        self._forget()
        if not self.transport.is_closing():
            request_id = self._gateway.new_request_id()
            self.transport.write(error_response(fault, request_id, dialect, close=True, extra=cors))
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
        self._rest()
        reader = self._reader
        if reader.requests or self._backlog or reader.fault is not None or reader.continue_due:
            self._advance()
        if self._held_bytes:
            self.count_held()

    def close(self) -> None:
        """Closes once everything written has been sent, or the client has stopped reading."""
        self.closing = True
        self.deadline = time.monotonic() + self._settings.reader_stall_timeout_s
        self._forget()
        self.transport.close()

    def cut(self) -> None:
        """Ends an answer that cannot be completed, visibly: with a reset, never with a clean end."""
        self.exchange = None
        self.closing = True
        self._forget()
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
    def _has_left(self) -> bool:
        return not self.transport.is_closing() and has_left(self.transport.get_extra_info("socket"))

    def overdue(self, now: float) -> bool:
        """Its deadline has passed, or nothing else would ever end its connection. Asked between two turns of the event loop."""
        if self.deadline <= now or (self._paused and self._has_left):
            return True
        if self.exchange is not None:
            return self.exchange.over
        return self.deadline == NEVER

    @property
    def idle(self) -> bool:
        """Between two requests."""
        reader = self._reader
        return (
            not self.closing and self.exchange is None and not self._backlog and not reader.requests and reader.between
        )

    def expired(self) -> None:
        """It is overdue."""
        if self.closing or self.exchange is not None or self.unread:
            self.transport.abort()  # it lingers, or does not read its answer
        elif self.idle:
            self.close()
        else:
            self._reader.fault = Fault(Reason.TIMEOUT, "the request did not arrive in time")
            self._reader.ended = True
            self._advance()
