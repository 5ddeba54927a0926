"""`Admissions`: carries out on the books what was decided of a request (placed, held, refused, over) and answers with the decision that
the shell gets. Owns the requests, where each one is, the router's queue and the tiers' counts. Used by `machine` alone."""

from collections.abc import Sequence
from math import ceil
from typing import Final

from multislo_router.core import decisions as d
from multislo_router.core import sequences
from multislo_router.core.config import CoreConfig, Overload
from multislo_router.core.counts import TierCounts
from multislo_router.core.events import COMPLETED, PRIORITY, Outcome
from multislo_router.core.fleet import Fleet
from multislo_router.core.instance import Instance
from multislo_router.core.pending import Pending
from multislo_router.core.placement import Choice
from multislo_router.core.request import HELD, OVER, Request
from multislo_router.core.tier import Tier

RETRY_S: Final = 0.05
"""While requests are held and nothing happens, they are tried again this often."""
SETTLED_S: Final = 0.001
"""An instance that was refreshed this short ago is not refreshed again for one request that ends."""
RETRY_AFTER_MIN_S: Final = 1.0
RETRY_AFTER_MAX_S: Final = 60.0
RETRY_AFTER_PROMPT_TOKENS: Final = 1000
"""Of a held prompt, roughly, for the estimate of when there is room again."""
LATE_PRIORITY: Final = 1_000_000_000
"""Added to vLLM's priority of a request that is late: behind everything that is not."""


