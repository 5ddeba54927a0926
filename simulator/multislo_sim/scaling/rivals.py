"""The published scaling laws: the Kubernetes HPA on several metrics (KEDA feeds the same HPA), llm-d's saturation law, PolyServe as
described. Each scales groups of tiers as separate Deployments. Called by the simulated fleet.

All get fresh figures, no metrics pipeline's delay, and drains that wait for the last request. Comments say what a source leaves open.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from multislo_operator.decide.fleet import FleetObserved, InstanceObserved, InstanceState
from multislo_operator.decide.plan import Action, Drain, Start, Stop
from multislo_router.core.status import CoreStatus, InstanceStatus, TierStatus


@dataclass(frozen=True, slots=True)
class Group:
    """A Deployment as its autoscaler sees it: the instances of some tiers, and those tiers' traffic."""

    tiers: tuple[TierStatus, ...]
    live: tuple[InstanceObserved, ...]
    """Ready and starting: its replicas."""
    ready: tuple[InstanceStatus, ...]

    @property
    def replicas(self) -> int:
        return len(self.live)


class Law(Protocol):
    """One per group; it may have state."""

    every_s: float

    def desired(self, now: float, group: Group) -> int: ...


Signal = Callable[[Group], float]
"""The metric's sum over the group; a target is what each replica shall have of it."""


def work(group: Group) -> float:
    """The honest utilisation: instance-seconds of work that arrive a second, as the router figures them."""
    return sum(tier.work_rate for tier in group.tiers)


def load(group: Group) -> float:
    """Each ready instance's share of time that its admitted work needs, averaged over ~10 s."""
    return sum(instance.load_mean for instance in group.ready)


def concurrency(group: Group) -> float:
    """Requests on the instances."""
    return float(sum(instance.requests for instance in group.ready) + sum(tier.pending for tier in group.tiers))


def queue(group: Group) -> float:
    """Requests that wait for their prefill: in the engines (but the one that each is at), and in the router."""
    waiting = sum(max(0, instance.prefills - 1) for instance in group.ready)
    return float(waiting + sum(tier.pending for tier in group.tiers))


class Hpa:
    """The HorizontalPodAutoscaler with its defaults: desired = ceil(sum / target), nothing within a tolerance of 0.1, the highest
    recommendation of the stabilisation window on the way down, at most the double or four more in 15 s on the way up."""

    every_s = 15.0
    TOLERANCE = 0.1
    PODS_MORE = 4

    def __init__(
        self, signal: Signal, target: float, stabilization_s: float = 300.0, replicas_max: float = 100.0
    ) -> None:
        self._signal = signal
        self._target = target
        self._replicas_max = int(replicas_max)
        self._stabilization_s = stabilization_s
        self._recommended: deque[tuple[float, int]] = deque()

    def desired(self, now: float, group: Group) -> int:
        replicas = group.replicas
        total = self._signal(group)
        if replicas and abs(total / (self._target * replicas) - 1.0) <= self.TOLERANCE:
            wanted = replicas
        else:
            wanted = min(max(1, ceil(total / self._target)), self._replicas_max)
        self._recommended.append((now, wanted))
        while self._recommended[0][0] < now - self._stabilization_s:
            self._recommended.popleft()
        if wanted < replicas:
            return min(replicas, max(count for _, count in self._recommended))
        return min(wanted, max(replicas + self.PODS_MORE, 2 * replicas))


class Saturation:
    """llm-d's workload-variant-autoscaler, saturation analyzer (its documents, v0.5): the peaks of a minute of KV usage and of queue
    length of each instance; one more where the mean spare of those that are not saturated falls below a trigger and nothing starts, one
    less where the load of all on one fewer would leave the triggers' spare. Chosen: where all are saturated it grows."""

    SAMPLE_S = 15.0
    PEAK_S = 60.0

    def __init__(
        self,
        kv_max: float = 0.80,
        queue_max: float = 5.0,
        kv_spare: float = 0.10,
        queue_spare: float = 3.0,
        look_s: float = 60.0,
    ) -> None:
        self.every_s = self.SAMPLE_S
        self._limits = (kv_max, queue_max)
        self._spares = (kv_spare, queue_spare)
        self._look_s = look_s
        self._looked_at = 0.0
        self._samples: dict[str, deque[tuple[float, float, float]]] = {}

    def desired(self, now: float, group: Group) -> int:
        self._sample(now, group)
        if now - self._looked_at < self._look_s:
            return group.replicas
        self._looked_at = now
        peaks = [
            (max(kv for _, kv, _ in seen), max(waiting for _, _, waiting in seen)) for seen in self._samples.values()
        ]
        kv_max, queue_max = self._limits
        kv_spare, queue_spare = self._spares
        usable = [(kv, waiting) for kv, waiting in peaks if kv < kv_max and waiting < queue_max]
        starting = group.replicas > len(group.ready)
        if not usable:
            return group.replicas + (0 if starting else 1)
        count = len(usable)
        kv = sum(kv for kv, _ in usable)
        waiting = sum(waiting for _, waiting in usable)
        if kv_max - kv / count < kv_spare or queue_max - waiting / count < queue_spare:
            return group.replicas + (0 if starting else 1)
        if count >= 2 and not starting:
            fewer = count - 1
            if kv_max - kv / fewer >= kv_spare and queue_max - waiting / fewer >= queue_spare:
                return group.replicas - 1
        return group.replicas

    def _sample(self, now: float, group: Group) -> None:
        there = {instance.id: instance for instance in group.ready}
        self._samples = {id: self._samples.get(id, deque()) for id in there}
        for id, seen in self._samples.items():
            instance = there[id]
            seen.append((now, instance.kv_tokens / instance.kv_tokens_max, float(max(0, instance.prefills - 1))))
            while seen[0][0] < now - self.PEAK_S:
                seen.popleft()


