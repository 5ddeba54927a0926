"""What the operator exports: the figures of its plans, and nothing of resources that are gone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from multislo_operator.decide.fleet import (
    FleetObserved,
    FleetSpec,
    InstanceObserved,
    InstanceState,
    TierObserved,
    TierSpec,
)
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.plan import Drain, Plan, Start, Stop
from multislo_operator.decide.scale import decide
from multislo_operator.kubernetes.fleet_metrics import Outcome, Why, why
from multislo_operator.kubernetes.metrics import OperatorMetrics, table
from multislo_operator.kubernetes.names import Key

DOC = Path(__file__).parents[3] / "docs" / "metrics.md"
CHAT = Key("serving", "chat")
SPEC = FleetSpec(
    tiers=(TierSpec("realtime", 0.02, 0.3, 1, 4), TierSpec("batch", 0.1, 1.0, 0, 4)),
    startup_s=10.0,
    accelerators_max=8,
    accelerators_per_instance=2,
)


def seen(*instances: InstanceObserved, pending: int = 0, work: float = 0.5) -> FleetObserved:
    tiers = [
        TierObserved("realtime", pending, 0.2 if pending else 0.0, pending, 0.2 if pending else 0.0, 2.0, work, 0.0),
        TierObserved("batch", 0, 0.0, 0, 0.0, 0.0, 0.0, 0.0),
    ]
    return FleetObserved(list(instances), tiers, data_age_s=0.5)


READY = InstanceObserved("a", "realtime", InstanceState.READY, load=0.5, requests=3, since_s=100.0)


class Exported:
    """A registry that is read as Prometheus reads it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = OperatorMetrics(self.registry)

    def plan(self, observed: FleetObserved, key: Key = CHAT, now: float = 100.0) -> Plan:
        plan, _ = decide(SPEC, observed, Memory(), now)
        self.metrics.observe_plan(key, SPEC, plan, observed, now)
        return plan

    def samples(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Value by the labels that were not asked for, in the order of their names."""
        found = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    rest = tuple(value for label, value in sorted(sample.labels.items()) if label not in labels)
                    found[rest] = sample.value
        return found


@pytest.fixture
def exported() -> Exported:
    return Exported()


def test_a_plan_is_exported_by_tier_in_instances_and_accelerators(exported: Exported) -> None:
    exported.plan(seen(READY))
    of = {"namespace": "serving", "fleet": "chat"}
    assert exported.samples("multislo_operator_instances", **of, tier="realtime")[("ready",)] == 1
    assert exported.samples("multislo_operator_instances", **of, tier="warm_pool")[("ready",)] == 0
    assert exported.samples("multislo_operator_desired_instances", **of)[("realtime",)] == 1
    assert exported.samples("multislo_operator_load_ratio", **of) == {("realtime",): 0.5}
    assert exported.samples("multislo_operator_accelerators_used", **of) == {(): 2}
    assert exported.samples("multislo_operator_accelerators_max", **of) == {(): 8}
    assert exported.samples("multislo_operator_attainment_goal_ratio", **of) == {(): 0.99}
    assert exported.samples("multislo_operator_router_data_age_seconds", **of) == {(): 0.5}
    assert exported.samples("multislo_operator_need_instances", **of, tier="realtime")[("work",)] == pytest.approx(0.5)


def test_accelerators_of_pods_that_are_being_deleted_count_where_the_status_counts_them(exported: Exported) -> None:
    plan, _ = decide(SPEC, seen(READY), Memory(), 1.0)
    exported.metrics.observe_plan(CHAT, SPEC, plan, seen(READY), 1.0, accelerators_used=4)
    assert exported.samples("multislo_operator_accelerators_used", namespace="serving", fleet="chat") == {(): 4}


def test_a_routers_silence_leaves_load_and_age_absent_and_says_so(exported: Exported) -> None:
    exported.plan(FleetObserved([READY], None, data_age_s=float("inf")))
    assert exported.samples("multislo_operator_load_known", fleet="chat") == {("serving",): 0}
    assert exported.samples("multislo_operator_load_ratio") == {}
    assert exported.samples("multislo_operator_router_data_age_seconds") == {}
    held = exported.samples("multislo_operator_holds", namespace="serving", fleet="chat")
    assert held == {("DataUnknown", "whole_fleet"): 1}


def test_a_hold_that_is_over_stays_as_zero(exported: Exported) -> None:
    exported.plan(FleetObserved([READY], None))
    exported.plan(seen(READY))
    assert exported.samples("multislo_operator_holds", cause="DataUnknown") == {("chat", "serving", "whole_fleet"): 0}


def test_decisions_are_counted_with_the_kind_of_their_reason(exported: Exported) -> None:
    plan = exported.plan(seen())
    assert any(isinstance(action, Start) for action in plan.actions)
    counted = exported.samples("multislo_operator_scaling_decisions_total", namespace="serving", fleet="chat")
    assert sum(counted.values()) == len(plan.actions)
    assert all(tier == "realtime" and action == "start" for action, _, tier in counted)


def test_each_kind_of_reason_is_told_from_an_actions_terms() -> None:
    assert why(Start("batch", "", {}), SPEC) is Why.MINIMUM
    assert why(Start(None, "", {"warm_min": 1.0}), SPEC) is Why.WARM_POOL
    assert why(Start("batch", "", {"backlog": 0.1, "growth": 0.1, "need_now": 2.0}), SPEC) is Why.REQUESTS_WAIT
    assert why(Start("batch", "", {"backlog": 0.0, "growth": 0.1, "need_now": 2.0}), SPEC) is Why.LOAD_GROWS
    assert why(Start("batch", "", {"backlog": 0.0, "growth": 0.0, "need_now": 2.0}), SPEC) is Why.LOAD
    assert why(Drain("a", "", {"need_now": 2.0}), SPEC) is Why.SPARE
    assert why(Drain("a", "", {"instances_max": 2.0}), SPEC) is Why.BUDGET
    assert why(Stop("a", "", {"drained_s": 3.0}), SPEC) is Why.DRAINED
    assert why(Stop("a", "", {"drained_s": SPEC.drain_timeout_s}), SPEC) is Why.DRAIN_TIMEOUT
    assert why(Stop("a", "", {"failed_s": 60.0}), SPEC) is Why.FAILED


def test_the_reaction_runs_from_the_first_request_that_waits_to_the_first_raised_replicas(exported: Exported) -> None:
    exported.plan(seen(READY, pending=3), now=100.0)  # since 0.2 s, seen in an answer of half a second ago
    exported.plan(seen(READY, pending=5), now=101.0)
    exported.metrics.scaled_up(CHAT, 101.3)
    exported.metrics.scaled_up(CHAT, 109.0)  # the same wait: it was answered already
    assert exported.samples("multislo_operator_scale_up_reaction_seconds_count") == {(): 1}
    assert exported.samples("multislo_operator_scale_up_reaction_seconds_sum")[()] == pytest.approx(2.0)
    exported.plan(seen(READY), now=110.0)
    exported.metrics.scaled_up(CHAT, 110.5)  # for growth: nobody waits
    assert exported.samples("multislo_operator_scale_up_reaction_seconds_count") == {(): 1}


def test_a_condition_has_one_series_with_its_present_reason(exported: Exported) -> None:
    exported.metrics.observe_conditions(CHAT, [("Ready", "False", "RouterNotReady"), ("ProfileReady", "True", "Valid")])
    exported.metrics.observe_conditions(CHAT, [("Ready", "True", "Serving"), ("ProfileReady", "Unknown", "Pending")])
    found = exported.samples("multislo_operator_condition", namespace="serving", fleet="chat")
    assert found == {("Serving", "Ready"): 1, ("Pending", "ProfileReady"): -1}


def test_reconciles_and_writes_are_counted(exported: Exported) -> None:
    exported.metrics.reconciled(CHAT, Outcome.DONE, 0.01)
    exported.metrics.reconciled(CHAT, Outcome.FAILED, 0.5)
    exported.metrics.wrote("scale", "Deployment")
    counts = exported.samples("multislo_operator_reconciles_total", namespace="serving", fleet="chat")
    assert counts == {("done",): 1, ("invalid",): 0, ("refused",): 0, ("conflict",): 0, ("failed",): 1}
    assert exported.samples("multislo_operator_reconcile_seconds_count") == {(): 2}
    assert exported.samples("multislo_operator_api_writes_total") == {("Deployment", "scale"): 1}


def test_a_deleted_resource_leaves_no_series(exported: Exported) -> None:
    other = replace(CHAT, name="mail")
    exported.plan(seen(READY))
    exported.plan(seen(READY), key=other)
    exported.metrics.observe_conditions(CHAT, [("Ready", "True", "Serving")])
    exported.metrics.reconciled(CHAT, Outcome.DONE, 0.01)
    assert exported.samples("multislo_operator_fleets") == {(): 2}
    exported.metrics.forget(CHAT)
    text = generate_latest(exported.registry).decode()
    assert 'fleet="chat"' not in text
    assert 'fleet="mail"' in text
    assert exported.samples("multislo_operator_fleets") == {(): 1}


def test_a_replica_that_leads_no_more_says_nothing_of_resources(exported: Exported) -> None:
    exported.metrics.leading(True)
    exported.plan(seen(READY))
    assert exported.samples("multislo_operator_leader") == {(): 1}
    exported.metrics.leading(False)
    assert exported.samples("multislo_operator_leader") == {(): 0}
    assert "fleet=" not in generate_latest(exported.registry).decode()


def test_the_document_holds_the_table_and_the_table_every_metric(exported: Exported) -> None:
    assert table() in DOC.read_text()
    exported.plan(seen(READY))
    exported.metrics.wrote("apply", "Service")
    families = text_string_to_metric_families(generate_latest(exported.registry).decode())
    names = {f"{f.name}_total" if f.type == "counter" else f.name for f in families if not f.name.endswith("_created")}
    assert names == set(re.findall(r"^\| `(multislo_operator_\w+)`", table(), re.MULTILINE))
