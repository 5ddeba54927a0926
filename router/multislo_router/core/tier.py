"""A tier inside the core: its SLO, what its traffic looks like, and the counts that /fleet and /metrics show."""

from collections import deque
from math import exp

from multislo_perf.latency import LatencyModel
from multislo_router.core.config import Overload, TierConfig
from multislo_router.core.decisions import Cause, Kind
from multislo_router.core.events import Outcome
from multislo_router.core.request import Request
from multislo_router.core.status import Histogram, Recent

OUTPUT_TOKENS_PRIOR = 200.0
"""Mean output length believed before the first request has ended (the published chat traces have 211 and 343)."""
OUTPUT_TOKENS_WEIGHT = 0.02
ITERATION_LEAST = 2.0
"""Times what an iteration costs beyond its tokens: no engine keeps the pace of a TPOT below that under load, whatever its work."""
RATE_WINDOW_S = 10.0
TREND_WINDOW_S = 30.0
DECAY_STEP_S = 0.02
"""The means decay in steps of at least this."""
RECENT_S = 60.0
RECENT_MAX = 4096
"""Finished requests remembered for the last minute's quantiles: a bound on memory, not on traffic."""
PREFILL_WEIGHT = 0.02
"""Of one more prompt in the mean of what prompts take."""
RESERVE_HALF_AT = 3.0
"""A prompt that takes so many times the mean has to leave half of its slack, where its tier refuses."""
RESERVE_POWER = 2.0

