"""The router's side towards one engine server: a pool of kept connections, and the protocol that reads its answers. Owned by the
gateway, used by exchanges."""

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from multislo_api.fleet import InstanceEntry
from multislo_router.shell.internal_errors import InternalErrors, Seam
from multislo_router.shell.keep_alive import ENGINE, watch_peer
from multislo_router.shell.response_head import EngineSpokeNonsense, ResponseBody, body_of, check_start, read_head
from multislo_router.shell.settings import ShellSettings

if TYPE_CHECKING:
    from multislo_router.shell.exchange import Exchange

JOINED_MAX_BYTES: Final = 64 * 1024
"""A request up to this size is written in one piece."""
SWITCHING_PROTOCOLS = 101
"""Nobody asked for another protocol."""
NO_ANSWER = 0
"""In the place of a status: the connection broke, or could not be made."""


class EngineInstance:
    """One engine server: where it is, whether it failed, and its connections."""

    __slots__ = (
        "_connecting",
        "_idle",
        "_settings",
        "answers",
        "entry",
        "errors",
        "failed",
        "host",
        "host_line",
        "id_bytes",
        "passing",
        "port",
        "retired",
        "sized",
        "suspect",
    )

    def __init__(self, entry: InstanceEntry, settings: ShellSettings, errors: InternalErrors) -> None:
        self.entry = entry
        self.errors = errors
        authority = entry.url.removeprefix("http://")
        host, colon, port = authority.rpartition(":")
        self.host = (host if colon else authority).strip("[]")
        self.port = int(port) if colon else 80
        self.id_bytes = entry.id.encode()
        self.host_line = b"host: " + authority.encode() + b"\r\n"
        self.failed = asyncio.Event()
        """Set from the first broken connection until a probe succeeds."""
        self.sized = False
        """Whether its KV cache was compared with the profile's."""
        self.suspect = False
        """It answers, but seems to compute nothing: only a token proves it well."""
        self.retired = False
        """The fleet no longer has it, or has restarted it: what runs may end, nothing is kept."""
        self.passing = 0
        """Requests under way that the core does not know; a drain waits for them too."""
        self.answers: Counter[int] = Counter()
        """Its answers by status, and `NO_ANSWER`s."""
        self._settings = settings
        self._idle: list[EngineConnection] = []
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, exchange: "Exchange", *, fresh: bool = False) -> None:
        """Sends the request now or once connected. `fresh`: on a new connection, because a kept one turned out to be dead."""
        idle = self._idle
        while idle and not fresh:
            connection = idle.pop()
            if not connection.transport.is_closing():
                connection.send(exchange)
                return
        task = exchange.awaits = asyncio.get_running_loop().create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: "Exchange") -> None:
        try:
            await self._connect_and_send(exchange)
        except Exception as error:
            self.errors.failed(Seam.CONNECT, error, exchange)

    async def _connect_and_send(self, exchange: "Exchange") -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self, self._settings), self.host, self.port
                )
        except (OSError, TimeoutError) as error:
            if not exchange.over:
                exchange.engine_lost(f"cannot connect: {error or 'timeout'}")
            return
        if exchange.over:
            self.keep(connection)
        else:
            connection.send(exchange)

    def keep(self, connection: "EngineConnection") -> None:
        if self.retired or len(self._idle) >= self._settings.engine_idle_max:
            connection.transport.close()
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def forget(self, connection: "EngineConnection") -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, before: float) -> None:
        """Closes the connections that have been idle since `before` or longer: the oldest come first."""
        idle = self._idle
        count = 0
        while count < len(idle) and idle[count].idle_since <= before:
            count += 1
        for connection in idle[:count]:
            connection.transport.close()
        del idle[:count]

    def retire(self) -> None:
        self.retired = True
        self.close_idle(float("inf"))

    async def close(self) -> None:
        self.retire()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)


