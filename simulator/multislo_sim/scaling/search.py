"""The least cost of a scaling law at an attainment: its settings are tried from a likely one until the leanest that attains it is
known. Called by the experiments `day` and `cost`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from multislo_perf.profile import Profile
from multislo_sim.scaling.contenders import Setting, scaled_named
from multislo_sim.scaling.trial import WARMUP_S, Load, Run, load_of, play_scaled
from multislo_sim.workloads.day import Day
from multislo_sim.workloads.request import Request


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, with the mean over the seeds; `run` is the first seed's."""

    setting: Setting
    attained: float
    hours: float
    run: Run


@dataclass(frozen=True, slots=True)
class Found:
    """The cheapest run that reaches each level (None: no setting does), and all that were made."""

    policy: str
    best: Mapping[float, Tried | None]
    tried: tuple[Tried, ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """The scenario; every law gets the same loads."""

    profile: Profile
    lengths: tuple[Request, ...]
    day: Day
    seeds: tuple[int, ...]
    levels: tuple[float, ...]
    warmup_s: float = WARMUP_S


def leanest(ground: Ground, policy: str) -> Found:
    """Search one policy."""
    scaled = scaled_named(policy)
    loads = [load_of(ground.profile, ground.lengths, ground.day, seed, ground.warmup_s) for seed in ground.seeds]
    tried: dict[int, Tried] = {}

    def attained(index: int) -> float:
        if index not in tried:
            tried[index] = _try(policy, scaled.settings[index], loads)
        return tried[index].attained

    index = min(scaled.likely, len(scaled.settings) - 1)
    for level in sorted(ground.levels, reverse=True):
        while attained(index) < level and index < len(scaled.settings) - 1:
            index += 1
        while attained(index) >= level and index > 0 and attained(index - 1) >= level:
            index -= 1
    best = {level: _cheapest(list(tried.values()), level) for level in ground.levels}
    return Found(policy, best, tuple(tried[index] for index in sorted(tried)))


def between(found: Found, level: float) -> float | None:
    """Hours at just this attainment, on the straight line from the cheapest run that reaches it to the next leaner setting: settings are
    steps, and where a step falls is luck. None where either is missing."""
    best = found.best[level]
    if best is None:
        return None
    place = found.tried.index(best)
    below = found.tried[place - 1] if place else None
    if below is None or not 0.0 < below.attained < level or below.hours >= best.hours:
        return None
    share = (level - below.attained) / (best.attained - below.attained)
    return below.hours + share * (best.hours - below.hours)


def _try(policy: str, setting: Setting, loads: Sequence[Load]) -> Tried:
    scaled = scaled_named(policy)
    runs = []
    for load in loads:
        setup = scaled.setup(load.profile, load.seed)
        runs.append(play_scaled(setup, load, scaled.scaler(setup, load.profile, setting)))
        if runs[-1].attained["all"] == 0.0:
            break
    return Tried(
        setting, mean(run.attained["all"] for run in runs), mean(run.instance_s for run in runs) / 3600.0, runs[0]
    )


def _cheapest(tried: Sequence[Tried], level: float) -> Tried | None:
    reach = [each for each in tried if each.attained >= level]
    return min(reach, key=lambda each: each.hours) if reach else None
