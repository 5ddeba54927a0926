"""Arrival times: rate curves (steady, bursts, the demo's rise and fall), and stamps drawn from them by a seed."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from multislo_sim.workloads.request import WorkloadInvalid

# Above this many stamps a run is a mistake of units, not an experiment: a day at 1,000 requests a second.
ARRIVALS_MAX = 100_000_000


@dataclass(frozen=True, slots=True)
class Curve:
    """A rate over time, piecewise linear through `knots` of (seconds, requests a second); it ends at the last knot."""

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or self.knots[0][0] != 0.0:
            raise WorkloadInvalid(f"curve: knots {self.knots[:3]} must be at least 2 and begin at 0 s")
        for (before_s, _), (at_s, _) in zip(self.knots, self.knots[1:], strict=False):
            if at_s < before_s:
                raise WorkloadInvalid(f"curve: knot at {at_s} s must not come before the one at {before_s} s")
        for at_s, rate in self.knots:
            if not 0.0 <= rate < float("inf"):
                raise WorkloadInvalid(f"curve: rate {rate} at {at_s} s must be at least 0 requests a second")

    @property
    def duration_s(self) -> float:
        return self.knots[-1][0]

    def rate_at(self, at_s: float) -> float:
        index = bisect_right(self.knots, at_s, key=lambda knot: knot[0])
        if index == 0 or index == len(self.knots):
            return self.knots[min(index, len(self.knots) - 1)][1]
        (from_s, start), (to_s, end) = self.knots[index - 1], self.knots[index]
        return start + (end - start) * (at_s - from_s) / (to_s - from_s)

    def times(self, factor: float) -> "Curve":
        return Curve(tuple((at_s, rate * factor) for at_s, rate in self.knots))


def steady(rate: float, duration_s: float) -> Curve:
    return Curve(((0.0, rate), (duration_s, rate)))


def bursts(rate: float, factor: float, every_s: float, length_s: float, duration_s: float) -> Curve:
    """`rate`, raised to `factor` times for the last `length_s` of each `every_s`."""
    if not 0.0 < length_s < every_s:
        raise WorkloadInvalid(f"burst length: {length_s} s must lie between 0 and its period {every_s} s")
    knots = [(0.0, rate)]
    start_s = every_s - length_s
    while start_s < duration_s:
        end_s = min(start_s + length_s, duration_s)
        knots += [(start_s, rate), (start_s, rate * factor), (end_s, rate * factor), (end_s, rate)]
        start_s += every_s
    knots.append((duration_s, rate))
    return Curve(tuple(knots))


def rise_and_fall(low: float, peak: float, duration_s: float) -> Curve:
    """A day in a few minutes: a sixth low, a third rising, a sixth at the peak, a fifth falling, the rest low."""
    shape = ((0.0, low), (0.16, low), (0.48, peak), (0.64, peak), (0.85, low), (1.0, low))
    return Curve(tuple((share * duration_s, rate) for share, rate in shape))


def stamps(curve: Curve, seed: int, cv: float = 1.0) -> list[float]:
    """Arrival times of a renewal process whose rate follows the curve: gaps are gamma-distributed with variation `cv`
    (1 is Poisson), drawn at unit rate and stretched by the inverse of the curve's integral, which is exact for
    Poisson."""
    if not 0.0 < cv <= 10.0:
        raise WorkloadInvalid(f"arrival variation: {cv} must be greater than 0 and at most 10")
    expected = _integral(curve)
    if expected[-1] > ARRIVALS_MAX:
        raise WorkloadInvalid(f"arrivals: {expected[-1]:.0f} expected, must be at most {ARRIVALS_MAX}")
    dice = np.random.default_rng(seed)
    shape = 1.0 / (cv * cv)
    moments = np.empty(0)
    drawn = 0.0
    while drawn <= expected[-1]:
        room = expected[-1] - drawn
        gaps = dice.gamma(shape, 1.0 / shape, int(room + 4.0 * cv * sqrt(room) + 16.0))
        moments = np.append(moments, drawn + np.cumsum(gaps))
        drawn = float(moments[-1])
    return [_inverse(curve, expected, float(moment)) for moment in moments[moments < expected[-1]]]


def _integral(curve: Curve) -> list[float]:
    """Expected arrivals up to each knot."""
    total = 0.0
    sums = [0.0]
    for (from_s, start), (to_s, end) in zip(curve.knots, curve.knots[1:], strict=False):
        total += (to_s - from_s) * (start + end) / 2.0
        sums.append(total)
    return sums


def _inverse(curve: Curve, expected: Sequence[float], moment: float) -> float:
    """The time by which `moment` arrivals are expected."""
    index = bisect_right(expected, moment)
    (from_s, start), (to_s, end) = curve.knots[index - 1], curve.knots[index]
    rest = moment - expected[index - 1]
    slope = (end - start) / (to_s - from_s)
    # rest = start*x + slope*x^2/2, in the form that divides by no slope.
    return from_s + 2.0 * rest / (start + sqrt(max(0.0, start * start + 2.0 * slope * rest)))
