"""Recording rules and alerts, as Prometheus reads them (`groups: ...`). Pure. The alerts' names are the headings of `docs/runbook.md`."""

from dataclasses import dataclass, field
from typing import Any

from multislo_operator.observability.promql import OF_FLEET, OF_INSTANCE, OF_TIER

Json = dict[str, Any]

GOAL_DEFAULT = 0.99
"""Of fleets of which no operator says a goal. The chart puts `observability.rules.attainmentGoal` in its place."""
RUNBOOK = "docs/runbook.md"
"""The chart puts `observability.rules.runbookUrl` in its place."""
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
MISSED_MIN = 10
"""An alert of attainment needs so many missed requests in its long window: one late request of three is no outage."""
BURN_MISSED_MAX = 0.5
"""Half of all requests missed is an emergency whatever the goal: 14.4 times the budget of a goal of 90 % would be more than all."""


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expr: str
    wait: str
    """How long it must be so (`for`)."""
    severity: str
    """page: somebody is woken up; ticket: somebody looks in working hours."""
    summary: str
    description: str
    labels: dict[str, str] = field(default_factory=dict)


# -- attainment ------------------------------------------------------------------------------------------------------------


def _missed(window: str) -> str:
    return f"multislo:slo_requests_missed:ratio_rate{window}"


def _attainment_recordings() -> list[Json]:
    tiers = f"max by ({OF_TIER}) (multislo_slo_time_per_output_token_seconds) * 0"
    goals = f"max by ({OF_FLEET}) (multislo_operator_attainment_goal_ratio)"
    recordings = [
        {
            "record": "multislo:slo_attainment_goal:ratio",
            # A quiet operator leaves the goal to the default, and the alerts in force.
            "expr": f"({tiers} + on ({OF_FLEET}) group_left () {goals})\nor\n({tiers} + {GOAL_DEFAULT})",
        }
    ]
    for window in WINDOWS:
        total = f"sum by ({OF_TIER}) (rate(multislo_slo_requests_total[{window}]))"
        missed = f'sum by ({OF_TIER}) (rate(multislo_slo_requests_total{{result="missed"}}[{window}]))'
        # Without a request there is no share: 0/0 would be NaN for ever, so it is left out.
        recordings.append({"record": _missed(window), "expr": f"{missed}\n/\n({total} > 0)"})
    recordings += [
        {
            "record": f"multislo:slo_requests:burn_rate{window}",
            "expr": f"{_missed(window)}\n/ on ({OF_TIER})\n(1 - multislo:slo_attainment_goal:ratio)",
        }
        for window in ("1h", "6h", "3d")
    ]
    return recordings


def _burns(name: str, long: str, short: str, factor: float, wait: str, severity: str, meaning: str) -> Alert:
    """Multi-window, multi-burn-rate (Beyer et al., The Site Reliability Workbook, ch. 5): the long window says that it matters, the short
    one that it goes on."""
    limit = f"clamp_max({factor:g} * (1 - multislo:slo_attainment_goal:ratio), {BURN_MISSED_MAX:g})"
    enough = f'sum by ({OF_TIER}) (increase(multislo_slo_requests_total{{result="missed"}}[{long}])) >= {MISSED_MIN}'
    return Alert(
        name=name,
        expr=f"{_missed(long)} > {limit}\nand\n{_missed(short)} > {limit}\nand\n{enough}",
        wait=wait,
        severity=severity,
        summary="Tier {{ $labels.tier }} of {{ $labels.namespace }}/{{ $labels.fleet }} misses its SLO.",
        description=f"{{{{ $value | humanizePercentage }}}} of its requests were missed in the last {long}, {meaning}",
        labels={"window": long},
    )


ATTAINMENT = (
    _burns(
        "MultisloAttainmentBurnsFast",
        "1h",
        "5m",
        14.4,
        "2m",
        "page",
        "which spends a month's error budget in two days.",
    ),
    _burns(
        "MultisloAttainmentBurnsSteadily",
        "6h",
        "30m",
        6.0,
        "15m",
        "page",
        "which spends a month's error budget in five days.",
    ),
    _burns(
        "MultisloAttainmentBurnsSlowly", "3d", "6h", 1.0, "1h", "ticket", "which is more than the goal allows for ever."
    ),
)

# -- scaling ---------------------------------------------------------------------------------------------------------------


