"""The unit of a trace's numeric stamps. Mooncake's JSON lines count milliseconds, Bailian's the same fields in seconds, and a wrong unit
makes a trace a thousand times too dense. Called by `traces`."""

from collections.abc import Sequence
from enum import StrEnum
from statistics import median


class TimeUnit(StrEnum):
    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"

    @property
    def per_second(self) -> float:
        return _PER_SECOND[self]


_PER_SECOND = {
    TimeUnit.SECONDS: 1.0,
    TimeUnit.MILLISECONDS: 1e3,
    TimeUnit.MICROSECONDS: 1e6,
    TimeUnit.NANOSECONDS: 1e9,
}
EPOCH_S = (1e9, 1e10)
"""A stamp between these counts seconds since 1970: from 2001 to 2286. Other units lie a power of 1,000 higher."""
MILLISECONDS_RATE_MAX = 50.0
"""Up to this mean rate of arrivals, as milliseconds, stamps are taken for milliseconds. As seconds it would be one request in 20 s."""
SECONDS_RATE_MIN = 5.0
"""From this mean rate on, as seconds, they are taken for seconds: as milliseconds it would be 5,000 a second."""


def unit_of(stamps: Sequence[float], whole: bool) -> tuple[TimeUnit | None, str]:
    """The unit that the stamps tell, in words why; None where they may as well be milliseconds or seconds.

    `stamps` are those of the file's first requests, of all of them if `whole`.
    """
    middle = median(stamps)
    for unit in TimeUnit:
        if EPOCH_S[0] <= middle / unit.per_second < EPOCH_S[1]:
            return unit, "they count from 1970"
    span = max(stamps) - min(stamps)
    if span == 0.0:
        return (TimeUnit.MILLISECONDS if whole else None), "all are the same"
    as_seconds = (len(stamps) - 1) / span
    as_milliseconds = as_seconds * TimeUnit.MILLISECONDS.per_second
    rates = f"{as_milliseconds:.3g} requests/s as milliseconds, {as_seconds:.3g} as seconds"
    if as_milliseconds <= MILLISECONDS_RATE_MAX:
        return TimeUnit.MILLISECONDS, rates
    if as_seconds >= SECONDS_RATE_MIN:
        return TimeUnit.SECONDS, rates
    return None, rates
