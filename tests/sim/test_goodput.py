"""Goodput: the search, what counts as served, and the shape of the machine-readable answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from multislo_perf.profile import load_profile
from multislo_sim.cli import simulate
from multislo_sim.contenders import CONTENDERS, contender_named
from multislo_sim.experiments.goodput import goodput_report
from multislo_sim.goodput import Arena, bounded_rate, bounds, goodput, highest, played_at, searched
from multislo_sim.trial import Window, arriving, classed, fleet_of, homes_of, play
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LENGTHS = tuple(shaped_lengths(shape_named("azure-like"), 1000, 1))
SHORT = Window(1.0, 2.0, 0.5)


@given(st.integers(-80, 80), st.integers(-20, 20), st.integers(1, 8))
def test_the_search_finds_the_last_rate_that_holds(edge: int, start: int, stride: int) -> None:
    found = highest(lambda step: step <= edge, start, -60, stride)
    assert found == (edge if edge >= -60 else None)


@given(st.floats(0.03, 1.0), st.floats(0.0, 1.0))
def test_wherever_a_search_begins_it_finds_the_same_rate(edge: float, start: float) -> None:
    arena = Arena(PROFILE, LENGTHS[:10], 4, (1, 2), SHORT, 0.01)

    def share(seed: int, rate: float, least: float) -> float:
        return 0.0 if rate > 100.0 * edge else 0.97 if rate > 95.0 * edge else 1.0

    ceilings = {0.90: 100.0, 0.99: 99.0}
    plain = searched(arena, "", ceilings, share).rates
    assert searched(arena, "", ceilings, share, starts={0.90: 100.0 * start, 0.99: 80.0 * start}).rates == plain
    assert plain[0.90] <= 100.0 * edge


def test_a_queue_that_grows_counts_as_nothing_served() -> None:
    requests = classed(LENGTHS, PROFILE, 1)[0]
    setup = contender_named("least_predicted_time").setup(PROFILE, 1)
    window = Window(2.0, 4.0, 0.5)
    fleet = fleet_of(setup, PROFILE, homes_of(4), arriving(requests, 400.0, window.total_s, 1))
    played = play(fleet, window)
    assert played.backlog_s > 2.0
    assert played.share == 0.0


def test_a_run_that_cannot_reach_the_floor_is_broken_off_and_reports_no_more_than_it_had() -> None:
    requests = classed(LENGTHS, PROFILE, 1)[0]
    setup = contender_named("round_robin").setup(PROFILE, 1)
    window = Window(0.0, 40.0, 0.0)
    load = arriving(requests, 180.0, window.total_s, 1)
    broken = play(fleet_of(setup, PROFILE, homes_of(4), load), window, floor=0.99)
    assert broken.broken_off
    assert broken.fleet.now < window.total_s
    assert broken.share < 0.99


def test_who_is_unserved_at_the_end_is_judged_by_the_deadlines_that_have_passed() -> None:
    requests = classed(LENGTHS, PROFILE, 1)[0]
    fleet = fleet_of(
        contender_named("multislo").setup(PROFILE, 1), PROFILE, homes_of(4), arriving(requests, 40.0, 3.5, 1)
    )
    played = play(fleet, SHORT)
    assert any(record.finished_at > played.fleet.now for record in played.records)
    assert played.share == 1.0


def test_every_contender_plays_with_each_of_its_knobs() -> None:
    requests = classed(LENGTHS, PROFILE, 1)[0]
    for contender in CONTENDERS:
        for knob, values in contender.knobs.items():
            for value in (values[0], values[-1]):
                setup = contender.setup(PROFILE, 1, {knob: value})
                fleet = fleet_of(setup, PROFILE, homes_of(4), arriving(requests, 20.0, 2.0, 1))
                assert play(fleet, Window(0.5, 1.0, 0.5)).attained["all"] > 0.5, (contender.name, knob, value)


def test_the_report_has_ratios_to_the_best_of_each_group() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), SHORT, 0.1)
    found = {name: goodput(arena, name) for name in ("least_predicted_time", "polyserve", "multislo")}
    report = goodput_report(arena, found)
    rates = report["policies"]
    for key in ("p90", "p99"):
        assert rates["multislo"][f"{key}_rps"] > 0.0
        naive = rates["least_predicted_time"][f"{key}_rps"]
        if naive:
            assert abs(report["ratio"][key]["best_naive"] - rates["multislo"][f"{key}_rps"] / naive) < 0.01
        assert report["share_of_bound"][key] > 0.3


def test_with_rejection_a_refused_request_is_missed_and_more_of_the_others_are_in_time() -> None:
    requests = classed(LENGTHS, PROFILE, 1)[0]
    window = Window(2.0, 4.0, 0.5)
    for name in ("least_predicted_time", "polyserve", "multislo"):
        setup = contender_named(name).setup(PROFILE, 1)
        load = arriving(requests, 200.0, window.total_s, 1)
        all_served = play(fleet_of(setup, PROFILE, homes_of(4), load), window)
        rejecting = play(fleet_of(setup, PROFILE, homes_of(4), load, rejecting=True), window)
        refused = sum(record.refused is not None for record in rejecting.records) / len(load)
        assert 0.0 < refused < 0.6, name
        assert all_served.share <= rejecting.share < 1.0, name


def test_the_bound_with_rejection_is_the_higher_one() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), SHORT, 0.3)
    assert bounds(replace(arena, rejecting=True))[0.90] > 1.1 * bounds(arena)[0.90]


def test_the_command_prints_the_stable_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multislo_sim.experiments.goodput.QUICK_WINDOW", SHORT)
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{n % 60:02d}.0,{500 + 7 * n % 900},{20 + n % 60}" for n in range(200)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(sorted(rows)) + "\n")
    asked = ["goodput", "--trace", str(trace), "--quick", "--instances", "4", "--jobs", "1", "--json"]
    png = tmp_path / "goodput.png"
    result = CliRunner().invoke(simulate, [*asked, "--policies", "round_robin,multislo", "--png", str(png)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report["policies"]["round_robin"]) == {"p90_rps", "p99_rps", "p99_bounded"}
    assert all(rates["p99_bounded"] <= rates["p99_rps"] for rates in report["policies"].values())
    assert report["ratio"]["p90"]["best_naive"] >= 1.0
    assert {"best_naive", "polyserve", "best_rival"} <= set(report["ratio"]["p99"])
    assert 0.5 < report["share_of_bound"]["p90"] <= 1.0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_wrong_use_of_the_command_is_told() -> None:
    asked = ["goodput", "--workload", "azure-like", "--policies", "nobody"]
    result = CliRunner().invoke(simulate, asked)
    assert result.exit_code == 2
    assert "'nobody' is none of" in result.output
    result = CliRunner().invoke(simulate, ["goodput", "--json"])
    assert result.exit_code == 2
    assert "either --trace or --workload" in result.output


def test_a_report_is_plain_json() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), SHORT, 0.3)
    report = goodput_report(arena, {"multislo": goodput(arena, "multislo")})
    again = json.loads(json.dumps(report))
    assert again["ratio"]["p99"] == dict.fromkeys(("best_naive", "vllm_default", "polyserve", "best_rival"))
    assert set(again["share_of_bound"]) == {"p90", "p99"}


def test_the_tail_of_a_goodput_is_bounded_for_all_that_count() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1, 2), SHORT, 0.1)
    most = goodput(arena, "multislo", levels=(0.99,)).rates[0.99]

    rate = bounded_rate(arena, "multislo", None, most)

    assert 0.0 < rate <= most
    contender = contender_named("multislo")
    for seed in arena.seeds:
        requests = classed(LENGTHS, PROFILE, seed)[0]
        played = played_at(arena, contender, None, seed, requests, rate)
        counted = [r for r in played.records if SHORT.warmup_s <= r.request.at_s < SHORT.warmup_s + SHORT.measured_s]
        waits = [(min(r.first_token_s, SHORT.total_s - r.request.at_s), r.request.ttft_s) for r in counted]
        assert all(waited_s <= 3.0 * ttft_s for waited_s, ttft_s in waits if ttft_s is not None)
    assert bounded_rate(arena, "multislo", None, 0.0) == 0.0


def test_a_request_that_nobody_serves_is_late_by_what_it_has_waited() -> None:
    arena = Arena(PROFILE, LENGTHS, 1, (1,), SHORT)
    requests = classed(LENGTHS, PROFILE, 1)[0]

    swamped = played_at(arena, contender_named("multislo"), None, 1, requests, 500.0)

    assert any(r.first_token_s > 1e9 for r in swamped.records)
    assert 3.0 < swamped.latest < 1e3
