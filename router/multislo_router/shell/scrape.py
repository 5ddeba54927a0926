"""What a metric is and what one scrape reads: the shapes of which `metrics` makes its table."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from multislo_router.core.status import CoreStatus, Histogram, InstanceStatus, TierStatus
from multislo_router.shell.errors import Reason
from multislo_router.shell.internal_errors import Seam

WARM_POOL = "warm_pool"
"""Value of the `tier` label of an instance without a home. No tier can be called so: names hold no underscore."""


@dataclass(slots=True)
class Scrape:
    """All that one scrape reads: the core's status and what the shell measured of itself."""

    status: CoreStatus
    uptime_s: float
    version: str
    decision: Histogram
    loop_lag: Histogram
    faults: Mapping[Reason, int]
    internal_errors: Mapping[Seam, int]
    connections: int
    connections_open: int
    passed_through: int
    answers: Mapping[str, Mapping[int, int]]
    """By instance, what its engine answered: counts by status; 0 for connections that broke or could not be made."""
    model_requests: Mapping[str, int]
    model_output_tokens: Mapping[str, int]
    by_tier: dict[str, list[InstanceStatus]] = field(init=False)
    """Instances by the value of their `tier` label; an entry for each tier, and for the warm pool."""

    def __post_init__(self) -> None:
        self.by_tier = {name: [] for name in (*(tier.name for tier in self.status.tiers), WARM_POOL)}
        for instance in self.status.instances:
            self.by_tier.setdefault(instance.tier or WARM_POOL, []).append(instance)


Row = tuple[tuple[str, ...], float | Histogram]
"""Label values in the order of `Metric.labels`, and the value."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    rows: Callable[[Scrape], Iterable[Row]]


def of_tier(
    name: str,
    type_: Literal["counter", "gauge", "histogram"],
    unit: str,
    meaning: str,
    read: Callable[[TierStatus], float | Histogram],
) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        return (((tier.name,), read(tier)) for tier in scrape.status.tiers)

    return Metric(name, type_, unit, ("tier",), meaning, rows)


def of_tier_by(name: str, unit: str, label: str, meaning: str, read: Callable[[TierStatus], dict[str, int]]) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        return (((tier.name, value), count) for tier in scrape.status.tiers for value, count in read(tier).items())

    return Metric(name, "counter", unit, ("tier", label), meaning, rows)


def of_instance(name: str, unit: str, meaning: str, read: Callable[[InstanceStatus], float | None]) -> Metric:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for instance in scrape.status.instances:
            value = read(instance)
            if value is not None:
                yield (instance.tier or WARM_POOL, instance.id), value

    return Metric(name, "gauge", unit, ("tier", "instance_id"), meaning, rows)


def of_router(
    name: str,
    type_: Literal["counter", "gauge", "histogram"],
    unit: str,
    meaning: str,
    read: Callable[[Scrape], float | Histogram],
) -> Metric:
    return Metric(name, type_, unit, (), meaning, lambda scrape: [((), read(scrape))])
