"""Panels of "multislo: SLO per tier": attainment over all tiers, then a row for each tier."""

from multislo_operator.observability.grafana import Panel, Query, Row
from multislo_operator.observability.promql import (
    OF_FLEET,
    OF_TIER,
    attainment,
    burn_rate,
    goal,
    of_fleet,
    of_tier,
    quantile,
    rate,
    share,
)

TIER = "{{fleet}} {{tier}}"
_SHARE = ((None, "red"), (0.95, "orange"), (0.99, "green"))
_REQUESTS = "multislo_slo_requests_total"
_TOKENS = "multislo_slo_tokens_total"


def _missed(window: str) -> str:
    return share(of_tier(_REQUESTS, 'result="missed"'), of_tier(_REQUESTS), OF_TIER, window)


OVERVIEW = Row(
    "All tiers",
    (
        Panel(
            "Attainment over the time shown",
            "Share of finished requests whose every token met its deadline. Refused and failed ones count as missed, a client's own "
            "disconnects do not count.",
            [Query(attainment(_REQUESTS, window="$__range"), TIER)],
            unit="percentunit",
            kind="stat",
            steps=_SHARE,
            most=1.0,
            height=5,
        ),
        Panel(
            "Error budget left of the time shown",
            "1: no request was missed; 0: as many as the goal allows; below 0: more.",
            [Query(f"1 - ({_missed('$__range')}) / on ({OF_FLEET}) group_left () (1 - {goal()})", TIER)],
            unit="percentunit",
            kind="stat",
            steps=((None, "red"), (0.0, "orange"), (0.25, "green")),
            least=None,
            height=5,
        ),
        Panel(
            "Attainment of requests",
            "Share of finished requests whose every token was in time; the goal is scaling.attainment.",
            [Query(attainment(_REQUESTS), TIER), Query(goal(), "goal {{fleet}}", limit=True)],
            unit="percentunit",
            most=1.0,
            least=None,
        ),
        Panel(
            "Attainment of tokens",
            "Share of output tokens that were in time. Better than that of requests where late requests have few late tokens.",
            [Query(attainment(_TOKENS), TIER)],
            unit="percentunit",
            most=1.0,
            least=None,
        ),
        Panel(
            "First tokens: how many times their SLO, p99.9",
            "Time to first token over the request's own SLO. Attainment does not show by how much the others miss.",
            [Query(quantile(0.999, of_tier("multislo_time_to_first_token_slo_ratio_bucket"), OF_TIER), TIER)],
        ),
        Panel(
            "Latest token of a request, p99.9",
            "By how much it missed its deadline.",
            [Query(quantile(0.999, of_tier("multislo_request_lateness_seconds_bucket"), OF_TIER), TIER)],
            unit="s",
        ),
        Panel(
            "Burn rate of the error budget",
            "Share missed over the share that the goal allows. The alerts look at this one over 5 m to 3 d.",
            [Query(burn_rate("$window"), TIER)],
        ),
        Panel(
            "Goodput",
            "Requests a second that attained their SLO.",
            [Query(rate(of_tier(_REQUESTS, 'result="met"'), OF_TIER), TIER)],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Arriving requests",
            "Requests a second that reached the tier.",
            [Query(rate(of_tier("multislo_requests_arrived_total"), OF_TIER), TIER)],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Requests in flight",
            "Placed on an instance and not over.",
            [Query(f"sum by ({OF_TIER}) ({of_tier('multislo_requests_in_flight')})", TIER)],
            stacked=True,
        ),
        Panel(
            "Pending requests",
            "Held in the router: no instance has room for them without missing a deadline.",
            [Query(f"sum by ({OF_TIER}) ({of_tier('multislo_requests_pending')})", TIER)],
            stacked=True,
        ),
        Panel(
            "Oldest pending request",
            "How long it has waited.",
            [Query(f"max by ({OF_TIER}) ({of_tier('multislo_requests_pending_oldest_seconds')})", TIER)],
            unit="s",
        ),
        Panel(
            "Refusals by cause",
            "deadline: its first token could not be in time any more; queue_full; no_instance; too_long for the model; engine_failed; "
            "engine_full.",
            [Query(rate(of_tier("multislo_refusals_total"), f"{OF_TIER}, cause"), f"{TIER} {{{{cause}}}}")],
            unit="reqps",
        ),
        Panel(
            "Requests that are over, by outcome",
            "completed, client_gone (its own disconnect), client_error (its engine answered 4xx), engine_failed, refused.",
            [Query(rate(of_tier("multislo_requests_total"), f"{OF_FLEET}, outcome"), "{{fleet}} {{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Errors before a request had a tier",
            "Bad requests and the like, by the reason in the x-multislo-reason header.",
            [Query(rate(of_fleet("multislo_faults_total"), f"{OF_FLEET}, reason"), "{{fleet}} {{reason}}")],
            unit="reqps",
            width=24,
        ),
    ),
)


def _latency(title: str, meaning: str, histogram: str, slo: str) -> Panel:
    buckets = of_tier(f"{histogram}_bucket")
    return Panel(
        title,
        f"{meaning} The histogram has an edge on the SLO.",
        [
            *(Query(quantile(q, buckets, OF_TIER), f"{{{{fleet}}}} p{100 * q:g}") for q in (0.5, 0.9, 0.99)),
            Query(f"max by ({OF_TIER}) ({of_tier(slo)})", "{{fleet}} SLO", limit=True),
        ],
        unit="s",
        width=8,
    )


EACH_TIER = Row(
    "Tier $tier",
    (
        _latency(
            "Time to first token",
            "From a request's arrival at the router to its first token.",
            "multislo_time_to_first_token_seconds",
            "multislo_slo_time_to_first_token_seconds",
        ),
        _latency(
            "Time per output token",
            "A request's mean time between tokens.",
            "multislo_time_per_output_token_seconds",
            "multislo_slo_time_per_output_token_seconds",
        ),
        Panel(
            "Time held in the router",
            "Before a request was placed; 0 for those that were placed at once.",
            [
                Query(
                    quantile(q, of_tier("multislo_queue_time_seconds_bucket"), OF_TIER), f"{{{{fleet}}}} p{100 * q:g}"
                )
                for q in (0.5, 0.9, 0.99)
            ],
            unit="s",
            width=8,
        ),
        Panel(
            "Placements by kind",
            "own_tier; promoted to a tighter tier's instance; demoted to a looser one's; warm_pool; late: its deadline was lost already; "
            "best_effort.",
            [Query(rate(of_tier("multislo_placements_total"), f"{OF_TIER}, kind"), "{{fleet}} {{kind}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Tokens a second, in time and late",
            "Output tokens by whether they met their deadlines.",
            [Query(rate(of_tier(_TOKENS), f"{OF_TIER}, result"), "{{fleet}} {{result}}")],
            stacked=True,
        ),
    ),
    repeat="tier",
)

ROWS = (OVERVIEW, EACH_TIER)