class OnPending:
    """PolyServe as described (arXiv 2507.17769): one more instance when requests start pending, one less when the last instance is
    empty at the periodic check. The paper leaves open the check's period, and whether a tier waits for instances that are already
    starting."""

    def __init__(self, every_s: float = 5.0, waits_for_start: bool = True) -> None:
        self.every_s = every_s
        self._waits_for_start = waits_for_start

    def desired(self, now: float, group: Group) -> int:
        starting = group.replicas > len(group.ready)
        if any(tier.pending for tier in group.tiers):
            return group.replicas + (0 if starting and self._waits_for_start else 1)
        empty = any(instance.requests == 0 for instance in group.ready)
        return group.replicas - 1 if empty and len(group.ready) > 1 else group.replicas


COLD_S = 60.0
"""So long after the router's start its averages say too little: an autoscaler that has just been installed would shrink a loaded fleet."""


class Deployments:
    """A law for each group of tiers, and a Deployment's reaction to its answer: instances start at once. Starting instances are
    removed first, then the least loaded (Kubernetes would take the youngest)."""

    def __init__(self, groups: Sequence[Sequence[str]], laws: Sequence[Law], instances_max: int = 1000) -> None:
        self._groups = [tuple(group) for group in groups]
        self._laws = list(laws)
        self._instances_max = instances_max
        self.every_s = min(law.every_s for law in laws)

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        made: list[Action] = [
            Stop(seen.id, "drained and empty")
            for seen in observed.instances
            if seen.state is InstanceState.DRAINING and seen.requests == 0
        ]
        if observed.router_uptime_s < COLD_S:
            return made
        room = self._instances_max - len(observed.instances)
        for names, law in zip(self._groups, self._laws, strict=True):
            group = _group(names, observed, status)
            more = law.desired(now, group) - group.replicas
            for tier in _homes(group, names, min(more, room)):
                made.append(Start(tier, "replicas"))
                room -= 1
            made += _fewer(group, -more)
        return made


def _group(names: Sequence[str], observed: FleetObserved, status: CoreStatus) -> Group:
    supply = (InstanceState.READY, InstanceState.STARTING)
    live = tuple(seen for seen in observed.instances if seen.tier in names and seen.state in supply)
    ready_ids = {seen.id for seen in live if seen.state is InstanceState.READY}
    return Group(
        tuple(tier for tier in status.tiers if tier.name in names),
        live,
        tuple(instance for instance in status.instances if instance.id in ready_ids),
    )


def _homes(group: Group, names: Sequence[str], count: int) -> list[str]:
    """Home tiers of new instances: where a group has several, the one with the least for its work."""
    have = {name: sum(seen.tier == name for seen in group.live) for name in names}
    need = {tier.name: tier.work_rate + 1e-6 for tier in group.tiers}
    homes = []
    for _ in range(count):
        name = min(names, key=lambda name: ((have[name] + 1) / need[name], name))
        have[name] += 1
        homes.append(name)
    return homes


def _fewer(group: Group, count: int) -> list[Action]:
    made: list[Action] = []
    order = sorted(group.live, key=lambda seen: (seen.state is InstanceState.READY, seen.load, seen.id))
    for seen in order[: max(0, min(count, len(order) - 1))]:
        if seen.state is InstanceState.STARTING:
            made.append(Stop(seen.id, "replicas"))
        else:
            made.append(Drain(seen.id, "replicas"))
    return made
