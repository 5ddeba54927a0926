"""The cost of one plan inside an engine by the number of its running requests: `multislo bench planner`. Planners get the view of an
engine in the middle of its work. The last row is what the vLLM plug-in adds to an iteration: reading vLLM's counters, the plan, and its
translation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from time import thread_time_ns

import numpy as np

from multislo_engine.planners import PLANNERS, Decodes, EngineView, Job, planner_named
from multislo_engine.planners.slo_aware import SloAware
from multislo_engine.vllm.mirror import Mirror
from multislo_perf.profile import load_profile

PROFILE = "llama-3.1-8b-h200-tp1"
PLUGIN = "vLLM plug-in"
BATCH_TOKENS = 2048
PREFILLS = 4
WAITING = 16
TIERS = ((0.3, 0.02), (0.5, 0.05), (1.0, 0.1))


@dataclass(slots=True, eq=False)
class Request:
    """A request of vLLM's, with the counters that the plug-in reads."""

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    is_prefill_chunk: bool = False
    spec_token_ids: list[int] = field(default_factory=list)
    next_decode_eligible_step: int = 0


def measure(running: int, calls: int, seed: int) -> dict[str, dict[str, float]]:
    """us of a call, p50 and p99, for every planner and for the plug-in."""
    law = load_profile(PROFILE).latency
    figures = {}
    for name in PLANNERS:
        planner = planner_named(name, law)
        view = _view(running, Random(seed))
        for job in view.waiting:
            job.order = planner.order(job)
        view.waiting.sort(key=lambda job: job.order)
        figures[name] = _timed(calls, lambda now, planner=planner, view=view: planner.plan(now, view))  # type: ignore[misc]
    figures[PLUGIN] = _timed(calls, *_plugin(running, SloAware(law), Random(seed)))
    return figures


def _timed(calls: int, call: Callable[[float], object], between: Callable[[], object] = int) -> dict[str, float]:
    """CPU time of calls at a time that goes on, so that some find slack and some find none; `between` two of them is not counted."""
    taken = []
    for number in range(calls + calls // 10):
        between()
        began = thread_time_ns()
        call(0.4 * number / calls)
        taken.append(thread_time_ns() - began)
    p50, p99 = np.percentile(taken[calls // 10 :], (50, 99)) / 1000.0
    return {"p50_us": float(p50), "p99_us": float(p99)}


def _job(number: int, dice: Random) -> Job:
    ttft_s, tpot_s = dice.choice(TIERS)
    return Job(
        number, dice.randint(50, 3000), 1000, 0, 0.0, number, ttft_due_s=dice.uniform(0.1, 0.4) + ttft_s, tpot_s=tpot_s
    )


def _view(running: int, dice: Random) -> EngineView:
    """`running` requests, of which a few prefill, and some that wait."""
    jobs = [_job(number, dice) for number in range(running + WAITING)]
    decodes = Decodes(16)
    for job in jobs[: running - PREFILLS]:
        job.produced = dice.randint(1, 200)
        job.ttft_due_s -= job.produced * job.tpot_s
        decodes.add(job)
    prefills = jobs[running - PREFILLS : running]
    for admitted, job in enumerate(jobs[:running]):
        job.admitted = admitted
    view = EngineView(BATCH_TOKENS, 1024, 16, 40_000, decodes, prefills, jobs[running:])
    view.decode_kv_tokens = decodes.kv_tokens(None)
    return view


def _plugin(running: int, planner: SloAware, dice: Random) -> tuple[Callable[[float], object], Callable[[], object]]:
    """What the plug-in does in an iteration; and what vLLM does between two: a token for every decode that was not left out."""
    mirror = Mirror(BATCH_TOKENS, 1024, 16, planner, 2)
    requests = [Request(str(number), dice.randint(50, 3000)) for number in range(running + WAITING)]
    for request in requests:
        ttft_s, tpot_s = dice.choice(TIERS)
        mirror.come(request, 0.0, (ttft_s + dice.uniform(0.1, 0.4), tpot_s, 0.0))
    order = requests[:running]
    mirror.admitted([request.request_id for request in order])
    for request in order[: running - PREFILLS]:
        request.num_computed_tokens, request.num_output_tokens = request.num_prompt_tokens, 1
    for request in order[running - PREFILLS :]:
        request.is_prefill_chunk = True

    def call(now: float) -> None:
        nonlocal order
        orders = mirror.orders(planner.plan(now, mirror.read(40_000)), order, False)
        for request in orders.skipped:
            request.next_decode_eligible_step = 1
        order = orders.running

    def between() -> None:
        for request in order:
            if not request.is_prefill_chunk and not request.next_decode_eligible_step:
                request.num_computed_tokens += 1
            request.next_decode_eligible_step = 0

    return call, between
