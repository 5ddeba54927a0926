"""What became of a tier's requests: the counters, rates and quantiles that /fleet and /metrics show. Owned by `machine`."""

from collections import deque
from math import exp
from typing import Final

from multislo_router.core.decisions import Cause, Kind
from multislo_router.core.events import Outcome
from multislo_router.core.request import Request
from multislo_router.core.status import Histogram, Recent

RATE_WINDOW_S: Final = 10.0
TREND_WINDOW_S: Final = 30.0
DECAY_STEP_S: Final = 0.02
"""The means decay in steps of at least this."""
RECENT_S: Final = 60.0
RECENT_MAX: Final = 4096
"""Finished requests remembered for the last minute's quantiles: a bound on memory, not on traffic."""

_TTFT_EDGES: Final[tuple[float, ...]] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0, 40.0)
_TPOT_EDGES: Final[tuple[float, ...]] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_QUEUE_EDGES: Final[tuple[float, ...]] = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 10.0, 40.0)
_RATIO_EDGES: Final[tuple[float, ...]] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0, 100.0)
_LATE_EDGES: Final[tuple[float, ...]] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
_RATIO_MAX: Final = 1e6
"""Of a request that came with its deadline passed, or with none of its own time."""
_ERROR_EDGES: Final[tuple[float, ...]] = (
    *(-1.0, -0.5, -0.25, -0.1, -0.05, -0.02, 0.0),
    *(0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
)


class TierCounts:
    """Since the start, but for `pending` and `in_flight`, which are as of now."""

    def __init__(self, ttft_s: float, tpot_s: float) -> None:
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
        self.ttft = Histogram(tuple([edge * ttft_s for edge in _TTFT_EDGES]))
        self.tpot = Histogram(tuple([edge * tpot_s for edge in _TPOT_EDGES]))
        self.queue = Histogram(tuple([edge * ttft_s for edge in _QUEUE_EDGES]))
        self.ttft_error = Histogram(tuple([edge * ttft_s for edge in _ERROR_EDGES]))
        self.tpot_error = Histogram(tuple([edge * tpot_s for edge in _ERROR_EDGES]))
        self.ttft_ratio = Histogram(_RATIO_EDGES)
        self.late_most = Histogram(_LATE_EDGES)
        self._rate_at = 0.0
        self._arrivals = 0.0
        self._work = 0.0
        self._work_slow = 0.0
        self._recent: deque[tuple[float, bool, float | None, float | None]] = deque(maxlen=RECENT_MAX)

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

    def _decay(self, now: float) -> None:
        elapsed = now - self._rate_at
        if elapsed > DECAY_STEP_S:
            fast = exp(-elapsed / RATE_WINDOW_S)
            self._arrivals *= fast
            self._work *= fast
            self._work_slow *= exp(-elapsed / TREND_WINDOW_S)
            self._rate_at = now

    def saw_first_token(self, request: Request) -> None:
        ttft_s = request.first_token_at - request.arrived
        slo_s = request.slo_due - request.arrived
        self.ttft.observe(ttft_s)
        self.ttft_ratio.observe(min(ttft_s / slo_s, _RATIO_MAX) if slo_s > 0.0 else _RATIO_MAX)
        self.ttft_error.observe(request.first_token_at - request.ttft_predicted_at)

    def settle(self) -> None:
        """After an exception: an arrival that is nowhere any more has failed, and one that was not counted is."""
        known = sum(self.outcomes.values()) + sum(self.refusals.values()) + self.pending + self.in_flight
        failed = max(0, self.arrived - known)
        self.outcomes[Outcome.ROUTER_FAILED] += failed
        self.requests_missed += failed
        self.arrived = known + failed

    def refused(self, cause: Cause, now: float) -> None:
        self.refusals[cause] += 1
        self.requests_missed += 1
        self._recent.append((now, False, None, None))

    def ended(self, request: Request, outcome: Outcome, now: float) -> None:
        """Book a request that was held or placed. A client's own disconnect or mistake is neither met nor missed."""
        self.outcomes[outcome] += 1
        missed = request.tokens - request.tokens_met
        self.tokens_met += request.tokens_met
        self.tokens_missed += missed
        if outcome is Outcome.CLIENT_GONE or outcome is Outcome.CLIENT_ERROR:
            return
        met = outcome is Outcome.COMPLETED and missed == 0
        if met:
            self.requests_met += 1
        else:
            self.requests_missed += 1
        if request.tokens:
            self.late_most.observe(request.late_most_s)
        ttft = tpot = None
        if request.tokens and request.streaming:
            ttft = request.first_token_at - request.arrived
            gaps_s, gaps = request.token_gaps()
            if gaps > 0:
                tpot = gaps_s / gaps
                self.tpot.observe(tpot)
                self.tpot_error.observe(tpot - request.iteration_predicted_s)
        self._recent.append((now, met, ttft, tpot))

    def recent(self, now: float) -> Recent:
        """Attainment and quantiles of the last minute. Costs a sort: for a status, not for a decision."""
        rows = self._recent
        while rows and rows[0][0] < now - RECENT_S:
            rows.popleft()
        ttft = sorted([row[2] for row in rows if row[2] is not None])
        tpot = sorted([row[3] for row in rows if row[3] is not None])
        return Recent(
            attainment=sum([row[1] for row in rows]) / len(rows) if rows else None,
            ttft_p50_s=_quantile(ttft, 0.5),
            ttft_p99_s=_quantile(ttft, 0.99),
            tpot_p50_s=_quantile(tpot, 0.5),
            tpot_p99_s=_quantile(tpot, 0.99),
        )


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
