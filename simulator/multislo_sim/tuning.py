"""The search of a contender's knobs on one workload, one knob after another. Values are compared at one rate, just above the best so
far, which costs one run each instead of a search. Called by `multislo simulate tune`."""

from collections.abc import Mapping
from dataclasses import dataclass

from multislo_sim.contenders import Contender, Knob, contender_named
from multislo_sim.goodput import LEVELS, Arena, bounds, highest, lowest, played_at
from multislo_sim.trial import classed

PASSES_MAX = 2
"""Over all knobs; the second only where the first changed something, since knobs may depend on each other."""
SEEN_BELOW = 0.1
"""A share is measured down to so much below the level; less is not told apart."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One value of one knob beside the best so far, at the same rate. A share below `share_best` may be less than shown."""

    level: float
    knob: str
    value: Knob
    rate: float
    share: float
    share_best: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """A contender's best knobs at each of `LEVELS`,the rate that they attain, and how they were found."""

    policy: str
    knobs: Mapping[float, Mapping[str, Knob]]
    rates: Mapping[float, float]
    tried: tuple[Tried, ...]
    runs: int


def tune(arena: Arena, policy: str) -> Tuned:
    """Coordinate by coordinate from what is chosen now; at the 99 % goodput, then from there at the 90 % goodput."""
    search = _Search(arena, contender_named(policy))
    knobs: dict[str, Knob] = dict(search.contender.chosen)
    best: dict[float, Mapping[str, Knob]] = {}
    rates: dict[float, float] = {}
    for level in sorted(LEVELS, reverse=True):
        knobs, edge = search.best(knobs, level)
        best[level] = dict(knobs)
        rates[level] = 0.0 if edge is None else search.rate(edge)
    return Tuned(policy, best, rates, tuple(search.tried), search.runs)


class _Search:
    def __init__(self, arena: Arena, contender: Contender) -> None:
        self.arena = arena
        self.contender = contender
        self.tried: list[Tried] = []
        self.runs = 0
        self._ceiling = bounds(arena)[LEVELS[0]]
        self._prepared = [(seed, classed(arena.lengths, arena.profile, seed)[0]) for seed in arena.seeds]
        self._shares: dict[tuple[object, ...], tuple[float, float]] = {}
        self._start = round(-0.06 / arena.step)

    def rate(self, step: int) -> float:
        return self._ceiling * (1.0 + self.arena.step) ** step

    def share(self, knobs: Mapping[str, Knob], step: int, floor: float) -> float:
        """The mean share in time; where it is less than `floor`, something less than that."""
        key = (step, *sorted(knobs.items()))
        known = self._shares.get(key)
        if known is None or (known[0] < known[1] and floor < known[1]):
            shares: list[float] = []
            for seed, requests in self._prepared:
                rest = len(self._prepared) - len(shares) - 1
                least = len(self._prepared) * floor - sum(shares) - rest
                if least > 1.0:
                    break
                self.runs += 1
                played = played_at(self.arena, self.contender, knobs, seed, requests, self.rate(step), least)
                shares.append(played.share)
            known = (sum(shares) / len(self._prepared), floor)
            self._shares[key] = known
        return known[0]

    def edge(self, knobs: Mapping[str, Knob], level: float, start: int) -> int | None:
        def holds(step: int) -> bool:
            return step <= 0 and self.share(knobs, step, level) >= level

        return highest(holds, start, lowest(self.arena.step), max(1, round(0.06 / self.arena.step)))

    def best(self, knobs: dict[str, Knob], level: float) -> tuple[dict[str, Knob], int | None]:
        edge = self.edge(knobs, level, self._start)
        for _ in range(PASSES_MAX):
            changed = False
            for knob, values in self.contender.knobs.items():
                for value in values:
                    if value == knobs[knob]:
                        continue
                    better, edge = self._compared(knobs, knob, value, level, edge)
                    if better:
                        knobs = {**knobs, knob: value}
                        changed = True
            if not changed or len(self.contender.knobs) < 2:
                break
        if edge is not None:
            self._start = edge
        return knobs, edge

    def _compared(
        self, knobs: Mapping[str, Knob], knob: str, value: Knob, level: float, edge: int | None
    ) -> tuple[bool, int | None]:
        """Whether another value is better than the best so far, and the edge then."""
        other = {**knobs, knob: value}
        at = lowest(self.arena.step) if edge is None else min(edge + 1, 0)
        best = self.share(knobs, at, level - SEEN_BELOW)
        share = self.share(other, at, max(best, level - SEEN_BELOW))
        self.tried.append(Tried(level, knob, value, self.rate(at), share, best))
        if share <= best:
            return False, edge
        if share >= level:
            edge = self.edge(other, level, at)
        return True, edge
