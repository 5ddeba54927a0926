"""`multislo simulate`: a table of attainment, and what it says of wrong use."""

import json

from click.testing import CliRunner

from multislo_sim.cli import simulate

QUICK = ["--workload", "azure-like", "--rate", "8", "--duration", "6", "--warmup", "1", "--seed", "3"]


def test_every_policy_is_played_on_the_same_requests():
    result = CliRunner().invoke(simulate, [*QUICK, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    attained = {row["policy"]: row["attainment"]["all"] for row in report["rows"]}
    assert {"Pack", "Spread", "round_robin", "least_predicted_time", "lmetric"} <= set(attained)
    assert attained["Pack"] > 0.9
    assert attained["Spread"] > 0.9


def test_a_table_is_shown_to_people():
    result = CliRunner().invoke(simulate, [*QUICK, "--policy", "Pack"])
    assert result.exit_code == 0, result.output
    assert "share of requests in time" in result.stdout


def test_prompts_can_be_uniform_between_two_lengths():
    asked = ["--workload", "uniform", "--prompt-tokens", "30-50", "--output-tokens", "5", *QUICK[2:]]
    result = CliRunner().invoke(simulate, [*asked, "--policy", "Pack", "--json"])
    turned = CliRunner().invoke(simulate, [*asked, "--prompt-tokens", "50-30"])

    assert json.loads(result.stdout)["rows"][0]["attainment"]["all"] == 1.0
    assert turned.exit_code == 2
    assert "prompt: range 50-30 must rise" in turned.output


def test_wrong_use_is_told_by_its_option():
    both = CliRunner().invoke(simulate, [*QUICK, "--trace", "nowhere.csv"])
    assert both.exit_code == 2
    assert "either --trace or --workload" in both.output
    late = CliRunner().invoke(simulate, [*QUICK, "--warmup", "9"])
    assert late.exit_code == 2
    assert "--warmup: 9 must be less than --duration (6)" in late.output
    missing = CliRunner().invoke(simulate, ["--trace", "nowhere.csv", "--rate", "1"])
    assert missing.exit_code == 2
