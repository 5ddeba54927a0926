"""The router's own queue: requests that no instance has room for yet, by deadline. Used by `admissions` and `machine`."""

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf
from typing import Final

from multislo_router.core.config import Overload
from multislo_router.core.request import HELD, Request

_Entry = tuple[int, float, int, int, Request]
"""(rank, when, request id, how often it had been queued, the request). An entry of an earlier queueing is stale."""

IN_TIME: Final = 0
LOST: Final = 1
BEST_EFFORT: Final = 2


class Pending:
    """Held requests: those still in time by the deadline that they are planned by, the lost ones behind them, and a clock of last calls.

    Entries are dropped when they are come across, not when their request leaves: leaving is O(1).
    """

    __slots__ = ("_in_time", "_last_calls", "_lost", "count")

    def __init__(self) -> None:
        self._in_time: list[_Entry] = []
        self._lost: list[_Entry] = []
        self._last_calls: list[_Entry] = []
        self.count = 0

    def hold(self, request: Request, last_call_at: float) -> None:
        """Queue a request, again if it is queued already. At `last_call_at` something has to become of it; infinite: nothing has to."""
        request.queued += 1
        rank = IN_TIME
        if request.lost:
            rank = BEST_EFFORT if request.tier.config.overload is Overload.BEST_EFFORT else LOST
        heap = self._lost if request.lost else self._in_time
        heappush(heap, (rank, request.due, request.id, request.queued, request))
        if last_call_at < inf:
            heappush(self._last_calls, (IN_TIME, last_call_at, request.id, request.queued, request))
        self.count += 1

    def leave(self) -> None:
        """A held request got its place, was refused, or its client went; or it is about to be queued again."""
        self.count -= 1

    def clear(self) -> None:
        """Forget all."""
        self._in_time, self._lost, self._last_calls = [], [], []
        self.count = 0

    def last_call_at(self) -> float | None:
        """When the next last call is."""
        calls = self._last_calls
        while calls and not _counts(calls[0]):
            heappop(calls)
        return calls[0][1] if calls else None

    def last_calls(self, now: float) -> Iterator[Request]:
        """Held requests whose last call has come; each comes once a queueing."""
        while (at := self.last_call_at()) is not None and at <= now:
            yield heappop(self._last_calls)[-1]

    def first_in_time(self, most: int) -> list[Request]:
        """The most urgent ones whose deadlines still hold."""
        kept: list[_Entry] = []
        while self._in_time and len(kept) < most:
            entry = heappop(self._in_time)
            if _counts(entry):
                kept.append(entry)
        for entry in kept:
            heappush(self._in_time, entry)
        return [entry[-1] for entry in kept]

    def first_lost(self) -> Request | None:
        """The first of the lost ones."""
        while self._lost and not _counts(self._lost[0]):
            heappop(self._lost)
        return self._lost[0][-1] if self._lost else None

    def __iter__(self) -> Iterator[Request]:
        yield from [entry[-1] for entry in (*self._in_time, *self._lost) if _counts(entry)]


def _counts(entry: _Entry) -> bool:
    request = entry[-1]
    return request.stage is HELD and request.queued == entry[3]
