"""`Recording`: the journal that is being written while somebody reads `/debug/journal`. The gateway tells it what its core is told, the
admin listener sends it off."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from multislo_router import journal
from multislo_router.core.decisions import Decision
from multislo_router.core.events import Event
from multislo_router.core.machine import RouterCore
from multislo_router.journal import End
from multislo_router.shell.internal_errors import InternalErrors, Seam

EVENTS_MAX: Final = 1_000_000
"""In one journal: about 150 MB, and some minutes of a busy router."""
BUFFER_BYTES_MAX: Final = 16 * 1024 * 1024
"""What a reader may leave in the router: a second or more of its busiest. Then the journal ends."""
SEND_EVERY_S: Final = 0.2
"""Between two looks at the buffer: lines are sent many at a time, not one by one."""
PIECE_BYTES: Final = 256 * 1024
"""Written at a time: how much the connection may hold beside the buffer."""


class Recording:
    """From its making on it takes lines, until it ends; what it has taken is sent off even then."""

    def __init__(self, core: RouterCore, errors: InternalErrors, now: float) -> None:
        """`now`: on the clock of the events."""
        self._errors = errors
        self.events = 0
        self.ended: End | None = None
        self._over = asyncio.Event()
        self._buffer = bytearray(journal.header_line(core, time.time(), now))

    # -- what the gateway tells: none of these raises ------------------------------------------------------------------

    def handled(self, event: Event, decisions: Sequence[Decision]) -> None:
        self._add(1, lambda: journal.event_line(event, decisions))

    def failed(self, event: Event, error: Exception, recovered_at: float) -> None:
        self._add(1, lambda: journal.raised_line(event, error, recovered_at))

    def status(self, now: float) -> None:
        self._add(0, lambda: journal.status_line(now))

    def end(self, why: End) -> None:
        """The first reason stays."""
        if self.ended is None:
            self.ended = why
            self._buffer += journal.end_line(why, self.events)
            self._over.set()

    def _add(self, events: int, line: Callable[[], bytes]) -> None:
        if self.ended is not None:
            return
        try:
            self._buffer += line()
        except Exception as error:
            self._errors.report(Seam.ADMIN, error, "the journal")
            self.end(End.ROUTER_FAILED)
            return
        self.events += events
        if len(self._buffer) > BUFFER_BYTES_MAX:
            self.end(End.SLOW_READER)
        elif self.events >= EVENTS_MAX:
            self.end(End.EVENTS)

    # -- what the listener sends ---------------------------------------------------------------------------------------

    async def send(self, seconds: float, write: Callable[[bytes], Awaitable[None]], gone: Callable[[], bool]) -> None:
        """All lines of so many seconds, and the last one. Returns early where the reader is gone."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while not gone():
            left_s = ends_at - loop.time()
            if left_s <= 0.0:
                self.end(End.TIME)
            piece = bytes(self._buffer[:PIECE_BYTES])
            del self._buffer[:PIECE_BYTES]
            if piece:
                await write(piece)
            if len(piece) == PIECE_BYTES:
                continue
            if self.ended is not None and not self._buffer:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(SEND_EVERY_S, left_s)):
                    await self._over.wait()
