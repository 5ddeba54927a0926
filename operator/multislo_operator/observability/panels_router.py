"""Panels of "multislo: router's own cost and its predictions"."""

from multislo_operator.observability.grafana import Panel, Query, Row
from multislo_operator.observability.promql import (
    OF_FLEET,
    OF_INSTANCE,
    OF_TIER,
    ROUTERS,
    WINDOW,
    of_fleet,
    of_tier,
    quantile,
    rate,
)

POD = "{{fleet}} {{pod}}"
OF_POD = "namespace, fleet, pod"
TIER = "{{fleet}} {{tier}}"
INSTANCE = "{{fleet}} {{instance_id}} ({{tier}})"
_CPU = f"(rate({of_fleet('process_cpu_seconds_total')}[{WINDOW}]) {ROUTERS})"


def _error(title: str, meaning: str, histogram: str, slo: str) -> Panel:
    buckets = of_tier(f"{histogram}_bucket")
    slos = f"max by ({OF_TIER}) ({of_tier(slo)})"
    return Panel(
        title,
        f"{meaning} As a share of the SLO; below 0: quicker than predicted.",
        [
            Query(f"{quantile(q, buckets, OF_TIER)} / {slos}", f"{TIER} p{100 * q:g}")
            for q in (0.1, 0.5, 0.9)
        ],
        unit="percentunit",
        least=None,
    )  # fmt: skip


COST = Row(
    "The router's own cost",
    (
        Panel(
            "Decision time",
            "What the core takes for an arriving request.",
            [
                Query(quantile(q, of_fleet("multislo_decision_seconds_bucket"), OF_POD), f"{POD} p{100 * q:g}")
                for q in (0.5, 0.99)
            ],
            unit="s",
        ),
        Panel(
            "Event loop lag",
            "How late the loop wakes: every streamed token waits for it.",
            [
                Query(quantile(q, of_fleet("multislo_event_loop_lag_seconds_bucket"), OF_POD), f"{POD} p{100 * q:g}")
                for q in (0.5, 0.99)
            ],
            unit="s",
        ),
        Panel("CPU", "Of the one core that a router can use.", [Query(_CPU, POD)], unit="percentunit", width=8),
        Panel(
            "CPU per request",
            "All that the router does, over the requests that arrived.",
            [
                Query(
                    f"sum by ({OF_FLEET}) ({_CPU}) / {rate(of_fleet('multislo_requests_arrived_total'), OF_FLEET)}",
                    "{{fleet}}",
                )
            ],
            unit="s",
            width=8,
        ),
        Panel(
            "CPU per output token",
            "The same, over the tokens that passed.",
            [
                Query(
                    f"sum by ({OF_FLEET}) ({_CPU}) / {rate(of_fleet('multislo_slo_tokens_total'), OF_FLEET)}",
                    "{{fleet}}",
                )
            ],
            unit="s",
            width=8,
        ),
        Panel(
            "Memory",
            "Resident.",
            [Query(f"{of_fleet('process_resident_memory_bytes')} {ROUTERS}", POD)],
            unit="bytes",
            width=8,
        ),
        Panel(
            "Open connections of clients",
            "And the file descriptors of the process, engines' connections included.",
            [
                Query(f"sum by ({OF_POD}) ({of_fleet('multislo_connections_open')})", f"{POD} connections"),
                Query(f"{of_fleet('process_open_fds')} {ROUTERS}", f"{POD} descriptors"),
            ],
            width=8,
        ),
        Panel(
            "Requests without an SLO",
            "For other paths than completions: passed through.",
            [Query(rate(of_fleet("multislo_passed_through_total"), OF_POD), POD)],
            unit="reqps",
            width=8,
        ),
        Panel(
            "Uptime",
            "A router that starts forgets its averages, not its instances.",
            [Query(f"max by ({OF_POD}) ({of_fleet('multislo_uptime_seconds')})", POD)],
            unit="s",
            kind="stat",
            height=5,
        ),
        Panel(
            "Updates of the fleet",
            "How often the operator tells the router its instances.",
            [Query(rate(of_fleet("multislo_fleet_updates_total"), OF_POD), POD)],
            unit="ops",
            height=5,
        ),
    ),
)

PREDICTIONS = Row(
    "Predictions",
    (
        _error(
            "Error of the predicted time to first token",
            "Actual less predicted.",
            "multislo_time_to_first_token_error_seconds",
            "multislo_slo_time_to_first_token_seconds",
        ),
        _error(
            "Error of the predicted time per output token",
            "Actual less the iteration time predicted at placement: it rises as the batch grows afterwards, within the SLO.",
            "multislo_time_per_output_token_error_seconds",
            "multislo_slo_time_per_output_token_seconds",
        ),
        Panel(
            "Calibration by instance",
            "Measured over predicted iteration time, which corrects the predictions; 1 where the profile is right.",
            [Query(f"avg by ({OF_INSTANCE}) ({of_tier('multislo_instance_calibration_ratio')})", INSTANCE)],
            least=None,
        ),
        Panel(
            "Predicted iteration time by instance",
            "Of the next steady iteration.",
            [Query(f"max by ({OF_INSTANCE}) ({of_tier('multislo_instance_iteration_predicted_seconds')})", INSTANCE)],
            unit="s",
        ),
        Panel(
            "KV tokens: believed over reported",
            "What the routers count, over what the engine said last; 1 where they agree. Absent for an engine that does not report.",
            [
                Query(
                    f"sum by ({OF_INSTANCE}) ({of_tier('multislo_instance_kv_tokens')}) / "
                    f"(max by ({OF_INSTANCE}) ({of_tier('multislo_instance_kv_tokens_reported')}) > 0)",
                    INSTANCE,
                )
            ],
            width=24,
        ),
    ),
)

ROWS = (COST, PREDICTIONS)