def _held(cause: str) -> str:
    return f'max by ({OF_TIER}, cause) (multislo_operator_holds{{cause="{cause}"}}) == 1'


_COMING = f'sum by ({OF_TIER}) (multislo_operator_instances{{state=~"ready|starting"}})'
_WANTED = f"max by ({OF_TIER}) (multislo_operator_desired_instances)"

SCALING = (
    Alert(
        "MultisloInstancesNotComingUp",
        _held("InstancesNotComingUp"),
        "10m",
        "page",
        "Instances of {{ $labels.namespace }}/{{ $labels.fleet }} do not come up.",
        "They fail or start for too long. They are no capacity; others are tried in their place after waits that double.",
    ),
    Alert(
        "MultisloBudgetShort",
        _held("BudgetShort"),
        "15m",
        "ticket",
        "{{ $labels.namespace }}/{{ $labels.fleet }} needs more accelerators than its budget.",
        "Tier {{ $labels.tier }} has fewer instances than its load asks for, because scaling.acceleratorsMax is used up.",
    ),
    Alert(
        "MultisloTierAtMaximum",
        _held("TierAtMax"),
        "15m",
        "ticket",
        "Tier {{ $labels.tier }} of {{ $labels.namespace }}/{{ $labels.fleet }} is at its maximum.",
        "Its load asks for more instances than instances.max allows.",
    ),
    Alert(
        "MultisloScalingStuck",
        f"({_WANTED}) - on ({OF_TIER}) ({_COMING}) > 0",
        "15m",
        "page",
        "Tier {{ $labels.tier }} of {{ $labels.namespace }}/{{ $labels.fleet }} lacks {{ $value }} instances.",
        "They are wanted, but neither ready nor starting for a quarter of an hour.",
    ),
    Alert(
        "MultisloNotReady",
        f'max by ({OF_FLEET}, type) (multislo_operator_condition{{type="Ready"}}) < 1',
        "15m",
        "page",
        "{{ $labels.namespace }}/{{ $labels.fleet }} is not Ready.",
        "Its conditions say why: kubectl describe mslo -n {{ $labels.namespace }} {{ $labels.fleet }}.",
    ),
)

CHANGES = (
    Alert(
        "MultisloInstancesLost",
        f"max by ({OF_FLEET}) (multislo_operator_instances_lost) > 0",
        "2m",
        "ticket",
        "{{ $labels.namespace }}/{{ $labels.fleet }} has {{ $value }} instances on nodes that are not heard of.",
        "A minute after its node fell silent, an instance does not count any more and is replaced within the budget.",
    ),
    Alert(
        "MultisloTwoOperators",
        f'max by ({OF_FLEET}) (multislo_operator_condition{{type="SoleOperator"}}) == 0',
        "5m",
        "ticket",
        "Two operators would look after {{ $labels.namespace }}/{{ $labels.fleet }}.",
        "The one that came first goes on, the other stands aside; the condition SoleOperator names it.",
    ),
    Alert(
        "MultisloChangeRefused",
        f'max by ({OF_FLEET}) (multislo_operator_condition{{type="ChangeRefused"}}) == 1',
        "10m",
        "ticket",
        "The API server refuses a change of {{ $labels.namespace }}/{{ $labels.fleet }}.",
        "What runs is left as it is. The condition ChangeRefused has the API server's words: kubectl describe mslo -n "
        "{{ $labels.namespace }} {{ $labels.fleet }}.",
    ),
)

# -- routers ---------------------------------------------------------------------------------------------------------------

DATA_AGE_MAX_S = 30
PREDICTION_ERROR_MAX = 0.25
"""Of the SLO: half of the requests being so much later than predicted spoils placements."""
CALIBRATION_MAX, CALIBRATION_MIN = 1.5, 0.5
LAG_MAX_S = 0.05

