"""Panels of "multislo: fleet and scaling": conditions and budget, instances, the gradient, decisions, and the operator itself."""

from multislo_operator.observability.grafana import Panel, Query, Row
from multislo_operator.observability.promql import (
    OF_FLEET,
    OF_INSTANCE,
    OF_TIER,
    OPERATORS,
    WINDOW,
    counted,
    of_fleet,
    of_tier,
    quantile,
    rate,
)

TIER = "{{fleet}} {{tier}}"
INSTANCE = "{{fleet}} {{instance_id}} ({{tier}})"
_LOAD = ((None, "blue"), (0.5, "green"), (0.8, "orange"), (1.0, "red"))


def _most(metric: str, by: str, *more: str) -> str:
    return f"max by ({by}) ({of_tier(metric, *more)})"


def _sum(metric: str, by: str) -> str:
    return f"sum by ({by}) ({of_tier(metric)})"


_STATES = {
    "starting": (1, ("starting", "blue")),
    "ready": (2, ("ready", "green")),
    "draining": (3, ("draining", "orange")),
    "failed": (4, ("failed", "red")),
}
_STATE = " or ".join(
    of_tier("multislo_instance_state", f'state="{state}"') + f" * {number}" for state, (number, _) in _STATES.items()
)
"""A state as a number, for the timeline."""

STATE = Row(
    "Now",
    (
        Panel(
            "Conditions",
            "Of each MultiSLOServing, with their present reasons (docs/production.md).",
            [
                Query(
                    f"max by ({OF_FLEET}, type, reason) ({of_fleet('multislo_operator_condition')})",
                    "{{fleet}} {{type}}: {{reason}}",
                )
            ],
            kind="stat",
            least=None,
            steps=((None, "orange"), (0.0, "red"), (1.0, "green")),
            mappings={"1": ("True", "green"), "0": ("False", "red"), "-1": ("Unknown", "orange")},
            height=6,
        ),
        Panel(
            "Accelerators in use, of the budget",
            "Held by instances in any state, over scaling.acceleratorsMax.",
            [
                Query(
                    f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_accelerators_used')}) / "
                    f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_accelerators_max')})",
                    "{{fleet}}",
                )
            ],
            unit="percentunit",
            kind="bargauge",
            most=1.0,
            steps=((None, "green"), (0.8, "orange"), (1.0, "red")),
            width=6,
            height=6,
        ),
        Panel(
            "Held back now",
            "What would be done and is not, by its cause (docs/scaling.md). Empty where nothing is.",
            [
                Query(
                    f"max by ({OF_TIER}, cause) ({of_fleet('multislo_operator_holds')})",
                    f"{TIER} {{{{cause}}}}",
                )
            ],
            kind="stat",
            steps=((None, "green"), (1.0, "orange")),
            mappings={"1": ("held", "orange"), "0": ("not now", "green")},
            width=6,
            height=6,
        ),
    ),
)

