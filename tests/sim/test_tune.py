"""The search of knobs: what it compares, what it prints, and that goodput takes it."""

import json

from click.testing import CliRunner

from multislo_perf.profile import load_profile
from multislo_sim.cli import simulate
from multislo_sim.experiments.goodput import goodput_by_level
from multislo_sim.experiments.tune import knobs_from
from multislo_sim.goodput import Arena, goodput
from multislo_sim.trial import Window
from multislo_sim.tuning import tune
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LENGTHS = tuple(shaped_lengths(shape_named("azure-like"), 1000, 1))


def test_a_budget_that_holds_a_higher_rate_is_found() -> None:
    arena = Arena(PROFILE, LENGTHS, 4, (1,), Window(2.0, 3.0, 0.5), 0.05)
    tuned = tune(arena, "round_robin")
    assert {one.value for one in tuned.tried if one.level == 0.99} >= {512, 2048, 4096, 8192, "by tier"}
    assert tuned.rates[0.90] >= tuned.rates[0.99] > 0.0
    for one in tuned.tried:
        if one.share > one.share_best:
            break
    else:
        assert tuned.knobs[0.99] == {"batch_tokens": 1024}


def test_goodput_takes_what_was_tuned(tmp_path) -> None:
    file = tmp_path / "tuned.json"
    by_level = {"p90": {"knobs": {"batch_tokens": 512}}, "p99": {"knobs": {"batch_tokens": 2048}}}
    file.write_text(json.dumps({"policies": {"round_robin": by_level}}))
    arena = Arena(PROFILE, LENGTHS, 4, (1,), Window(2.0, 3.0, 0.5), 0.1)
    found = goodput_by_level(arena, "round_robin", knobs_from(file)["round_robin"])
    apart = [goodput(arena, "round_robin", {"batch_tokens": tokens}) for tokens in (512, 2048)]
    assert found.rates == {0.90: apart[0].rates[0.90], 0.99: apart[1].rates[0.99]}


def test_a_file_of_something_else_is_told_by_its_option(tmp_path) -> None:
    file = tmp_path / "tuned.json"
    file.write_text("{}")
    result = CliRunner().invoke(simulate, ["goodput", "--workload", "azure-like", "--tuned", str(file)])
    assert result.exit_code == 2
    assert "--tuned" in result.output
