"""The production core as the simulator drives it: told of whole iterations, and with a door that can refuse what a rival has placed.
`LockstepBookings` books the decodes' tokens by iteration, so that one costs O(tiers) and not O(decodes)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.bookings import Bookings
from multislo_router.core.config import CoreConfig
from multislo_router.core.instance import Instance
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import OfferBy, PlaceBy, offered
from multislo_router.core.request import DECODE, Request

ROUNDING_S = 1e-6
"""More than the error of a deadline that was moved on token by token."""

Door = Callable[[Instance, Request, float], bool]


@dataclass(slots=True)
class IterationSeen:
    """One token more for every request that decodes on an instance, but those `left_out`. Says the same as a `TokensReceived` for each.
    First tokens are told by those."""

    now: float
    instance: str
    left_out: Sequence[int] = ()


class LockstepBookings(Bookings):
    """The ledger of an instance whose decodes get a token an iteration."""

    __slots__ = ("_ahead", "_behind", "_due_stale", "_late")

    def __init__(self, tpots: list[float], now: float) -> None:
        super().__init__(tpots, now)
        self._ahead = 0
        """Iterations seen since all decodes were caught up."""
        self._behind: dict[int, int] = {}
        """Of these, those that gave a decode no token: by request."""
        self._late: dict[int, Request] = {}
        """The late among the decodes."""
        self._due_stale = False
        """The request whose deadline was the earliest has gone: `due_least` is too early."""

    def anew(self, now: float) -> Bookings:
        return LockstepBookings(self.tpots, now)

    def began_to_decode(self, request: Request) -> None:
        super().began_to_decode(request)
        self._behind[request.id] = self._ahead
        if request.late:
            self._late[request.id] = request

    def missed(self, request: Request) -> None:
        super().missed(request)
        if request.stage is DECODE:
            self._late[request.id] = request

    def release(self, request: Request, now: float) -> None:
        if request.stage is DECODE:
            self.catch_up(request)
            if not request.lost and request.next_due() <= self.due_least[request.tier.index] + ROUNDING_S:
                self._due_stale = True
            del self._behind[request.id]
            self._late.pop(request.id, None)
        super().release(request, now)

    def recount_dues(self, now: float, at_boundary: bool) -> None:
        for request in self.decodes.values():
            self.catch_up(request)
        self._ahead = 0
        self._behind = dict.fromkeys(self.decodes, 0)
        super().recount_dues(now, at_boundary)
        self._due_stale = False

    def kv_held(self) -> int:
        ahead = [self._ahead - self._behind[id] for id in self.decodes]
        return super().kv_held() + sum(ahead)

    def tokens_of(self, request: Request) -> int:
        """The tokens that a decode has got."""
        return request.tokens + self._ahead - self._behind[request.id]

    def catch_up(self, request: Request) -> None:
        """Book the tokens of a decode that came in iterations. While it was not late they were in time."""
        tokens = self._ahead - self._behind[request.id]
        if tokens > 0:
            request.tokens_met += tokens
            request.tokens += tokens
            self._behind[request.id] = self._ahead

    def iteration(self, now: float, left_out: Sequence[Request]) -> int:
        """An iteration has ended. Returns how many decodes it left out."""
        self._ahead += 1
        missing = 0
        for request in left_out:
            if request.id in self.decodes:
                self._behind[request.id] += 1
                missing += 1
        self.kv_decode_tokens += len(self.decodes) - missing
        for request in self._late.values():
            self._take_late(request, now)
        due_least = self.due_least
        late = self._due_stale
        for index, due in enumerate(due_least):
            if due < inf:
                late = late or due < now
                due_least[index] = due + self.tpots[index]
        if late:
            self._judge(now, left_out)
            return missing
        for request in left_out:
            if not request.lost and request.id in self.decodes:
                due = request.due + self.tokens_of(request) * request.tpot_s
                index = request.tier.index
                if due < due_least[index]:
                    due_least[index] = due
        return missing

    def _take_late(self, request: Request, now: float) -> None:
        tokens = self._ahead - self._behind[request.id]
        if tokens > 0:
            request.judge(tokens, now)
            if now > request.next_due():
                self.missed(request)
            request.tokens += tokens
            request.last_token_at = now
            self._behind[request.id] = self._ahead

    def _judge(self, now: float, left_out: Sequence[Request]) -> None:
        """Which decodes are late with the token that has come now, and the earliest deadlines of the others."""
        due_least = [inf] * len(self.tpots)
        passed = {request.id for request in left_out}
        for request in self.decodes.values():
            if request.lost:
                continue
            tokens = self.tokens_of(request)
            late = tokens > request.tokens and now > request.due + (tokens - 1) * request.tpot_s
            if late and not request.late and request.id not in passed:
                self.catch_up(request)
                request.last_token_at = now
                request.tokens_met -= 1
            if late and request.id not in passed:
                self.missed(request)
            if request.lost:
                continue
            index = request.tier.index
            due = request.due + tokens * request.tpot_s
            if due < due_least[index]:
                due_least[index] = due
        self.due_least = due_least
        self._due_stale = False


class LockstepCore(RouterCore):
    """The production core; `door` may refuse a request between the choice of its instance and the booking."""

    def __init__(
        self,
        config: CoreConfig,
        place_by: PlaceBy | None = None,
        offer_by: OfferBy = offered,
        door: Door | None = None,
    ) -> None:
        super().__init__(config, place_by, offer_by, LockstepBookings)
        self._door = door

    def iteration_seen(self, event: IterationSeen) -> None:
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        now = event.now
        bookings, pace, queue = instance.bookings, instance.pace, instance.queue
        assert isinstance(bookings, LockstepBookings)
        gap_s = now - pace.boundary_at
        queue.iteration_ended(bookings, pace, now)
        left_out = [self.requests[id] for id in event.left_out if id in self.requests]
        if not bookings.iteration(now, left_out) and not queue.row and pace.boundary_at >= pace.prefill_ended_at:
            pace.saw_decodes(gap_s)
        pace.boundary_at = now
        instance.believe(now)
        self.fleet.refreshed(instance)

    def _tokens_received(self, event: e.TokensReceived) -> Sequence[d.Decision]:
        instance = self.places.get(event.request)
        if instance is not None:
            request = self.requests[event.request]
            bookings = instance.bookings
            if request.stage is DECODE and isinstance(bookings, LockstepBookings):
                bookings.catch_up(request)
        return super()._tokens_received(event)

    def _place_or_hold(self, request: Request, now: float) -> d.Decision:
        door = self._door
        if door is None:
            return super()._place_or_hold(request, now)
        choice = self._place_by(self.fleet.homes, request, now)
        if choice is None:
            return self._hold(request, now)
        if not door(choice.room.instance, request, now):
            reason = "predicted late where it would be placed"
            return self.admissions.refuse(request, d.Cause.DEADLINE, now, reason)
        return self.admissions.place(request, choice, now)
