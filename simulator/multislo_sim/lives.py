"""The lives of a simulated fleet's instances: when each was started, ready and stopped. Kept by `SimulatedFleet`; the experiments
compute a fleet's cost from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from multislo_operator.decide.fleet import InstanceState


@dataclass(slots=True)
class Life:
    """One instance. It holds its accelerator from `started_at` to `stopped_at`, whether it serves or not."""

    name: str
    tier: str | None
    """Its home tier now; None: the warm pool."""
    started_at: float
    ready_at: float
    stopped_at: float = inf
    state: InstanceState = InstanceState.READY
    since: float = 0.0
    """When it came into this state or this tier."""

    @property
    def gone(self) -> bool:
        return self.stopped_at < inf


def instance_seconds(lives: Iterable[Life], from_s: float, to_s: float) -> float:
    """Seconds of accelerators held between two instants, summed over the instances."""
    return sum(max(0.0, min(life.stopped_at, to_s) - max(life.started_at, from_s)) for life in lives)
