"""The plug-in's shell on a stand-in for vLLM's scheduler class: when it plans, when it leaves all to vLLM, and that an exception of ours is
not the engine's. The real vLLM is in tests/vllm."""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from multislo_engine.planners import EngineView, Job, Plan
from multislo_engine.vllm import SLOScheduler, guards

SLO = {"slo_ttft_ms": 500.0, "slo_tpot_ms": 30.0}


@dataclass(eq=False)
class Request:
    request_id: str
    num_prompt_tokens: int
    sampling_params: Any
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    is_prefill_chunk: bool = False
    spec_token_ids: list[int] = field(default_factory=list)
    next_decode_eligible_step: int = 0
    arrival_time: float = field(default_factory=time.time)


def request(name: str, prompt: int = 100, slo: dict[str, float] | None = SLO) -> Request:
    return Request(name, prompt, SimpleNamespace(extra_args=slo))


class Stock:
    """vLLM's scheduler, as far as the plug-in touches it: the running, then the waiting, each what it lacks while the budget lasts."""

    def __init__(self, vllm_config: Any) -> None:
        self.scheduler_config = vllm_config.scheduler_config
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.kv_holding_waiting: deque[Request] = deque()
        self.requests: dict[str, Request] = {}
        self.current_step = 0
        self.max_num_scheduled_tokens = 512
        self.max_num_active_reqs = 64
        self.adaptive_long_prefill_threshold = False
        self.num_spec_tokens = 0
        self.block_size = 16
        self.policy = "fcfs"
        self.kv_cache_manager = SimpleNamespace(block_pool=SimpleNamespace(get_num_free_blocks=lambda: 1000))
        self.budgets: list[int] = []
        self.fails = False

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if self.fails:
            raise RuntimeError("vLLM's own fault")
        self.current_step += 1
        left = self.max_num_scheduled_tokens
        self.budgets.append(left)
        given: dict[str, int] = {}
        admitted = []
        for one in list(self.running):
            if self.current_step >= one.next_decode_eligible_step:
                left -= self._give(one, left, given)
        while left and self.waiting:
            one = self.waiting.popleft()
            admitted.append(SimpleNamespace(req_id=one.request_id))
            self.running.append(one)
            left -= self._give(one, left, given)
        return SimpleNamespace(
            scheduled_new_reqs=admitted,
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
            num_scheduled_tokens=given,
            total_num_scheduled_tokens=sum(given.values()),
        )

    def _give(self, one: Request, left: int, given: dict[str, int]) -> int:
        whole = one.num_prompt_tokens + one.num_output_tokens
        tokens = min(whole - one.num_computed_tokens, left)
        if tokens:
            given[one.request_id] = tokens
            one.num_computed_tokens += tokens
            one.is_prefill_chunk = one.num_computed_tokens < whole
        return tokens

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        for name in scheduler_output.num_scheduled_tokens:
            one = self.requests[name]
            if not one.is_prefill_chunk:
                one.num_output_tokens += 1

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        request.num_computed_tokens = 0
        self.waiting.appendleft(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> None:
        del self.requests[request.request_id]


class Faulty:
    """A planner that raises whenever it is asked."""

    name = "faulty"

    def order(self, job: Job) -> tuple[float, ...]:
        raise RuntimeError("order")

    def plan(self, now: float, view: EngineView) -> Plan:
        raise RuntimeError("plan")

    def victim(self, view: EngineView) -> Job:
        raise RuntimeError("victim")


class Config(SimpleNamespace):
    """vLLM's, as far as it is read."""


def config(stock: type = Stock, **changes: Any) -> Any:
    scheduling = SimpleNamespace(
        scheduler_cls="ours", async_scheduling=False, long_prefill_token_threshold=0, get_scheduler_cls=lambda: stock
    )
    return Config(
        **{
            "scheduler_config": scheduling,
            "additional_config": {},
            "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
            "kv_transfer_config": None,
            "model_config": SimpleNamespace(runner_type="generate"),
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def _tested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "vllm_version", lambda: "0.32.0+cu129")


def turn(scheduler: Any, times: int = 1) -> None:
    for _ in range(times):
        output = scheduler.schedule()
        scheduler.update_from_output(output, None)


def test_requests_with_an_slo_are_planned_and_limits_are_as_before_afterwards() -> None:
    scheduler = SLOScheduler(vllm_config=config())
    for name in "abc":
        scheduler.add_request(request(name))
    turn(scheduler, 20)
    assert scheduler.slo_counts.planned == 20
    assert scheduler.slo_counts.errors == 0
    assert [one.num_output_tokens for one in scheduler.running] == [20, 20, 20]
    assert scheduler.budgets[-1] == 3
    assert scheduler.max_num_scheduled_tokens == 512
    assert scheduler.scheduler_config.long_prefill_token_threshold == 0
    assert scheduler.slo_learner.observed == 20


def test_without_any_slo_vllm_schedules_alone() -> None:
    scheduler = SLOScheduler(vllm_config=config())
    scheduler.add_request(request("a", slo=None))
    turn(scheduler, 5)
    assert (scheduler.slo_counts.planned, scheduler.slo_counts.stock) == (0, 5)
    scheduler.add_request(request("b"))
    turn(scheduler)
    assert scheduler.slo_counts.planned == 1


def test_a_default_slo_is_for_all() -> None:
    own = {"multislo": {"ttft_ms": 400, "tpot_ms": 20}}
    scheduler = SLOScheduler(vllm_config=config(additional_config=own))
    scheduler.add_request(request("a", slo=None))
    turn(scheduler)
    assert scheduler.slo_counts.planned == 1
    assert scheduler.slo_mirror.jobs["a"].tpot_s == 0.02


def test_the_waiting_go_by_deadline() -> None:
    scheduler = SLOScheduler(vllm_config=config())
    scheduler.add_request(request("late", 400, {"slo_ttft_ms": 9e9, "slo_tpot_ms": 50.0}))
    scheduler.add_request(request("soon", 400, {"slo_ttft_ms": 8e9, "slo_tpot_ms": 50.0}))
    assert "soon" in scheduler.schedule().num_scheduled_tokens
    assert scheduler.running[0].request_id == "soon"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scheduler_config": None}, "has no attribute"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline parallelism"),
        ({"kv_transfer_config": object()}, "kv_transfer_config"),
        ({"additional_config": {"multislo": {"profile": "no-such"}}}, "shipped profiles"),
        ({"additional_config": {"multislo": {"tpot_ms": "fast"}}}, "milliseconds"),
    ],
)
def test_what_is_not_planned_for_is_left_to_vllm_with_one_warning(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    if changes == {"scheduler_config": None}:
        changes = {"parallel_config": SimpleNamespace()}
    with caplog.at_level(logging.WARNING):
        scheduler = SLOScheduler(vllm_config=config(**changes))
    assert type(scheduler) is Stock
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_another_version_is_left_to_vllm_unless_it_is_to_be_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guards, "vllm_version", lambda: "0.99.0")
    assert type(SLOScheduler(vllm_config=config())) is Stock
    assert "this is 0.99.0" in caplog.text
    tried = SLOScheduler(vllm_config=config(additional_config={"multislo": {"untested_versions": True}}))
    assert type(tried) is not Stock


