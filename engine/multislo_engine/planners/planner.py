"""What a planner is: the protocol that the engine model asks, and the one of planners that can learn. Interfaces only: never compiled,
so that any class with these methods is a planner."""

from typing import Protocol, runtime_checkable

from multislo_engine.planners.view import EngineView, Job, Plan
from multislo_perf.latency import LatencyModel


class Planner(Protocol):
    """Chooses each iteration's batch. Pure and without memory: the same view gets the same plan."""

    @property
    def name(self) -> str: ...

    def order(self, job: Job) -> tuple[float, ...]:
        """Sort key among the waiting, asked once when the job starts to wait."""
        ...

    def plan(self, now: float, view: EngineView) -> Plan:
        """The next iteration. Never empty while there is a running job, nor while a waiting one could be admitted."""
        ...

    def victim(self, view: EngineView) -> Job:
        """The running job that loses its KV when there is no block left."""
        ...


@runtime_checkable
class Believing(Planner, Protocol):
    """A planner that plans with a latency model."""

    @property
    def latency(self) -> LatencyModel: ...

    def calibrated(self, factor: float, error: float) -> Planner:
        """The same planner for an engine that takes `factor` times as long as `latency` says, and `error` (a share, in the mean) more or
        less than that."""
        ...
