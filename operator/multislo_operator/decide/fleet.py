"""What `decide` is told: the fleet as the manifest wants it, and as the router and the actuator see it. The actuators (processes,
Deployments) fill these in; plain values, in seconds and instances."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class InstanceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    """It does not answer, or does not come up."""


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One tier. `instances_min` is what the manifest says; `floor` is what its schedule asks for at this moment."""

    name: str
    tpot_s: float
    ttft_s: float
    instances_min: int
    instances_max: int
    floor: int = 0
    batch_tokens: int = 0
    """Token budget of an iteration that its instances are started with; 0 where the engine sets its own by deadlines."""

    @property
    def least(self) -> int:
        return min(max(self.instances_min, self.floor), self.instances_max)


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What the manifest says of scaling. The order of `tiers` is the priority when the budget is short."""

    tiers: tuple[TierSpec, ...]
    startup_s: float
    attainment: float = 0.99
    accelerators_max: int | None = None
    accelerators_per_instance: int = 1
    warm_min: int = 0
    warm_max: int = 0
    stabilization_s: float = 120.0
    drain_timeout_s: float = 900.0

    @property
    def instances_max(self) -> int | None:
        """The budget in instances, over all tiers and the warm pool; None: no budget."""
        if self.accelerators_max is None:
            return None
        return self.accelerators_max // max(1, self.accelerators_per_instance)

    @property
    def starts_within_s(self) -> float:
        """Whoever starts for longer does not come up (no accelerator, a wrong flag)."""
        return STUCK_STARTUPS * self.startup_s + STUCK_EXTRA_S

    @property
    def tightest_first(self) -> tuple[TierSpec, ...]:
        return tuple(sorted(self.tiers, key=lambda tier: (tier.tpot_s, tier.ttft_s, tier.name)))


@dataclass(frozen=True, slots=True)
class InstanceObserved:
    """One instance that exists, whoever knows of it."""

    id: str
    tier: str | None
    state: InstanceState
    load: float = 0.0
    """Share of its time that its admitted work needs, averaged over ~10 s; above 1: too much."""
    load_now: float = 0.0
    """The same at this moment: a burst on an idle fleet fills it long before the average says so."""
    calibration: float = 1.0
    """Measured over predicted iteration time."""
    requests: int | None = None
    """Requests on it; None where the router does not tell, or does not know yet that the instance is draining."""
    since_s: float = 0.0
    """How long it has been in this state and in this tier."""
    ever_ready: bool = True
    batch_tokens: int = 0
    """Token budget of an iteration that it was started with; 0 where the engine sets its own by deadlines."""
    unplaced: bool = False
    """It waits for a place: no node has room for it, or others hold the budget. Another would wait as well."""

    def has_failed_to_start(self, spec: FleetSpec) -> bool:
        """It has never been ready, and nobody can say when it will be."""
        if self.state is InstanceState.FAILED:
            return not self.ever_ready
        return self.state is InstanceState.STARTING and (self.unplaced or self.since_s > spec.starts_within_s)

    def is_coming(self, spec: FleetSpec) -> bool:
        return self.state is InstanceState.STARTING and not self.has_failed_to_start(spec)


@dataclass(frozen=True, slots=True)
class TierObserved:
    """One tier as the router sees it."""

    name: str
    pending: int
    pending_oldest_s: float
    pending_in_time: int
    """Those whose deadline can still be met."""
    pending_in_time_oldest_s: float
    arrival_rate: float
    work_rate: float
    """Instance-seconds of work arriving a second: the instances that its traffic fills."""
    work_rate_trend: float
    turned_away: int = 0
    """Refused, or held until no instance could meet their deadline any more; since the router's start. Here and in `missed`, who is
    out of reach of an idle instance, too, does not count: no instance more would help him."""
    met: int = 0
    missed: int = 0
    """Requests that ended in time, and late ones; since the router's start."""
    attainment: float | None = None
    """Over the last minute; None where nothing finished."""


@dataclass(frozen=True, slots=True)
class FleetObserved:
    """Everything seen. `tiers` None: the router has not answered."""

    instances: Sequence[InstanceObserved]
    tiers: Sequence[TierObserved] | None
    data_age_s: float = 0.0
    router_uptime_s: float = float("inf")

    @property
    def router_is_young(self) -> bool:
        """Its averages are still too low: good enough to grow by, never to shrink by."""
        return not self.router_uptime_s >= ROUTER_WARMUP_S

    def trouble(self, spec: FleetSpec) -> str | None:
        """Why these figures say nothing about the load, in words; None where they can be relied on.

        Absent figures are unknown, never zero: an autoscaler that takes them for zero shrinks a loaded fleet.
        """
        if self.tiers is None:
            return "the router does not answer"
        if not self.data_age_s <= DATA_AGE_MAX_S:
            return f"the router's figures are {self.data_age_s:.0f} s old (more than {DATA_AGE_MAX_S:.0f} s)"
        seen = {tier.name: tier for tier in self.tiers}
        for wanted in spec.tiers:
            tier = seen.get(wanted.name)
            if tier is None:
                return f"the router does not know tier {wanted.name}"
            for figure in _TIER_FIGURES:
                least = -FIGURE_MAX if figure in _SIGNED else 0.0
                value = getattr(tier, figure)
                if value is not None and not least <= value <= FIGURE_MAX:
                    return f"the router's {figure} of tier {tier.name} is no number from {least:g} to {FIGURE_MAX:g}"
        for instance in self.instances:
            for figure in ("load", "load_now", "calibration"):
                if not abs(getattr(instance, figure)) <= FIGURE_MAX:
                    return f"the router's {figure} of {instance.id} is no number up to {FIGURE_MAX:g}"
        return None


_TIER_FIGURES = (
    *("pending", "pending_oldest_s", "pending_in_time", "pending_in_time_oldest_s"),
    *("arrival_rate", "work_rate", "work_rate_trend", "turned_away", "met", "missed", "attainment"),
)
_SIGNED = ("work_rate_trend", "turned_away", "missed")
"""The counters are differences of the router's counters, which may be read a moment apart."""
FIGURE_MAX = 1e15
"""No fleet, rate or counter gets here. Sums and products of a few such figures are still finite."""
STUCK_STARTUPS, STUCK_EXTRA_S = 3.0, 60.0
FAILED_EXTRA_S = 30.0
"""What has failed has one start-up time and this to come back."""
DATA_AGE_MAX_S = 5.0
"""The router answers every second; five missing answers are no hiccup."""
ROUTER_WARMUP_S = 10.0
"""The averages of work and load have a time constant of ~10 s and start at zero: a fresh router looks idle."""
