"""Does the plug-in keep its promises on this machine? For the owner of a GPU, in ten minutes:

    python -m multislo_engine.vllm.check --model meta-llama/Llama-3.1-8B-Instruct --engine '{"max_model_len": 8192}'

It runs vLLM's own scheduler and ours, each in a process of its own, on the same requests and prints one table. Needs vLLM."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEDULER = "multislo_engine.vllm.SLOScheduler"
PRESSED = {"slo_ttft_ms": 200.0, "slo_tpot_ms": 20.0}
LOOSE = {"slo_ttft_ms": 60_000.0, "slo_tpot_ms": 5_000.0}


@dataclass(slots=True)
class Ask:
    """One request: its prompt as token ids, and what goes into vLLM's SamplingParams."""

    prompt: list[int]
    params: dict[str, Any]
    priority: int = 0
    at_step: int = 0
    abort_after: int | None = None
    """Tokens after which its client leaves."""


@dataclass(slots=True)
class Played:
    """What an engine made of them."""

    tokens: list[list[list[int]]]
    """Of each request, by answer."""
    logprobs: list[Any]
    seconds: float
    iterations: int
    planned: int = 0
    left_out: int = 0
    errors: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    us_a_call: float = 0.0
    factors: list[float] = field(default_factory=list)
    error: float = 0.0

    @property
    def output_tokens(self) -> int:
        return sum(len(answer) for answers in self.tokens for answer in answers)


def play(engine: dict[str, Any], asks: Sequence[Ask], ours: bool) -> Played:
    """Runs an engine in this process until all requests are over, greedy. One engine a process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler is to be looked at
    from vllm import LLM, SamplingParams

    # Asynchronous scheduling is off for both: the plug-in has not been tested with it.
    arguments = {"async_scheduling": False, "seed": 0, "disable_log_stats": True, **engine}
    if ours:
        arguments["scheduler_cls"] = SCHEDULER
    llm = LLM(**arguments)
    core = llm.llm_engine
    scheduler: Any = core.engine_core.engine_core.scheduler
    preempted, cached = _watched(scheduler)
    done: list[dict[int, Any]] = [{} for _ in asks]  # by answer: a step tells those that it was about
    began, step, left = time.perf_counter(), 0, list(enumerate(asks))
    while left or core.has_unfinished_requests():
        for place, ask in [pair for pair in left if pair[1].at_step <= step]:
            params = SamplingParams(**{"temperature": 0.0, **ask.params})
            core.add_request(str(place), {"prompt_token_ids": ask.prompt}, params, priority=ask.priority)
        left = [pair for pair in left if pair[1].at_step > step]
        for output in core.step():
            place = int(output.request_id)
            done[place] |= {answer.index: answer for answer in output.outputs}
            after = asks[place].abort_after
            if after is not None and len(output.outputs[0].token_ids) >= after:
                core.abort_request([output.request_id])
        step += 1
    played = Played(
        tokens=[[list(answers[index].token_ids) for index in sorted(answers)] for answers in done],
        logprobs=[_logprobs([answers[index] for index in sorted(answers)]) for answers in done],
        seconds=time.perf_counter() - began,
        iterations=step,
        preemptions=preempted[0],
        cached_tokens=cached[0],
    )
    if ours and getattr(scheduler, "slo_mirror", None) is not None:
        counts = scheduler.slo_counts
        played.planned, played.left_out, played.errors = counts.planned, counts.left_out, counts.errors
        played.us_a_call = 1e6 * counts.seconds / max(1, counts.planned)
        played.factors, played.error = scheduler.slo_learner.factors, scheduler.slo_learner.error
    return played


def _watched(scheduler: Any) -> tuple[list[int], list[int]]:
    """Counters of preemptions and of prompt tokens from the prefix cache, the same for both schedulers."""
    preempted, cached = [0], [0]
    preempt, find = scheduler._preempt_request, scheduler.kv_cache_manager.get_computed_blocks

    def preempting(*args: Any, **kwargs: Any) -> Any:
        preempted[0] += 1
        return preempt(*args, **kwargs)

    def finding(*args: Any, **kwargs: Any) -> Any:
        found = find(*args, **kwargs)
        cached[0] += found[1]
        return found

    scheduler._preempt_request, scheduler.kv_cache_manager.get_computed_blocks = preempting, finding
    return preempted, cached


def _logprobs(answers: list[Any]) -> list[Any]:
    """Per answer and token: the ranked token ids with rounded log probabilities."""
    return [
        [
            sorted((round(one.logprob, 3), token) for token, one in position.items())
            for position in answer.logprobs or []
        ]
        for answer in answers
    ]


def mixed(count: int, vocabulary: int, slo: Sequence[dict[str, float]], longest: int = 900) -> list[Ask]:
    """Requests of different lengths that arrive in a bunch and then one by one, their SLOs in turn."""
    return [
        Ask(
            prompt=[2 + (place * 7 + token * token) % (vocabulary - 2) for token in range(10 + 37 * place % longest)],
            params={"max_tokens": 16 + place % 32, "ignore_eos": True, "extra_args": dict(slo[place % len(slo)])},
            at_step=max(0, place - count // 2),
        )
        for place in range(count)
    ]


def _apart(arguments: argparse.Namespace, load: str, ours: bool) -> Played:
    """One run in a process of its own: a GPU's memory is free again only when it has ended."""
    command = [sys.executable, "-m", "multislo_engine.vllm.check", "--model", arguments.model]
    command += ["--engine", arguments.engine, "--requests", str(arguments.requests), "--run", load]
    answer = Path(arguments.folder or ".") / f".multislo-check-{os.getpid()}.json"
    try:
        subprocess.run([*command, "--answer", str(answer), *(["--ours"] if ours else [])], check=True)
        return Played(**json.loads(answer.read_text()))
    finally:
        answer.unlink(missing_ok=True)


