"""`Instance`: one engine server as the core believes it to be. Three parts, each with one owner, which is this module: *bookings* (what was
admitted), *pace* (how fast it is) and *queue* (what its engine does next). `machine` tells it what happens; others only ask."""

from collections.abc import Callable
from dataclasses import replace
from math import exp
from typing import Final

from multislo_perf.latency import LatencyModel
from multislo_router.core.bookings import Bookings
from multislo_router.core.config import EngineLimits
from multislo_router.core.decisions import Suspect
from multislo_router.core.engine_queue import EngineQueue
from multislo_router.core.events import SLO_AWARE, InstanceReported, InstanceSpec, InstanceState
from multislo_router.core.fullness import Fullness
from multislo_router.core.load import load_of
from multislo_router.core.pace import Pace
from multislo_router.core.request import PREFILL, Request
from multislo_router.core.tier import Tier

BOUNDARY_SHARE: Final = 0.5
"""Tokens further apart than this share of an iteration belong to different iterations."""
LOAD_WINDOW_S: Final = 10.0
LOAD_STEP_S: Final = 0.01
"""The mean of the load moves in steps of at least this."""
UNREPORTED_AFTER_S: Final = 1.0
"""A prompt that the engine no longer reports, sent longer ago than this, is not waiting there any more."""
FOREIGN_KV_SHARE: Final = 0.05
FOREIGN_KV_TOKENS: Final = 1024
"""KV that an engine reports beyond the booked by less than this is rounding to blocks."""

SILENT_FACTOR: Final = 10.0
SILENT_LEAST_S: Final = 2.0
"""An instance with requests that shows no progress for so many times what is predicted, and for so long at least, is suspect: a
profile may be wrong by less, and an engine that is asked for a token for nothing loses one iteration."""

BookingsOf = Callable[[list[float], float], Bookings]


