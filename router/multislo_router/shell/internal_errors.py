"""What happens when the router itself fails: an exception that nobody expected is logged, counted by the place where it surfaced, and
ends what depended on it. Used wherever the event loop calls into the data path."""

import logging
import time
from collections import Counter
from enum import StrEnum
from typing import Final, Protocol

log = logging.getLogger("multislo.router")

TRACEBACK_S: Final = 1.0
"""Between two tracebacks of one place: a bug that strikes at every token must not fill the disk."""


class Seam(StrEnum):
    """Where an exception surfaced. A metric label: few, and for ever."""

    CLIENT = "client"
    """While a client's bytes were read, or an answer was given at once."""
    ENGINE = "engine"
    """While an engine's answer was read and relayed."""
    CONNECT = "connect"
    TOKENIZER = "tokenizer"
    CORE = "core"
    """In the core, while it took in an event."""
    DECISION = "decision"
    """While one of the core's decisions was carried out."""
    TIMER = "timer"
    WATCH = "watch"
    """While an instance was probed, or its metrics were read."""
    ADMIN = "admin"
    LOST = "lost"
    """No exception: a request that nothing would have continued was found and ended."""
    LOOP = "loop"
    """Anywhere else on the event loop."""


class Owner(Protocol):
    """Whatever depends on the code that failed."""

    def crashed(self) -> None:
        """Ends it: with one clear answer to the client where that is possible, else with a visible cut."""
        ...

    def drop(self) -> None:
        """Ends it when even that has failed: its socket is closed."""
        ...


class InternalErrors:
    """Owned by the gateway; shown as `multislo_internal_errors_total`."""

    def __init__(self) -> None:
        self.counts: Counter[Seam] = Counter()
        self._told_at: dict[Seam, float] = {}

    def report(self, seam: Seam, error: BaseException | None, about: str = "") -> None:
        self.counts[seam] += 1
        now = time.monotonic()
        if now - self._told_at.get(seam, -TRACEBACK_S) >= TRACEBACK_S:
            self._told_at[seam] = now
            log.error("the router failed (%s) %s", seam.value, about, exc_info=error)

    def failed(self, seam: Seam, error: BaseException, owner: Owner | None, about: str = "") -> None:
        """Reports the error and ends its owner. Never raises."""
        self.report(seam, error, about)
        if owner is not None:
            self.end(seam, owner, about)

    def end(self, seam: Seam, owner: Owner, about: str = "") -> None:
        """Ends what depended on code that has failed. Never raises."""
        try:
            owner.crashed()
        except Exception as second:
            self.report(seam, second, about)
            try:
                owner.drop()
            except Exception as third:
                self.report(seam, third, about)
