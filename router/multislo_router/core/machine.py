"""`RouterCore`: the one door into the router's state. `handle(event)` changes it and answers with decisions; the shell carries them out,
the simulator does the same on a copy of the world. Never waits, never logs, reads no clock."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, Overload
from multislo_router.core.fleet import Fleet
from multislo_router.core.instance import Instance
from multislo_router.core.invariants import check
from multislo_router.core.lag import measure_lag
from multislo_router.core.load import calibrate, calibrate_by_prefill, measure_load
from multislo_router.core.pending import Pending
from multislo_router.core.placement import PLACEMENTS, Choice, OfferBy, PlaceBy, least_harm, nearly, offered
from multislo_router.core.recovery import rebook
from multislo_router.core.report import status_of
from multislo_router.core.request import DECODE, HELD, OVER, PREFILL, Request, Stage
from multislo_router.core.room import room_for_late
from multislo_router.core.status import CoreStatus
from multislo_router.core.tier import Tier

ATTEMPTS_MAX = 2
"""Placements of one request: the first, and one more where an engine failed before it said anything."""
RETRY_S = 0.05
"""While requests are held and nothing happens, they are tried again this often."""
OFFERED_MAX = 8
"""Held requests tried when an instance gets room: the bound on the cost of an event."""
LATE_OFFERED_MAX = 4
TOLERANCE = 0.1
"""At its last call a request is placed if it is predicted to be late by no more than this share of its TTFT: predictions err."""
BOUNDARY_SHARE = 0.5
"""Tokens further apart than this share of an iteration belong to different iterations."""
RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 60.0

NOTHING: tuple[d.Decision, ...] = ()


class RouterCore:
    """All that the router knows: the fleet, the requests, and its own queue. `wake_at`: when it wants a `Tick`, read after each event."""

    def __init__(self, config: CoreConfig, place_by: PlaceBy | None = None, offer_by: OfferBy = offered) -> None:
        """`place_by` replaces the manifest's placement, `offer_by` how a held request takes room that has come up: rivals to compare with
        run on the very same state."""
        self.config = config
        ordered = sorted(config.tiers, key=lambda tier: tier.tpot_s)
        self.tiers = [
            Tier(tier, index, config.latency, config.engine.kv_tokens_max) for index, tier in enumerate(ordered)
        ]
        self.tier_by_name = {tier.name: tier for tier in self.tiers}
        if config.default_tier not in self.tier_by_name:
            raise ValueError(f"default_tier {config.default_tier!r} must be one of {sorted(self.tier_by_name)}")
        self.fleet = Fleet(self.tiers, config)
        self.instances = self.fleet.instances
        self.homes = self.fleet.homes
        self.requests: dict[int, Request] = {}
        self.pending = Pending()
        self.wake_at: float | None = None
        self._place_by = place_by or PLACEMENTS[config.placement]
        self._follows_queues = place_by is None
        """Rivals do not, and their engines may not do what a stock engine does, from which a lag is learned."""
        self._offer_by = offer_by
        self._length_max = min(config.engine.kv_tokens_max, config.length_max or config.engine.kv_tokens_max)
        self._handlers: dict[type, Callable[[Any], Sequence[d.Decision]]] = {
            e.RequestArrived: self._request_arrived,
            e.TokensReceived: self._tokens_received,
            e.IterationSeen: self._iteration_seen,
            e.RequestEnded: self._request_ended,
            e.PromptMeasured: self._prompt_measured,
            e.SendFailed: self._send_failed,
            e.Tick: self._tick,
            e.InstanceReported: self._instance_reported,
            e.InstanceFailed: self._instance_failed,
            e.InstanceRevived: self._instance_revived,
            e.FleetChanged: self._fleet_changed,
        }

    def handle(self, event: e.Event) -> Sequence[d.Decision]:
        """Take in one event. Events about a request or an instance that is unknown (it ended meanwhile) change nothing."""
        made = self._handlers[type(event)](event)
        if self.fleet.touched:
            self.fleet.reindex_touched()
        return made

    def recover(self, now: float) -> None:
        """`handle` has raised, and may have left an event half done: whatever is a sum over the requests is summed anew. A request whose
        decision was lost with the event stays as it is booked; whoever sends requests knows those that it never sent (`stage_of`)."""
        rebook(self.requests.values(), self.fleet, self.tiers, now)
        self.pending = Pending()
        for request in self.requests.values():
            if request.stage is HELD:
                self._queue(request)
        self.wake_at = None
        if self.pending.count:
            self._set_wake(now + RETRY_S)

    def stage_of(self, request: int) -> Stage | None:
        """Where a request is; None where it is unknown, or over."""
        found = self.requests.get(request)
        return None if found is None else found.stage

    # -- requests ------------------------------------------------------------------------------------------------------

    def _request_arrived(self, event: e.RequestArrived) -> Sequence[d.Decision]:
        if event.request in self.requests:
            raise ValueError(f"request {event.request} arrived twice")
        now = event.now
        tier = self._tier_of(event)
        request = Request(
            event.request,
            tier,
            now,
            tier.ttft_s if event.ttft_s is None else event.ttft_s,
            tier.tpot_s if event.tpot_s is None else event.tpot_s,
            max(1, event.prompt_tokens),
            event.output_tokens_max,
            event.streaming,
            event.prefilled,
        )
        needed = request.prompt_tokens + (event.output_tokens_max or 1)
        if needed > self._length_max:
            tier.saw_arrival(now, 0.0)
            reason = (
                f"prompt and output of {needed} tokens are more than the {self._length_max} that an instance can hold"
            )
            return [self._refuse(request, d.Cause.TOO_LONG, now, reason)]
        if not request.prefilled:
            request.measure_prefill(self.config.latency)
        tier.saw_arrival(now, tier.work_s(request))
        if self.pending.count >= self.config.pending_max:
            reason = f"{self.pending.count} requests are held already"
            return [self._refuse(request, d.Cause.QUEUE_FULL, now, reason)]
        self.requests[request.id] = request
        return [self._place_or_hold(request, now)]

    def _tier_of(self, event: e.RequestArrived) -> Tier:
        """The tier asked for; else the loosest one not looser than the TPOT asked for (the tightest, if all are); else the default."""
        if event.tier is not None:
            return self.tier_by_name[event.tier]
        if event.tpot_s is not None:
            for tier in reversed(self.tiers):
                if tier.tpot_s <= event.tpot_s:
                    return tier
            return self.tiers[0]
        return self.tier_by_name[self.config.default_tier]

    def _place_or_hold(self, request: Request, now: float) -> d.Decision:
        choice = self._place_by(self.homes, request, now)
        if choice is not None:
            return self._place(request, choice, now)
        return self._hold(request, now)

    def _hold(self, request: Request, now: float) -> d.Decision:
        tier = request.tier
        tier.pending += 1
        tier.held += 1
        last_call_at = self._queue(request)
        if last_call_at <= request.arrived and not request.attempts:
            tier.out_of_reach += 1
        if last_call_at <= now:
            self._set_wake(now)
        else:
            self._set_wake(now + RETRY_S)
        return d.Hold(request.id, tier.name, "no instance has room")

    def _queue(self, request: Request) -> float:
        """Put a held request in the queue; when its deadline is out of reach even of an idle instance."""
        tokens = 1 if request.prefilled else request.prompt_tokens
        last_call_at = request.due - self.config.latency.prefill_s(tokens, 0, self.fleet.batch_tokens_largest, 0, 0)
        self.pending.hold(request, last_call_at)
        if request.lost:
            self._give_up(request)
        return last_call_at

    def _give_up(self, request: Request) -> None:
        self.pending.give_up(request, 1 if request.tier.config.overload is Overload.BEST_EFFORT else 0)

    def _place(self, request: Request, choice: Choice, now: float) -> d.Place:
        """Book the request on the chosen instance. It may have been held before or not."""
        found, kind = choice
        instance = found.instance
        tier = request.tier
        if request.lost:
            kind = d.Kind.BEST_EFFORT if tier.config.overload is Overload.BEST_EFFORT else d.Kind.LATE
        instance.admit(request, now)
        request.attempts += 1
        request.placed_at = now
        request.ttft_predicted_at = found.first_token_at
        if request.prefilled:
            request.first_token_at = found.first_token_at  # whoever sees whole iterations tells no first token of it
        request.iteration_predicted_s = found.iteration_s
        tier.in_flight += 1
        tier.placements[kind] += 1
        tier.queue.observe(now - request.arrived)
        measure_load(instance, now)
        self.fleet.reindex(instance)
        priority = None
        if instance.scheduler is e.PRIORITY:
            # Milliseconds of the deadline; what is late goes behind everything that is not.
            priority = int(request.due * 1000.0) + (1_000_000_000 if request.lost else 0)
        return d.Place(
            request=request.id,
            instance=instance.id,
            tier=tier.name,
            kind=kind,
            ttft_predicted_s=found.first_token_at - request.arrived,
            iteration_predicted_s=found.iteration_s,
            room_s=found.least_s,
            load=instance.load,
            ttft_due=request.due,
            tpot_s=request.tpot_s,
            priority=priority,
            reason=kind.value,
        )

    def _refuse(self, request: Request, cause: d.Cause, now: float, reason: str) -> d.Refuse:
        request.stage = OVER
        self.requests.pop(request.id, None)
        request.tier.refused(cause, now)
        retry_after = None if cause is d.Cause.TOO_LONG else self._retry_after_s()
        return d.Refuse(request.id, request.tier.name, cause, retry_after, reason)

    def _retry_after_s(self) -> float:
        """When capacity is likely: the held prompts' work over the instances that can take it."""
        latency = self.config.latency
        work = self.pending.count * latency.prefill_s(1000, 0, self.fleet.batch_tokens_largest, 0, 0)
        placeable = self.fleet.placeable if self.pending.count else 1
        return float(ceil(min(max(work / max(1, placeable), RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)))

    def _tokens_received(self, event: e.TokensReceived) -> Sequence[d.Decision]:
        request = self.requests.get(event.request)
        if request is None or request.instance is None:
            return NOTHING
        now = event.now
        count = event.tokens
        instance = request.instance
        if instance.ahead and request.stage is DECODE:
            instance.catch_up(request)
        first = request.tokens == 0
        gap = now - instance.boundary_at
        ended = gap > BOUNDARY_SHARE * instance.iteration_s
        if ended:
            instance.queue.boundary(instance, now)
        if first:
            self._first_token(request, instance, now)
        judged_at = now - instance.grace_s
        if judged_at <= request.due + request.tokens * request.tpot_s:
            request.tokens_met += count
        else:
            request.tokens_met += request.in_time(count, judged_at)
            instance.lose(request)
        request.tokens += count
        request.last_token_at = now
        instance.kv_decode_tokens += count
        if ended:
            if not instance.prefills and not first and instance.boundary_at >= instance.prefill_ended_at:
                calibrate(instance, gap / count, instance.iteration_s / instance.calibration)
            instance.boundary_at = now
            instance.refresh(now, at_boundary=True)
            self.fleet.reindex(instance)
        if first and self.pending.count:
            return self._offer(instance, now)
        return NOTHING

    def _iteration_seen(self, event: e.IterationSeen) -> Sequence[d.Decision]:
        instance = self.instances.get(event.instance)
        if instance is not None:
            requests = self.requests
            left_out = [requests[id] for id in event.left_out if id in requests]
            instance.iteration_seen(event.now, left_out)
            self.fleet.reindex(instance)
        return NOTHING

    def _first_token(self, request: Request, instance: Instance, now: float) -> None:
        request.first_token_at = now
        request.tier.ttft.observe(now - request.arrived)
        request.tier.ttft_error.observe(now - request.ttft_predicted_at)
        if request.stage is PREFILL:
            calibrate_by_prefill(instance, request, now)
            if self._follows_queues:
                measure_lag(instance, request, self.config.clients_hear_first)
            instance.began_to_decode(request, now)

    def _request_ended(self, event: e.RequestEnded) -> Sequence[d.Decision]:
        request = self.requests.pop(event.request, None)
        if request is None:
            return NOTHING
        now = event.now
        instance = request.instance
        if instance is None:
            self._leave_pending(request)
            request.stage = OVER
            request.tier.ended(request, event.outcome, now)
            return NOTHING
        self._release(request, instance, now)
        if not request.streaming:
            request.tokens = request.tokens_met = 0
            request.tokens_met = request.in_time(event.tokens, now)
            request.tokens = event.tokens
        request.tier.ended(request, event.outcome, now)
        return self._offer(instance, now) if self.pending.count else NOTHING

    def _release(self, request: Request, instance: Instance, now: float) -> None:
        instance.release(request, now)
        request.tier.in_flight -= 1
        if now - instance.refreshed_at > 0.001 or not instance.requests:
            instance.refresh(now)
            self.fleet.reindex(instance)

    def _leave_pending(self, request: Request) -> None:
        self.pending.leave()
        request.tier.pending -= 1

    def _prompt_measured(self, event: e.PromptMeasured) -> Sequence[d.Decision]:
        request = self.requests.get(event.request)
        if request is not None:
            difference = event.prompt_tokens - request.prompt_tokens
            request.prompt_tokens = event.prompt_tokens
            if request.instance is not None:
                request.kv_reserved += difference
                request.instance.kv_reserved += difference
                request.instance.queue.forget()
                if request.stage is DECODE:
                    request.instance.kv_decode_tokens += difference
        return NOTHING

    def _send_failed(self, event: e.SendFailed) -> Sequence[d.Decision]:
        request = self.requests.get(event.request)
        if request is None or request.instance is None:
            return NOTHING
        now = event.now
        instance = request.instance
        self._release(request, instance, now)
        if request.attempts >= ATTEMPTS_MAX:
            return [
                self._refuse(request, d.Cause.ENGINE_FAILED, now, f"failed on {instance.id}, and on another before")
            ]
        request.avoid = instance
        request.stage = HELD
        request.tokens = request.tokens_met = 0
        if request.prefilled:
            request.prefilled = False  # its KV was lost with the engine
            request.measure_prefill(self.config.latency)
        request.lost = False  # its client has seen nothing yet: whether it is lost, its next placement tells
        return [self._place_or_hold(request, now)]

    # -- the router's queue --------------------------------------------------------------------------------------------

    def _offer(self, instance: Instance, now: float) -> Sequence[d.Decision]:
        """An instance has got room: give it to the most urgent held requests that fit."""
        if not instance.placeable or self.instances.get(instance.id) is not instance:
            return NOTHING
        made: list[d.Decision] = []
        for request in self.pending.first_in_time(OFFERED_MAX):
            choice = self._offer_by(instance, request, now)
            if choice is not None:
                self._leave_pending(request)
                made.append(self._place(request, choice, now))
        if not made:
            lost = self.pending.first_lost()
            if lost is not None:
                found = room_for_late(instance, lost, now)
                if found is not None:
                    self._leave_pending(lost)
                    made.append(self._place(lost, Choice(found, d.Kind.LATE), now))
        return made

    def _tick(self, event: e.Tick) -> Sequence[d.Decision]:
        now = event.now
        self.wake_at = None
        made: list[d.Decision] = []
        for request in self.pending.last_calls(now):
            decision = self._last_call(request, now)
            if decision is not None:
                made.append(decision)
        self._retry_held(now, made)
        if self.pending.count:
            self._set_wake(now + RETRY_S)
        return made

    def _retry_held(self, now: float, made: list[d.Decision]) -> None:
        for request in self.pending.first_in_time(OFFERED_MAX):
            choice = self._place_by(self.homes, request, now)
            if choice is not None:
                self._leave_pending(request)
                made.append(self._place(request, choice, now))
        for _ in range(LATE_OFFERED_MAX):
            lost = self.pending.first_lost()
            choice = least_harm(self.homes, lost, now) if lost is not None else None
            if lost is None or choice is None:
                break
            self._leave_pending(lost)
            made.append(self._place(lost, choice, now))

    def _last_call(self, request: Request, now: float) -> d.Decision | None:
        """Its deadline is about to be lost: one tolerant try, then what its tier says about overload."""
        request.avoid = (
            None  # where there is no other, the one that failed it may serve it: else it would wait for ever
        )
        refusing = request.tier.refuses
        # Who is likely to be late after all costs others as much as one in time: better refused, where that is what the tier wants.
        tolerance = 0.0 if refusing else TOLERANCE * (request.due - request.arrived)
        choice = nearly(self.homes, request, now, tolerance)
        if choice is not None:
            self._leave_pending(request)
            return self._place(request, choice, now)
        if refusing:
            self._leave_pending(request)
            cause = d.Cause.DEADLINE if self.fleet.placeable else d.Cause.NO_INSTANCE
            return self._refuse(request, cause, now, "no instance can meet its deadline any more")
        request.tier.given_up += 1
        self._give_up(request)
        return None

    def _set_wake(self, at: float) -> None:
        last_call = self.pending.last_call_at()
        if last_call is not None and last_call < at:
            at = last_call
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    # -- the fleet -----------------------------------------------------------------------------------------------------

    def _fleet_changed(self, event: e.FleetChanged) -> Sequence[d.Decision]:
        self.fleet.change(event.instances, event.now)
        return self._tick(e.Tick(event.now)) if self.pending.count else NOTHING

    def _instance_failed(self, event: e.InstanceFailed) -> Sequence[d.Decision]:
        self.fleet.fail(event.instance)
        return NOTHING

    def _instance_revived(self, event: e.InstanceRevived) -> Sequence[d.Decision]:
        instance = self.fleet.revive(event.instance)
        return self._offer(instance, event.now) if instance is not None and self.pending.count else NOTHING

    def _instance_reported(self, event: e.InstanceReported) -> Sequence[d.Decision]:
        instance = self.instances.get(event.instance)
        if instance is None:
            return NOTHING
        instance.reported(event.running, event.waiting, event.kv_tokens, event.now)
        instance.refresh(event.now)
        self.fleet.reindex(instance)
        return self._offer(instance, event.now) if self.pending.count else NOTHING

    # -- what it tells -------------------------------------------------------------------------------------------------

    def status(self, now: float) -> CoreStatus:
        """Everything that /fleet and /metrics show. O(fleet); for a scrape, not for a decision."""
        self.fleet.refresh(now)
        return status_of(self.tiers, self.instances.values(), self.pending, self.fleet.generation, now)

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. For tests and the simulator: O(everything)."""
        check(self)