_TTFT_EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0, 40.0)
_TPOT_EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_QUEUE_EDGES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 10.0, 40.0)
_ERROR_EDGES = (-1.0, -0.5, -0.25, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class Tier:
    """Every instance and request points at one; `index` is its place from the tightest TPOT (0) to the loosest."""

    def __init__(self, config: TierConfig, index: int, latency: LatencyModel, kv_tokens_max: int) -> None:
        self.name = config.name
        self.config = config
        self.index = index
        self.refuses = config.overload is Overload.REJECT
        """Whether a request that cannot be in time is refused."""
        self.ttft_s = config.ttft_s
        self.tpot_s = config.tpot_s
        self.output_tokens_mean = OUTPUT_TOKENS_PRIOR
        self.prefill_mean_s = 0.0
        """What a prompt takes to prefill, where the tier refuses; 0 before the first."""
        self.pending = 0
        self.in_flight = 0
        self.arrived = 0
        self.held = 0
        self.given_up = 0
        self.out_of_reach = 0
        self.requests_met = 0
        self.requests_missed = 0
        self.tokens_met = 0
        self.tokens_missed = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.placements = dict.fromkeys(Kind, 0)
        self.refusals = dict.fromkeys(Cause, 0)
        self.ttft = Histogram(tuple(edge * config.ttft_s for edge in _TTFT_EDGES))
        self.tpot = Histogram(tuple(edge * config.tpot_s for edge in _TPOT_EDGES))
        self.queue = Histogram(tuple(edge * config.ttft_s for edge in _QUEUE_EDGES))
        self.ttft_error = Histogram(tuple(edge * config.ttft_s for edge in _ERROR_EDGES))
        self.tpot_error = Histogram(tuple(edge * config.tpot_s for edge in _ERROR_EDGES))
        self._rate_at = 0.0
        self._arrivals = 0.0
        self._work = 0.0
        self._work_slow = 0.0
        batch = config.batch_tokens
        self._latency = latency
        self._kv_tokens_max = kv_tokens_max
        self._overhead_s = latency.fixed_s + latency.gemm_s
        self._budget_s = max(0.0, latency.tokens_s(batch) - batch * latency.gemm_per_token_s) / batch
        self._recent: deque[tuple[float, bool, float | None, float | None]] = deque(maxlen=RECENT_MAX)

    def output_tokens_expected(self, output_tokens_max: int | None) -> int:
        """How many tokens a request will probably bring: the tier's mean, at most what its client allows."""
        expected = int(self.output_tokens_mean)
        return expected if output_tokens_max is None or output_tokens_max > expected else output_tokens_max

    def work_s(self, request: Request) -> float:
        """Seconds of one instance that a request will probably need, on an instance that is full: its tokens, its attention, the
        readings of its KV, and its part of what iterations cost beyond their tokens.

        The longer iterations are, the less that is. They are no longer than the tier's TPOT, than its token budget lets them be, or
        than memory allows: who gets a token an iteration keeps his KV that much longer, and time and memory run out together.
        """
        latency = self._latency
        output_tokens = max(1, request.output_tokens_expected)
        kv_tokens = request.prompt_tokens + 0.5 * output_tokens
        work_s = output_tokens * (latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * kv_tokens)
        tokens = output_tokens
        if not request.prefilled:
            work_s += request.prompt_tokens * latency.gemm_per_token_s + request.attention_s
            tokens += request.prompt_tokens
        overhead_s = self._overhead_s
        by_memory_s = overhead_s + work_s * self._kv_tokens_max / (output_tokens * kv_tokens)
        iteration_s = max(min(self.tpot_s, by_memory_s), ITERATION_LEAST * overhead_s)
        return work_s + max(work_s * overhead_s / (iteration_s - overhead_s), tokens * self._budget_s)

    # -- rates ---------------------------------------------------------------------------------------------------------

    def _decay(self, now: float) -> None:
        elapsed = now - self._rate_at
        if elapsed > DECAY_STEP_S:
            fast = exp(-elapsed / RATE_WINDOW_S)
            self._arrivals *= fast
            self._work *= fast
            self._work_slow *= exp(-elapsed / TREND_WINDOW_S)
            self._rate_at = now

    def saw_arrival(self, now: float, work_s: float) -> None:
        """Count a request that needs `work_s` seconds of an instance."""
        self._decay(now)
        self.arrived += 1
        self._arrivals += 1.0 / RATE_WINDOW_S
        self._work += work_s / RATE_WINDOW_S
        self._work_slow += work_s / TREND_WINDOW_S

    def rates(self, now: float) -> tuple[float, float, float]:
        """(requests a second, instance-seconds of work a second, change of the latter a second)."""
        self._decay(now)
        # Exponential means of windows 10 s and 30 s lag by just these, so their difference is 20 s of trend.
        return self._arrivals, self._work, (self._work - self._work_slow) / (TREND_WINDOW_S - RATE_WINDOW_S)

    def saw_prompt(self, prefill_s: float) -> float:
        """Count a prompt; and the share of its slack that it has to leave, by how much more than the mean it takes: nearly nothing where
        it takes little, and one that takes much is refused before the many short ones that would have to go for it."""
        if self.prefill_mean_s <= 0.0:
            self.prefill_mean_s = prefill_s
        self.prefill_mean_s += PREFILL_WEIGHT * (prefill_s - self.prefill_mean_s)
        times = (prefill_s / (RESERVE_HALF_AT * self.prefill_mean_s)) ** RESERVE_POWER if prefill_s > 0.0 else 0.0
        return times / (1.0 + times)

    # -- what became of requests ---------------------------------------------------------------------------------------

    def refused(self, cause: Cause, now: float) -> None:
        self.refusals[cause] += 1
        self.requests_missed += 1
        self._recent.append((now, False, None, None))

    def ended(self, request: Request, outcome: Outcome, now: float) -> None:
        """Book a request that had a place. A client's own disconnect is neither met nor missed."""
        self.outcomes[outcome] += 1
        missed = request.tokens - request.tokens_met
        self.tokens_met += request.tokens_met
        self.tokens_missed += missed
        if request.tokens and outcome is Outcome.COMPLETED:
            self.output_tokens_mean += OUTPUT_TOKENS_WEIGHT * (request.tokens - self.output_tokens_mean)
        if outcome is Outcome.CLIENT_GONE:
            return
        met = outcome is Outcome.COMPLETED and missed == 0
        if met:
            self.requests_met += 1
        else:
            self.requests_missed += 1
        ttft = tpot = None
        if request.tokens and request.streaming:
            ttft = request.first_token_at - request.arrived
            if request.tokens > 1:
                tpot = (request.last_token_at - request.first_token_at) / (request.tokens - 1)
                self.tpot.observe(tpot)
                self.tpot_error.observe(tpot - request.iteration_predicted_s)
        self._recent.append((now, met, ttft, tpot))

    def recent(self, now: float) -> Recent:
        """Attainment and quantiles of the last minute. Costs a sort: for a status, not for a decision."""
        rows = self._recent
        while rows and rows[0][0] < now - RECENT_S:
            rows.popleft()
        ttft = sorted(row[2] for row in rows if row[2] is not None)
        tpot = sorted(row[3] for row in rows if row[3] is not None)
        return Recent(
            attainment=sum(row[1] for row in rows) / len(rows) if rows else None,
            ttft_p50_s=_quantile(ttft, 0.5),
            ttft_p99_s=_quantile(ttft, 0.99),
            tpot_p50_s=_quantile(tpot, 0.5),
            tpot_p99_s=_quantile(tpot, 0.99),
        )


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
