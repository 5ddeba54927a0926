"""The router's own queue: requests that no instance has room for yet, in the order of their deadlines. Used by `machine` alone."""

from collections.abc import Iterator
from heapq import heappop, heappush

from multislo_router.core.config import Overload
from multislo_router.core.request import HELD, Request

_Entry = tuple[int, float, int, int, Request]
"""(rank, when, request id, its attempts when it was queued, the request). The attempts tell an entry of an earlier hold, which a
placement that failed has made stale, from the one that counts."""

IN_TIME = 0


class Pending:
    """Held requests: those still in time by deadline, those given up (lost) behind them, and a clock of when each is given up.

    Entries are dropped when they are come across, not when their request leaves: leaving is O(1).
    """

    __slots__ = ("_in_time", "_last_calls", "_lost", "count")

    def __init__(self) -> None:
        self._in_time: list[_Entry] = []
        self._lost: list[_Entry] = []
        self._last_calls: list[_Entry] = []
        self.count = 0

    def hold(self, request: Request, last_call_at: float) -> None:
        """Queue a request; at `last_call_at` its deadline is out of reach even of an idle instance."""
        heappush(self._in_time, (IN_TIME, request.due, request.id, request.attempts, request))
        heappush(self._last_calls, (IN_TIME, last_call_at, request.id, request.attempts, request))
        self.count += 1

    def clear(self) -> None:
        """Forget everybody."""
        self._in_time, self._lost, self._last_calls = [], [], []
        self.count = 0

    def give_up(self, request: Request) -> None:
        """Its deadline is lost: queue it behind all that are in time, best effort behind the others, by deadline."""
        request.lost = True
        rank = 1 if request.tier.config.overload is Overload.BEST_EFFORT else 0
        heappush(self._lost, (rank, request.due, request.id, request.attempts, request))

    def leave(self) -> None:
        """A held request got its place, was refused, or its client went."""
        self.count -= 1

    def last_call_at(self) -> float | None:
        """When the next deadline has to be given up or met."""
        calls = self._last_calls
        while calls and not _in_time(calls[0]):
            heappop(calls)
        return calls[0][1] if calls else None

    def last_calls(self, now: float) -> Iterator[Request]:
        """Held requests whose last call has come; each comes once."""
        while (at := self.last_call_at()) is not None and at <= now:
            yield heappop(self._last_calls)[-1]

    def first_in_time(self, most: int) -> list[Request]:
        """The most urgent ones whose deadlines still hold."""
        kept: list[_Entry] = []
        while self._in_time and len(kept) < most:
            entry = heappop(self._in_time)
            if _in_time(entry):
                kept.append(entry)
        for entry in kept:
            heappush(self._in_time, entry)
        return [entry[-1] for entry in kept]

    def first_lost(self) -> Request | None:
        """The first of those that were given up."""
        while self._lost and not _held(self._lost[0]):
            heappop(self._lost)
        return self._lost[0][-1] if self._lost else None

    def __iter__(self) -> Iterator[Request]:
        yield from (entry[-1] for entry in self._in_time if _in_time(entry))
        yield from (entry[-1] for entry in self._lost if _held(entry))


def _held(entry: _Entry) -> bool:
    request = entry[-1]
    return request.stage is HELD and request.attempts == entry[3]


def _in_time(entry: _Entry) -> bool:
    return _held(entry) and not entry[-1].lost
