"""Our side of NVIDIA's off-line replay: what it is given, and what is read of its answer. `SAID` and `ROWS` are of a run of ai-dynamo
1.4.2 on `REQUESTS`, with two workers at the start."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from multislo_perf.profile import load_profile
from multislo_sim.dynamo.engine import Usual, passes_told, write_profile
from multislo_sim.dynamo.judged import ONE_TIER, Played, Shares, ground_of, play_ours, shares_of
from multislo_sim.dynamo.replay import Asked, ReplayFailed, Served, read_run, replayed, write_trace
from multislo_sim.experiments.dynamo import dynamo, dynamo_report, dynamo_tables
from multislo_sim.scaling.contenders import OURS as SETTINGS
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.shapes import shape_named, shaped_lengths
from multislo_sim.workloads.traces import Part, TimeUnit, read_trace

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LAW = PROFILE.latency
USUAL = Usual(64, LAW.attention_s(896, 0) / 896)
REQUESTS = [
    Request(0.0, 1000, 50, "50ms", 0.5, 0.05),
    Request(0.25, 3000, 80, "50ms", 0.5, 0.05),
    Request(0.3, 500, 20, "50ms", 0.5, 0.05),
    Request(31.5, 2000, 30, "50ms", 0.5, 0.05),
]
SAID = {
    "name": "told 1 of the SLO",
    "report": {"num_requests": 4, "completed_requests": 4, "decode_worker_seconds": 36.70270820899999},
    "events": [[5.0, 2, 1]],
    "workers": [[5.0, 2], [10.0, 1], [15.0, 1], [20.0, 1], [25.0, 1], [30.0, 1]],
    "passes": [[0, 0, 0, 0, 0, 0.0], [0, 0, 0, 12, 18949, 0.00631], [1, 1614, 0, 17, 22043, 0.03323]],
}
ROWS = [
    [0.0, 21.303074, 299.930514, 50],
    [250.0, 302.59772799999996, 756.5587949999998, 80],
    [300.0, 311.943985, 419.693548, 20],
    [31500.0, 31536.950088999998, 31702.708208999997, 30],
]


def test_the_trace_that_is_written_is_read_again_as_the_same_requests(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl", REQUESTS)

    read = read_trace(tmp_path / "trace.jsonl", Part(unit=TimeUnit.MILLISECONDS)).requests

    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in read] == [
        (r.at_s, r.prompt_tokens, r.output_tokens) for r in REQUESTS
    ]
    hashes = [json.loads(line)["hash_ids"] for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [len(each) for each in hashes] == [2, 6, 1, 4]
    assert len({block for each in hashes for block in each}) == 13, "no prompt shares a block with another"


def test_the_mockers_tables_give_our_law_for_passes_with_the_usual_decodes(tmp_path: Path) -> None:
    write_profile(tmp_path / "engine.npz", LAW, PROFILE.kv_tokens_max, USUAL)

    tables = np.load(tmp_path / "engine.npz")

    prefill_ms = np.interp(896, tables["prefill_isl"], tables["prefill_ttft_ms"])
    at = (list(tables["decode_active_kv_tokens"]).index(64_000), list(tables["decode_context_length"]).index(1024))
    both_s = (prefill_ms + tables["decode_itl"][at]) / 1000.0
    assert both_s == pytest.approx(LAW.iteration_s(896, 0, 64, 64_000), rel=0.01)


def test_the_planner_is_told_passes_of_every_kind() -> None:
    told = passes_told(LAW, 1024)

    assert {(prefill > 0, decodes > 0) for prefill, decodes, _, _ in told} == {
        (True, True),
        (True, False),
        (False, True),
    }
    assert all(wall_s == LAW.iteration_s(prefill, 0, decodes, kv) for prefill, decodes, kv, wall_s in told)


def test_a_recorded_run_is_read_as_what_it_cost_and_when_each_request_was_served() -> None:
    run = read_run(SAID, ROWS, REQUESTS, PROFILE)

    assert run.worker_s == pytest.approx(36.703, abs=0.001)
    assert (run.workers_most, run.scalings) == (2, 1)
    assert run.served[1] == Served(pytest.approx(0.0526, abs=0.0001), pytest.approx(0.5066, abs=0.0001))
    assert {kind: each.passes for kind, each in run.mismatch.items()} == {"decode": 1, "mixed": 1, "all": 2}
    assert run.mismatch["all"].ratio == pytest.approx(1.0, abs=0.02)


def test_requests_that_came_back_in_another_order_are_refused() -> None:
    with pytest.raises(ReplayFailed, match=r"came at 31\.5000 s, must have come at 0\.0000 s"):
        read_run(SAID, ROWS[::-1], REQUESTS, PROFILE)


def test_both_measures_of_being_in_time_are_taken_of_the_same_stamps() -> None:
    one = REQUESTS[:1]
    early_then_slow = Served(0.1, 0.5 + 49 * 0.05)
    late = Served(0.51, 1.0)
    unserved = Served(0.1, float("inf"))

    shares = [shares_of(one, [each]) for each in (early_then_slow, late, unserved)]

    assert [(each.in_time, each.mean_itl) for each in shares] == [(1.0, 0.0), (0.0, 0.0), (0.0, 0.0)]


def test_our_fleet_plays_the_day_that_their_replay_gets() -> None:
    lengths = shaped_lengths(shape_named("mooncake-like"), 300, 1)
    ground = ground_of(PROFILE, lengths, 0.25, 1600.0, True, 1)

    played = play_ours(ground, "multislo_stock", SETTINGS[3], 1)

    assert {(r.ttft_s, r.tpot_s) for r in ground.requests} == {(ONE_TIER.ttft_s, ONE_TIER.tpot_s)}
    assert played.shares.in_time > 0.9
    assert played.shares.in_time >= (played.shares.every_token or 0.0)
    assert played.hours > 0.3


def test_the_report_compares_the_cheapest_settings_that_reach_a_level() -> None:
    lengths = shaped_lengths(shape_named("mooncake-like"), 50, 1)
    ground = ground_of(PROFILE, lengths, 0.05, 1600.0, True, 1)
    played = [
        Played("dynamo", "lean", Shares(0.96, 0.96, None), 4.0, 6, 20),
        Played("dynamo", "generous", Shares(0.99, 0.99, None), 8.0, 20, 30),
        Played("multislo", "attainment 0.9", Shares(0.97, 0.96, 0.97), 3.0, 8, 12),
    ]

    report = dynamo_report("mooncake-like", ground, played, {})

    assert report["policies"]["dynamo"]["p95_hours"] == 4.0
    assert report["policies"]["dynamo"]["p98_setting"] == "generous"
    assert report["ratio"] == {"multislo": {"p95": 0.75, "p98": None}}
    assert len(dynamo_tables(report)) == 3


def test_an_interpreter_without_ai_dynamo_is_named_in_the_error() -> None:
    runs = [Asked("told 1 of the SLO", 0.5, 0.05, True, 1024)]

    with pytest.raises(ReplayFailed, match="run 1 of 1 failed") as failed:
        list(replayed(Path(sys.executable), PROFILE, REQUESTS, 2, 20.0, USUAL, runs))

    assert "dynamo" in str(failed.value)


def test_the_command_wants_an_interpreter() -> None:
    result = CliRunner().invoke(dynamo, ["--workload", "azure-like"])

    assert result.exit_code == 2
    assert "--dynamo-python" in result.output
