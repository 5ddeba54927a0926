"""The router's own queue: requests that no instance has room for yet, in the order of their deadlines. Used by `machine` alone."""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

from multislo_router.core.request import Request, Stage


class Pending:
    """Held requests: those still in time by deadline, those given up (late) behind them, and a clock of when each is given up."""

    __slots__ = ("_in_time", "_last_calls", "_late", "count")

    def __init__(self) -> None:
        self._in_time: list[tuple[float, int, Request]] = []
        self._late: list[tuple[int, float, int, Request]] = []
        self._last_calls: list[tuple[float, int, Request]] = []
        self.count = 0

    def hold(self, request: Request, last_call_at: float) -> None:
        """Queue a request; at `last_call_at` its deadline is out of reach even of an idle instance."""
        heappush(self._in_time, (request.due, request.id, request))
        heappush(self._last_calls, (last_call_at, request.id, request))
        self.count += 1

    def give_up(self, request: Request, rank: int) -> None:
        """Its deadline is lost: queue it behind all that are in time, by rank, then deadline."""
        request.late = True
        heappush(self._late, (rank, request.due, request.id, request))

    def leave(self) -> None:
        """A held request got its place, was refused, or its client went (the heaps drop it when they come across it)."""
        self.count -= 1

    def last_call_at(self) -> float | None:
        """When the next deadline has to be given up or met."""
        calls = self._last_calls
        while calls and (calls[0][2].stage is not Stage.HELD or calls[0][2].late):
            heappop(calls)
        return calls[0][0] if calls else None

    def last_calls(self, now: float) -> Iterator[Request]:
        """Held requests whose last call has come; each comes once."""
        while (at := self.last_call_at()) is not None and at <= now:
            yield heappop(self._last_calls)[2]

    def oldest_in_time(self, most: int) -> list[Request]:
        """The most urgent ones whose deadlines still hold."""
        return _heads(self._in_time, most, lambda request: not request.late)

    def oldest_late(self, most: int) -> list[Request]:
        return _heads(self._late, most, lambda request: True)

    def __iter__(self) -> Iterator[Request]:
        for _, _, request in self._in_time:
            if request.stage is Stage.HELD and not request.late:
                yield request
        for _, _, _, request in self._late:
            if request.stage is Stage.HELD:
                yield request


def _heads(heap: list[Any], most: int, valid: Callable[[Request], bool]) -> list[Request]:
    """The first `most` entries whose request is still held and valid; those that are not leave the heap for good."""
    kept: list[Any] = []
    while heap and len(kept) < most:
        entry = heappop(heap)
        request: Request = entry[-1]
        if request.stage is Stage.HELD and valid(request):
            kept.append(entry)
    for entry in kept:
        heappush(heap, entry)
    return [entry[-1] for entry in kept]
