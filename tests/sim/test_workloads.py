"""Workloads: the same seed makes the same requests, and what is drawn has the figures that it was shaped to."""

import re
from dataclasses import replace

import numpy as np
import pytest

from multislo_perf.latency import LatencyModel
from multislo_sim.workloads.arrivals import Curve, bursts, rise_and_fall, stamps, steady
from multislo_sim.workloads.build import along, built_in
from multislo_sim.workloads.request import Request, WorkloadInvalid, faster, with_lengths_at_most, within
from multislo_sim.workloads.shapes import QUANTILES, SHAPES, shaped_lengths, uniform_lengths
from multislo_sim.workloads.tiers import (
    MixChange,
    TierShare,
    idle_can_meet,
    inverted,
    with_polyserve_classes,
    with_tiers,
)

# Round figures near an 8B model's on an H100.
LATENCY = LatencyModel(1.7e-3, 5.2e-3, 3.8e-6, 2e-4, 1.75e-5, 4.4e-6, 4.2e-8, 4e-7, 3.8e-10)
TIERS = [TierShare("realtime", 1.0, 0.3, 0.02), TierShare("interactive", 3.0, 0.5, 0.05), TierShare("batch", 6.0)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_drawn_lengths_have_the_quantiles_of_the_shape(shape):
    requests = shaped_lengths(shape, 50_000, seed=3)

    for lengths, drawn in (
        (shape.prompt.lengths, [request.prompt_tokens for request in requests]),
        (shape.output.lengths, [request.output_tokens for request in requests]),
    ):
        assert min(drawn) >= 1
        assert max(drawn) <= lengths[-1]
        for length, quantile in zip(lengths[1:-1], QUANTILES, strict=True):
            # Lengths are whole tokens: those rounded to it may lie on either side.
            below, up_to = np.mean(np.array(drawn) <= length - 1.0), np.mean(np.array(drawn) <= length + 1.0)
            assert below - 0.01 <= quantile <= up_to + 0.01


def test_one_seed_makes_one_workload():
    again = built_in("azure-like", 60.0, seed=7)

    assert built_in("azure-like", 60.0, seed=7) == again
    assert built_in("azure-like", 60.0, seed=8) != again
    assert with_tiers(again, TIERS, seed=1) == with_tiers(again, TIERS, seed=1)
    assert with_tiers(again, TIERS, seed=1) != with_tiers(again, TIERS, seed=2)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_steady_arrivals_have_the_rate_and_the_variation_asked_for(cv):
    moments = stamps(steady(20.0, 1000.0), seed=5, cv=cv)
    gaps = np.diff(moments)

    assert len(moments) == pytest.approx(20_000, rel=0.07)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)
    assert moments == sorted(moments)
    assert moments[0] >= 0.0
    assert moments[-1] < 1000.0


def test_arrivals_follow_the_rise_and_the_fall_of_a_curve():
    curve = rise_and_fall(5.0, 50.0, 800.0)

    moments = np.array(stamps(curve, seed=2))

    for start_s, end_s in ((0, 100), (100, 300), (300, 400), (400, 550), (550, 700), (700, 800)):
        expected = sum(curve.rate_at(second + 0.5) for second in range(start_s, end_s))
        # Poisson: five standard deviations.
        assert np.sum((moments >= start_s) & (moments < end_s)) == pytest.approx(expected, abs=5 * expected**0.5)


def test_a_burst_multiplies_the_rate_and_ends():
    curve = bursts(2.0, factor=5.0, every_s=60.0, length_s=10.0, duration_s=150.0)

    assert [curve.rate_at(at_s) for at_s in (49.0, 55.0, 61.0, 115.0, 149.0)] == [2.0, 10.0, 2.0, 10.0, 2.0]
    assert curve.duration_s == 150.0


def test_a_faster_trace_keeps_its_order_and_its_lengths():
    trace = [Request(0.0, 10, 1), Request(4.0, 20, 2), Request(10.0, 30, 3)]

    assert faster(trace, 2.0) == [Request(0.0, 10, 1), Request(2.0, 20, 2), Request(5.0, 30, 3)]
    assert within(trace, 4.0, 6.0) == [Request(0.0, 20, 2)]


def test_a_trace_along_a_curve_starts_again_when_its_lengths_run_out():
    trace = [Request(0.0, 10, 1), Request(4.0, 20, 2)]

    requests = along(steady(1.0, 100.0), trace, seed=4)

    assert [request.prompt_tokens for request in requests[:4]] == [10, 20, 10, 20]


