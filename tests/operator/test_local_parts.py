"""The parts of the one-machine actuator that need no process: flags, what is observed, the journal's arithmetic, ports."""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from multislo_api.fleet import FleetSnapshot, InstanceView
from multislo_api.manifest import MultiSLOServing, manifest_from
from multislo_operator.decide.fleet import InstanceState
from multislo_operator.decide.plan import Hold, HoldCause, Start
from multislo_operator.engine_flags import flag_value
from multislo_operator.local.child import back_off_s
from multislo_operator.local.engines import engine_start
from multislo_operator.local.journal import Journal, fleet_samples, instance_seconds
from multislo_operator.local.ports import ENGINE_PORTS, Ports
from multislo_operator.observe import fleet_observed, fleet_spec
from multislo_perf.profile import load_profile

PROFILE = load_profile("llama-3.1-8b-h200-tp1")


def serving(manifest: dict[str, Any], **engine: Any) -> MultiSLOServing:
    manifest["spec"]["engine"] |= engine
    return manifest_from(manifest)


def flags(command: tuple[str, ...]) -> dict[str, str]:
    return {word: command[index + 1] for index, word in enumerate(command[:-1]) if word.startswith("--")}


def test_a_tight_tier_gets_a_small_token_budget_and_the_warm_pool_a_middle_one(manifest: dict[str, Any]) -> None:
    started = [engine_start(serving(manifest), PROFILE, tier, 20000, 1, 42) for tier in ("realtime", None, "batch")]
    budgets = [start.batch_tokens for start in started]
    assert budgets == sorted(budgets)
    assert budgets[1] == 1024
    assert [flags(start.command)["--max-num-batched-tokens"] for start in started] == [str(b) for b in budgets]
    assert flags(started[0].command)["--parent-pid"] == "42"


def test_the_users_own_flags_come_last_and_are_known(manifest: dict[str, Any]) -> None:
    start = engine_start(serving(manifest, args=["--max-num-batched-tokens=768"]), PROFILE, "batch", 20000, 1, 42)
    assert start.command[-1] == "--max-num-batched-tokens=768"
    assert start.batch_tokens == 768


def test_vllm_gets_its_own_words(manifest: dict[str, Any]) -> None:
    manifest["spec"]["model"]["maxLength"] = 8192
    accelerator = {"resource": "nvidia.com/gpu", "perInstance": 2}
    vllm = serving(manifest, type="VLLM", scheduler="Priority", accelerator=accelerator)
    command = engine_start(vllm, PROFILE, "batch", 20001, 1, 42).command
    assert command[:3] == ("vllm", "serve", "llama")
    wanted = {
        "--port": "20001", "--host": "127.0.0.1", "--scheduling-policy": "priority", "--tensor-parallel-size": "2",
        "--max-model-len": "8192", "--served-model-name": "llama",
    }  # fmt: skip
    assert wanted.items() <= flags(command).items()
    assert "--parent-pid" not in command


@pytest.mark.parametrize(
    ("args", "value"),
    [([], None), (["--n", "3"], 3), (["--n=3", "--n", "4"], 4), (["--n"], None), (["--n=x"], None), (["--nn=3"], None)],
)
def test_the_last_value_of_a_flag_counts(args: list[str], value: int | None) -> None:
    assert flag_value(args, "--n") == value


@dataclass
class Known:
    """An instance as its actuator knows it."""

    id: str = "a"
    tier: str | None = "batch"
    state: InstanceState = InstanceState.READY
    since: float = 90.0
    ever_ready: bool = True
    batch_tokens: int = 512
    unplaced: bool = False


def seen_by_router(state: str) -> FleetSnapshot:
    view = InstanceView.model_validate(
        {
            "id": "a", "url": "http://127.0.0.1:1", "tier": "batch", "state": state, "load": 0.9, "load_mean": 0.5,
            "requests": 0, "prefills": 0, "decodes": 0, "kv_tokens": 0, "kv_tokens_reported": None, "kv_tokens_max": 9,
            "iteration_predicted_s": 0.01, "calibration": 1.1, "empty_s": 0.0,
        }
    )  # fmt: skip
    return FleetSnapshot(at=0.0, uptime_s=50.0, model="m", placement="Pack", tiers=[], instances=[view], generation=1)


