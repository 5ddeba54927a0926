"""A day of traffic in a few hours: it rises to a peak and falls, with bursts of more traffic and an inverted mix of tiers. Start-up
times and autoscalers' windows are not compressed, so it is harder to follow than a real day. Called by the experiments with
autoscaling."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from random import Random

from multislo_sim.workloads.arrivals import Curve, stamps
from multislo_sim.workloads.request import Request, WorkloadInvalid

KNOTS = 96
"""Straight pieces that the curve of a day is made of."""
RAMP_S = 20.0
"""A burst takes so long to come and to go."""


@dataclass(frozen=True, slots=True)
class Burst:
    """From `at` on (a share of the day) for `length_s` seconds `factor` times the traffic; `inverts`: the mix of tiers is inverted."""

    at: float
    length_s: float
    factor: float
    inverts: bool


BURSTS = (Burst(0.22, 300.0, 1.3, True), Burst(0.45, 240.0, 1.2, True), Burst(0.78, 300.0, 1.5, True))


@dataclass(frozen=True, slots=True)
class Day:
    """`peak` requests a second at noon, `low` times that at both ends."""

    peak: float
    duration_s: float = 7200.0
    low: float = 0.25
    bursts: tuple[Burst, ...] = BURSTS

    def __post_init__(self) -> None:
        if not self.peak > 0.0:
            raise WorkloadInvalid(f"peak: {self.peak} requests a second must be greater than 0")
        if not 0.0 < self.low <= 1.0:
            raise WorkloadInvalid(f"low: {self.low} must be greater than 0 and at most 1")
        ends_s = 0.0
        for burst in self.bursts:
            start_s = burst.at * self.duration_s
            if not ends_s <= start_s <= self.duration_s - burst.length_s - 2.0 * RAMP_S:
                raise WorkloadInvalid(
                    f"burst at {burst.at}: must lie within the day of {self.duration_s} s, after the one before it"
                )
            ends_s = start_s + burst.length_s + 2.0 * RAMP_S

    def curve(self) -> Curve:
        times = {index * self.duration_s / KNOTS for index in range(KNOTS + 1)}
        for burst in self.bursts:
            start_s = burst.at * self.duration_s
            end_s = start_s + RAMP_S + burst.length_s
            times |= {start_s, start_s + RAMP_S, end_s, end_s + RAMP_S}
        return Curve(tuple((at_s, self.rate_at(at_s)) for at_s in sorted(times)))

    def rate_at(self, at_s: float) -> float:
        calm = self.low + (1.0 - self.low) * 0.5 * (1.0 - cos(2.0 * pi * at_s / self.duration_s))
        factor = 1.0
        for burst in self.bursts:
            factor += (burst.factor - 1.0) * self._share_of(burst, at_s)
        return self.peak * calm * factor

    def inverted_at(self, at_s: float) -> bool:
        return any(burst.inverts and self._share_of(burst, at_s) >= 0.5 for burst in self.bursts)

    def _share_of(self, burst: Burst, at_s: float) -> float:
        """0 outside, 1 within, between them on the ramps."""
        start_s = burst.at * self.duration_s
        end_s = start_s + 2.0 * RAMP_S + burst.length_s
        return min(1.0, max(0.0, min(at_s - start_s, end_s - at_s) / RAMP_S))


def over_a_day(requests: Sequence[Request], day: Day, seed: int) -> list[Request]:
    """The requests (with their tiers) as Poisson along the day, from the start again when they run out. While the mix is inverted, the
    tightest tier has the loosest one's share, and so on."""
    by_tpot: dict[float, list[Request]] = {}
    for request in requests:
        by_tpot.setdefault(request.tpot_s or 0.0, []).append(request)
    tpots = sorted(by_tpot)
    turned = [len(by_tpot[tpot_s]) for tpot_s in reversed(tpots)]
    used = dict.fromkeys(tpots, 0)
    dice = Random(seed)
    made = []
    for index, at_s in enumerate(stamps(day.curve(), seed)):
        of = requests[index % len(requests)]
        if day.inverted_at(at_s):
            tpot_s = dice.choices(tpots, turned)[0]
            of = by_tpot[tpot_s][used[tpot_s] % len(by_tpot[tpot_s])]
            used[tpot_s] += 1
        made.append(Request(at_s, of.prompt_tokens, of.output_tokens, of.tier, of.ttft_s, of.tpot_s))
    return made
