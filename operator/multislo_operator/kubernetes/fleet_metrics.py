"""What the operator exports of each resource: the figures that it keeps, and one table of metrics, each with the function that reads it
from them. Used by `metrics`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Literal

from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceState
from multislo_operator.decide.plan import Action, CallOffDrain, Convert, Drain, Plan, Start, Stop

WARM_POOL = "warm_pool"
"""Value of the `tier` label for the warm pool, as in the router's metrics. No tier can be called so: names hold no underscore."""
WHOLE_FLEET = "whole_fleet"
"""Value of the `tier` label of a hold that concerns no single tier."""

STATUS_VALUES = {"True": 1.0, "False": 0.0, "Unknown": -1.0}


class Outcome(StrEnum):
    """How a reconcile ended."""

    DONE = "done"
    INVALID = "invalid"
    """The manifest asks for what cannot be; nothing was changed."""
    REFUSED = "refused"
    """The API server does not take some change; the others were carried out."""
    CONFLICT = "conflict"
    """Something had moved on meanwhile (409); it is planned again."""
    FAILED = "failed"


class Why(StrEnum):
    """The kind of an action's reason: its words, without its figures, so that it can be a label."""

    MINIMUM = "Minimum"
    """A minimum, a scheduled floor, or the load is unknown."""
    REQUESTS_WAIT = "RequestsWait"
    LOAD_GROWS = "LoadGrows"
    LOAD = "Load"
    WARM_POOL = "WarmPool"
    BUDGET = "Budget"
    """The budget was lowered below what runs."""
    SPARE = "Spare"
    """The load would fit on fewer instances."""
    DRAINED = "Drained"
    DRAIN_TIMEOUT = "DrainTimeout"
    FAILED = "Failed"


def why(action: Action, spec: FleetSpec) -> Why:
    """From the terms of the action."""
    terms = action.terms
    if "instances_max" in terms:
        return Why.BUDGET
    if isinstance(action, Stop):
        if "drained_s" not in terms:
            return Why.FAILED
        return Why.DRAIN_TIMEOUT if terms["drained_s"] >= spec.drain_timeout_s else Why.DRAINED
    if isinstance(action, Drain) or (isinstance(action, Convert) and action.tier is None):
        return Why.SPARE
    if "warm_min" in terms:
        return Why.WARM_POOL
    if terms.get("backlog", 0.0) > 0.0:
        return Why.REQUESTS_WAIT
    if terms.get("growth", 0.0) > 0.0:
        return Why.LOAD_GROWS
    # A tier that its own minimum raises beyond its load has that to thank.
    return Why.LOAD if terms.get("need_now", 0.0) > 0.0 else Why.MINIMUM


ACTIONS: dict[type[Action], str] = {
    Start: "start",
    Drain: "drain",
    CallOffDrain: "call_off_drain",
    Convert: "convert",
    Stop: "stop",
}


@dataclass(slots=True)
class FleetFigures:
    """All that is known of one resource. Before its first plan, only reconciles and conditions."""

    spec: FleetSpec | None = None
    plan: Plan | None = None
    observed: FleetObserved | None = None
    accelerators_used: int | None = None
    instances_lost: int = 0
    """Instances whose node has not been heard of."""
    decisions: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """By tier, action and why."""
    holds: dict[tuple[str, str], bool] = field(default_factory=dict)
    """By tier and cause: whether it is held now. One that was held once stays, as 0."""
    reconciles: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Status and reason by type."""
    pending_since: float | None = None
    """When the oldest request of those pending now arrived, by the caller's clock; None where none pends."""
    reacted: bool = False
    """Replicas have been raised since then."""