def test_a_draining_instance_is_not_called_empty_before_the_router_knows_of_the_drain() -> None:
    draining = Known(state=InstanceState.DRAINING)
    before, after = (
        fleet_observed([draining], seen_by_router(state), 0.1, 100.0, {}, False).instances[0].requests
        for state in ("ready", "draining")
    )
    assert before is None
    assert after == 0


def test_an_instance_that_the_router_cannot_reach_counts_as_failed_after_a_grace() -> None:
    failed_since: dict[str, float] = {}
    states = [
        fleet_observed([Known()], seen_by_router(view), 0.1, now, failed_since, False).instances[0].state
        for now, view in ((100.0, "failed"), (109.0, "failed"), (111.0, "failed"), (112.0, "ready"), (113.0, "failed"))
    ]
    ready = InstanceState.READY
    assert states == [ready, ready, InstanceState.FAILED, ready, ready]


def test_without_a_snapshot_nothing_is_known_of_the_load() -> None:
    assert fleet_observed([Known()], None, 1.0, 100.0, {}, False).tiers is None


def test_a_floor_holds_at_its_time_and_pins_overrule_it(manifest: dict[str, Any]) -> None:
    entry = {"cron": "0 9 * * *", "duration": "1h", "tier": "batch", "min": 2}
    manifest["spec"]["scaling"]["schedule"] = [entry]
    served = manifest_from(manifest)
    nine, noon = (datetime(2026, 11, 2, hour, 30, tzinfo=UTC) for hour in (9, 12))
    assert [fleet_spec(served, PROFILE, at).tiers[1].least for at in (nine, noon)] == [2, 0]
    pinned = fleet_spec(served, PROFILE, nine, {"realtime": 1, "batch": 1}).tiers[1]
    assert (pinned.least, pinned.instances_max) == (1, 1)


def test_instance_seconds_are_the_area_under_the_fleet(tmp_path: Path) -> None:
    times = iter([100.0, 110.0, 112.0, 120.0, 120.0, 120.0, 120.0])
    journal = Journal(tmp_path, say=lambda line: None, clock=lambda: next(times))
    journal.fleet({"batch": {"starting": 1}}, {"batch": 1})
    journal.fleet({"batch": {"ready": 1}, "": {"ready": 1}}, {"batch": 1})
    journal.fleet({"batch": {"ready": 1}, "": {"ready": 1}}, {"batch": 1})
    journal.close()
    # One for 10 s, two for 10 s.
    assert journal.instance_seconds == pytest.approx(30.0)
    assert instance_seconds(journal.path) == pytest.approx(30.0)
    assert instance_seconds(journal.path, 105.0, 115.0) == pytest.approx(15.0)
    assert [sample["instances"] for sample in fleet_samples(journal.path)] == [{"starting": 1}, {"ready": 2}, {}]


def test_a_hold_is_told_once_while_it_lasts(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path, say=told.append)
    hold = Hold(HoldCause.BUDGET_SHORT, "no place", "batch")
    for holds in ((hold,), (hold,), (), (hold,)):
        journal.holds(holds)
    journal.action(Start("batch", "because", {"work": 2.0}), "engine-1", "batch")
    journal.close()
    assert len(told) == 3
    assert told[-1].endswith("start engine-1 for batch: because")


def test_the_back_off_doubles_up_to_its_end() -> None:
    assert [back_off_s(n) for n in (0, 1, 2, 3, 7, 1000)] == [0.5, 0.5, 1.0, 2.0, 30.0, 30.0]


def test_a_taken_port_is_passed_over() -> None:
    first = Ports(ENGINE_PORTS, 7).take()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert Ports(ENGINE_PORTS, 7).take() != first