class Admissions:
    """All methods change the books; none chooses."""

    def __init__(self, config: CoreConfig, tiers: Sequence[Tier], fleet: Fleet) -> None:
        self.requests: dict[int, Request] = {}
        """Held and placed ones."""
        self.places: dict[int, Instance] = {}
        """Where each placed request is."""
        self.pending = Pending()
        self.counts = [TierCounts(tier.ttft_s, tier.tpot_s) for tier in tiers]
        """By tier, tightest first."""
        self._config = config
        self._fleet = fleet

    def counts_of(self, request: Request) -> TierCounts:
        return self.counts[request.tier.index]

    def arrived(self, request: Request, now: float) -> None:
        self.counts_of(request).saw_arrival(now, request.work_s())
        self.requests[request.id] = request

    def place(self, request: Request, choice: Choice, now: float) -> d.Place:
        """Book the request on the chosen instance."""
        found, kind = choice.room, choice.kind
        instance = found.instance
        if request.late:
            kind = d.BEST_EFFORT if request.tier.config.overload is Overload.BEST_EFFORT else d.LATE
        request.attempts += 1
        request.placed_at = now
        request.ttft_predicted_at = found.first_token_at
        request.iteration_predicted_s = found.iteration_s
        sequences.admit(request, instance, now)
        self._fleet.refreshed(instance)
        self.places[request.id] = instance
        counts = self.counts_of(request)
        counts.in_flight += 1
        counts.placements[kind] += 1
        counts.queue.observe(now - request.arrived)
        priority = None
        if instance.scheduler is PRIORITY:
            priority = int(request.due * 1000.0) + (
                LATE_PRIORITY if request.lost else 0
            )  # milliseconds of the deadline
        return d.Place(
            request=request.id,
            instance=instance.id,
            tier=request.tier.name,
            kind=kind,
            ttft_predicted_s=found.first_token_at - request.arrived,
            iteration_predicted_s=found.iteration_s,
            room_s=found.least_s,
            load=instance.load,
            ttft_due=request.slo_due,
            second_due=request.second_due,
            tpot_s=request.tpot_s,
            priority=priority,
            reason=kind.value,
        )

    def hold(self, request: Request, now: float) -> d.Hold:
        """Queue the request in the router until its last call: then not even an idle instance could meet its deadline."""
        counts = self.counts_of(request)
        counts.pending += 1
        counts.held += 1
        if self.queue(request) <= request.arrived and not request.attempts:
            counts.out_of_reach += 1
        return d.Hold(request.id, request.tier.name, "no instance has room")

    def queue(self, request: Request) -> float:
        """Put it in the router's queue. Returns its last call: when the deadline that it is planned by is out of reach even of an idle
        instance; of a lost one, when it has waited for as long as its tier lets it wait, if that is bounded."""
        tokens = 1 if request.prefilled else request.prompt_tokens
        due = request.latest if request.lost else request.due
        last_call_at = due - self._idle_prefill_s(tokens)
        self.pending.hold(request, last_call_at)
        return last_call_at

    def late(self, request: Request) -> None:
        """A held request's deadline is out of reach: queue it by its second one, or behind all others."""
        if not request.late:
            self.counts_of(request).given_up += 1
        request.miss()
        self.pending.leave()
        self.queue(request)

    def again(self, request: Request, now: float) -> None:
        """A held request has to be served now, and nothing has memory for it: look again soon."""
        self.pending.leave()
        self.pending.hold(request, now + RETRY_S)

    def leave_pending(self, request: Request) -> None:
        """It is about to be placed or refused, or its client went."""
        self.pending.leave()
        self.counts_of(request).pending -= 1

    def refuse(self, request: Request, cause: d.Cause, now: float, reason: str) -> d.Refuse:
        request.stage = OVER
        self.requests.pop(request.id, None)
        self.counts_of(request).refused(cause, now)
        retry_after = None if cause is d.Cause.TOO_LONG else self._retry_after_s()
        return d.Refuse(request.id, request.tier.name, cause, retry_after, reason)

    def take_back(self, request: Request, now: float) -> Instance:
        """It leaves the instance that it was placed on; also when it is over."""
        instance = self.places.pop(request.id)
        sequences.release(request, instance, now)
        request.stage = OVER
        self.counts_of(request).in_flight -= 1
        self.settle(instance, now)
        return instance

    def settle(self, instance: Instance, now: float) -> None:
        """Something has left the instance. Many leave at once, and one look at the rest serves for all."""
        if now - instance.refreshed_at > SETTLED_S or not instance.bookings.requests:
            instance.refresh(now)
            self._fleet.refreshed(instance)

    def fresh(self, request: Request) -> None:
        """Its placement failed with nothing sent to its client: it is as before its first placement, but for its deadline."""
        request.stage = HELD
        request.tokens = request.tokens_met = 0
        request.late = request.lost = False  # whether it is, its next placement tells
        request.due = request.slo_due
        if request.parts:
            prompts = tuple([part.prompt_tokens for part in request.parts])
            sequences.split(request, prompts, len(request.members) // len(request.parts), self._config.latency)
        if request.prefilled:
            request.prefilled = False  # its KV was lost with the engine
            request.measure_prefill(self._config.latency)

    def ended(self, request: Request, outcome: Outcome, tokens: int, now: float) -> Instance | None:
        """The request is over; the instance that it was on, if it was placed. Of one that does not stream, or that has
        several sequences, `tokens` are all that it got."""
        del self.requests[request.id]
        instance = None
        if request.stage is HELD:
            self.leave_pending(request)
            request.stage = OVER
        else:
            instance = self.take_back(request, now)
            if request.parts:
                sequences.sum_up(request, tokens, now)
                if request.streaming and request.tokens:
                    self.counts_of(request).saw_first_token(request)
            elif not request.streaming:
                request.tokens = request.tokens_met = 0
                request.late_most_s = 0.0
                request.judge(tokens, now)
                request.tokens = tokens
        if request.tokens and outcome is COMPLETED:
            request.tier.saw_output(max(1, request.tokens // request.sequences))
        self.counts_of(request).ended(request, outcome, now)
        return instance

    def rebook(self, now: float) -> None:
        """After an exception in the middle of an event: everything that is a sum or a list over the requests is made anew from the requests
        themselves, so that a bug costs one event and not the books. An arrival that is nowhere any more counts as failed."""
        self.pending.clear()
        here: dict[Instance, list[Request]] = {instance: [] for instance in self._fleet.instances.values()}
        for id in [id for id in self.places if id not in self.requests]:
            here.setdefault(self.places.pop(id), [])
        for counts in self.counts:
            counts.pending = counts.in_flight = 0
        for request in self.requests.values():
            instance = self.places.get(request.id)
            if instance is not None:
                here.setdefault(instance, []).extend(sequences.on_books(request))
                self.counts_of(request).in_flight += 1
            else:
                request.stage = HELD
                self.queue(request)
                self.counts_of(request).pending += 1
        for instance, requests in here.items():
            instance.rebook(requests, now)
        self._fleet.list_anew(here)
        for counts in self.counts:
            counts.settle()

    def _idle_prefill_s(self, prompt_tokens: int) -> float:
        return self._config.latency.prefill_s(prompt_tokens, 0, self._fleet.batch_tokens_largest, 0, 0)

    def _retry_after_s(self) -> float:
        """When capacity is likely: the held prompts' work over the instances that can take it."""
        if not self.pending.count:
            return RETRY_AFTER_MIN_S
        work_s = self.pending.count * self._idle_prefill_s(RETRY_AFTER_PROMPT_TOKENS)
        wait_s = work_s / max(1, self._fleet.placeable)
        return float(ceil(min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)))
