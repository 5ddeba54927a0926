"""What the core believes of one engine server: what it sent there, what came back, and how fast the server really is. Changed by
`machine` alone, with `load`'s help; read by the room tests and the placements."""

from collections.abc import Sequence
from math import inf

from multislo_perf.latency import LatencyModel
from multislo_router.core.config import EngineLimits
from multislo_router.core.events import FCFS, SLO_AWARE, InstanceSpec, InstanceState
from multislo_router.core.load import began_with_head, calibrate, measure_load, sent_prefill
from multislo_router.core.request import DECODE, OVER, PREFILL, Request
from multislo_router.core.stock_queue import StockQueue
from multislo_router.core.tier import Tier

STALE_S = 0.1
"""A belief older than this is brought up to date before it is used (where no token has come to do it)."""
ROUNDING_S = 1e-6
"""More than the error of a deadline that was moved on token by token."""
LOST_AFTER_S = 1.0
"""A prompt that the engine no longer reports, sent longer ago than this, is not waiting there any more."""


class Instance:
    """One engine server. A restart makes a new object: what was placed before keeps pointing at the old one until it ends."""

    __slots__ = (
        "ahead",
        "batch_tokens",
        "boundary_at",
        "bucket",
        "calibration",
        "decodes",
        "due_least",
        "due_stale",
        "empty_since",
        "failed",
        "grace_s",
        "head_since",
        "head_span_s",
        "id",
        "iteration_s",
        "kv_decode_tokens",
        "kv_foreign",
        "kv_reported",
        "kv_reserved",
        "lag_s",
        "late_share",
        "latency",
        "limits",
        "load",
        "load_mean",
        "load_mean_at",
        "lost",
        "prefill_ended_at",
        "prefill_share",
        "prefill_share_at",
        "prefill_variance",
        "prefills",
        "queue",
        "refreshed_at",
        "scheduler",
        "spec",
        "steady_s",
        "tier",
        "tier_counts",
        "touched",
        "tpot_counts",
        "tpot_tightest_s",
        "tpots",
    )

    def __init__(
        self,
        spec: InstanceSpec,
        tier: Tier | None,
        tpots: list[float],
        latency: LatencyModel,
        limits: EngineLimits,
        now: float,
        touched: "list[Instance]",
    ):
        self.id = spec.id
        self.spec = spec
        self.tier = tier
        self.latency = latency
        self.limits = limits
        self.batch_tokens = spec.batch_tokens or (tier.config.batch_tokens if tier else limits.warm_batch_tokens)
        self.scheduler = spec.scheduler or limits.scheduler
        self.failed = False
        self.queue = StockQueue(now)
        """Where a stock engine is in its prompts."""
        self.calibration = 1.0
        self.lag_s = 0.0
        """From sending something there until what is seen of the engine can show it, beyond what the engine takes: `lag` measures it."""
        self.grace_s = 0.0
        """So much later than a deadline a token is seen that was in time: the lag, where clients hear first."""
        self.prefills: dict[int, Request] = {}
        """In the order in which the engine will finish them."""
        self.decodes: dict[int, Request] = {}
        self.ahead = 0
        """Iterations seen whole since `catch_up_all`: so many tokens, less their `behind`, the decodes have beyond what they are booked."""
        self.lost: dict[int, Request] = {}
        """The lost among the decodes."""
        self.kv_reserved = 0
        """KV tokens that everything placed here will probably need."""
        self.kv_decode_tokens = 0
        """KV tokens that the decodes hold now."""
        self.kv_foreign = 0
        """KV tokens reported beyond what was placed from here."""
        self.kv_reported: int | None = None
        self.tpots = tpots
        self.touched = touched
        """The core's list of instances whose load changed while they were asked for room: to be put in their place on the ladder."""
        self.tier_counts = [0] * len(tpots)
        """Requests here, prefills too, by tier."""
        self.due_least = [inf] * len(tpots)
        """The earliest next-token deadline that can still be met, by tier; exact when refreshed, never too late between."""
        self.due_stale = False
        """Whose deadline was the earliest has gone: `due_least` is too early."""
        self.tpot_counts: dict[float, int] = {}
        """Requests here that are not lost, by TPOT."""
        self.tpot_tightest_s = inf
        """The least of these."""
        self.boundary_at = now
        """When an iteration was last seen to end."""
        self.prefill_ended_at = now
        """When a prefill last left the instance's queue."""
        self.prefill_share = 0.0
        """Share of the time that the prefills sent here take, a moving mean (profile's time, uncalibrated)."""
        self.prefill_variance = 0.0
        """By how much that mean errs, squared: so few prompts make it up, each a share of its own (shot noise)."""
        self.late_share = 0.0
        """The part of the mean that was lost already when it was sent here."""
        self.prefill_share_at = now
        self.head_since = now
        """When the engine began with the first of the prefills."""
        self.head_span_s = 0.0
        """How long that prefill takes in all; 0 where nobody has asked yet."""
        self.iteration_s = latency.iteration_s(0, 0, 0, 0)
        """The iteration of the decodes alone, as they are now."""
        self.steady_s = self.iteration_s
        """The same once the prefills here decode too."""
        self.refreshed_at = now
        self.load = 0.0
        self.load_mean = 0.0
        self.load_mean_at = now
        self.bucket = -1
        self.empty_since: float | None = now

    @property
    def placeable(self) -> bool:
        return self.spec.state is InstanceState.READY and not self.failed

    @property
    def requests(self) -> int:
        return len(self.prefills) + len(self.decodes)

    # -- what goes in and out ------------------------------------------------------------------------------------------

    def admit(self, request: Request, now: float) -> None:
        """Book a request that is sent here now."""
        request.instance = self
        request.stage = PREFILL
        request.joins_at = now + self.lag_s
        request.kv_reserved = request.prompt_tokens + request.output_tokens_expected
        self.kv_reserved += request.kv_reserved
        self.tier_counts[request.tier.index] += 1
        self.queue.before_admission(self, now)
        self.empty_since = None
        if not request.lost:
            self._count_tpot(request.tpot_s)
        if request.prefilled:
            self._to_decodes(request)
            return
        if not self.prefills:
            began_with_head(self, request.joins_at)
        self.prefills[request.id] = request
        sent_prefill(self, request, now)
        if self.scheduler is not FCFS and len(self.prefills) > 1:
            self._order_prefills(now)

    def _count_tpot(self, tpot_s: float) -> None:
        self.tpot_counts[tpot_s] = self.tpot_counts.get(tpot_s, 0) + 1
        if tpot_s < self.tpot_tightest_s:
            self.tpot_tightest_s = tpot_s

    def _uncount_tpot(self, tpot_s: float) -> None:
        counts = self.tpot_counts
        left = counts[tpot_s] - 1
        if left:
            counts[tpot_s] = left
            return
        del counts[tpot_s]
        if tpot_s <= self.tpot_tightest_s:
            self.tpot_tightest_s = min(counts, default=inf)

    def lose(self, request: Request) -> None:
        """One of its deadlines is missed: it is served still, but limits nobody."""
        if request.lost:
            return
        request.lost = True
        self._uncount_tpot(request.tpot_s)
        if request.stage is DECODE:
            self.lost[request.id] = request
        self.queue.forget()

    def _order_prefills(self, now: float) -> None:
        begun = next(iter(self.prefills.values()))
        if self.scheduler is SLO_AWARE:
            # What is lost goes behind all others, and one under way may be overtaken.
            ordered = sorted(self.prefills.values(), key=lambda r: (r.lost, r.due))
            if ordered[0] is not begun:
                began_with_head(self, now)
        else:
            # vLLM orders only what waits: a prompt that has begun stays at the head, whatever its deadline.
            ordered = sorted(self.prefills.values(), key=lambda r: (r is not begun, r.due))
        self.prefills = {r.id: r for r in ordered}

    def began_to_decode(self, request: Request, now: float) -> None:
        """Its first token came, or must have (a request that does not stream shows none)."""
        self._leave_prefills(request, now)
        self._to_decodes(request)

    def _to_decodes(self, request: Request) -> None:
        request.stage = DECODE
        self.decodes[request.id] = request
        request.behind = self.ahead
        self.kv_decode_tokens += request.prompt_tokens + request.tokens
        if request.lost:
            self.lost[request.id] = request
        index = request.tier.index
        due = request.next_due()
        if due < self.due_least[index] and not request.lost:
            self.due_least[index] = due

    def _leave_prefills(self, request: Request, now: float) -> None:
        was_head = next(iter(self.prefills)) == request.id
        del self.prefills[request.id]
        self.prefill_ended_at = now
        self.queue.forget()
        if was_head:
            self.queue.left_head(request.prompt_tokens)
            if self.prefills:
                began_with_head(self, now)

    def release(self, request: Request, now: float) -> None:
        """Forget a request, at whatever stage it is."""
        if request.stage is PREFILL:
            self._leave_prefills(request, now)
        else:
            if self.ahead:
                self.catch_up(request)
            del self.decodes[request.id]
            self.kv_decode_tokens -= request.prompt_tokens + request.tokens
            if request.lost:
                del self.lost[request.id]
            elif request.next_due() <= self.due_least[request.tier.index] + ROUNDING_S:
                self.due_stale = True
        if not request.lost:
            self._uncount_tpot(request.tpot_s)
        self.kv_reserved -= request.kv_reserved
        self.tier_counts[request.tier.index] -= 1
        request.instance = None
        request.stage = OVER
        if not self.prefills and not self.decodes:
            self.empty_since = now

    def rebook(self, requests: list[Request], now: float) -> None:
        """Forget what is booked here and book just these requests, at the stages that they are at: an event was interrupted by an
        exception, and what it left may be half done."""
        place = {id: index for index, id in enumerate(self.prefills)}
        share, variance, late_share = self.prefill_share, self.prefill_variance, self.late_share
        self.prefills, self.decodes, self.lost = {}, {}, {}
        self.ahead = self.kv_reserved = self.kv_decode_tokens = 0
        self.tier_counts = [0] * len(self.tpots)
        self.due_least = [inf] * len(self.tpots)
        self.tpot_counts = {}
        self.tpot_tightest_s = inf
        self.queue = StockQueue(now)
        self.empty_since = now
        for request in sorted(requests, key=lambda r: (r.stage is PREFILL, place.get(r.id, len(place)), r.due)):
            decodes = request.stage is DECODE
            self.admit(request, now)
            if decodes and request.stage is PREFILL:
                self.began_to_decode(request, now)
        self.prefill_share, self.prefill_variance, self.late_share = share, variance, late_share
        self.refresh(now)

    # -- what iterations bring -----------------------------------------------------------------------------------------

    def iteration_seen(self, now: float, left_out: Sequence[Request]) -> None:
        """One token more for every decode but these: O(tiers), where nobody is late. Nothing is booked on the requests but `behind`."""
        since = self.boundary_at
        self.boundary_at = now
        self.queue.boundary(self, now)
        self.ahead += 1
        missing = 0
        for request in left_out:
            if request.stage is DECODE and request.instance is self:
                request.behind += 1
                missing += 1
        if not missing and not self.prefills and since >= self.prefill_ended_at:
            calibrate(self, now - since, self.iteration_s / self.calibration)
        self.kv_decode_tokens += len(self.decodes) - missing
        if self.lost:
            for request in self.lost.values():
                self.catch_up(request, now - self.grace_s)
        due_least = self.due_least
        late = self.due_stale
        judged_at = now - self.grace_s
        for index, due in enumerate(due_least):
            if due < inf:
                if due < judged_at:
                    late = True
                due_least[index] = due + self.tpots[index]
        if late:
            self._judge(judged_at, left_out)
        else:
            for request in left_out:
                if not request.lost and request.stage is DECODE and request.instance is self:
                    due = request.due + (request.tokens + self.ahead - request.behind) * request.tpot_s
                    if due < due_least[request.tier.index]:
                        due_least[request.tier.index] = due
        self._believe(now)

    def catch_up(self, request: Request, now: float | None = None) -> None:
        """Book the tokens that a decode has got in iterations seen whole. Those of one that is not lost were in time; those of a lost one
        are booked one by one, as they come."""
        tokens = self.ahead - request.behind
        if tokens <= 0:
            return
        if now is None or now <= request.due + request.tokens * request.tpot_s:
            request.tokens_met += tokens
        request.tokens += tokens
        request.last_token_at = self.boundary_at
        request.behind = self.ahead

    def catch_up_all(self) -> None:
        for request in self.decodes.values():
            tokens = self.ahead - request.behind
            if tokens > 0:
                request.tokens_met += tokens
                request.tokens += tokens
                request.last_token_at = self.boundary_at
            request.behind = 0
        self.ahead = 0

    def _judge(self, now: float, left_out: Sequence[Request]) -> None:
        """Who of the decodes is late with the token that has come now, and the earliest deadlines of the others."""
        due_least = [inf] * len(self.tpots)
        passed = {request.id for request in left_out}
        for request in self.decodes.values():
            if request.lost:
                continue
            tokens = self.ahead - request.behind
            tokens += request.tokens
            if (
                tokens > request.tokens
                and request.id not in passed
                and now > request.due + (tokens - 1) * request.tpot_s
            ):
                self.catch_up(request)
                request.tokens_met -= 1
                self.lose(request)
                continue
            index = request.tier.index
            due = request.due + tokens * request.tpot_s
            if due < due_least[index]:
                due_least[index] = due
        self.due_least = due_least
        self.due_stale = False

    # -- what time brings ----------------------------------------------------------------------------------------------

    def refresh(self, now: float, at_boundary: bool = False) -> None:
        """Bring the belief up to date: deadlines, iteration time, load. O(requests here); once an iteration, not once a token.

        `at_boundary`: the first token of an iteration has just come, so the other decodes' tokens are on their way.
        """
        if self.ahead:
            self.catch_up_all()
        self._assume_silent_progress(now)
        due_least = [inf] * len(self.tpots)
        for request in self.decodes.values():
            if request.lost:
                continue
            tokens = request.tokens + 1 if at_boundary and request.last_token_at < now else request.tokens
            due = request.due + tokens * request.tpot_s
            index = request.tier.index
            if due < due_least[index]:
                due_least[index] = due
        self.due_least = due_least
        self.due_stale = False
        self._believe(now)

    def _believe(self, now: float) -> None:
        """The lost among the prefills, the iteration time and the load, as of now. O(prefills)."""
        judged_at = now - self.grace_s
        lost = [request for request in self.prefills.values() if request.due < judged_at and not request.lost]
        if lost:
            for request in lost:
                self.lose(request)
            if self.scheduler is SLO_AWARE and len(self.prefills) > 1:
                self._order_prefills(now)
        decodes = len(self.decodes)
        self.iteration_s = self.calibration * self.latency.iteration_s(0, 0, decodes, self.kv_decode_tokens)
        self.refreshed_at = now
        measure_load(self, now)

    def _assume_silent_progress(self, now: float) -> None:
        """Requests that do not stream show no token before their last: believe that they keep pace with the prediction."""
        if self.prefills:
            silent = [r for r in self.prefills.values() if not r.streaming and now >= r.ttft_predicted_at]
            for request in silent:
                self.began_to_decode(request, now)
                request.first_token_at = request.ttft_predicted_at
        for request in self.decodes.values():
            if not request.streaming and self.iteration_s > 0.0:
                believed = int((now - request.first_token_at) / self.iteration_s) + 1
                limit = request.output_tokens_expected
                believed = min(believed, limit)
                if believed > request.tokens:
                    self.kv_decode_tokens += believed - request.tokens
                    request.tokens = believed

    def reported(self, running: int, waiting: int, kv_tokens: int, now: float) -> None:
        """Take in what the engine says of itself: KV that others hold, and prompts that it no longer has."""
        self.kv_reported = kv_tokens
        believed = self.kv_decode_tokens + sum(r.prompt_tokens for r in self.prefills.values())
        foreign = kv_tokens - believed
        self.kv_foreign = foreign if foreign > believed * 0.05 + 1024 else 0
        missing = self.requests - running - waiting
        if missing > 0 and self.prefills:
            for request in [r for r in self.prefills.values() if r.placed_at < now - LOST_AFTER_S][:missing]:
                self.began_to_decode(request, now)
                request.first_token_at = now
