"""On a real vLLM (CPU) with a tiny model: the plug-in changes when tokens are made, never which. Greedy, float32.

`make vllm` runs these. vLLM is imported once; each engine is a fork of this process, because vLLM has one engine a process."""

import importlib.util
import json
import multiprocessing
import os
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; `make vllm` makes an environment that has it", allow_module_level=True)

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
sys.path.insert(0, str(Path(__file__).parent))

import tiny_model

from multislo_engine.planners import EngineView, Plan, SloAware
from multislo_engine.vllm.check import LOOSE, Ask, Played, mixed, play

TIGHT = {"slo_ttft_ms": 50.0, "slo_tpot_ms": 2.0}
BRISK = {"slo_ttft_ms": 400.0, "slo_tpot_ms": 60.0}
SLOS = [TIGHT, BRISK, LOOSE]
ENGINE = {
    "enforce_eager": True,
    "dtype": "float32",
    "block_size": 32,
    "num_gpu_blocks_override": 512,
    "max_num_batched_tokens": 256,
    "max_num_seqs": 64,
    "max_model_len": 2048,
    "enable_prefix_caching": False,
}
FORK = multiprocessing.get_context("fork")
ENGINE_S = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401

    return str(tiny_model.make(tmp_path_factory.mktemp("tiny")))


