"""`RouterCore`: the one door into the router's state. `handle(event)` changes it and answers with decisions; the shell carries them out,
the simulator does the same on a copy of the world. Never waits, never logs, reads no clock."""

from collections.abc import Sequence
from math import inf
from typing import Final

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.admissions import RETRY_S, Admissions
from multislo_router.core.bookings import Bookings
from multislo_router.core.config import CoreConfig, TierConfig
from multislo_router.core.fleet import Fleet
from multislo_router.core.instance import BookingsOf, Instance
from multislo_router.core.invariants import check_books, check_instance
from multislo_router.core.placement import PLACEMENTS, Choice, OfferBy, PlaceBy, least_harm, nearly, offered
from multislo_router.core.report import status_of
from multislo_router.core.request import Request, Stage
from multislo_router.core.room import room_for_late
from multislo_router.core.sequences import sequence_of, split
from multislo_router.core.status import CoreStatus
from multislo_router.core.tier import Tier

ATTEMPTS_MAX: Final = 2
"""Placements of one request: the first, and one more where an engine failed before it said anything."""
PROMPT_RETRY_S: Final = 0.001
"""Between two tries of a held request with several prompts, for each of them: a try follows them all, on one instance after another."""
OFFERED_MAX: Final = 8
"""Held requests tried when an instance gets room: the bound on the cost of an event."""
LATE_OFFERED_MAX: Final = 4
"""Late ones placed at a tick."""
TOLERANCE: Final = 0.1
"""At its last call a request is placed if it is predicted to be late by no more than this share of its TTFT: predictions err."""

SLO_MAX_S: Final = 1e6
TPOT_MIN_S: Final = 1e-6
"""Beyond these no deadline means anything, and a division by a TPOT is no number. The shell takes far less."""

NOTHING: Final[tuple[d.Decision, ...]] = ()


