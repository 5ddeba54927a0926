"""The engine model: what an engine does to requests and when, over every planner."""

import itertools
from math import inf

import pytest
from h200_law import LAW
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_engine.model import EngineModel
from multislo_engine.planners import PLANNERS, planner_named
from multislo_engine.terms import EngineConfig, EngineRequest, EngineToken


def engine(
    planner: str = "fcfs", kv_tokens: int = 100_000, batch_tokens: int = 2048, seqs_max: int = 1024
) -> EngineModel:
    return EngineModel(LAW, EngineConfig(kv_tokens, batch_tokens, seqs_max), planner_named(planner, LAW))


def run_out(model: EngineModel) -> list[EngineToken]:
    """All tokens until the engine is idle, its invariants checked after every iteration."""
    tokens: list[EngineToken] = []
    while (at := model.next_at()) is not None:
        tokens += model.advance(at)
        model.check()
    return tokens


ASKS = st.lists(
    st.tuples(
        st.floats(0, 0.05),  # seconds since the one before
        st.integers(1, 600),  # prompt tokens
        st.integers(1, 60),  # output tokens
        st.integers(-2, 2),  # priority
        st.sampled_from([(inf, inf), (0.1, 0.02), (0.3, 0.05), (1.0, 0.1), (-0.5, 0.02)]),
        st.one_of(st.none(), st.floats(0, 1)),  # aborted after so long
    ),
    min_size=1,
    max_size=25,
)
ENGINES = st.tuples(
    st.sampled_from(PLANNERS),
    st.sampled_from([672, 1500, 100_000]),
    st.sampled_from([1, 7, 64, 512]),
    st.integers(1, 9),
)


