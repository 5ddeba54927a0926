"""The latency model: its inverses are inverses, its parts add up, more work never takes less time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_perf.latency import LatencyModel

H200 = LatencyModel(1.76e-3, 3.87e-3, 5.8e-6, 0.29e-3, 17.4e-6, 6.5e-6, 29.8e-9, 0.8e-6, 336e-12)


# A busy machine may take its time over one example.


def _seconds(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


# From an engine ten times as fast as an H200 to one on a CPU; any part may be free but a token, as in a profile.
laws = st.builds(
    LatencyModel,
    fixed_s=_seconds(0, 0.1),
    weights_s=_seconds(0, 0.5),
    weights_per_token_s=_seconds(1e-9, 1e-3),
    gemm_s=_seconds(0, 0.1),
    gemm_per_token_s=_seconds(1e-9, 1e-2),
    per_decode_s=_seconds(0, 1e-3),
    per_kv_token_s=_seconds(0, 1e-6),
    per_chunk_token_s=_seconds(0, 1e-3),
    per_attention_pair_s=_seconds(0, 1e-8),
)
budgets = _seconds(0, 2)
decodes = st.integers(0, 1024)
tokens = st.integers(1, 8192)
contexts = st.integers(0, 100_000)
kv = st.integers(0, 1_000_000)


@given(laws, budgets, contexts, decodes, kv)
def test_the_largest_chunk_fits_and_one_token_more_does_not(
    law: LatencyModel, budget_s: float, context: int, batch: int, kv_tokens: int
) -> None:
    chunk = law.chunk_max(budget_s, context, batch, kv_tokens)
    assert chunk == 0 or law.iteration_s(chunk, context, batch, kv_tokens) <= budget_s
    assert budget_s < law.iteration_s(chunk + 1, context, batch, kv_tokens)


@given(laws, budgets, contexts)
def test_the_largest_decode_batch_fits_and_one_request_more_does_not(
    law: LatencyModel, budget_s: float, each: int
) -> None:
    batch = law.decodes_max(budget_s, each)
    assert batch == 0 or law.iteration_s(0, 0, batch, each * batch) <= budget_s
    assert budget_s < law.iteration_s(0, 0, batch + 1, each * (batch + 1))


@given(laws, tokens, contexts, decodes, kv)
def test_the_budget_of_a_chunk_gives_the_chunk(
    law: LatencyModel, chunk: int, context: int, batch: int, kv_tokens: int
) -> None:
    """The edge itself, where rounding could go either way."""
    assert law.chunk_max(law.iteration_s(chunk, context, batch, kv_tokens), context, batch, kv_tokens) == chunk


@given(laws, st.integers(1, 1024), contexts)
def test_the_budget_of_a_decode_batch_gives_the_batch(law: LatencyModel, batch: int, each: int) -> None:
    assert law.decodes_max(law.iteration_s(0, 0, batch, each * batch), each) == batch


@given(laws, st.integers(0, 20_000), contexts, st.integers(1, 2048), decodes, kv)
def test_a_prefill_is_the_sum_of_its_iterations(
    law: LatencyModel, prompt: int, context: int, batch_tokens: int, batch: int, kv_tokens: int
) -> None:
    chunk = max(1, batch_tokens - batch, prompt // 50)  # at most 50 iterations to add up
    total, done = 0.0, 0
    while done < prompt:
        step = min(chunk, prompt - done)
        total += law.iteration_s(step, context + done, batch, kv_tokens)
        done += step
    assert law.prefill_s(prompt, context, chunk + batch, batch, kv_tokens) == pytest.approx(total, rel=1e-9, abs=1e-12)


@given(laws, st.lists(tokens, max_size=20), contexts)
def test_attention_adds_up_however_a_prompt_is_cut(law: LatencyModel, chunks: list[int], context: int) -> None:
    total, done = 0.0, context
    for chunk in chunks:
        total += law.attention_s(chunk, done)
        done += chunk
    assert law.attention_s(sum(chunks), context) == pytest.approx(total, rel=1e-9, abs=1e-12)


@given(laws, tokens, contexts, decodes, kv)
def test_a_batch_of_one_chunk_is_an_iteration(
    law: LatencyModel, chunk: int, context: int, batch: int, kv_tokens: int
) -> None:
    assert law.batch_s([(chunk, context)], batch, kv_tokens) == pytest.approx(
        law.iteration_s(chunk, context, batch, kv_tokens), rel=1e-9
    )


@given(laws, st.integers(0, 8192), contexts, decodes, kv)
def test_more_work_never_takes_less_time(
    law: LatencyModel, chunk: int, context: int, batch: int, kv_tokens: int
) -> None:
    before = law.iteration_s(chunk, context, batch, kv_tokens)
    assert law.iteration_s(chunk + 1, context, batch, kv_tokens) >= before
    assert law.iteration_s(chunk, context + 1, batch, kv_tokens) >= before
    assert law.iteration_s(chunk, context, batch + 1, kv_tokens) >= before
    assert law.iteration_s(chunk, context, batch, kv_tokens + 1) >= before


@given(laws, budgets, budgets, contexts, decodes, kv)
def test_a_larger_budget_never_holds_less(
    law: LatencyModel, one_s: float, other_s: float, context: int, batch: int, kv_tokens: int
) -> None:
    low_s, high_s = sorted((one_s, other_s))
    assert law.chunk_max(low_s, context, batch, kv_tokens) <= law.chunk_max(high_s, context, batch, kv_tokens)
    assert law.decodes_max(low_s, context) <= law.decodes_max(high_s, context)


@given(laws, st.floats(0.1, 10), st.integers(0, 8192), contexts, decodes, kv)
def test_a_slower_engine_is_slower_by_its_factor_in_everything(
    law: LatencyModel, factor: float, chunk: int, context: int, batch: int, kv_tokens: int
) -> None:
    assert law.slower(factor).iteration_s(chunk, context, batch, kv_tokens) == pytest.approx(
        factor * law.iteration_s(chunk, context, batch, kv_tokens), rel=1e-9
    )


def test_reading_the_weights_hides_behind_compute_in_a_large_batch() -> None:
    few = H200.iteration_s(64, 0, 0, 0) - H200.iteration_s(32, 0, 0, 0)
    many = H200.iteration_s(1024, 0, 0, 0) - H200.iteration_s(992, 0, 0, 0)
    assert many > 2 * few


def test_an_engine_whose_decodes_cost_nothing_but_compute_has_a_largest_batch_too() -> None:
    law = LatencyModel(0.0, 0.0, 1e-9, 0.0, 1e-5, 0.0, 0.0, 0.0, 0.0)
    assert law.decodes_max(0.01, 0.0) == 1000
    assert law.chunk_max(0.01, 0, 0, 0) == 1000
