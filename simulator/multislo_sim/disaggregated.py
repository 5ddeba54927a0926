"""A fleet with prefill and decode on separate instances: one production `RouterCore` for the prefill instances, another for the decode
instances. Called by `multislo simulate disaggregated`.

A request's prefill ends with its first token; then its KV is transferred, and it arrives at the second core, where its second token is
due one TPOT after the first was. No prefill waits for a decode, so the first fleet is simulated to its end before the second begins.
The result is the same as if both ran on one clock.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from multislo_perf.latency import LatencyModel
from multislo_perf.profile import Profile
from multislo_sim.contenders import Setup
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.lockstep import LockstepBookings
from multislo_sim.trial import BACKLOG_MAX_S, HOPELESS_S, IDLE_BATCH_TOKENS, Window, fleet_of, tier_name
from multislo_sim.workloads.request import Request

KV_BYTES_PER_TOKEN = 131_072
"""Llama-3.1-8B in bf16: keys and values (2) of 8 heads of 128 in 32 layers, 2 bytes each."""
KV_BYTES_PER_S = 50e9
"""One 400 Gb/s network port for each GPU, as DGX H100 and H200 have them."""
KV_TRANSFER_S = KV_BYTES_PER_TOKEN / KV_BYTES_PER_S
"""Seconds for each prompt token. Transfers do not wait for one another."""
PREFILL_TPOT_S = 1.0
"""Of the prefill instances' one tier: no token follows the first there, so any pace will do."""
PREFILL_TIER = tier_name(PREFILL_TPOT_S)
NEAR_S = 1e-9
"""A token so little after its deadline is in time: what rounding makes of a sum."""
HANDOVER_ITERATIONS = 2.0
"""Between its KV's arrival and its second token a request waits for the iteration under way and takes part in the next."""


@dataclass(frozen=True, slots=True)
class Stages:
    """One contender's two fleets: routers, engines and start-up flags of each, and how the instances are shared out."""

    prefill: Setup
    decode: Setup
    prefill_instances: int
    decode_homes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Played:
    """The result of a run of both fleets. Shares of the requests that count: `attained` by tier and over `all`, `first_attained` those
    whose first token was in time. A run that was stopped early has its values so far as upper limits."""

    attained: Mapping[str, float]
    first_attained: float
    backlogs_s: tuple[float, float]
    """Seconds of work for each instance, prefill and decode, of requests that have had no token there."""
    broken_off: bool
    prefill: SimulatedFleet
    decode: SimulatedFleet | None
    """None where the prefill fleet alone made the run hopeless."""

    @property
    def share(self) -> float:
        """Of the requests that count, those in time; 0 where a queue was growing."""
        return 0.0 if max(self.backlogs_s) > BACKLOG_MAX_S else self.attained["all"]


def play_stages(
    stages: Stages, profile: Profile, requests: Sequence[Request], window: Window, floor: float = 0.0
) -> Played:
    """Run both fleets; broken off as soon as it is certain that less than `floor` of the requests are in time."""
    asked = sorted(requests, key=lambda request: request.at_s)
    start_s, end_s = window.warmup_s, window.warmup_s + window.measured_s
    counted = {number for number, request in enumerate(asked) if start_s <= request.at_s < end_s}
    missed_max = (1.0 - floor) * len(counted) if floor > 0.0 else inf
    first = prefill_fleet(stages, profile, asked)
    broken = _run(first, lambda: _late_firsts(first, asked), counted, missed_max, window.total_s)
    late = _late_firsts(first, asked)
    first_late = len(counted & late)
    second = None
    decode_backlog_s = 0.0
    if not broken:
        second, numbers = decode_fleet(stages, profile, asked, first)
        late.update(_overdue_on_the_way(asked, first, window.total_s))
        rest = missed_max - len(counted & late)
        broken = _run(second, lambda: _late_decodes(second, numbers), counted - late, rest, window.total_s)
        late |= _late_decodes(second, numbers)
        decode_backlog_s = decode_backlog(second, profile.latency)
    over = {name: [n for n in counted if asked[n].tier == name] for name in {asked[n].tier for n in counted}}
    attained = {str(name): 1.0 - len(late.intersection(those)) / len(those) for name, those in over.items()}
    attained["all"] = 1.0 - len(counted & late) / len(counted) if counted else 1.0
    return Played(
        attained,
        1.0 - first_late / max(1, len(counted)),
        (first.backlog_s(), decode_backlog_s),
        broken,
        first,
        second,
    )


def attainable(requests: Sequence[Request], latency: LatencyModel) -> list[Request]:
    """The requests whose second token an idle pair of instances would have in time, too: the way from one to the other takes time that
    an SLO made for one instance does not have."""
    return [request for request in requests if _second_in_time(request, latency)]


def _second_in_time(request: Request, latency: LatencyModel) -> bool:
    if request.output_tokens == 1 or request.ttft_s is None or request.tpot_s is None:
        return True
    tokens = request.prompt_tokens
    first_s = latency.prefill_s(tokens, 0, IDLE_BATCH_TOKENS, 0, 0)
    second_s = first_s + tokens * KV_TRANSFER_S + latency.iteration_s(0, 0, 1, tokens + 1)
    return second_s <= request.ttft_s + request.tpot_s


