"""Prefill and decode apart: two real cores before two fleets, with every invariant checked after every event of both."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_perf.profile import load_profile
from multislo_sim.bound import PRICES, bound, costs, stage_bounds, stage_needs
from multislo_sim.cli import simulate
from multislo_sim.disaggregated import KV_TRANSFER_S, Stages, attainable, decode_fleet, play_stages, prefill_fleet
from multislo_sim.disaggregated_contenders import POLICIES, homes_up, policy_named
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.trial import Window, arriving, classed, tier_name
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.shapes import shape_named, shaped_lengths
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LAW = PROFILE.latency
TPOTS = tuple(tpot_s for tpot_s, _ in POLYSERVE_TPOT_S)
NAMES = [policy.name for policy in POLICIES]
ASKS = st.lists(
    st.tuples(
        st.floats(0.0, 0.1),  # seconds since the one before
        st.integers(1, 8_000),
        st.integers(1, 60),
        st.sampled_from((0.05, 0.3, 1.0, 5.0)),
        st.sampled_from(TPOTS),
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def mix() -> list[Request]:
    return attainable(classed(shaped_lengths(shape_named("azure-like"), 1000, 1), PROFILE, 1)[0], LAW)


def stages_of(policy: str, instances: int = 6, prefill: int = 2, **knobs) -> Stages:
    return policy_named(policy).stages(PROFILE, 1, instances, prefill, knobs)


def run_checked(fleet: SimulatedFleet) -> SimulatedFleet:
    fleet.scenario = replace(fleet.scenario, check_every_event=True)
    fleet.run()
    for engine in fleet.engines:
        engine.check()
    return fleet


def run_both(stages: Stages, requests: list[Request]) -> tuple[SimulatedFleet, SimulatedFleet, list[int]]:
    first = run_checked(prefill_fleet(stages, PROFILE, requests))
    second, numbers = decode_fleet(stages, PROFILE, requests, first)
    return first, run_checked(second), numbers


def test_a_request_goes_from_its_prefill_over_the_wire_to_its_decodes() -> None:
    request = Request(1.0, 4000, 3, "50ms", 0.5, 0.05)

    first, second, numbers = run_both(stages_of("multislo"), [request])

    (prefilled,), (decoded,) = first.records, second.records
    assert prefilled.tokens == 1
    assert numbers == [0]
    first_at = 1.0 + prefilled.first_token_s
    assert decoded.request.at_s == pytest.approx(first_at + 4000 * KV_TRANSFER_S)
    assert decoded.request.at_s + decoded.request.ttft_s == pytest.approx(1.0 + 0.5 + 0.05)
    steps_s = LAW.iteration_s(0, 0, 1, 4001) + LAW.iteration_s(0, 0, 1, 4002)
    assert decoded.finished_at == pytest.approx(decoded.request.at_s + steps_s)
    assert (decoded.tokens, decoded.missed) == (2, 0)
    assert second.engines[decoded.instance].prefill_tokens == 0


@pytest.mark.parametrize("policy", NAMES)
def test_every_policy_answers_everybody_in_full(policy: str, mix: list[Request]) -> None:
    requests = arriving(mix, 60.0, 1.0, 1)
    requests = [replace(r, output_tokens=min(r.output_tokens, 40)) for r in requests]

    first, second, numbers = run_both(stages_of(policy), requests)

    assert all(record.tokens == 1 for record in first.records)
    assert sorted(numbers) == [n for n, request in enumerate(requests) if request.output_tokens > 1]
    assert all(record.tokens == record.request.output_tokens for record in second.records)
    assert first.core.requests == second.core.requests == {}
    assert sum(record.missed == 0 for record in second.records) > 0.9 * len(second.records)


@pytest.mark.parametrize("policy", ["multislo", "multislo_stock", "polyserve", "least_predicted_time"])
def test_decode_instances_without_memory_make_requests_wait_and_lose_none(policy: str) -> None:
    requests = [Request(0.01 * n, 3000, 50, tier_name(TPOTS[n % 4]), 1.0, TPOTS[n % 4]) for n in range(40)]
    stages = stages_of(policy)
    first = run_checked(prefill_fleet(stages, PROFILE, requests))
    second, _ = decode_fleet(stages, replace(PROFILE, kv_tokens_max=10_000), requests, first)

    run_checked(second)

    assert all(record.tokens == 49 for record in second.records)


def test_who_is_late_with_any_token_or_is_held_past_a_deadline_has_missed(mix: list[Request]) -> None:
    window = Window(0.5, 1.0, 0.5)
    few = play_stages(stages_of("random"), PROFILE, arriving(mix, 60.0, window.total_s, 1), window)
    prefills_short = play_stages(stages_of("random", prefill=1), PROFILE, arriving(mix, 150.0, 2.0, 1), window)
    broken = play_stages(stages_of("random", prefill=1), PROFILE, arriving(mix, 500.0, 12.0, 1), Window(1, 9, 2), 0.99)

    assert few.share == few.attained["all"] > 0.9
    assert prefills_short.attained["all"] <= prefills_short.first_attained < 0.7
    assert broken.broken_off
    assert broken.decode is None
    assert broken.share < 0.99


@settings(max_examples=40)
@given(st.sampled_from(NAMES), st.integers(5, 6), st.integers(1, 2), ASKS)
def test_no_policy_does_more_than_the_bounds_on_any_small_scenario(
    policy: str, instances: int, prefill: int, asks: list
) -> None:
    at_s = 0.0
    requests = []
    for gap_s, prompt, output, ttft_s, tpot_s in asks:
        at_s += gap_s
        requests.append(Request(at_s, prompt, output, tier_name(tpot_s), ttft_s, tpot_s))
    stages = stages_of(policy, instances, prefill)

    first, second, numbers = run_both(stages, requests)

    assert all(record.finished_at < inf for record in (*first.records, *second.records))
    met = np.array([record.first_token_s <= record.request.ttft_s for record in first.records])
    met_all = met.copy()
    for record, number in zip(second.records, numbers, strict=True):
        met_all[number] &= record.missed == 0
    needs = stage_needs(requests, LAW, KV_TRANSFER_S)
    ends = [max((r.finished_at for r in fleet.records), default=0.0) for fleet in (first, second)]
    counts = (stages.prefill_instances, len(stages.decode_homes))
    for need, end_s, count, in_time in zip(needs, ends, counts, (met, met_all), strict=True):
        had_s = count * max(0.0, end_s - requests[0].at_s)
        for price in PRICES.tolist():
            taken = np.where(
                in_time,
                costs(need, LAW, PROFILE.kv_tokens_max, price, in_time=True),
                costs(need, LAW, PROFILE.kv_tokens_max, price, in_time=False),
            )
            assert taken.sum() <= had_s + 1e-9


def test_the_bound_apart_is_below_the_bound_together_and_falls_with_a_slower_wire(mix: list[Request]) -> None:
    def best(transfer_s: float, instances: int = 20) -> float:
        return max(stage_bounds(mix, LAW, PROFILE.kv_tokens_max, transfer_s, instances, 0.99))

    assert best(KV_TRANSFER_S) <= bound(mix, LAW, PROFILE.kv_tokens_max, 20, 0.99)
    assert best(KV_TRANSFER_S, 40) >= 2.0 * best(KV_TRANSFER_S)
    assert best(1e-3) <= best(KV_TRANSFER_S)


def test_a_request_whose_kv_takes_longer_than_its_deadline_allows_is_left_out() -> None:
    near = Request(0.0, 12_000, 2, "20ms", 0.3, 0.02)
    assert attainable([near], LAW) == []
    assert attainable([replace(near, output_tokens=1)], LAW) != []
    assert attainable([replace(near, ttft_s=0.5)], LAW) != []


def test_homes_rounded_up_leave_one_instance_at_least_to_every_tier() -> None:
    assert homes_up(8) == ("20ms", "30ms", "30ms", "50ms", "50ms", "50ms", "100ms", "100ms")
    assert [homes_up(4).count(tier_name(tpot_s)) for tpot_s in TPOTS] == [1, 1, 1, 1]


def test_the_command_prints_the_shape_of_goodput(tmp_path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{n % 60:02d}.0,{500 + 7 * n % 900},{20 + n % 60}" for n in range(200)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(sorted(rows)) + "\n")
    asked = ["disaggregated", "--trace", str(trace), "--quick", "--json", "--jobs", "1"]

    few = CliRunner().invoke(simulate, [*asked, "--instances", "4"])

    assert few.exit_code == 2
    assert "--instances: 4 must be at least 5" in few.output
