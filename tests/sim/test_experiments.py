"""The experiments beside goodput, each on a tiny fleet: what they vary, and the shapes of table, JSON and plot."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from multislo_perf.profile import load_profile
from multislo_sim.ablated import WHAT, ablated
from multislo_sim.cli import simulate
from multislo_sim.experiments.ablation import ablation_report, ablation_table
from multislo_sim.experiments.beliefs import WRONGS, share_believing
from multislo_sim.experiments.burst import BEFORE_S, BURST_S, burst_arrivals, burst_report
from multislo_sim.experiments.sizes import sizes_report, sizes_table
from multislo_sim.goodput import Arena, Goodput, played_at
from multislo_sim.trial import Window, classed
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LENGTHS = tuple(shaped_lengths(shape_named("azure-like"), 1000, 1))
REQUESTS = classed(LENGTHS, PROFILE, 1)[0]
SHORT = Window(2.0, 3.0, 0.5)


@pytest.mark.parametrize("part", WHAT)
def test_multislo_serves_an_easy_load_without_any_of_its_parts(part: str) -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), SHORT, 0.1)
    assert played_at(arena, ablated(part), None, 1, REQUESTS, 40.0).share > 0.7


def test_without_spending_slack_less_is_in_time_at_a_high_load() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), Window(6.0, 6.0, 1.0), 0.1)
    full, without = [
        played_at(arena, ablated(part), None, 1, REQUESTS, 112.0).share for part in ("full", "no slack spent")
    ]
    assert without < full


def test_an_ablation_tells_what_is_left_of_the_full_goodput() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), SHORT, 0.1)
    found = {
        "full": Goodput("full", {0.90: 100.0, 0.99: 80.0}, {}),
        "no EDF": Goodput("no EDF", {0.90: 90.0, 0.99: 0.0}, {}),
    }
    report = {"instances": 4, **ablation_report(arena, found)}
    assert report["parts"]["no EDF"]["kept"] == {"p90": 0.9, "p99": 0.0}
    assert ablation_table(report).row_count == 2


@pytest.mark.parametrize("name", ["right", "profile -30 %", "one twice as slow", "reports 100 ms late", "outputs x4"])
def test_a_wrong_belief_is_survived_at_an_easy_load(name: str) -> None:
    assert share_believing(PROFILE, LENGTHS, 4, "multislo", 1, 0.3, SHORT, name).share > 0.7


def test_reports_a_second_late_cost_something_at_a_high_load() -> None:
    assert WRONGS["reports 1000 ms late"].report_delay_s == 1.0
    window = Window(4.0, 4.0, 1.0)
    right, late = (
        share_believing(PROFILE, LENGTHS, 4, "polyserve", 1, 0.85, window, name).attained
        for name in ("right", "reports 1000 ms late")
    )
    assert late < right


def test_a_burst_turns_the_mix_round_while_it_lasts() -> None:
    arrived = burst_arrivals(REQUESTS, 50.0, 1.5, 1)

    def tightest(start_s: float, end_s: float) -> float:
        among = [request for request in arrived if start_s <= request.at_s < end_s]
        return sum(request.tier == "20ms" for request in among) / len(among)

    assert tightest(0.0, BEFORE_S) < 0.15
    assert tightest(BEFORE_S, BEFORE_S + BURST_S) > 0.33
    assert tightest(BEFORE_S + BURST_S, 160.0) < 0.15
    rates = [sum(start <= r.at_s < start + 40.0 for r in arrived) / 40.0 for start in (10.0, BEFORE_S)]
    assert rates[1] > 1.3 * rates[0]


def test_who_gets_over_a_burst_and_when() -> None:
    good = [1.0] * 28
    dip = [*good[:16], 0.5, 0.9, *good[18:]]
    never = [*good[:8], *[0.8] * 20]
    report = burst_report({"good": good, "dip": dip, "never": never})["policies"]
    assert report["good"]["recovered_s"] == 0.0
    assert report["dip"]["recovered_s"] == 10.0
    assert report["dip"]["least"] == 0.5
    assert report["never"]["recovered_s"] is None


def test_sizes_are_shown_as_shares_of_their_bounds() -> None:
    arena = Arena(PROFILE, LENGTHS, 0, (1,), SHORT, 0.1)
    found = {f"multislo, {count} instances": Goodput("multislo", {0.90: 20.0 * count}, {}) for count in (4, 8)}
    report = {"level": "p90", **sizes_report(arena, ["multislo"], [4, 8], 0.90, found)}
    of = report["policies"]["multislo"]
    assert 0.5 < of["4"]["share_of_bound"] < 1.0
    assert abs(of["4"]["share_of_bound"] - of["8"]["share_of_bound"]) < 0.001
    assert sizes_table(report).row_count == 2


def test_an_experiment_writes_json_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multislo_sim.experiments.asked.QUICK", SHORT)
    png = tmp_path / "beliefs.png"
    asked = ["beliefs", "--workload", "azure-like", "--instances", "4", "--load", "0.3", "--quick", "--jobs", "1"]
    result = CliRunner().invoke(simulate, [*asked, "--policies", "multislo", "--json", "--png", str(png)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["in_time"]["right"]["multislo"] > 0.9
    assert png.read_bytes().startswith(b"\x89PNG")


def test_wrong_sizes_are_told_with_what_is_legal() -> None:
    for given, said in (("4,x", "'4,x' must be whole numbers"), ("2", "2 must be at least 4")):
        result = CliRunner().invoke(simulate, ["sizes", "--workload", "azure-like", "--sizes", given])
        assert result.exit_code == 2
        assert said in result.output