ROUTERS = (
    Alert(
        "MultisloRouterDataStale",
        f"max by ({OF_FLEET}) (multislo_operator_router_data_age_seconds) > {DATA_AGE_MAX_S}\n"
        f"or\nmax by ({OF_FLEET}) (multislo_operator_load_known) == 0",
        "3m",
        "page",
        "The operator does not know the load of {{ $labels.namespace }}/{{ $labels.fleet }}.",
        "Its routers do not answer, or not with figures: everything is held as it is, and only the minima are kept.",
    ),
    Alert(
        "MultisloRouterDown",
        f"max by ({OF_FLEET}) (multislo_operator_desired_instances)\nunless on ({OF_FLEET})\nmultislo_uptime_seconds",
        "5m",
        "page",
        "No router of {{ $labels.namespace }}/{{ $labels.fleet }} is scraped.",
        "The operator looks after this fleet, but Prometheus hears no router of it: it is down, or its PodMonitor is not selected.",
    ),
    Alert(
        "MultisloRouterOverloaded",
        "histogram_quantile(0.99, sum by (namespace, fleet, pod, le) (rate(multislo_event_loop_lag_seconds_bucket[5m])))"
        f" > {LAG_MAX_S:g}",
        "10m",
        "ticket",
        "Router {{ $labels.pod }} of {{ $labels.namespace }}/{{ $labels.fleet }} lags by {{ $value | humanizeDuration }}.",
        "Every token that it relays may be late by as much. It has too little CPU, or too much traffic for one router.",
    ),
    Alert(
        "MultisloPredictionOff",
        # Not the time per output token: it is predicted for the batch at placement, and a batch that grows afterwards within the SLO is no
        # wrong prediction. What is wrong about iterations shows in the calibration.
        "histogram_quantile(0.5, "
        f"sum by ({OF_TIER}, le) (rate(multislo_time_to_first_token_error_seconds_bucket[15m])))\n"
        f"/ on ({OF_TIER})\nmax by ({OF_TIER}) (multislo_slo_time_to_first_token_seconds)\n> {PREDICTION_ERROR_MAX:g}",
        "15m",
        "ticket",
        "First tokens of tier {{ $labels.tier }} of {{ $labels.namespace }}/{{ $labels.fleet }} come later than predicted.",
        "Half of its first tokens are later than predicted by {{ $value | humanizePercentage }} of the SLO, or more.",
    ),
    Alert(
        "MultisloCalibrationOff",
        f"avg by ({OF_INSTANCE}) (multislo_instance_calibration_ratio) > {CALIBRATION_MAX:g}\n"
        f"or\navg by ({OF_INSTANCE}) (multislo_instance_calibration_ratio) < {CALIBRATION_MIN:g}",
        "15m",
        "ticket",
        "Instance {{ $labels.instance_id }} of {{ $labels.namespace }}/{{ $labels.fleet }} does not fit its profile.",
        "Its iterations take {{ $value | humanize }} times what the profile says.",
    ),
)

# -- the operator ----------------------------------------------------------------------------------------------------------

OPERATOR = (
    Alert(
        "MultisloOperatorDown",
        "absent(multislo_operator_leader)",
        "5m",
        "page",
        "No multislo operator is scraped.",
        "Serving goes on as it is, but nothing scales, starts or drains.",
    ),
    Alert(
        "MultisloNoLeader",
        "sum by (namespace) (multislo_operator_leader) == 0",
        "2m",
        "page",
        "No operator replica in {{ $labels.namespace }} holds the Lease.",
        "Serving goes on as it is, but nothing scales, starts or drains.",
    ),
    Alert(
        "MultisloReconcilesFail",
        f'sum by ({OF_FLEET}) (rate(multislo_operator_reconciles_total{{outcome="failed"}}[10m]))\n'
        f"/\nsum by ({OF_FLEET}) (rate(multislo_operator_reconciles_total[10m]))\n> 0.5",
        "10m",
        "page",
        "Reconciles of {{ $labels.namespace }}/{{ $labels.fleet }} fail.",
        "{{ $value | humanizePercentage }} of them; the operator's log says why.",
    ),
)

ALERTS = (*ATTAINMENT, *SCALING, *CHANGES, *ROUTERS, *OPERATOR)


def rules() -> Json:
    return {
        "groups": [
            {"name": "multislo-attainment", "rules": _attainment_recordings()},
            *(
                {"name": f"multislo-{name}-alerts", "rules": [_rule(alert) for alert in alerts]}
                for name, alerts in (
                    ("attainment", ATTAINMENT),
                    ("scaling", (*SCALING, *CHANGES)),
                    ("router", ROUTERS),
                    ("operator", OPERATOR),
                )
            ),
        ]
    }


def _rule(alert: Alert) -> Json:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.wait,
        "labels": {"severity": alert.severity, **alert.labels},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
        },
    }
