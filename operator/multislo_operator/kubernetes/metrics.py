"""What the operator exports to Prometheus of each resource and of itself. The reconciler tells it what it saw and decided; the text is made
when Prometheus asks. What a deleted resource had is forgotten with it.

`docs/metrics.md` holds the same table, made by `python -m multislo_operator.kubernetes.metrics`.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from multislo_operator.decide.fleet import FleetObserved, FleetSpec
from multislo_operator.decide.plan import Convert, Plan, Start
from multislo_operator.kubernetes.fleet_metrics import (
    ACTIONS,
    OF_FLEET,
    WARM_POOL,
    WHOLE_FLEET,
    FleetFigures,
    Outcome,
    why,
)
from multislo_operator.kubernetes.names import Key

RECONCILE_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
REACTION_EDGES = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)

_API_WRITES = (
    "multislo_operator_api_writes_total",
    "Writes that the API server took, by verb (create, apply, patch, scale, delete) and kind. None where nothing changes.",
)
_WATCHES = (
    "multislo_operator_watch_failures_total",
    "Watches that failed and began anew, by the kind's plural (or kopf) and the cause: an error's class, or Deaf (objects are missing).",
)
_RECONCILE = ("multislo_operator_reconcile_seconds", "Time of one reconcile, with its writes.")
_REACTION = (
    "multislo_operator_scale_up_reaction_seconds",
    "From the arrival of the first request that had to wait to the first raised replicas after it.",
)
_LEADER = ("multislo_operator_leader", "1 for the replica that holds the Lease and writes, 0 for the others.")
_FLEETS = ("multislo_operator_fleets", "MultiSLOServing resources that this replica looks after.")


class OperatorMetrics:
    """Told by the reconciler; read by whatever serves `registry`. All calls come from one thread, scrapes from any."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._fleets: dict[Key, FleetFigures] = {}
        self._writes: dict[tuple[str, str], int] = {}
        self._watches: dict[tuple[str, str], int] = {}
        self._leader = Gauge(*_LEADER, registry=registry)
        self._reconcile = Histogram(*_RECONCILE, buckets=RECONCILE_EDGES, registry=registry)
        self._reaction = Histogram(*_REACTION, buckets=REACTION_EDGES, registry=registry)
        registry.register(_Fleets(self._fleets, self._writes, self._watches))

    def observe_plan(
        self,
        key: Key,
        spec: FleetSpec,
        plan: Plan,
        observed: FleetObserved,
        now: float,
        accelerators_used: int | None = None,
    ) -> None:
        """One decision. `now` by the clock that `scaled_up` is called with; `accelerators_used` as the status says it; default: those of
        the plan's instances."""
        fleet = self._fleets.setdefault(key, FleetFigures())
        used = plan.instances_used * spec.accelerators_per_instance if accelerators_used is None else accelerators_used
        fleet.accelerators_used = used
        fleet.spec, fleet.plan, fleet.observed = spec, plan, observed
        homes = {instance.id: instance.tier for instance in observed.instances}
        for action in plan.actions:
            tier = action.tier if isinstance(action, (Start, Convert)) else homes.get(action.instance)
            at = (tier or WARM_POOL, ACTIONS[type(action)], str(why(action, spec)))
            fleet.decisions[at] = fleet.decisions.get(at, 0) + 1
        held = {(hold.tier or WHOLE_FLEET, str(hold.cause)) for hold in plan.holds}
        for once in fleet.holds:
            fleet.holds[once] = once in held
        fleet.holds.update(dict.fromkeys(held, True))
        waits = [tier.pending_oldest_s for tier in observed.tiers or () if tier.pending]
        if not waits:
            fleet.pending_since, fleet.reacted = None, False
        elif fleet.pending_since is None:
            fleet.pending_since = now - max(waits) - observed.data_age_s

    def scaled_up(self, key: Key, now: float) -> None:
        """The API server has taken raised replicas. The first time since requests began to wait, that is the reaction."""
        fleet = self._fleets.get(key)
        if fleet is not None and fleet.pending_since is not None and not fleet.reacted:
            fleet.reacted = True
            self._reaction.observe(now - fleet.pending_since)

    def observe_conditions(self, key: Key, conditions: Iterable[tuple[str, str, str]]) -> None:
        """(type, status, reason) of each condition that the resource has now."""
        fleet = self._fleets.setdefault(key, FleetFigures())
        fleet.conditions = {kind: (status, reason) for kind, status, reason in conditions}

    def observe_lost(self, key: Key, instances: int) -> None:
        """How many instances are on nodes that have not been heard of."""
        self._fleets.setdefault(key, FleetFigures()).instances_lost = instances

    def reconciled(self, key: Key, outcome: Outcome, took_s: float) -> None:
        fleet = self._fleets.setdefault(key, FleetFigures())
        fleet.reconciles[outcome] += 1
        self._reconcile.observe(took_s)

    def wrote(self, verb: str, kind: str) -> None:
        """A write that the API server took; `verb` as in RBAC, and `apply` or `scale` where it is that."""
        self._writes[verb, kind] = self._writes.get((verb, kind), 0) + 1

    def watch_failed(self, kind: str, cause: str) -> None:
        """A watch has to begin anew."""
        self._watches[kind, cause] = self._watches.get((kind, cause), 0) + 1

    def leading(self, is_leader: bool) -> None:
        """A replica that does not lead (any more) says nothing of the resources: the leader does."""
        self._leader.set(float(is_leader))
        if not is_leader:
            self._fleets.clear()

    def forget(self, key: Key) -> None:
        """The resource is gone, and its series with it."""
        self._fleets.pop(key, None)