class RouterCore:
    """All that the router knows: the fleet, the requests, and its own queue. `wake_at`: when it wants a `Tick`, read after each event."""

    def __init__(
        self,
        config: CoreConfig,
        place_by: PlaceBy | None = None,
        offer_by: OfferBy = offered,
        bookings_of: BookingsOf = Bookings,
    ) -> None:
        """`place_by` replaces the manifest's placement, `offer_by` how a held request takes room that has come up: rivals to compare with
        run on the very same state. `bookings_of` makes an instance's ledger."""
        self.config = config
        ordered = sorted(config.tiers, key=_tpot)
        self.tiers = [
            Tier(tier, index, config.latency, config.engine.kv_tokens_max) for index, tier in enumerate(ordered)
        ]
        self.tier_by_name = {tier.name: tier for tier in self.tiers}
        if config.default_tier not in self.tier_by_name:
            raise ValueError(f"default_tier {config.default_tier!r} must be one of {sorted(self.tier_by_name)}")
        self.fleet = Fleet(self.tiers, config, bookings_of)
        self.instances = self.fleet.instances
        self.admissions = Admissions(config, self.tiers, self.fleet)
        self.requests = self.admissions.requests
        self.places = self.admissions.places
        self.pending = self.admissions.pending
        self.wake_at: float | None = None
        self._place_by = place_by or PLACEMENTS[config.placement]
        self._offer_by = offer_by

    def handle(self, event: e.Event) -> Sequence[d.Decision]:
        """Take in one event. Events about a request or an instance that is unknown (it ended meanwhile) change nothing."""
        if isinstance(event, e.TokensReceived):
            return self._tokens_received(event)
        if isinstance(event, e.RequestArrived):
            return self._request_arrived(event)
        if isinstance(event, e.RequestEnded):
            return self._request_ended(event)
        if isinstance(event, e.SequenceEnded):
            return self._sequence_ended(event)
        if isinstance(event, e.PromptMeasured):
            return self._prompt_measured(event)
        if isinstance(event, e.Tick):
            return self._tick(event.now)
        if isinstance(event, e.SendFailed):
            return self._send_failed(event)
        if isinstance(event, e.EngineFull):
            return self._engine_full(event)
        if isinstance(event, e.Unanswered):
            return self._unanswered(event)
        return self._fleet_event(event)

    @property
    def length_max(self) -> int:
        """Tokens of prompt and output that a request may have. A longer one is refused: whoever only estimates must not say more."""
        held_most = self.fleet.kv_tokens_largest
        length_max = self.config.length_max
        return held_most if length_max is None or length_max > held_most else length_max

    def recover(self, now: float) -> None:
        """`handle` has raised, and may have left an event half done: whatever is a sum over the requests is summed anew. A request whose
        decision was lost with the event stays as it is booked; whoever sends requests knows those that it never sent (`stage_of`)."""
        self.admissions.rebook(now)
        self.wake_at = None
        if self.pending.count:
            self._set_wake(now + RETRY_S, now)

    def tier_of(self, request: int) -> str | None:
        """The name of the tier that a request belongs to; None where it is unknown, or over."""
        found = self.requests.get(request)
        return None if found is None else found.tier.name

    def stage_of(self, request: int) -> Stage | None:
        """Where a request is; None where it is unknown, or over."""
        found = self.requests.get(request)
        return None if found is None else found.stage

    # -- requests ------------------------------------------------------------------------------------------------------

    def _request_arrived(self, event: e.RequestArrived) -> Sequence[d.Decision]:
        if event.request in self.requests:
            raise ValueError(f"request {event.request} arrived twice")
        now = event.now
        tier = self._bin_by_tpot(event)
        ttft_s = tier.ttft_s if event.ttft_s is None else event.ttft_s
        tpot_s = tier.tpot_s if event.tpot_s is None else event.tpot_s
        if not (-SLO_MAX_S <= ttft_s <= SLO_MAX_S and TPOT_MIN_S <= tpot_s <= SLO_MAX_S):
            raise ValueError(
                f"request {event.request}: ttft_s {ttft_s!r} must be from -{SLO_MAX_S:g} to {SLO_MAX_S:g}, "
                f"tpot_s {tpot_s!r} from {TPOT_MIN_S:g} to {SLO_MAX_S:g}"
            )
        request = Request(
            event.request,
            tier,
            now,
            ttft_s,
            tpot_s,
            max(1, event.prompt_tokens),
            event.output_tokens_max,
            event.streaming,
            event.prefilled,
        )
        longest = max(event.prompts, default=request.prompt_tokens)
        needed = longest + (event.output_tokens_max or 1)
        if needed > self.length_max:
            self.admissions.counts_of(request).saw_arrival(now, 0.0)
            reason = (
                f"prompt and output of {needed} tokens are more than the {self.length_max} that an instance can hold"
            )
            return [self.admissions.refuse(request, d.Cause.TOO_LONG, now, reason)]
        if event.choices > 1 or len(event.prompts) > 1:
            split(request, event.prompts or (request.prompt_tokens,), event.choices, self.config.latency)
        elif not request.prefilled:
            request.measure_prefill(self.config.latency)
        self.admissions.arrived(request, now)
        if self.pending.count >= self.config.pending_max:
            reason = f"{self.pending.count} requests are held already"
            return [self.admissions.refuse(request, d.Cause.QUEUE_FULL, now, reason)]
        self.fleet.freshen(now)
        return [self._place_or_hold(request, now)]

    def _bin_by_tpot(self, event: e.RequestArrived) -> Tier:
        """The tier asked for; else the loosest one not looser than the TPOT asked for (the tightest, if all are); else the default."""
        if event.tier is not None:
            return self.tier_by_name[event.tier]
        if event.tpot_s is None:
            return self.tier_by_name[self.config.default_tier]
        for tier in reversed(self.tiers):
            if tier.tpot_s <= event.tpot_s:
                return tier
        return self.tiers[0]

    def _place_or_hold(self, request: Request, now: float) -> d.Decision:
        choice = self._place_by(self.fleet.homes, request, now)
        if choice is not None:
            return self.admissions.place(request, choice, now)
        return self._hold(request, now)

    def _hold(self, request: Request, now: float) -> d.Decision:
        held = self.admissions.hold(request, now)
        self._set_wake(now + RETRY_S, now)
        return held

    def _tokens_received(self, event: e.TokensReceived) -> Sequence[d.Decision]:
        instance = self.places.get(event.request)
        if instance is None or event.tokens < 1:
            return NOTHING
        now = event.now
        whole = self.requests[event.request]
        request = sequence_of(whole, event.sequence, instance, now)
        if request is None:
            return NOTHING
        first = request.tokens == 0
        if first:
            request.first_token_at = now
            if request is whole:
                self.admissions.counts_of(request).saw_first_token(request)
        if instance.tokens(request, event.tokens, now):
            self.fleet.refreshed(instance)
        return self._offer(instance, now) if first and self.pending.count else NOTHING

    def _sequence_ended(self, event: e.SequenceEnded) -> Sequence[d.Decision]:
        instance = self.places.get(event.request)
        if instance is None:
            return NOTHING
        request = self.requests[event.request]
        sequence = sequence_of(request, event.sequence, instance, event.now)
        if sequence is None or sequence is request:
            return NOTHING
        instance.release(sequence, event.now)
        self.admissions.settle(instance, event.now)
        return self._offer(instance, event.now) if self.pending.count else NOTHING

    def _request_ended(self, event: e.RequestEnded) -> Sequence[d.Decision]:
        request = self.requests.get(event.request)
        if request is None:
            return NOTHING
        instance = self.admissions.ended(request, event.outcome, event.tokens, event.now)
        return self._offer(instance, event.now) if instance is not None and self.pending.count else NOTHING

    def _prompt_measured(self, event: e.PromptMeasured) -> Sequence[d.Decision]:
        # An engine's word is not checked by anybody else, and nothing that does not fit into its memory has been in it.
        prompt_tokens = min(max(1, event.prompt_tokens), self.fleet.kv_tokens_largest)
        instance = self.places.get(event.request)
        if event.request in self.requests and self.requests[event.request].parts:
            return NOTHING  # how it is spread over the prompts is not told
        if instance is not None:
            instance.bookings.measured(self.requests[event.request], prompt_tokens)
        elif event.request in self.requests:
            self.requests[event.request].prompt_tokens = prompt_tokens
        return NOTHING

    def _send_failed(self, event: e.SendFailed) -> Sequence[d.Decision]:
        if event.request not in self.places:
            return NOTHING
        request, now = self.requests[event.request], event.now
        instance = self.admissions.take_back(request, now)
        if request.attempts >= ATTEMPTS_MAX:
            reason = f"failed on {instance.id}, and on another before"
            return [self.admissions.refuse(request, d.Cause.ENGINE_FAILED, now, reason)]
        request.avoid = instance.id
        self.admissions.fresh(request)
        return [self._place_or_hold(request, now)]

    def _unanswered(self, event: e.Unanswered) -> Sequence[d.Decision]:
        if event.request not in self.places or self.requests[event.request].attempts >= ATTEMPTS_MAX:
            return NOTHING
        return self._send_failed(e.SendFailed(event.now, event.request))

    def _engine_full(self, event: e.EngineFull) -> Sequence[d.Decision]:
        if event.request not in self.places:
            return NOTHING
        request, now = self.requests[event.request], event.now
        instance = self.admissions.take_back(request, now)
        instance.fullness.said(instance.bookings.requests, now, event.retry_after_s)
        if request.attempts >= ATTEMPTS_MAX:
            return [self.admissions.refuse(request, d.Cause.ENGINE_FULL, now, f"{instance.id} says that it is full")]
        self.admissions.fresh(request)
        return [self._place_or_hold(request, now)]

    # -- the router's queue --------------------------------------------------------------------------------------------

    def _offer(self, instance: Instance, now: float) -> Sequence[d.Decision]:
        """An instance has got room: give it to the most urgent held requests that fit."""
        if not instance.placeable or self.instances.get(instance.id) is not instance:
            return NOTHING
        made: list[d.Decision] = []
        for request in self._first_in_time(now):
            choice = self._offer_by(instance, request, now)
            if choice is not None:
                made.append(self._place_held(request, choice, now))
        if not made:
            lost = self._first_lost(now)
            if lost is not None:
                found = room_for_late(instance, lost, now)
                if found is not None:
                    made.append(self._place_held(lost, Choice(found, d.LATE), now))
        return made

    def _first_in_time(self, now: float) -> list[Request]:
        """The most urgent held requests that are tried again now."""
        return [request for request in self.pending.first_in_time(OFFERED_MAX) if _begins_try(request, now)]

    def _first_lost(self, now: float) -> Request | None:
        lost = self.pending.first_lost()
        return lost if lost is not None and _begins_try(lost, now) else None

    def _place_held(self, request: Request, choice: Choice, now: float) -> d.Decision:
        self.admissions.leave_pending(request)
        return self.admissions.place(request, choice, now)

    def _tick(self, now: float) -> Sequence[d.Decision]:
        self.wake_at = None
        self.fleet.freshen(now)
        made: list[d.Decision] = []
        for request in self.pending.last_calls(now):
            decision = self._last_call(request, now)
            if decision is not None:
                made.append(decision)
        for request in self._first_in_time(now):
            choice = self._place_by(self.fleet.homes, request, now)
            if choice is not None:
                made.append(self._place_held(request, choice, now))
        for _ in range(LATE_OFFERED_MAX):
            lost = self._first_lost(now)
            choice = least_harm(self.fleet.homes, lost, now) if lost is not None else None
            if lost is None or choice is None:
                break
            made.append(self._place_held(lost, choice, now))
        if self.pending.count:
            self._set_wake(now + RETRY_S, now)
        return made

    def _last_call(self, request: Request, now: float) -> d.Decision | None:
        """The deadline that it is planned by is about to be missed: one tolerant try, then what its tier says about overload."""
        request.avoid = None  # the instance that failed it may be the only one: else it would wait for ever
        if request.lost:
            return self._serve_at_last(request, now)
        refusing = request.tier.refuses
        # A request that is likely to be late costs others as much as one in time: a tier that refuses wants it refused.
        tolerance_s = 0.0 if refusing or request.late else TOLERANCE * (request.due - request.arrived)
        choice = nearly(self.fleet.homes, request, now, tolerance_s)
        if choice is not None:
            return self._place_held(request, choice, now)
        if refusing:
            self.admissions.leave_pending(request)
            cause = d.Cause.DEADLINE if self.fleet.placeable else d.Cause.NO_INSTANCE
            return self.admissions.refuse(request, cause, now, "no instance can meet its deadline any more")
        self.admissions.late(request)
        return None

    def _serve_at_last(self, request: Request, now: float) -> d.Decision | None:
        """It has waited for as long as its tier lets a request wait: it goes where it harms least, whatever that is."""
        choice = nearly(self.fleet.homes, request, now, inf)
        if choice is not None:
            return self._place_held(request, choice, now)
        self.admissions.again(request, now)
        return None

    def _set_wake(self, at: float, now: float) -> None:
        """Ask for a `Tick` at `at`, or at the next last call if that is sooner, but not in the past."""
        last_call_at = self.pending.last_call_at()
        if last_call_at is not None and last_call_at < at:
            at = max(last_call_at, now)
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    # -- the fleet -----------------------------------------------------------------------------------------------------

    def _fleet_event(self, event: e.Event) -> Sequence[d.Decision]:
        instance: Instance | None = None
        if isinstance(event, e.FleetChanged):
            self.fleet.change(event.instances, event.now)
            return self._tick(event.now) if self.pending.count else NOTHING
        if isinstance(event, e.InstanceFailed):
            self.fleet.fail(event.instance)
        elif isinstance(event, e.InstanceRevived):
            instance = self.fleet.revive(event.instance, event.now)
        elif isinstance(event, e.InstanceReported):
            instance = self.instances.get(event.instance)
            if instance is not None:
                self.fleet.reported(instance, event)
        elif isinstance(event, e.InstanceUnreported):
            instance = self.instances.get(event.instance)
        suspect = None if instance is None else instance.silent(event.now)
        if instance is not None and suspect is not None:
            self.fleet.fail(instance.id)
            return [suspect]
        return self._offer(instance, event.now) if instance is not None and self.pending.count else NOTHING

    # -- what it tells -------------------------------------------------------------------------------------------------

    def status(self, now: float) -> CoreStatus:
        """Everything that /fleet and /metrics show. O(fleet); for a scrape, not for a decision."""
        self.fleet.refresh(now)
        return status_of(self.tiers, self.admissions, self.instances.values(), self.fleet.generation, now)

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. For tests and the simulator: O(everything)."""
        check_books(self.admissions, self.tiers, self.wake_at)
        here: dict[int, Instance] = {id(instance): instance for instance in self.instances.values()}
        here.update({id(instance): instance for instance in self.places.values()})
        for instance in here.values():
            listed = instance.placeable and self.instances.get(instance.id) is instance
            check_instance(instance, self.admissions, listed)


def _tpot(tier: TierConfig) -> float:
    return tier.tpot_s


def _begins_try(request: Request, now: float) -> bool:
    """Notes that a place is looked for again; False where that was done too short a time ago for so many prompts."""
    if not request.parts:
        return True
    if now < request.tried_at + PROMPT_RETRY_S * len(request.parts):
        return False
    request.tried_at = now
    return True
