"""One run of an autoscaled fleet under a changing load: the share in time, and the cost in instance-seconds. Called by the experiments
`day` and `cost`."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from multislo_perf.profile import Profile
from multislo_sim.bound import bound
from multislo_sim.contenders import Setup
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.scaling import Scaler
from multislo_sim.trial import classed, fleet_of, tier_name
from multislo_sim.workloads.day import Day, over_a_day
from multislo_sim.workloads.request import Request

STARTUP_S = (60.0, 150.0)
"""Usual from launch to ready, with weights on a local disk."""
WARMUP_S = 300.0
"""Neither counted nor paid: every law begins with the same instances, some too many."""
AFTER_S = 60.0
"""Load goes on for so long after the requests that count."""
FIRST_FILL = 0.6
"""The instances at the start, by the tiers' shares of the work."""
MISSED_MAX = 0.20
"""A run that has missed more of all its requests is broken off: it reaches nothing that is asked for."""
BIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """A day's requests, their scenario, and the part that counts."""

    profile: Profile
    requests: Sequence[Request]
    day: Day
    seed: int
    warmup_s: float = WARMUP_S

    @property
    def span(self) -> tuple[float, float]:
        return self.warmup_s, self.day.duration_s - AFTER_S

    def counted(self) -> list[Request]:
        start_s, end_s = self.span
        return [request for request in self.requests if start_s <= request.at_s < end_s]


@dataclass(frozen=True, slots=True)
class Bin:
    """A minute of a run."""

    at_s: float
    rate: float
    instances: float
    """Paid for, on the average."""
    attained: float


@dataclass(frozen=True, slots=True)
class Run:
    """`attained` by tier and over `all`;for a run that was stopped early it is 0 over all. `instance_s` within the part that counts."""

    attained: Mapping[str, float]
    instance_s: float
    instances_most: int
    requests: int
    starts: int
    """Within the part that counts."""
    bins: tuple[Bin, ...] = ()

    @property
    def hours(self) -> float:
        return self.instance_s / 3600.0


def load_of(profile: Profile, lengths: Sequence[Request], day: Day, seed: int, warmup_s: float = WARMUP_S) -> Load:
    return Load(profile, over_a_day(classed(lengths, profile, seed)[0], day, seed), day, seed, warmup_s)


def least_instance_s(load: Load, attainment: float) -> float:
    """The fluid bound's: a fleet of any size at any moment, its instances shared as water is."""
    counted = load.counted()
    rate = bound(counted, load.profile.latency, load.profile.kv_tokens_max, 1, attainment)
    return len(counted) / rate


def play_scaled(setup: Setup, load: Load, scaler: Scaler, startup_s: tuple[float, float] = STARTUP_S) -> Run:
    fixed = fleet_of(setup, load.profile, _first_homes(load), ())
    scenario = replace(fixed.scenario, scaler=scaler, startup_s=startup_s, seed=load.seed)
    fleet = SimulatedFleet(scenario, load.requests)
    start_s, end_s = load.span
    numbers = [n for n, record in enumerate(fleet.records) if start_s <= record.request.at_s < end_s]
    counted = range(numbers[0], numbers[-1] + 1)
    broken_off = False

    def hopeless(fleet: SimulatedFleet) -> bool:
        nonlocal broken_off
        broken_off = len(fleet.ended_late) + len(fleet.late_now()) > MISSED_MAX * len(counted)
        return broken_off

    enabled = gc.isenabled()
    gc.disable()  # what a run makes is kept to its end anyway
    try:
        fleet.run(load.day.duration_s, hopeless, watch_every_s=20.0)
    finally:
        if enabled:
            gc.enable()
    met = _met(fleet, counted)
    attained = {name: sum(each) / len(each) for name, each in met.items()}
    starts = sum(start_s <= life.started_at < end_s for life in fleet.lives)
    if broken_off:
        return Run({"all": 0.0}, fleet.instance_seconds(start_s, end_s), 0, len(counted), starts)
    bins = _bins(fleet, load, counted, met["all"])
    most = max(ceil(bin.instances) for bin in bins)
    return Run(attained, fleet.instance_seconds(start_s, end_s), most, len(counted), starts, bins)


def _met(fleet: SimulatedFleet, counted: range) -> dict[str, list[bool]]:
    """By tier and over `all`. Who is under way at the end is judged by the deadlines that have passed."""
    late = fleet.late_now()
    met: dict[str, list[bool]] = {"all": []}
    for number in counted:
        record = fleet.records[number]
        ok = record.missed == 0 and record.refused is None and number not in late
        met["all"].append(ok)
        met.setdefault(record.tier, []).append(ok)
    return met


def _bins(fleet: SimulatedFleet, load: Load, counted: range, met: Sequence[bool]) -> tuple[Bin, ...]:
    start_s, end_s = load.span
    width = max(1, int((end_s - start_s) // BIN_S))
    arrived, attained = [0] * width, [0] * width
    for number, ok in zip(counted, met, strict=True):
        index = min(width - 1, int((fleet.records[number].request.at_s - start_s) // BIN_S))
        arrived[index] += 1
        attained[index] += ok
    return tuple(
        Bin(
            start_s + index * BIN_S,
            arrived[index] / BIN_S,
            fleet.instance_seconds(start_s + index * BIN_S, start_s + (index + 1) * BIN_S) / BIN_S,
            attained[index] / arrived[index] if arrived[index] else 1.0,
        )
        for index in range(width)
    )


def _first_homes(load: Load) -> tuple[str, ...]:
    """At least one a tier; what the first minutes' work asks for at a modest fill."""
    law, kv_tokens_max = load.profile.latency, load.profile.kv_tokens_max
    first = [request for request in load.requests if request.at_s < load.warmup_s]
    homes: list[str] = []
    for tpot_s in sorted({request.tpot_s or 0.0 for request in first}):
        own = [request for request in first if request.tpot_s == tpot_s]
        work = len(own) / load.warmup_s / bound(own, law, kv_tokens_max, 1, 0.95)
        homes += [tier_name(tpot_s)] * max(1, ceil(work / FIRST_FILL))
    return tuple(homes)
