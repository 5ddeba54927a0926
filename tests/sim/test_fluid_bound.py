"""The fluid bound: no policy on any small scenario does in its time more than the bound says fits."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_perf.profile import load_profile
from multislo_router.core.config import TierConfig
from multislo_router.core.request import Request as Arrived
from multislo_router.core.tier import Tier
from multislo_sim.bound import PRICES, bound, costs, needs
from multislo_sim.contenders import CONTENDERS, contender_named
from multislo_sim.trial import classed, fleet_of, homes_of, tier_name
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.shapes import shape_named, shaped_lengths
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LAW = PROFILE.latency
TPOTS = tuple(tpot_s for tpot_s, _ in POLYSERVE_TPOT_S)
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


@settings(max_examples=60)
@given(st.sampled_from([contender.name for contender in CONTENDERS]), st.integers(4, 5), ASKS)
def test_no_policy_does_more_than_the_bound_on_any_small_scenario(policy: str, instances: int, asks: list) -> None:
    at_s = 0.0
    requests = []
    for gap_s, prompt, output, ttft_s, tpot_s in asks:
        at_s += gap_s
        requests.append(Request(at_s, prompt, output, tier_name(tpot_s), ttft_s, tpot_s))
    setup = contender_named(policy).setup(PROFILE, 1)
    fleet = fleet_of(setup, PROFILE, homes_of(instances), requests)

    outcome = fleet.run()

    assert all(record.finished_at < inf for record in outcome.records)
    met = np.array([record.met for record in outcome.records])
    had_s = instances * (outcome.ended_at - outcome.records[0].request.at_s)
    need = needs([record.request for record in outcome.records], LAW)
    for price in PRICES.tolist():
        taken = np.where(
            met,
            costs(need, LAW, PROFILE.kv_tokens_max, price, in_time=True),
            costs(need, LAW, PROFILE.kv_tokens_max, price, in_time=False),
        )
        assert taken.sum() <= had_s + 1e-9


@pytest.fixture(scope="module")
def mix() -> list[Request]:
    return classed(shaped_lengths(shape_named("azure-like"), 2000, 1), PROFILE, 1)[0]


def test_more_instances_looser_levels_and_rejection_raise_the_bound(mix: list[Request]) -> None:
    def rate(instances: int = 10, level: float = 0.99, rejecting: bool = False, kv_tokens_max: int = 800_000) -> float:
        return bound(mix, LAW, kv_tokens_max, instances, level, rejecting)

    assert rate(20) == pytest.approx(2.0 * rate(10))
    assert rate(level=0.9) > rate(level=0.99) > rate(level=1.0) > 0.0
    assert rate(rejecting=True) > rate()
    assert rate(kv_tokens_max=20_000) < 0.8 * rate()


def test_the_bound_of_requests_without_deadlines_is_their_work_alone() -> None:
    requests = [Request(0.0, 1000, 100)] * 10
    work_s = float(needs(requests, LAW).work_s[0])

    assert bound(requests, LAW, 10**12, 1, 1.0) == pytest.approx(1.0 / work_s, rel=1e-6)


def test_tighter_deadlines_lower_the_bound() -> None:
    def rate(tpot_s: float) -> float:
        return bound([Request(0.0, 300, 200, None, 0.3, tpot_s)] * 10, LAW, 800_000, 1, 1.0)

    assert rate(0.01) < 0.95 * rate(0.02) < rate(0.05) < rate(0.1)


@pytest.mark.parametrize("shape", ["azure-like", "mooncake-synthetic-like", "sharegpt-like"])
def test_the_work_that_the_router_figures_is_about_one_instance_at_the_bound_of_one(shape: str) -> None:
    profile = load_profile("llama-3.1-8b-h200-tp1")
    requests = classed(shaped_lengths(shape_named(shape), 2000, 1), profile, 1)[0]
    rate = bound(requests, profile.latency, profile.kv_tokens_max, 1, 1.0)
    tiers: dict[float, Tier] = {}
    arrived = 0.0
    for number, request in enumerate(requests):
        assert request.ttft_s is not None
        assert request.tpot_s is not None
        config = TierConfig("any", request.ttft_s, request.tpot_s, batch_tokens=8192)
        tier = tiers.setdefault(request.tpot_s, Tier(config, 0, profile.latency, profile.kv_tokens_max))
        tier.output_tokens_mean = sum(each.output_tokens for each in requests) / len(requests)
        seen = Arrived(number, tier, 0.0, request.ttft_s, request.tpot_s, request.prompt_tokens, None, True)
        seen.measure_prefill(profile.latency)
        arrived += seen.work_s()
    assert 0.95 < rate * arrived / len(requests) < 1.15