def play(asks: list[tuple], shape: tuple[str, int, int, int]) -> tuple[EngineModel, list[EngineToken]]:
    """Plays a whole life through one engine, from the first request to idleness."""
    planner, kv_tokens, batch_tokens, seqs_max = shape
    model = engine(planner, kv_tokens, batch_tokens, seqs_max)
    events: list[tuple[float, int, EngineRequest | None]] = []
    now = 0.0
    for id, (gap_s, prompt, output, priority, (ttft_s, tpot_s), abort_s) in enumerate(asks):
        now += gap_s
        prefilled = id % 3 == 2  # one in three comes with the KV of its prompt
        forks = ((1000 + 2 * id, output), (1001 + 2 * id, 1 + output // 2)) if id % 5 == 1 and not prefilled else ()
        request = EngineRequest(id, prompt, output, priority, now + ttft_s, tpot_s, prefilled=prefilled, forks=forks)
        events.append((now, id, request))
        if abort_s is not None:
            events.append((now + abort_s, id, None))
    tokens: list[EngineToken] = []
    for at, id, request in sorted(events, key=lambda event: (event[0], event[1], event[2] is None)):
        while (ends := model.next_at()) is not None and ends <= at:
            tokens += model.advance(ends)
            model.check()
            assert model.kv_tokens <= kv_tokens
        if request is None:
            model.abort(at, id)
        else:
            assert model.submit(at, request)
        model.check()
    return model, tokens + run_out(model)


@settings(max_examples=300)
@given(ASKS, ENGINES)
def test_whatever_comes_every_request_ends_and_no_memory_is_left_in_use(asks: list, shape: tuple) -> None:
    model, tokens = play(asks, shape)
    assert model.kv_tokens == 0
    assert model.running == model.waiting == 0
    got: dict[int, list[EngineToken]] = {}
    for token in tokens:
        got.setdefault(token.id, []).append(token)
    for id, (_, _, output, _, _, abort_s) in enumerate(asks):
        mine = got.get(id, [])
        assert [token.index for token in mine] == list(range(len(mine)))
        assert [token.finished for token in mine] == [index == output - 1 for index in range(len(mine))]
        assert all(later.at > earlier.at for earlier, later in itertools.pairwise(mine))
        if abort_s is None:
            assert len(mine) == output
            for fork, length in ((1000 + 2 * id, output), (1001 + 2 * id, 1 + output // 2)):
                assert [token.index for token in got.get(fork, [])] == list(range(length)) or fork not in got
                assert (fork in got) == (id % 5 == 1 and id % 3 != 2)
    assert model.output_tokens == len(tokens)


@settings(max_examples=60)
@given(ASKS, ENGINES)
def test_the_same_requests_make_the_same_run(asks: list, shape: tuple) -> None:
    assert play(asks, shape)[1] == play(asks, shape)[1]


@settings(max_examples=60)
@given(ASKS, ENGINES, st.floats(0.001, 0.5))
def test_how_often_one_looks_changes_nothing(asks: list, shape: tuple, step_s: float) -> None:
    batch = [EngineRequest(id, prompt, output) for id, (_, prompt, output, _, _, _) in enumerate(asks)]
    finely, coarsely = engine(*shape), engine(*shape)
    for request in batch:
        finely.submit(0.0, request)
        coarsely.submit(0.0, request)
    fine: list[EngineToken] = []
    now = 0.0
    while finely.next_at() is not None:
        now += step_s
        fine += finely.advance(now)
    assert fine == coarsely.advance(1e9)


def test_the_last_chunk_of_a_prefill_yields_the_first_token() -> None:
    model = engine(batch_tokens=512)
    model.submit(1.0, EngineRequest(1, prompt_tokens=1200, output_tokens=2))
    tokens = run_out(model)
    chunks_s = [LAW.iteration_s(512, 0, 0, 0), LAW.iteration_s(512, 512, 0, 0), LAW.iteration_s(176, 1024, 0, 0)]
    assert tokens[0] == (1, 0, pytest.approx(1.0 + sum(chunks_s)), False)
    assert tokens[1] == (1, 1, pytest.approx(tokens[0].at + LAW.iteration_s(0, 0, 1, 1201)), True)


def test_prefill_only_load_takes_what_the_latency_model_says_of_a_whole_prefill() -> None:
    model = engine(batch_tokens=700)
    model.submit(0.0, EngineRequest(1, prompt_tokens=5000, output_tokens=1))
    assert run_out(model)[0].at == pytest.approx(LAW.prefill_s(5000, 0, 700, 0, 0))


def test_a_cached_prefix_is_not_prefilled_again() -> None:
    cold, warm = engine(), engine()
    cold.submit(0.0, EngineRequest(1, prompt_tokens=2000, output_tokens=1))
    warm.submit(0.0, EngineRequest(1, prompt_tokens=2000, output_tokens=1, cached_tokens=1500))
    assert run_out(warm)[0].at == pytest.approx(LAW.iteration_s(500, 1500, 0, 0))
    assert run_out(cold)[0].at == pytest.approx(LAW.iteration_s(2000, 0, 0, 0))
    assert warm.prefill_tokens == 500


def test_sequences_of_one_prompt_prefill_it_once_and_share_its_memory() -> None:
    model = engine(kv_tokens=16 * 1000)
    assert model.submit(0.0, EngineRequest(0, 1600, 40, forks=((1, 40), (2, 40), (3, 10))))
    assert model.waiting == 0  # admitted: its choices come with its first token
    first = model.advance(model.next_at() or 0.0)
    assert [(token.id, token.index) for token in first] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert model.prefill_tokens == 1600
    assert model.running == 4
    assert model.kv_tokens == 1600 + 4 * 16  # a block each beyond the hundred that all have
    run_out(model)
    assert model.prefill_tokens == 1600
    assert model.kv_tokens == 0


def test_a_sequence_that_finds_no_room_beside_its_prompt_waits_and_prefills_it_again() -> None:
    model = engine(seqs_max=2)
    assert model.submit(0.0, EngineRequest(0, 100, 5, forks=((1, 5), (2, 5))))
    tokens = run_out(model)
    assert model.prefill_tokens == 201
    assert sorted(token.id for token in tokens) == [0] * 5 + [1] * 5 + [2] * 5


def test_a_request_that_comes_with_the_kv_of_its_prompt_decodes_from_the_next_iteration_on() -> None:
    model = engine()
    model.submit(0.0, EngineRequest(1, prompt_tokens=1001, output_tokens=3, prefilled=True))
    begun_s = LAW.iteration_s(0, 0, 1, 1001)
    model.submit(begun_s / 2, EngineRequest(2, prompt_tokens=501, output_tokens=1, prefilled=True))

    first = model.end_iteration()
    second = model.end_iteration()

    assert (first.at, first.decoded, first.left_out) == (pytest.approx(begun_s), 1, [2])
    assert second.at == pytest.approx(begun_s + LAW.iteration_s(0, 0, 2, 1002 + 501))
    assert (second.decoded, [end.id for end in second.ended]) == (2, [2])
    assert model.prefill_tokens == 0


def test_a_request_with_its_kv_waits_for_memory_and_who_loses_it_prefills_again() -> None:
    model = engine(kv_tokens=640)  # 40 blocks; each needs 33 in the end
    model.submit(0.0, EngineRequest(1, prompt_tokens=301, output_tokens=220, prefilled=True))
    model.submit(0.0, EngineRequest(2, prompt_tokens=301, output_tokens=220, prefilled=True))
    model.submit(0.0, EngineRequest(3, prompt_tokens=301, output_tokens=2, prefilled=True))

    tokens = run_out(model)

    assert {id: sum(token.id == id for token in tokens) for id in (1, 2, 3)} == {1: 220, 2: 220, 3: 2}
    assert model.preemptions == 1
    assert 301 < model.prefill_tokens < 301 + 220


def test_when_memory_runs_out_the_last_admitted_starts_again_and_still_yields_each_token_once() -> None:
    model = engine(kv_tokens=640)  # 40 blocks; the two need 2 * 33 in the end
    model.submit(0.0, EngineRequest(1, prompt_tokens=300, output_tokens=220))
    model.submit(0.0, EngineRequest(2, prompt_tokens=300, output_tokens=220))
    tokens = run_out(model)
    assert model.preemptions == 1
    assert [token.index for token in tokens if token.id == 1] == list(range(220))
    assert [token.index for token in tokens if token.id == 2] == list(range(220))
    first_done = max(token.at for token in tokens if token.id == 1)
    gap = [token.at for token in tokens if token.id == 2]
    assert max(later - earlier for earlier, later in itertools.pairwise(gap)) > 0.5
    assert gap[-1] > first_done
    # Its prompt and what it had made so far were computed twice.
    assert 2 * 300 + 300 < model.prefill_tokens < 2 * 300 + 300 + 220


def test_an_aborted_request_keeps_its_memory_until_the_iteration_ends_and_no_longer() -> None:
    model = engine()
    model.submit(0.0, EngineRequest(1, prompt_tokens=1000, output_tokens=100))
    model.submit(0.0, EngineRequest(2, prompt_tokens=1000, output_tokens=100))
    ends = model.next_at()
    assert ends is not None
    model.abort(ends / 2, 1)
    assert model.kv_tokens == 1008
    assert model.advance(ends) == []
    assert model.kv_tokens == 1008  # the second's
    assert {token.id for token in run_out(model)} == {2}
    assert model.kv_tokens == 0


def test_a_waiting_request_that_is_aborted_is_never_run() -> None:
    model = engine(seqs_max=1)
    model.submit(0.0, EngineRequest(1, prompt_tokens=10, output_tokens=5))
    model.submit(0.0, EngineRequest(2, prompt_tokens=10, output_tokens=5))
    model.abort(0.0, 2)
    assert model.waiting == 0
    assert {token.id for token in run_out(model)} == {1}


def test_aborting_what_is_unknown_or_over_is_nothing() -> None:
    model = engine()
    model.submit(0.0, EngineRequest(1, prompt_tokens=10, output_tokens=1))
    run_out(model)
    model.abort(9.0, 1)
    model.abort(9.0, 77)
    model.check()


def test_a_full_queue_refuses_and_a_request_that_can_never_fit_is_refused_at_once() -> None:
    model = EngineModel(LAW, EngineConfig(1600, 64, seqs_max=1, queue_max=1), planner_named("fcfs", LAW))
    assert not model.submit(0.0, EngineRequest(1, prompt_tokens=1600, output_tokens=1))
    assert model.submit(0.0, EngineRequest(2, prompt_tokens=10, output_tokens=1))
    assert model.submit(0.0, EngineRequest(3, prompt_tokens=10, output_tokens=1))
    assert not model.submit(0.0, EngineRequest(4, prompt_tokens=10, output_tokens=1))
    assert {token.id for token in run_out(model)} == {2, 3}


def test_jitter_stretches_every_iteration() -> None:
    plain = engine()
    shaken = EngineModel(LAW, EngineConfig(100_000, 2048), planner_named("fcfs", LAW), jitter=lambda: 2.0)
    for model in (plain, shaken):
        model.submit(0.0, EngineRequest(1, prompt_tokens=100, output_tokens=10))
    assert run_out(shaken)[-1].at == pytest.approx(2.0 * run_out(plain)[-1].at)


@pytest.mark.parametrize(
    ("field", "value"), [("kv_tokens_max", 0), ("kv_tokens_max", 15), ("batch_tokens", 0), ("queue_max", 0)]
)
def test_a_senseless_engine_is_refused_by_the_name_of_the_field(field: str, value: int) -> None:
    settings = {"kv_tokens_max": 1600, "batch_tokens": 64, field: value}
    with pytest.raises(ValueError, match=field):
        EngineConfig(**settings)


@settings(max_examples=100)
@given(ASKS, ENGINES)
def test_iterations_without_an_object_a_token_say_the_same_as_the_tokens(asks: list, shape: tuple) -> None:
    singly, whole = engine(*shape), engine(*shape)
    due = {}
    for id, (_, prompt, output, priority, (ttft_s, tpot_s), _) in enumerate(asks):
        due[id] = (ttft_s, tpot_s)
        for model in (singly, whole):
            model.submit(0.0, EngineRequest(id, prompt, output, priority, ttft_s, tpot_s))
    decoding: dict[int, int] = {}
    late: dict[int, int] = dict.fromkeys(due, 0)
    while (at := singly.next_at()) is not None:
        tokens = singly.advance(at)
        seen = whole.end_iteration()
        assert seen.at == at
        first = {token.id for token in seen.prefilled}
        taking = decoding.keys() - set(seen.left_out) if seen.decoded else set()
        assert {token.id for token in tokens if token.id not in first} == taking
        assert seen.decoded == len(tokens) - len(first)
        for token in tokens:
            ttft_s, tpot_s = due[token.id]
            late[token.id] += ttft_s < inf and at > ttft_s + token.index * tpot_s + 1e-9
            decoding[token.id] = token.index
        ended = {token.id: token.index + 1 for token in tokens if token.finished}
        assert {end.id: end.tokens for end in seen.ended} == ended
        for end in seen.ended:
            del decoding[end.id]
            assert due[end.id][0] == inf or end.late == late[end.id]