INSTANCES = Row(
    "Instances",
    (
        Panel(
            "Instances by state",
            "As the operator counts them.",
            [Query(f"sum by ({OF_FLEET}, state) ({of_tier('multislo_operator_instances')})", "{{fleet}} {{state}}")],
            stacked=True,
        ),
        Panel(
            "Accelerators against the budget",
            "Held by instances in any state.",
            [
                Query(f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_accelerators_used')})", "{{fleet}} used"),
                Query(
                    f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_accelerators_max')})",
                    "{{fleet}} budget",
                    limit=True,
                ),
            ],
        ),
        Panel(
            "Ready instances by home tier",
            "warm_pool: ready, with no home.",
            [Query(_most("multislo_operator_instances", OF_TIER, 'state="ready"'), TIER)],
            stacked=True,
        ),
        Panel(
            "Desired instances",
            "What each tier should have, within its limits and the budget.",
            [Query(_most("multislo_operator_desired_instances", OF_TIER), TIER)],
            stacked=True,
        ),
        Panel(
            "What the count rests on",
            "Instances that the work needs (work, growth over one start-up, backlog; quota: their sum over the fill target), for the tier "
            "and all tighter ones together.",
            [Query(_most("multislo_operator_need_instances", f"{OF_TIER}, term"), f"{TIER} {{{{term}}}}")],
        ),
        Panel(
            "Arriving work",
            "Instances that each tier's traffic keeps busy, as the routers measure it.",
            [Query(_sum("multislo_work_rate_instances", OF_TIER), TIER)],
            stacked=True,
        ),
        Panel(
            "State of each instance",
            "As the routers see it.",
            [
                Query(f"max by ({OF_INSTANCE}) ({_STATE})", INSTANCE),
            ],
            kind="state-timeline",
            mappings={str(n): shown for n, shown in _STATES.values()},
            width=24,
        ),
    ),
)

GRADIENT = Row(
    "The load gradient",
    (
        Panel(
            "Load by instance, now",
            "Share of its time that an instance needs for the work it has, to stay on all deadlines. With Pack placement the loads of a "
            "tier fall from full to empty: the tail is what a scale-down takes.",
            [Query(f"sort_desc({_sum('multislo_instance_load_mean_ratio', OF_INSTANCE)})", INSTANCE)],
            unit="percentunit",
            kind="bargauge",
            most=1.2,
            steps=_LOAD,
            height=10,
        ),
        Panel(
            "Load by instance",
            "Averaged over about 10 s.",
            [Query(_sum("multislo_instance_load_mean_ratio", OF_INSTANCE), INSTANCE)],
            unit="percentunit",
            height=10,
        ),
        Panel(
            "Ends of the gradient",
            "The fullest instance of each tier, and the least loaded one that holds a request.",
            [
                Query(_most("multislo_gradient_fullest_ratio", OF_TIER), f"{TIER} fullest"),
                Query(_most("multislo_gradient_last_ratio", OF_TIER), f"{TIER} last"),
            ],
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Emptied instances",
            "Ready ones that hold no request.",
            [Query(_most("multislo_gradient_emptied_instances", OF_TIER), TIER)],
            width=8,
        ),
        Panel(
            "Mean load by tier",
            "Of ready instances, over all routers; what the autoscaler sees.",
            [Query(_most("multislo_operator_load_ratio", OF_TIER), TIER)],
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Requests by instance",
            "Placed and not over.",
            [Query(_sum("multislo_instance_requests", OF_INSTANCE), INSTANCE)],
        ),
        Panel(
            "KV cache by instance",
            "Share of its KV tokens that the router believes in use.",
            [
                Query(
                    f"{_sum('multislo_instance_kv_tokens', OF_INSTANCE)} / {_most('multislo_instance_kv_tokens_max', OF_INSTANCE)}",
                    INSTANCE,
                )
            ],
            unit="percentunit",
        ),
    ),
)

SCALING = Row(
    "Decisions",
    (
        Panel(
            "Scaling decisions",
            "Planned actions by kind and reason; the words and figures are in the events of the MultiSLOServing.",
            [
                Query(
                    counted(
                        of_tier("multislo_operator_scaling_decisions_total"),
                        f"{OF_FLEET}, action, reason",
                        "$__rate_interval",
                    ),
                    "{{fleet}} {{action}}: {{reason}}",
                )
            ],
        ),
        Panel(
            "Held back",
            "1 while something that would be done is not.",
            [Query(f"max by ({OF_TIER}, cause) ({of_fleet('multislo_operator_holds')})", f"{TIER} {{{{cause}}}}")],
            kind="state-timeline",
            mappings={"1": ("held", "orange"), "0": ("no", "transparent")},
        ),
        Panel(
            "Reaction of scaling up",
            "From the arrival of the first request that had to wait to raised replicas.",
            [
                Query(
                    quantile(q, "multislo_operator_scale_up_reaction_seconds_bucket", "job", "$__range"),
                    f"p{100 * q:g}",
                )
                for q in (0.5, 0.99)
            ],
            unit="s",
        ),
        Panel(
            "Age of the routers' figures",
            "Beyond 5 s nothing is scaled by them.",
            [Query(f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_router_data_age_seconds')})", "{{fleet}}")],
            unit="s",
        ),
    ),
)

OPERATOR = Row(
    "The operator itself",
    (
        Panel(
            "Reconciles by outcome",
            "failed and conflict ones are tried again.",
            [Query(rate(of_fleet("multislo_operator_reconciles_total"), "outcome"), "{{outcome}}")],
            unit="ops",
            width=8,
        ),
        Panel(
            "Time of a reconcile",
            "With its writes.",
            [
                Query(quantile(q, "multislo_operator_reconcile_seconds_bucket", "job"), f"p{100 * q:g}")
                for q in (0.5, 0.99)
            ],
            unit="s",
            width=8,
        ),
        Panel(
            "Writes to the API server",
            "None where nothing changes.",
            [Query(rate("multislo_operator_api_writes_total", "verb, kind"), "{{verb}} {{kind}}")],
            unit="ops",
            width=8,
        ),
        Panel(
            "CPU",
            "Of a core.",
            [Query(f"rate(process_cpu_seconds_total[{WINDOW}]) {OPERATORS}", "{{pod}}")],
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Memory",
            "Resident.",
            [Query(f"process_resident_memory_bytes {OPERATORS}", "{{pod}}")],
            unit="bytes",
            width=8,
        ),
        Panel(
            "Leader",
            "Exactly one replica writes.",
            [Query("max by (namespace, pod) (multislo_operator_leader)", "{{pod}}")],
            kind="state-timeline",
            mappings={"1": ("leads", "green"), "0": ("stands by", "blue")},
            width=8,
        ),
    ),
)

POD = "{{fleet}} {{pod}}"

ENGINES = Row(
    "What the engines say",
    (
        Panel(
            "Running requests",
            "In the engine's batch.",
            [Query(of_tier("vllm:num_requests_running"), POD)],
            width=8,
        ),
        Panel(
            "Requests waiting inside engines",
            "More than a few for long: the router believes in more room than there is.",
            [Query(of_tier("vllm:num_requests_waiting"), POD)],
            width=8,
        ),
        Panel(
            "KV cache in use",
            "As the engine counts it.",
            [Query(of_tier("vllm:kv_cache_usage_perc"), POD)],
            unit="percentunit",
            most=1.0,
            width=8,
        ),
        Panel(
            "Preemptions",
            "Requests that lost their KV cache to others: there ought to be none.",
            [Query(rate(of_tier("vllm:num_preemptions_total"), "namespace, fleet, pod"), POD)],
            unit="ops",
        ),
        Panel(
            "Tokens a second",
            "Generated, by engine.",
            [Query(rate(of_tier("vllm:generation_tokens_total"), "namespace, fleet, pod"), POD)],
            stacked=True,
        ),
    ),
)

ROWS = (STATE, INSTANCES, GRADIENT, SCALING, ENGINES, OPERATOR)
