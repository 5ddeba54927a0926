"""A day's requests for both sides, our fleet's run of them, and one measure of what was in time. Called by the experiment `dynamo`."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from random import Random
from statistics import fmean

from multislo_perf.profile import Profile
from multislo_sim.bound import bound
from multislo_sim.contenders import Setup
from multislo_sim.dynamo.engine import Usual
from multislo_sim.dynamo.replay import Asked, Replayed, Served
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.scaling.contenders import Setting, scaled_named
from multislo_sim.trial import IDLE_BATCH_TOKENS, KV_SHARE_MAX, classed, fleet_of, tier_name
from multislo_sim.workloads.day import Day, over_a_day
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import idle_can_meet

STARTUP_S = 105.0
"""For both: their replay knows one figure; ours are 60 to 150 s elsewhere, which has this mean."""
FIRST_FILL = 0.6
BUSY = 0.7
"""Of the bound: how far a busy instance is filled."""
BATCH_TOKENS = 1024
"""Of an iteration of their engines: the best of the usual ones for stock engines on the tuning trace."""
HOPELESS_SHARE = 0.3
"""A run of ours that has missed more of all requests is broken off."""


@dataclass(frozen=True, slots=True)
class Slo:
    ttft_s: float
    tpot_s: float


ONE_TIER = Slo(0.5, 0.05)
"""What NVIDIA's planner has by default, too."""
TIGHTEST = Slo(0.3, 0.02)
"""Of the four tiers."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Of the requests. `in_time`: the first and the last token by their deadlines. `mean_itl`: the first token within the TTFT and the
    mean of the gaps within the TPOT, what NVIDIA's replay counts as goodput. `every_token`: none late (known of ours only)."""

    in_time: float
    mean_itl: float
    every_token: float | None


@dataclass(frozen=True, slots=True)
class Played:
    """One setting of one side."""

    policy: str
    setting: str
    shares: Shares
    hours: float
    instances_most: int
    scalings: int


@dataclass(frozen=True, slots=True)
class Ground:
    """The scenario of both sides."""

    profile: Profile
    requests: tuple[Request, ...]
    first: int
    """Instances at the start."""
    usual: Usual
    one_tier: bool

    @property
    def told(self) -> Slo:
        return ONE_TIER if self.one_tier else TIGHTEST


def ground_of(
    profile: Profile, lengths: Sequence[Request], instances: float, duration_s: float, one_tier: bool, seed: int
) -> Ground:
    """A day that `instances` could just serve at noon."""
    kept = one_class(profile, lengths, ONE_TIER, seed) if one_tier else classed(lengths, profile, seed)[0]
    rate = bound(kept, profile.latency, profile.kv_tokens_max, 1, 0.98)
    day = Day(instances * rate, duration_s)
    first = max(1, ceil(day.rate_at(0.0) / rate / FIRST_FILL))
    decodes = BUSY * rate * fmean(request.output_tokens for request in kept) * profile.latency.tokens_s(BATCH_TOKENS)
    attention_s = sum(profile.latency.attention_s(request.prompt_tokens, 0) for request in kept)
    usual = Usual(round(decodes), attention_s / sum(request.prompt_tokens for request in kept))
    return Ground(profile, tuple(over_a_day(kept, day, seed)), first, usual, one_tier)


def one_class(profile: Profile, lengths: Sequence[Request], slo: Slo, seed: int) -> list[Request]:
    """All that an idle instance can serve with this SLO, in an order drawn by the seed."""
    most = KV_SHARE_MAX * profile.kv_tokens_max
    kept = [
        replace(request, tier=tier_name(slo.tpot_s), ttft_s=slo.ttft_s, tpot_s=slo.tpot_s)
        for request in lengths
        if request.prompt_tokens + request.output_tokens <= most
        and idle_can_meet(profile.latency, IDLE_BATCH_TOKENS, request, slo.ttft_s, slo.tpot_s)
    ]
    Random(seed).shuffle(kept)
    return kept


def least_hours(ground: Ground, level: float) -> float:
    """The fluid bound's."""
    law, kv_tokens_max = ground.profile.latency, ground.profile.kv_tokens_max
    return len(ground.requests) / bound(ground.requests, law, kv_tokens_max, 1, level) / 3600.0


def judge_theirs(ground: Ground, asked: Asked, run: Replayed) -> Played:
    shares = shares_of(ground.requests, run.served)
    return Played("dynamo", asked.name, shares, run.worker_s / 3600.0, run.workers_most, run.scalings)


def shares_of(requests: Sequence[Request], served: Sequence[Served], missed: int | None = None) -> Shares:
    in_time = mean_itl = 0
    for request, each in zip(requests, served, strict=True):
        ttft_s, tpot_s = request.ttft_s or inf, request.tpot_s or inf
        gaps = request.output_tokens - 1
        if each.first_s <= ttft_s:
            in_time += each.last_s <= ttft_s + gaps * tpot_s
            mean_itl += each.last_s - each.first_s <= gaps * tpot_s
    count = len(requests)
    return Shares(in_time / count, mean_itl / count, None if missed is None else 1.0 - missed / count)


def play_ours(ground: Ground, policy: str, setting: Setting, seed: int) -> Played:
    scaled = scaled_named(policy)
    setup = scaled.setup(ground.profile, seed)
    if ground.one_tier:
        setup = replace(setup, budgets={ONE_TIER.tpot_s: setup.budgets[ONE_TIER.tpot_s]})
    fleet = fleet_of(setup, ground.profile, _homes(ground, setup), ())
    scaler = scaled.scaler(setup, ground.profile, setting)
    scenario = replace(fleet.scenario, scaler=scaler, startup_s=(STARTUP_S, STARTUP_S), seed=seed)
    fleet = SimulatedFleet(scenario, ground.requests)
    hopeless_at = HOPELESS_SHARE * len(ground.requests)
    enabled = gc.isenabled()
    gc.disable()  # what a run makes is kept to its end anyway
    try:
        fleet.run(watch=lambda fleet: len(fleet.ended_late) > hopeless_at, watch_every_s=20.0)
    finally:
        if enabled:
            gc.enable()
    served = [Served(r.first_token_s, r.finished_at - r.request.at_s) for r in fleet.records]
    missed = sum(not record.met for record in fleet.records)
    shares = shares_of([record.request for record in fleet.records], served, missed)
    started = sum(life.started_at > 0.0 for life in fleet.lives)
    ended = sum(life.gone for life in fleet.lives)
    said = ", ".join(f"{knob} {value:g}" for knob, value in setting.items())
    hours = fleet.instance_seconds(0.0, fleet.now) / 3600.0
    return Played(policy, said, shares, hours, _most(fleet), started + ended)


def _most(fleet: SimulatedFleet) -> int:
    """Instances held at once."""
    changes = sorted(
        (at, change) for life in fleet.lives for at, change in ((life.started_at, 1), (life.stopped_at, -1)) if at < inf
    )
    count = most = 0
    for _, change in changes:
        count += change
        most = max(most, count)
    return most


def _homes(ground: Ground, setup: Setup) -> list[str]:
    """At least one a tier, the others by the tiers' shares of the first requests' tokens."""
    tiers = [tier_name(tpot_s) for tpot_s in setup.budgets]
    homes = list(tiers)
    share = dict.fromkeys(tiers, 0.0)
    for request in ground.requests[:2000]:
        share[request.tier or tiers[-1]] += request.prompt_tokens + request.output_tokens
    while len(homes) < ground.first:
        homes.append(max(tiers, key=lambda tier: share[tier] / (homes.count(tier) + 1)))
    return homes