def run(model: str, asks: list[Ask], ours: bool, **engine: Any) -> Played:
    """One engine in a process of its own."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run, args=(there, {"model": model, **ENGINE, **engine}, asks, ours))
    process.start()
    there.close()
    try:
        assert here.poll(ENGINE_S), f"no answer within {ENGINE_S} s"
        answer = here.recv()
    finally:
        process.kill()
        process.join()
    assert isinstance(answer, Played), answer
    return answer


def _run(pipe: Connection, engine: dict[str, Any], asks: list[Ask], ours: bool) -> None:
    try:
        pipe.send(play(engine, asks, ours))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def both(model: str, asks: list[Ask], **engine: Any) -> tuple[Played, Played]:
    """Stock and ours, after the checks that hold in every case."""
    stock, ours = run(model, asks, False, **engine), run(model, asks, True, **engine)
    assert ours.errors == 0
    assert ours.planned > 0.9 * ours.iterations - 5, "the planner was hardly asked"
    for place, (theirs, mine) in enumerate(zip(stock.tokens, ours.tokens, strict=True)):
        assert mine == theirs, f"request {place} differs"
    return stock, ours


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On top of what the planner leaves out by itself, which depends on how fast this machine is: half of the decodes in every other
    iteration, in turn. The forks inherit it."""
    planned, calls = SloAware.plan, [0]

    def plan(self: SloAware, now: float, view: EngineView) -> Plan:
        made, count = planned(self, now, view), len(view.decodes)
        calls[0] += 1
        return Plan(made.chunks, np.arange(calls[0] // 2 % 2, count, 2)) if calls[0] % 2 and count > 1 else made

    monkeypatch.setattr(SloAware, "plan", plan)


def varied(asks: list[Ask], **params: Any) -> list[Ask]:
    return [replace(ask, params={**ask.params, **params}) for ask in asks]


def test_plain_requests_planned_as_ever(model: str) -> None:
    _, ours = both(model, mixed(48, 500, SLOS))
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_plain_requests_with_half_of_the_decodes_left_out(model: str) -> None:
    stock, ours = both(model, mixed(48, 500, SLOS))
    assert ours.left_out > 300
    assert ours.iterations > stock.iterations


@pytest.mark.usefixtures("left_out")
def test_with_the_prefix_cache(model: str) -> None:
    asks = mixed(40, 500, SLOS)
    shared = [replace(ask, prompt=[*range(2, 400), *ask.prompt]) for ask in asks]
    stock, ours = both(model, shared, enable_prefix_caching=True)
    assert stock.cached_tokens > 5000
    assert ours.cached_tokens > 5000
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_with_so_little_kv_that_requests_are_preempted(model: str) -> None:
    asks = [replace(ask, params={**ask.params, "max_tokens": 120}) for ask in mixed(32, 500, SLOS, longest=300)]
    stock, ours = both(model, asks, num_gpu_blocks_override=65)
    assert stock.preemptions > 0
    assert ours.preemptions > 0
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_clients_that_leave(model: str) -> None:
    """Who leaves gets a prefix of what stock gives him: an iteration more or less may be under way."""
    asks = mixed(48, 500, SLOS)
    leaving = {place: 3 + place % 7 for place in range(0, 48, 3)}
    asks = [replace(ask, abort_after=leaving.get(place)) for place, ask in enumerate(asks)]
    _, ours = both(model, asks)
    assert ours.left_out > 0
    assert all(len(ours.tokens[place][0]) == after for place, after in leaving.items())


@pytest.mark.usefixtures("left_out")
def test_several_answers_to_one_prompt(model: str) -> None:
    """vLLM gives several answers only to sampled requests; of one candidate there is nothing to sample."""
    _, ours = both(model, varied(mixed(16, 500, SLOS), n=3, temperature=1.0, top_k=1))
    assert all(len(answers) == 3 for answers in ours.tokens)
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_logprobs(model: str) -> None:
    stock, ours = both(model, varied(mixed(24, 500, SLOS), logprobs=3))
    assert ours.left_out > 0
    assert ours.logprobs[0][0]
    for theirs, mine in zip(stock.logprobs, ours.logprobs, strict=True):
        for one, other in zip(theirs, mine, strict=True):
            for (place, tokens), others in zip(enumerate(one), other, strict=True):
                assert [token for _, token in tokens] == [token for _, token in others], place
                assert [value for value, _ in tokens] == pytest.approx([value for value, _ in others], abs=0.01)


@pytest.mark.usefixtures("left_out")
def test_structured_outputs(model: str) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    asks = varied(mixed(16, 500, SLOS), ignore_eos=False, max_tokens=40)
    for ask in asks[::2]:
        ask.params["structured_outputs"] = StructuredOutputsParams(choice=["the quick fox", "a lazy dog"])
    _, ours = both(model, asks)
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_priorities(model: str) -> None:
    asks = [replace(ask, priority=place % 3) for place, ask in enumerate(mixed(40, 500, SLOS))]
    _, ours = both(model, asks, scheduling_policy="priority", max_num_seqs=12)
    assert ours.left_out > 0


@pytest.mark.usefixtures("left_out")
def test_ngram_speculation(model: str) -> None:
    asks = [replace(ask, prompt=(ask.prompt[:12] * 40)[: len(ask.prompt)]) for ask in mixed(40, 500, SLOS)]
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    _, ours = both(model, asks, speculative_config=speculation)
    assert ours.left_out > 0


def test_requests_without_an_slo_leave_all_to_vllm(model: str) -> None:
    asks = varied(mixed(32, 500, SLOS), extra_args=None)
    stock, ours = run(model, asks, False), run(model, asks, True)
    assert ours.tokens == stock.tokens
    assert ours.planned == 0
    assert ours.iterations == stock.iterations


def test_without_pressure_as_few_iterations_as_stock_needs(model: str) -> None:
    """Counted, not timed: the machine may be busy."""
    stock, ours = both(model, mixed(48, 500, [LOOSE]))
    assert ours.left_out == 0
    assert ours.iterations <= 1.05 * stock.iterations


def test_a_planner_that_raises_costs_nothing_but_its_plan(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork inherits the fault."""
    planned, calls = SloAware.plan, [0]

    def plan(self: SloAware, now: float, view: Any) -> Any:
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise RuntimeError("a fault that was put there")
        return planned(self, now, view)

    monkeypatch.setattr(SloAware, "plan", plan)
    asks = mixed(32, 500, SLOS)
    stock, ours = run(model, asks, False), run(model, asks, True)
    assert ours.tokens == stock.tokens
    assert 5 < ours.errors < 100
    assert ours.planned > 20


def test_pipeline_parallelism_and_other_versions_are_left_to_vllm(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from multislo_engine.vllm import guards

    asks = mixed(8, 500, SLOS)
    monkeypatch.setattr(guards, "vllm_version", lambda: "0.99.1")
    stock, ours = run(model, asks, False), run(model, asks, True)
    assert ours.tokens == stock.tokens
    assert ours.planned == 0
    tried = run(model, asks, True, additional_config={"multislo": {"untested_versions": True}})
    assert tried.planned > 0
    assert json.dumps(tried.tokens) == json.dumps(stock.tokens)