def test_asynchronous_scheduling_is_left_to_vllm_unless_it_is_to_be_tried(caplog: pytest.LogCaptureFixture) -> None:
    overlapping = config()
    overlapping.scheduler_config.async_scheduling = True
    assert type(SLOScheduler(vllm_config=overlapping)) is Stock
    assert "--no-async-scheduling" in caplog.text
    overlapping.additional_config = {"multislo": {"async_scheduling": True}}
    assert type(SLOScheduler(vllm_config=overlapping)) is not Stock


def test_a_changed_signature_is_left_to_vllm(caplog: pytest.LogCaptureFixture) -> None:
    class Changed(Stock):
        def schedule(self, throttle_prefills: bool = False, order: str = "") -> Any:
            return super().schedule(throttle_prefills)

    scheduler = SLOScheduler(vllm_config=config(Changed))
    assert type(scheduler) is Changed
    assert "schedule('throttle_prefills',) is ('throttle_prefills', 'order')" in caplog.text


def test_a_missing_attribute_is_left_to_vllm(caplog: pytest.LogCaptureFixture) -> None:
    class Without(Stock):
        def __init__(self, vllm_config: Any) -> None:
            super().__init__(vllm_config)
            del self.block_size

    scheduler = SLOScheduler(vllm_config=config(Without))
    scheduler.add_request(request("a"))
    turn(scheduler, 3)
    assert "has no block_size" in caplog.text
    assert scheduler.requests["a"].num_output_tokens == 3


def test_after_an_exception_in_the_planner_vllm_schedules_once_and_planning_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = SLOScheduler(vllm_config=config())
    for name in "ab":
        scheduler.add_request(request(name))
    turn(scheduler, 5)
    planner, scheduler.slo_learner.planner = scheduler.slo_learner.planner, Faulty()
    turn(scheduler, 3)
    scheduler.add_request(request("c"))
    scheduler.slo_learner.planner = planner
    turn(scheduler, 5)
    counts = scheduler.slo_counts
    assert (counts.planned, counts.stock, counts.errors) == (10, 3, 3)
    assert [one.num_output_tokens for one in scheduler.running] == [13, 13, 5]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert scheduler.max_num_scheduled_tokens == 512


def test_a_planner_that_always_fails_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = SLOScheduler(vllm_config=config())
    scheduler.add_request(request("a"))
    scheduler.slo_learner.planner = Faulty()
    turn(scheduler, 150)
    assert scheduler.slo_counts.errors == 100
    assert scheduler.requests["a"].num_output_tokens == 150
    assert "it failed 100 times" in caplog.text


def test_an_exception_of_vllms_is_vllms_and_its_limits_are_restored() -> None:
    scheduler = SLOScheduler(vllm_config=config())
    scheduler.add_request(request("a"))
    turn(scheduler, 2)
    scheduler.fails = True
    with pytest.raises(RuntimeError, match="vLLM's own fault"):
        scheduler.schedule()
    assert scheduler.max_num_scheduled_tokens == 512


def test_preempted_and_ended_requests_leave_the_mirror_right() -> None:
    scheduler = SLOScheduler(vllm_config=config())
    for name in "abc":
        scheduler.add_request(request(name))
    turn(scheduler, 4)
    preempted, ended = scheduler.requests["c"], scheduler.requests["a"]
    scheduler.running.remove(preempted)
    scheduler._preempt_request(preempted, 0.0)
    scheduler.running.remove(ended)
    scheduler._free_request(ended)
    turn(scheduler, 4)
    assert scheduler.slo_counts.errors == 0
    assert sorted(scheduler.slo_mirror.jobs) == ["b", "c"]
    assert scheduler.requests["c"].num_output_tokens == 8
