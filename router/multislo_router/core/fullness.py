"""`Fullness`: what an engine's own words (503, 429) say of how many requests it takes. Changed by `machine`, asked by `room`."""

from math import inf
from typing import Final

QUIET_S: Final = 0.1
"""Nothing is sent to an engine so short after it said that it is full: what is still on the way there takes the next places."""
HELD_S: Final = 1.0
"""How long it gets no more than it had then, where it does not say how long ..."""
HELD_MAX_S: Final = 60.0
"""... and at most."""
GROWTH_S: Final = 10.0
"""After that it gets one more each time so long has passed: others may have filled it, and may have gone."""


class Fullness:
    """Of one engine."""

    __slots__ = ("_requests", "_said_at", "_until")

    def __init__(self) -> None:
        self._requests: float = inf
        """How many it had when it last said that it is full."""
        self._said_at = 0.0
        self._until = 0.0

    def said(self, requests: int, now: float, retry_after_s: float | None) -> None:
        """It refused one more than these."""
        self._requests = float(requests)
        self._said_at = now
        self._until = now + min(HELD_S if retry_after_s is None else retry_after_s, HELD_MAX_S)

    def forbids(self, requests: int, now: float) -> bool:
        """Whether it would probably refuse one more than these."""
        if self._requests == inf:
            return False
        if now < self._said_at + QUIET_S:
            return True
        if now < self._until:
            return requests >= self._requests
        return requests >= max(1.0, self._requests) + (now - self._until) // GROWTH_S
