"""What the core tells of itself: plain numbers, copied out by `RouterCore.status(now)` for /fleet, /metrics and tests."""

from bisect import bisect_left
from dataclasses import dataclass, field

from multislo_router.core.decisions import Cause, Kind
from multislo_router.core.events import Outcome


@dataclass(slots=True)
class Histogram:
    """Counts per bucket (`counts[i]` of values <= `edges[i]`, the last one of all beyond), not cumulative."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.edges) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Recent:
    """Requests that finished in the last minute."""

    attainment: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None


@dataclass(slots=True)
class TierStatus:
    """Counters since the start, gauges as of now. The histograms are the live ones: read, do not change."""

    name: str
    ttft_s: float
    tpot_s: float
    pending: int
    pending_oldest_s: float
    pending_in_time: int
    """Those whose deadline can still be met; the others were given up and wait for what is left over."""
    pending_in_time_oldest_s: float
    in_flight: int
    arrival_rate: float
    work_rate: float
    work_rate_trend: float
    requests_met: int
    requests_missed: int
    tokens_met: int
    tokens_missed: int
    arrived: int
    held: int
    given_up: int
    """Held until no instance could meet their deadline any more, and not refused."""
    out_of_reach: int
    """Held though, by the profile, not even an idle instance could have met their deadline when they came."""
    outcomes: dict[Outcome, int]
    placements: dict[Kind, int]
    refusals: dict[Cause, int]
    ttft: Histogram
    tpot: Histogram
    queue: Histogram
    """Seconds held in the router before placement."""
    ttft_ratio: Histogram
    """Seconds to the first token over the request's own SLO."""
    late_most: Histogram
    """By how many seconds the latest token of a request missed its deadline; 0: none did."""
    ttft_error: Histogram
    """Actual less predicted seconds to the first token; signed."""
    tpot_error: Histogram
    """Actual mean seconds a token less the iteration predicted at placement; signed."""
    recent: Recent


@dataclass(slots=True)
class InstanceStatus:
    """One instance as the core believes it to be."""

    id: str
    tier: str | None
    state: str
    """starting, ready, draining or failed."""
    load: float
    load_mean: float
    requests: int
    prefills: int
    decodes: int
    kv_tokens: int
    kv_tokens_reported: int | None
    kv_tokens_max: int
    iteration_predicted_s: float
    calibration: float
    empty_s: float


@dataclass(slots=True)
class CoreStatus:
    tiers: list[TierStatus]
    instances: list[InstanceStatus]
    fleet_generation: int
