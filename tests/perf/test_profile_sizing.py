"""What a latency model means for an instance of a tier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_perf.profile import load_profile, shipped_profiles
from multislo_perf.sizing import (
    BATCH_TOKENS_MAX,
    BATCH_TOKENS_MIN,
    BATCH_TOKENS_STEP,
    batch_tokens,
    idle_tpot_s,
    idle_ttft_s,
    prefill_rate,
    unattainable,
)

LATENCIES = {name: load_profile(name).latency for name in shipped_profiles()}
H200 = LATENCIES["llama-3.1-8b-h200-tp1"]
THIRD = LATENCIES["llama-3.1-8b-h100-third-tp1"]


@given(st.sampled_from(sorted(LATENCIES)), st.floats(0.001, 1.0))
def test_the_token_budget_is_the_largest_step_that_decodes_can_wait_for(name: str, tpot_s: float) -> None:
    latency = LATENCIES[name]
    tokens = batch_tokens(latency, tpot_s)
    slack_s = tpot_s - latency.iteration_s(0, 0, 128, 128 * 1500)
    longest_s = max(0.7 * tpot_s, 2.0 * slack_s)
    assert BATCH_TOKENS_MIN <= tokens <= BATCH_TOKENS_MAX
    assert tokens % BATCH_TOKENS_STEP == 0
    if tokens > BATCH_TOKENS_MIN:
        assert latency.iteration_s(tokens, 0, 0, 0) <= longest_s
    if tokens < BATCH_TOKENS_MAX:
        assert latency.iteration_s(tokens + BATCH_TOKENS_STEP, 0, 0, 0) > longest_s


def test_tighter_tiers_get_smaller_budgets() -> None:
    assert [batch_tokens(H200, tpot_s) for tpot_s in (0.020, 0.030, 0.050, 0.100)] == [512, 1536, 3584, 7936]
    assert [batch_tokens(THIRD, tpot_s) for tpot_s in (0.020, 0.050, 0.100)] == [256, 512, 2304]


def test_the_ttft_of_an_idle_instance_is_its_prefill_and_nothing_else() -> None:
    one, two = idle_ttft_s(H200, 512, 512), idle_ttft_s(H200, 1024, 512)
    assert one == pytest.approx(H200.iteration_s(512, 0, 0, 0))
    assert two == pytest.approx(one + H200.iteration_s(512, 512, 0, 0))


def test_an_idle_third_of_an_h100_decodes_well_under_twenty_milliseconds() -> None:
    assert idle_tpot_s(THIRD, 4096) < 0.015


def test_a_third_of_an_h100_prefills_a_third_of_its_tokens() -> None:
    whole = LATENCIES["llama-3.1-8b-h100-tp1"]
    assert prefill_rate(THIRD, 2048) == pytest.approx(prefill_rate(whole, 2048) / 3, rel=0.05)


def test_an_slo_that_an_idle_instance_meets_is_attainable() -> None:
    assert unattainable(H200, 0.3, 0.02, 4096) == []


def test_a_tpot_below_an_idle_decode_is_told_with_both_times() -> None:
    (found,) = unattainable(THIRD, 1.0, 0.010)
    assert (found.slo, found.asked_s) == ("tpot", 0.010)
    assert found.idle_s == pytest.approx(idle_tpot_s(THIRD, 2))


def test_a_ttft_below_an_idle_prefill_is_told_with_both_times() -> None:
    (found,) = unattainable(THIRD, 0.3, 0.050, 16_384)
    assert (found.slo, found.asked_s) == ("ttft", 0.3)
    assert found.idle_s == pytest.approx(idle_ttft_s(THIRD, 16_384, 512))


def test_both_slos_of_a_tier_may_be_out_of_reach() -> None:
    assert [found.slo for found in unattainable(THIRD, 0.001, 0.001)] == ["ttft", "tpot"]