def _load(name: str, count: int) -> list[Ask]:
    return mixed(count, 500, [PRESSED, LOOSE, {**LOOSE, "slo_tpot_ms": 100.0}] if name == "pressed" else [LOOSE])


def _equal(one: Played, other: Played) -> str:
    same = sum(mine == theirs for mine, theirs in zip(one.tokens, other.tokens, strict=True))
    return f"{same} of {len(one.tokens)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m multislo_engine.vllm.check", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", default="{}", help="more arguments of vllm.LLM, as JSON")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--folder", help="for a temporary file; default: the working folder")
    parser.add_argument("--run", choices=["pressed", "loose"], help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        engine = {"model": arguments.model, **json.loads(arguments.engine)}
        played = play(engine, _load(arguments.run, arguments.requests), arguments.ours)
        Path(arguments.answer).write_text(json.dumps(asdict(played)))
        return
    runs = [("pressed", False), ("pressed", False), ("pressed", True), ("loose", False), ("loose", True)]
    stock, again, pressed, calm, loose = [_apart(arguments, load, ours) for load, ours in runs]
    rates = [played.output_tokens / played.seconds for played in (calm, loose)]
    rows = {
        "requests whose output is stock's": _equal(stock, pressed),
        "the same of two stock runs": f"{_equal(stock, again)}  (below all: the model's arithmetic depends on the batch)",
        "iterations planned": f"{pressed.planned} of {pressed.iterations}",
        "decodes left out": str(pressed.left_out),
        "exceptions": str(pressed.errors + loose.errors),
        "planning, us a call": f"{pressed.us_a_call:.0f}",
        "error of the learned law": f"{100 * pressed.error:.0f} %",
        "tokens/s without pressure": f"{rates[1]:.0f}, stock {rates[0]:.0f}  ({rates[1] / rates[0]:.3f} x)",
    }
    width = max(map(len, rows))
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