class _Fleets(Collector):
    """Renders the resources for prometheus_client."""

    def __init__(
        self,
        fleets: dict[Key, FleetFigures],
        writes: dict[tuple[str, str], int],
        watches: dict[tuple[str, str], int],
    ) -> None:
        self._fleets = fleets
        self._counters = ((_API_WRITES, ("verb", "kind"), writes), (_WATCHES, ("kind", "cause"), watches))

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        fleets = list(self._fleets.items())
        for metric in OF_FLEET:
            labels = ("namespace", "fleet", *metric.labels)
            family: Metric
            if metric.type == "counter":
                family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.meaning, labels=labels)
            else:
                family = GaugeMetricFamily(metric.name, metric.meaning, labels=labels)
            for key, fleet in fleets:
                for values, value in tuple(metric.rows(fleet)):
                    named = dict(zip(labels, (key.namespace, key.name, *values), strict=True))
                    family.add_sample(metric.name, named, value)
            yield family
        for told, counted, counts in self._counters:
            counter = CounterMetricFamily(*told, labels=counted)
            for row, count in tuple(counts.items()):
                counter.add_metric(row, count)
            yield counter
        yield GaugeMetricFamily(*_FLEETS, value=len(fleets))


def table() -> str:
    """The operator's rows of `docs/metrics.md`."""
    lines = ["| metric | type | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
    rows: list[tuple[str, str, str, tuple[str, ...], str]]
    rows = [(m.name, m.type, m.unit, ("namespace", "fleet", *m.labels), m.meaning) for m in OF_FLEET]
    rows += [
        (_REACTION[0], "histogram", "seconds", (), _REACTION[1]),
        (_RECONCILE[0], "histogram", "seconds", (), _RECONCILE[1]),
        (_API_WRITES[0], "counter", "writes", ("verb", "kind"), _API_WRITES[1]),
        (_WATCHES[0], "counter", "failures", ("kind", "cause"), _WATCHES[1]),
        (_FLEETS[0], "gauge", "resources", (), _FLEETS[1]),
        (_LEADER[0], "gauge", "-", (), _LEADER[1]),
    ]
    for name, kind, unit, labels, meaning in rows:
        named = ", ".join(f"`{label}`" for label in labels) or "-"
        lines.append(f"| `{name}` | {kind} | {unit} | {named} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
