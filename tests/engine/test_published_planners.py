"""The planners of published systems, and the static budget by deadlines."""

from math import inf

import pytest

from multislo_engine.planners import Decodes, DynamicChunk, Edf, EngineView, Job, QoServe
from multislo_perf.latency import LatencyModel

LAW = LatencyModel(1.64e-3, 3.88e-3, 5.43e-6, 0.06e-3, 17.64e-6, 5.28e-6, 2.971e-8, 3.75e-7, 3.87e-10)


def decode(id: int, slack_s: float, tpot_s: float = 0.05) -> Job:
    return Job(id, 200, 500, 0, 0.0, id, slack_s - 10 * tpot_s, tpot_s, produced=10, admitted=id, blocks=14)


def prompt(id: int, tokens: int, due_s: float = inf, context: int = 0) -> Job:
    admitted = id if context else -1
    return Job(id, tokens, 100, 0, 0.0, id, due_s, 0.05, context, admitted=admitted, blocks=-(-context // 16))


def view(
    decodes: list[Job], waiting: list[Job], prefills: tuple[Job, ...] = (), batch_tokens: int = 8192
) -> EngineView:
    made = EngineView(batch_tokens, 256, 16, 10_000, Decodes(16, decodes), list(prefills))
    made.waiting = sorted(waiting, key=lambda job: job.due_s)
    made.decode_kv_tokens = made.decodes.kv_tokens(None)
    return made


def test_the_dynamic_chunk_keeps_the_tightest_tpot_and_spends_no_slack() -> None:
    seen = view([decode(1, slack_s=5.0), decode(2, slack_s=5.0, tpot_s=0.02)], [prompt(9, 5000)])
    ((_, tokens),) = DynamicChunk(LAW).plan(0.0, seen).chunks
    assert LAW.iteration_s(tokens, 0, 2, seen.decode_kv_tokens) == pytest.approx(0.02, abs=3e-5)


def test_the_dynamic_chunk_shrinks_as_attention_grows() -> None:
    def chunk(context: int) -> int:
        seen = view([decode(1, slack_s=5.0)], [], (prompt(9, 90_000, context=context),))
        return DynamicChunk(LAW).plan(0.0, seen).chunks[0][1]

    assert chunk(60_000) < chunk(20_000) < chunk(16)


def test_qoserve_takes_what_the_least_slack_allows() -> None:
    seen = view([decode(1, slack_s=0.03), decode(2, slack_s=5.0)], [prompt(9, 5000)])
    ((_, tokens),) = QoServe(LAW).plan(0.0, seen).chunks
    assert LAW.iteration_s(tokens, 0, 2, seen.decode_kv_tokens) == pytest.approx(0.03, abs=3e-5)


def test_qoserve_prefers_the_shorter_of_two_as_load_grows_and_relegates_the_lost() -> None:
    waiting = [prompt(1, 6000, due_s=1.0), prompt(2, 300, due_s=1.1), prompt(3, 3000, due_s=0.01)]
    eager = QoServe(LAW, alpha_most_s=0.001, busy_s=0.01).plan(0.0, view([], waiting))
    assert [job.id for job, _ in eager.chunks] == [2, 1]
    patient = QoServe(LAW, alpha_most_s=0.0, chunk_tokens_max=9000).plan(0.0, view([], waiting))
    assert [job.id for job, _ in patient.chunks] == [1, 2, 3]


def test_by_deadlines_a_prompt_under_way_is_overtaken_within_the_budget() -> None:
    seen = view([decode(1, slack_s=5.0)], [prompt(2, 100, due_s=0.5)], (prompt(3, 4000, 3.0, 512),), batch_tokens=501)
    assert [(job.id, tokens) for job, tokens in Edf().plan(0.0, seen).chunks] == [(2, 100), (3, 400)]