Rows = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class OfFleet:
    """One metric of each resource: its labels after `namespace` and `fleet`, and how it is read."""

    name: str
    type: Literal["counter", "gauge"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    rows: Callable[[FleetFigures], Rows]


def _instances(fleet: FleetFigures) -> Rows:
    if fleet.observed is not None and fleet.spec is not None:
        counts: dict[tuple[str, str], int] = {}
        for tier in (*(tier.name for tier in fleet.spec.tiers), WARM_POOL):
            for state in InstanceState:
                counts[tier, state] = 0
        for instance in fleet.observed.instances:
            at = (instance.tier or WARM_POOL, str(instance.state))
            counts[at] = counts.get(at, 0) + 1
        yield from counts.items()


def _desired(fleet: FleetFigures) -> Rows:
    if fleet.plan is not None:
        for tier in fleet.plan.tiers:
            yield (tier.name,), tier.desired
        yield (WARM_POOL,), fleet.plan.warm_desired


def _load(fleet: FleetFigures) -> Rows:
    """Of the tiers that have a ready instance, where the router's figures can be relied on."""
    if fleet.plan is not None and fleet.observed is not None and fleet.plan.known:
        loads: dict[str, list[float]] = {}
        for instance in fleet.observed.instances:
            if instance.state is InstanceState.READY:
                loads.setdefault(instance.tier or WARM_POOL, []).append(instance.load)
        for tier, values in loads.items():
            yield (tier,), sum(values) / len(values)


def _needs(fleet: FleetFigures) -> Rows:
    if fleet.plan is not None:
        for tier in fleet.plan.tiers:
            for term in ("work", "growth", "backlog", "quota"):
                if term in tier.terms:
                    yield (tier.name, term), tier.terms[term]


def _used(fleet: FleetFigures) -> Rows:
    if fleet.accelerators_used is not None:
        yield (), fleet.accelerators_used


def _budget(fleet: FleetFigures) -> Rows:
    if fleet.spec is not None and fleet.spec.accelerators_max is not None:
        yield (), fleet.spec.accelerators_max


def _goal(fleet: FleetFigures) -> Rows:
    if fleet.spec is not None:
        yield (), fleet.spec.attainment


def _data_age(fleet: FleetFigures) -> Rows:
    if fleet.observed is not None and isfinite(fleet.observed.data_age_s):
        yield (), fleet.observed.data_age_s


def _known(fleet: FleetFigures) -> Rows:
    if fleet.plan is not None:
        yield (), float(fleet.plan.known)


OF_FLEET = (
    OfFleet(
        "multislo_operator_instances",
        "gauge",
        "instances",
        ("tier", "state"),
        "Instances as the operator counts them, by home tier (warm_pool: none) and state: starting, ready, draining, failed.",
        _instances,
    ),
    OfFleet(
        "multislo_operator_desired_instances",
        "gauge",
        "instances",
        ("tier",),
        "Instances that the tier should have, within its limits and the budget. Where another actor holds the replicas: as many as "
        "that one has set.",
        _desired,
    ),
    OfFleet(
        "multislo_operator_load_ratio",
        "gauge",
        "ratio",
        ("tier",),
        "Mean load of the tier's ready instances over all routers; absent where none is ready, or the load is unknown.",
        _load,
    ),
    OfFleet(
        "multislo_operator_need_instances",
        "gauge",
        "instances",
        ("tier", "term"),
        "What the desired count rests on, for the tier and all tighter ones: work, growth, backlog, and their quota over the fill "
        "target. Absent where the load is unknown.",
        _needs,
    ),
    OfFleet(
        "multislo_operator_accelerators_used",
        "gauge",
        "accelerators",
        (),
        "Accelerators that instances hold, in any state, those that are being deleted included.",
        _used,
    ),
    OfFleet(
        "multislo_operator_instances_lost",
        "gauge",
        "instances",
        (),
        "Instances whose node has not been heard of: they hold a place in the budget for a minute, and then do not count.",
        lambda fleet: [((), float(fleet.instances_lost))],
    ),
    OfFleet(
        "multislo_operator_accelerators_max",
        "gauge",
        "accelerators",
        (),
        "The budget: scaling.acceleratorsMax.",
        _budget,
    ),
    OfFleet(
        "multislo_operator_attainment_goal_ratio",
        "gauge",
        "ratio",
        (),
        "scaling.attainment: what the autoscaler defends, and the goal that the burn-rate alerts take.",
        _goal,
    ),
    OfFleet(
        "multislo_operator_scaling_decisions_total",
        "counter",
        "decisions",
        ("tier", "action", "reason"),
        "Planned actions: start, drain, call_off_drain, convert, stop. The tier is where the instance goes, or is; the reason is one of "
        "RequestsWait, LoadGrows, Load, Minimum, WarmPool, Budget, Spare, Drained, DrainTimeout, Failed.",
        lambda fleet: tuple(fleet.decisions.items()),
    ),
    OfFleet(
        "multislo_operator_holds",
        "gauge",
        "-",
        ("tier", "cause"),
        "1 while something that would be done is held back, 0 once it is not; the causes of docs/scaling.md. whole_fleet: no single tier.",
        lambda fleet: ((at, float(held)) for at, held in tuple(fleet.holds.items())),
    ),
    OfFleet(
        "multislo_operator_router_data_age_seconds",
        "gauge",
        "seconds",
        (),
        "Age of the oldest router answer that the plan rests on; absent where not all routers have answered yet.",
        _data_age,
    ),
    OfFleet(
        "multislo_operator_load_known",
        "gauge",
        "-",
        (),
        "1 where the last plan rests on the routers' figures, 0 where they said nothing and only the minima were kept.",
        _known,
    ),
    OfFleet(
        "multislo_operator_condition",
        "gauge",
        "-",
        ("type", "reason"),
        "The resource's conditions with their present reason: 1 True, 0 False, -1 Unknown.",
        lambda fleet: (
            ((kind, reason), STATUS_VALUES.get(status, -1.0))
            for kind, (status, reason) in tuple(fleet.conditions.items())
        ),
    ),
    OfFleet(
        "multislo_operator_reconciles_total",
        "counter",
        "reconciles",
        ("outcome",),
        "Reconciles that are over: done, invalid (manifest or profile), refused (a change, by the API server), conflict (planned again), "
        "failed.",
        lambda fleet: (((str(outcome),), count) for outcome, count in fleet.reconciles.items()),
    ),
)