def test_tiers_come_in_their_shares_with_their_slo():
    requests = with_tiers([Request(0.0, 1, 1)] * 20_000, TIERS, seed=9)

    for tier in TIERS:
        mine = [request for request in requests if request.tier == tier.name]
        assert len(mine) == pytest.approx(2_000 * tier.share, rel=0.1)
        assert {(request.ttft_s, request.tpot_s) for request in mine} == {(tier.ttft_s, tier.tpot_s)}


def test_an_inverted_mix_turns_the_shares_round_for_its_time():
    requests = [Request(at_s / 100.0, 1, 1) for at_s in range(30_000)]

    assigned = with_tiers(requests, TIERS, seed=1, changes=inverted(TIERS, 100.0, 200.0))

    shares = [
        sum(request.tier == "realtime" for request in assigned[start : start + 10_000]) / 10_000
        for start in (0, 10_000, 20_000)
    ]
    assert shares == pytest.approx([0.1, 0.6, 0.1], abs=0.02)


def test_a_request_too_long_for_its_tier_goes_to_the_next_that_could_serve_it():
    requests = [Request(0.0, 10, 1), Request(0.0, 5000, 1), Request(0.0, 90_000, 1)] * 100

    assigned = with_tiers(
        requests, TIERS[:2], 1, attainable=lambda r, tier: r.prompt_tokens < 100_000 * (tier.share - 1)
    )

    assert {request.tier for request in assigned} == {"interactive"}


def test_polyserve_gives_only_slos_that_an_idle_instance_meets():
    requests = shaped_lengths(SHAPES["mooncake-like"], 4_000, seed=1)

    assigned, dropped = with_polyserve_classes(requests, LATENCY, lambda tpot_s: 512 if tpot_s < 0.03 else 2048, seed=2)

    assert len(assigned) + dropped == len(requests)
    assert 0 < dropped < 0.2 * len(requests)
    for request in assigned:
        assert request.ttft_s is not None
        assert request.tpot_s is not None
        budget = 512 if request.tpot_s < 0.03 else 2048
        assert idle_can_meet(LATENCY, budget, request, request.ttft_s, request.tpot_s)


def test_polyserve_classes_keep_their_shares_where_prompts_are_short():
    requests = [Request(0.0, 100, 10)] * 20_000

    assigned, dropped = with_polyserve_classes(requests, LATENCY, lambda _: 2048, seed=2)

    assert dropped == 0
    shares = [sum(request.tpot_s == tpot_s for request in assigned) / 20_000 for tpot_s in (0.02, 0.03, 0.05, 0.1)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)
    assert {request.ttft_s for request in assigned} == {0.3, 0.5, 1.0}


def test_uniform_lengths_fill_their_ranges():
    requests = uniform_lengths(5_000, (10, 20), (3, 3), seed=0)

    assert {request.prompt_tokens for request in requests} == set(range(10, 21))
    assert {request.output_tokens for request in requests} == {3}


def test_what_no_instance_can_hold_is_dropped_and_counted():
    requests = [Request(0.0, 100, 28), Request(0.0, 100, 29)]

    assert with_lengths_at_most(requests, 128) == ([requests[0]], 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: built_in("azure", 10.0, 0), "workload: 'azure' must be one of azure-like, mooncake-like"),
        (lambda: built_in("azure-like", 0.0, 0), "duration: 0.0 s must be greater than 0"),
        (lambda: built_in("azure-like", 9.0, 0, -1.0), "rate factor: -1.0 must be greater than 0"),
        (lambda: Curve(((0.0, 1.0),)), "at least 2"),
        (lambda: Curve(((0.0, 1.0), (5.0, -1.0))), "rate -1.0 at 5.0 s must be at least 0"),
        (lambda: stamps(steady(1e6, 1e6), 0), "must be at most 100000000"),
        (lambda: uniform_lengths(1, (5, 4), (1, 1), 0), "prompt: range 5-4 must rise from at least 1"),
        (lambda: with_tiers([], [replace(TIERS[0], share=-1.0)], 0), "numbers of at least 0"),
        (lambda: with_tiers([], TIERS, 0, [MixChange(0.0, (1.0,))]), "must be 3 numbers"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name_and_range(build, message):
    with pytest.raises(WorkloadInvalid, match=re.escape(message)):
        build()