class Instance:
    """A restart makes a new object: what was placed before stays on the old one until it ends."""

    __slots__ = (
        "_load_mean_at",
        "batch_tokens",
        "bookings",
        "bucket",
        "failed",
        "fullness",
        "heard_at",
        "id",
        "limits",
        "load",
        "load_mean",
        "pace",
        "queue",
        "refreshed_at",
        "scheduler",
        "spec",
        "tier",
        "tokens_reported",
    )

    def __init__(
        self,
        spec: InstanceSpec,
        tier: Tier | None,
        tpots: list[float],
        latency: LatencyModel,
        limits: EngineLimits,
        now: float,
        bookings_of: BookingsOf = Bookings,
    ) -> None:
        self.id = spec.id
        self.spec = spec
        self.tier = tier
        self.limits = limits
        self.batch_tokens = spec.batch_tokens or (tier.config.batch_tokens if tier else limits.warm_batch_tokens)
        self.scheduler = spec.scheduler or limits.scheduler
        self.failed = False
        self.heard_at = now
        """When it last showed that it computes."""
        self.tokens_reported: int | None = None
        """Its own count of the tokens that it has computed, where it tells one."""
        self.fullness = Fullness()
        self.bookings = bookings_of(tpots, now)
        self.pace = Pace(latency, now)
        self.queue = EngineQueue(self.scheduler, self.batch_tokens, now)
        self.refreshed_at = now
        self.load = 0.0
        self.load_mean = 0.0
        """Of the last ~10 s."""
        self._load_mean_at = now
        self.bucket = -1
        """Its place on its ladder; -1: on none."""

    @property
    def placeable(self) -> bool:
        return self.spec.state is InstanceState.READY and not self.failed

    # -- requests come and go ------------------------------------------------------------------------------------------

    def admit(self, request: Request, now: float) -> None:
        """Book a request that is sent here now."""
        self.queue.joins(request, not self.bookings.requests, now)
        self.bookings.admit(request, now)
        if request.prefilled:
            self.bookings.began_to_decode(request)
        self.measure_load(now)

    def release(self, request: Request, now: float) -> None:
        """Forget a request, at whatever stage it is."""
        if request.stage is PREFILL:
            self._leaves_queue(request, now)
        self.bookings.release(request, now)

    def _leaves_queue(self, request: Request, now: float) -> None:
        self.queue.leaves(request, now)
        self.pace.prefill_ended_at = now

    def _begins_to_decode(self, request: Request, now: float) -> None:
        self._leaves_queue(request, now)
        self.bookings.began_to_decode(request)

    def prompt_done(self, request: Request, now: float) -> None:
        """Its first token is believed to have come, or another choice's has."""
        self._begins_to_decode(request, now)

    def rebook(self, requests: list[Request], now: float) -> None:
        """Forget what is booked here and book just these requests, at their stages: an exception may have left an event half done."""
        place = {request.id: index for index, request in enumerate(self.queue.row)}
        lag_s, share = self.queue.lag_s, self.bookings.prefill_share.copy()
        self.bookings = self.bookings.anew(now)
        self.queue = EngineQueue(self.scheduler, self.batch_tokens, now)
        self.queue.lag_s = lag_s
        for request in sorted(requests, key=lambda r: (r.stage is PREFILL, place.get(r.id, len(place)), r.due)):
            prefills = request.stage is PREFILL
            self.admit(request, now)
            if not prefills and request.stage is PREFILL:
                self._begins_to_decode(request, now)
        self.bookings.prefill_share = share
        self.refresh(now)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def tokens(self, request: Request, count: int, now: float) -> bool:
        """Tokens of a request have passed. Returns whether they ended an iteration: then the instance was refreshed."""
        pace = self.pace
        self.heard_at = now
        gap_s = now - pace.boundary_at
        ended = gap_s > BOUNDARY_SHARE * pace.iteration_s
        if ended:
            self.queue.iteration_ended(self.bookings, pace, now)
        if request.stage is PREFILL:
            self._first_token(request, now)
        elif ended and request.tokens and not self.queue.row and pace.boundary_at >= pace.prefill_ended_at:
            pace.saw_decodes(gap_s / count)
        request.judge(count, now)
        if now > request.next_due():
            self.bookings.missed(request)
        self.bookings.received(request, count, now)
        if ended:
            pace.boundary_at = now
            self.refresh(now, at_boundary=True)
        return ended

    def _first_token(self, request: Request, now: float) -> None:
        queue, bookings = self.queue, self.bookings
        decodes = len(bookings.decodes)
        # An engine that plans by deadlines cuts its chunks by the slack of its decodes: beside them a prefill tells no pace.
        if (
            len(queue.row) == 1
            and queue.head_since == request.joins_at
            and not (decodes and self.scheduler is SLO_AWARE)
        ):
            self.pace.saw_prefill(now - request.joins_at, queue.head_takes_s(bookings, self.pace))
        queue.first_token(request, decodes)
        self._begins_to_decode(request, now)

    # -- what time brings ----------------------------------------------------------------------------------------------

    def refresh(self, now: float, at_boundary: bool = False) -> None:
        """Bring the belief up to date: deadlines, iteration time, load. O(requests here); once an iteration, not once a token.

        `at_boundary`: the first token of an iteration has just come, so the other decodes' tokens are on their way.
        """
        self._assume_silent_progress(now)
        self.bookings.recount_dues(now, at_boundary)
        self.believe(now)

    def believe(self, now: float) -> None:
        """Which prefills have missed their deadline, the iteration time and the load, as of now. O(prefills)."""
        missed = [request for request in self.queue.row if request.due < now and not request.lost]
        if missed:
            for request in missed:
                self.bookings.missed(request)
            if self.scheduler is SLO_AWARE:
                self.queue.reorder(now)
        bookings = self.bookings
        self.pace.iteration_s = self.pace.batch_s(0, 0.0, len(bookings.decodes), bookings.kv_decode_tokens)
        self.refreshed_at = now
        self.measure_load(now)

    def measure_load(self, now: float) -> None:
        """The load, as of now, and the mean that the load before it makes."""
        elapsed = now - self._load_mean_at
        if elapsed > LOAD_STEP_S:
            self.load_mean += (1.0 - exp(-elapsed / LOAD_WINDOW_S)) * (self.load - self.load_mean)
            self._load_mean_at = now
        bookings, pace, row = self.bookings, self.pace, self.queue.row
        bookings.prefill_share.decay(now)
        kv_tokens = bookings.kv_decode_tokens
        for request in row:
            kv_tokens += request.sequences * request.prompt_tokens
        pace.steady_s = pace.batch_s(0, 0.0, bookings.requests, kv_tokens)
        self.load = load_of(bookings, pace, self.queue, now)

    def _assume_silent_progress(self, now: float) -> None:
        """Requests that do not stream show no token before their last: believe that they keep pace with the prediction."""
        for request in [r for r in self.queue.row if not r.streaming and now >= r.ttft_predicted_at]:
            request.first_token_at = request.ttft_predicted_at
            self._begins_to_decode(request, now)
        iteration_s = self.pace.iteration_s
        for request in self.bookings.decodes.values():
            if not request.streaming and iteration_s > 0.0:
                believed = int((now - request.first_token_at) / iteration_s) + 1
                believed = min(believed, request.output_tokens_expected)
                if believed > request.tokens:
                    self.bookings.received(request, believed - request.tokens, request.last_token_at)

    def reported(self, report: InstanceReported, now: float) -> None:
        """Take in what the engine says of itself: KV that others hold, prompts that it no longer has, how much it can hold, and whether it
        computes."""
        running, waiting, kv_tokens = report.running, report.waiting, report.kv_tokens
        if report.kv_tokens_max is not None and report.kv_tokens_max != self.limits.kv_tokens_max:
            self.limits = replace(self.limits, kv_tokens_max=report.kv_tokens_max)
        if report.tokens_total != self.tokens_reported:
            self.tokens_reported = report.tokens_total
            self.heard_at = now
        bookings, row = self.bookings, self.queue.row
        bookings.kv_reported = kv_tokens
        believed = bookings.kv_decode_tokens + sum([request.prompt_tokens for request in row])
        foreign = kv_tokens - believed
        bookings.kv_foreign = foreign if foreign > believed * FOREIGN_KV_SHARE + FOREIGN_KV_TOKENS else 0
        missing = bookings.requests - running - waiting
        if missing > 0:
            for request in [r for r in row if r.placed_at < now - UNREPORTED_AFTER_S][:missing]:
                request.first_token_at = now
                self._begins_to_decode(request, now)
        self.refresh(now)

    def silent(self, now: float) -> Suspect | None:
        """Whether it is suspect. Requests that do not stream show progress only if the engine counts its tokens aloud. O(requests)."""
        counts = self.tokens_reported is not None
        row = self.queue.row
        sent = [request.placed_at for request in (*row, *self.bookings.decodes.values()) if counts or request.streaming]
        if self.failed or not sent:
            return None
        silent_s = now - max(self.heard_at, min(sent))
        predicted_s = self.pace.iteration_s
        if row:
            predicted_s += self.queue.head_takes_s(self.bookings, self.pace)
        if silent_s <= max(SILENT_LEAST_S, SILENT_FACTOR * predicted_s):
            return None
        reason = f"no token for {silent_s:.1f} s, where {predicted_s:.2f} s were predicted"
        return Suspect(self.id, silent_s, predicted_s, reason)
