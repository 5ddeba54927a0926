"""PromQL as the dashboards write it: selectors by their template variables, shares and quantiles."""

OF_FLEET = "namespace, fleet"
OF_TIER = "namespace, fleet, tier"
OF_INSTANCE = "namespace, fleet, tier, instance_id"
WINDOW = "$window"
"""The dashboards' variable for how far rates and quantiles look back."""
_CHOSEN = ('namespace=~"$namespace"', 'fleet=~"$fleet"')
ROUTERS = "and on (namespace, pod, instance) multislo_build_info"
"""Keeps of the process metrics those of routers."""
OPERATORS = "and on (instance) multislo_operator_leader"


def of_fleet(metric: str, *more: str) -> str:
    """The series of the chosen fleets."""
    return f"{metric}{{{','.join((*_CHOSEN, *more))}}}"


def of_tier(metric: str, *more: str) -> str:
    """The series of the chosen tiers."""
    return of_fleet(metric, 'tier=~"$tier"', *more)


def rate(series: str, by: str, window: str = WINDOW) -> str:
    return f"sum by ({by}) (rate({series}[{window}]))"


def share(part: str, whole: str, by: str, window: str = WINDOW) -> str:
    """Absent where nothing happened: 0/0 is no number."""
    return f"{rate(part, by, window)} / {rate(whole, by, window)}"


def quantile(q: float, buckets: str, by: str, window: str = WINDOW) -> str:
    """`buckets` selects the series of a histogram's `_bucket`."""
    return f"histogram_quantile({q:g}, {rate(buckets, f'{by}, le', window)})"


def attainment(counter: str, by: str = OF_TIER, window: str = WINDOW) -> str:
    """The share met, of a counter with the label `result`."""
    return share(of_tier(counter, 'result="met"'), of_tier(counter), by, window)


def goal() -> str:
    return f"max by ({OF_FLEET}) ({of_fleet('multislo_operator_attainment_goal_ratio')})"


def burn_rate(window: str) -> str:
    """1: misses arrive just as fast as the goal allows for ever."""
    missed = share(
        of_tier("multislo_slo_requests_total", 'result="missed"'),
        of_tier("multislo_slo_requests_total"),
        OF_TIER,
        window,
    )
    return f"({missed}) / on ({OF_FLEET}) group_left () (1 - {goal()})"


def counted(series: str, by: str, window: str) -> str:
    """How often it happened. A series that begins within the window counts from zero: it was made by its first event."""
    return f"sum by ({by}) (increase({series}[{window}]) or ({series} unless {series} offset {window}))"