class EngineConnection(asyncio.Protocol):
    """One connection to an engine; carries one exchange at a time."""

    __slots__ = (
        "_body",
        "_head_held",
        "_instance",
        "_keep_alive",
        "_lost",
        "_settings",
        "exchange",
        "idle_since",
        "reused",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, instance: EngineInstance, settings: ShellSettings) -> None:
        self._instance = instance
        self._settings = settings
        self.exchange: Exchange | None = None
        self.reused = False
        """Not the first request on it: it may have died while idle."""
        self.idle_since = 0.0
        self._lost = False
        self._head_held = b""
        self._body: ResponseBody | None = None
        self._keep_alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        try:
            watch_peer(self.transport.get_extra_info("socket"), ENGINE)
        except Exception as error:
            # The event loop would leave the connection open, and whoever waits for it waiting.
            self._instance.errors.report(Seam.CONNECT, error)
            self.transport.abort()

    def send(self, exchange: "Exchange") -> None:
        self.exchange = exchange
        exchange.connection = self
        if not self.transport.is_closing():
            head, body = exchange.wire()
            if len(body) > JOINED_MAX_BYTES:
                self.transport.write(head)
                self.transport.write(body)
            else:
                self.transport.write(head + body)
        elif self._lost:
            self._lose("closed by the engine")
        # Otherwise the transport is about to say that it is lost.

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        try:
            if exchange is None:
                # Nothing was asked: whatever comes must never be taken for the next request's answer.
                self._instance.forget(self)
                self.transport.abort()
                return
            body = self._body
            if body is None:
                if self._head_held:
                    data = self._head_held + data
                end = data.find(b"\r\n\r\n")
                while end >= 0 and (head := read_head(data[: end + 2])).status < 200:
                    # Interim answers (RFC 9110, 15.2) are passed over; the final one follows.
                    if head.status == SWITCHING_PROTOCOLS:
                        raise EngineSpokeNonsense(f"status {head.status}")
                    data = data[end + 4 :]
                    end = data.find(b"\r\n\r\n")
                if end < 0:
                    self._hold_head(data)
                    return
                body = self._body = body_of(head, exchange.head.method, self._settings.engine_abort_bytes)
                self._keep_alive = head.keep_alive and exchange.head.method != b"HEAD"
                exchange.head_received(head, body)
                data = data[end + 4 :]
                if not data and not body.done:
                    return
            exchange.body_received(body.feed(data) if data else b"", body)
        except EngineSpokeNonsense as error:
            self._lose(str(error))
        except Exception as error:
            # Not this connection is what ends: it may be another request's already.
            self._instance.errors.failed(Seam.ENGINE, error, exchange)

    def _hold_head(self, data: bytes) -> None:
        if len(data) > self._settings.response_head_max_bytes:
            raise EngineSpokeNonsense("endless response head")
        check_start(data)
        self._head_held = data

    def _lose(self, why: str) -> None:
        exchange, self.exchange = self.exchange, None
        self.transport.abort()
        if exchange is not None:
            exchange.connection = None
            exchange.engine_lost(why)

    def release(self) -> None:
        """The answer is complete: the connection is free for the next request."""
        self.exchange = None
        self.reused = True
        self._body = None
        self._head_held = b""
        if self._keep_alive and not self.transport.is_closing():
            self.transport.resume_reading()
            self._instance.keep(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        """The exchange is over before its answer is: a closed connection tells the engine to stop generating."""
        self.exchange = None
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        try:
            self._connection_lost(exchange, exc)
        except Exception as error:
            self._instance.errors.failed(Seam.ENGINE, error, exchange)

    def _connection_lost(self, exchange: "Exchange | None", exc: Exception | None) -> None:
        self._lost = True
        if exchange is None:
            self._instance.forget(self)
            return
        exchange.connection = None
        body = self._body
        if body is not None and body.ends_with_connection and exc is None:
            body.pieces = []
            body.done = True
            exchange.body_received(b"", body)
        elif self.reused and body is None and not self._head_held:
            # It died while it was kept, or just as it was taken: that says nothing of the engine.
            self._instance.send(exchange, fresh=True)
        else:
            exchange.engine_lost(f"connection lost: {exc or 'closed by the engine'}")