def prefill_fleet(stages: Stages, profile: Profile, requests: Sequence[Request]) -> SimulatedFleet:
    """Every request as its prompt and one token of output, in one tier; due early enough for the second token to be in time."""
    tightest_s = min(stages.decode.budgets)
    prompts = []
    for r in requests:
        assert r.ttft_s is not None
        assert r.tpot_s is not None
        handover_s = r.prompt_tokens * KV_TRANSFER_S + HANDOVER_ITERATIONS * tightest_s
        ttft_s = r.ttft_s - max(0.0, handover_s - r.tpot_s)
        prompts.append(replace(r, output_tokens=1, tier=PREFILL_TIER, ttft_s=ttft_s, tpot_s=PREFILL_TPOT_S))
    return fleet_of(stages.prefill, profile, (PREFILL_TIER,) * stages.prefill_instances, prompts)


def decode_fleet(
    stages: Stages, profile: Profile, requests: Sequence[Request], prefilled: SimulatedFleet
) -> tuple[SimulatedFleet, list[int]]:
    """What comes out of the prefill fleet and wants more than one token, and its records' numbers in `requests`."""
    arrivals = []
    for number, record in enumerate(prefilled.records):
        request = requests[number]
        at_s = request.at_s + record.first_token_s + request.prompt_tokens * KV_TRANSFER_S
        if at_s < inf and request.output_tokens > 1:
            arrivals.append((at_s, number))
    arrivals.sort()
    decodes = [_handed_over(requests[number], at_s) for at_s, number in arrivals]
    return fleet_of(stages.decode, profile, stages.decode_homes, decodes), [number for _, number in arrivals]


def decode_backlog(fleet: SimulatedFleet, latency: LatencyModel) -> float:
    """Seconds of decode work for each instance of requests that have had no token there: held in the router or waiting in an engine."""
    work_s = 0.0
    for believed in fleet.core.requests.values():
        instance = fleet.core.places.get(believed.id)
        bookings = instance.bookings if instance is not None else None
        if not isinstance(bookings, LockstepBookings) or not bookings.tokens_of(believed):
            request = fleet.records[believed.id].request
            kv_tokens = request.prompt_tokens + 0.5 * request.output_tokens
            token_s = latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * kv_tokens
            work_s += request.output_tokens * token_s
    return work_s / len(fleet.engines)


def _handed_over(request: Request, at_s: float) -> Request:
    """A request as the decode fleet gets it: the first token belongs to its prompt, and the second is due where it always was."""
    assert request.ttft_s is not None
    assert request.tpot_s is not None
    return replace(
        request,
        at_s=at_s,
        prompt_tokens=request.prompt_tokens + 1,
        output_tokens=request.output_tokens - 1,
        ttft_s=request.at_s + request.ttft_s + request.tpot_s - at_s,
        prefilled=True,
    )


def _overdue_on_the_way(requests: Sequence[Request], prefilled: SimulatedFleet, until_s: float) -> set[int]:
    """Whose KV is still under way at the end, and whose second token should be there."""
    overdue = set()
    for number, record in enumerate(prefilled.records):
        request = requests[number]
        at_s = request.at_s + record.first_token_s + request.prompt_tokens * KV_TRANSFER_S
        due_s = request.at_s + (request.ttft_s or 0.0) + (request.tpot_s or 0.0)
        if request.output_tokens > 1 and due_s < until_s < at_s < inf:
            overdue.add(number)
    return overdue


def _run(
    fleet: SimulatedFleet, late: Callable[[], set[int]], counted: set[int], missed_max: float, until_s: float
) -> bool:
    """Play one of the fleets; answers whether it was broken off because more than `missed_max` of those counted are late."""
    broken = False

    def hopeless(fleet: SimulatedFleet) -> bool:
        nonlocal broken
        broken = len(counted & late()) > missed_max or fleet.backlog_s() > HOPELESS_S
        return broken

    enabled = gc.isenabled()
    gc.disable()  # what a run makes is kept to its end anyway
    try:
        fleet.run(until_s, hopeless if missed_max < inf else None)
    finally:
        if enabled:
            gc.enable()
    return broken


def _late_firsts(fleet: SimulatedFleet, requests: Sequence[Request]) -> set[int]:
    """Whose first token was not there when it was due at the front, whatever the prefill fleet was told."""
    late = set()
    for number, (record, request) in enumerate(zip(fleet.records, requests, strict=True)):
        ttft_s = request.ttft_s or 0.0
        waited_s = min(record.first_token_s, max(0.0, fleet.now - request.at_s))
        if waited_s > ttft_s + NEAR_S or record.refused is not None:
            late.add(number)
    return late


def _late_decodes(fleet: SimulatedFleet, numbers: Sequence[int]) -> set[int]:
    refused = [n for n, record in enumerate(fleet.records) if record.refused is not None]
    return {numbers[n] for n in (*fleet.ended_late, *fleet.late_now(), *refused)}
