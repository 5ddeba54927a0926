"""`multislo profile` as its user meets it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from multislo_perf.bench import bench_predict
from multislo_perf.cli import profile
from multislo_perf.profile import load_document, load_profile, shipped_profiles

H100 = "llama-3.1-8b-h100-tp1"


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(profile, list(arguments))


def test_list_names_every_shipped_profile_whole() -> None:
    shown = _run("list")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in shipped_profiles())
    assert json.loads(_run("list", "--json").stdout) == shipped_profiles()


def test_show_prints_the_law_its_error_and_what_tiers_get() -> None:
    shown = _run("show", H100)
    assert shown.exit_code == 0
    for word in ("gemmUsPerToken", "held-out error", "20 ms", "100 ms", "lacks", "promptTokens"):
        assert word in shown.stdout


def test_show_in_json_gives_the_profile_and_its_tiers() -> None:
    shown = json.loads(_run("show", H100, "--json").stdout)
    assert shown["latency"]["weightsMs"] == load_document(H100).latency.weights_ms
    assert [(tier["tpotMs"], tier["batchTokens"]) for tier in shown["tiers"]] == [(20, 512), (50, 3328), (100, 7936)]
    assert all(tier["decodesMax"] * 1024 <= shown["kvTokensMax"] for tier in shown["tiers"])


def test_show_in_yaml_gives_a_file_to_start_from(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(_run("show", H100, "--yaml").stdout)
    assert load_document(mine) == load_document(H100)
    assert _run("show", str(mine)).exit_code == 0


def test_show_in_two_formats_at_once_is_wrong_use() -> None:
    assert _run("show", H100, "--yaml", "--json").exit_code == 2


def test_show_says_of_a_derived_profile_that_its_error_is_unknown() -> None:
    assert "unknown: Derived by scaling, not measured" in " ".join(
        _run("show", "llama-3.1-8b-h100-third-tp1").stdout.split()
    )


def test_an_unknown_profile_is_wrong_use_and_lists_the_known_ones() -> None:
    shown = _run("show", "llama-2")
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert all(name in shown.stderr for name in shipped_profiles())


def test_derive_prints_a_profile_that_can_be_loaded(tmp_path: Path) -> None:
    arguments = (
        "--name",
        "half",
        "--accelerator",
        "half an H100",
        "--compute",
        "2",
        "--bandwidth",
        "2",
        "--kv-share",
        "0.5",
    )
    printed = _run("derive", H100, *arguments)
    assert printed.exit_code == 0
    written = _run("derive", H100, *arguments, "--out", str(tmp_path / "half.yaml"))
    assert written.exit_code == 0
    assert (tmp_path / "half.yaml").read_text() == printed.stdout
    assert load_profile(tmp_path / "half.yaml").kv_tokens_max == 213_000


@pytest.mark.parametrize(("option", "value"), [("--name", "Half An H100"), ("--kv-share", "0.002")])
def test_derive_refuses_to_write_a_profile_that_could_not_be_loaded(option: str, value: str) -> None:
    arguments = {
        "--name": "half",
        "--accelerator": "x",
        "--compute": "2",
        "--bandwidth": "2",
        "--kv-share": "0.5",
        option: value,
    }
    shown = _run("derive", H100, *(word for pair in arguments.items() for word in pair))
    assert shown.exit_code == 2
    assert "must be" in shown.stderr
    assert shown.stdout == ""


def test_fit_without_its_tables_is_wrong_use(tmp_path: Path) -> None:
    shown = _run("fit", "--sources", str(tmp_path), "--gpu", "h200")
    assert shown.exit_code == 2
    assert "llama-3.1-8b-h200-tp1-gemm.csv: cannot be read" in shown.stderr


def test_fit_draws_predicted_against_measured(tmp_path: Path, kernel_tables: Path) -> None:
    shown = _run("fit", "--sources", str(kernel_tables), "--gpu", "h200", "--png", str(tmp_path / "fit.png"))
    assert shown.exit_code == 0
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert "mean error" in shown.stderr
    assert shown.stdout.startswith("version: 1\nname: llama-3.1-8b-h200-tp1\n")


def test_fit_of_other_tables_does_not_claim_the_shipped_ones_source(tmp_path: Path, kernel_tables: Path) -> None:
    for table in kernel_tables.iterdir():
        table.rename(table.with_name(table.name.replace("llama-3.1-8b-h200-tp1", "mine")))
    arguments = ("fit", "--sources", str(kernel_tables), "--gpu", "h100", "--name", "mine", "--memory-gb", "48")
    mine = tmp_path / "mine.yaml"
    assert _run(*arguments, "--engine-version", "0.33", "--out", str(mine)).exit_code == 0
    document = load_document(mine)
    assert document.source.measured == "Kernel tables mine; nobody said where they came from."
    assert document.engine.version == "0.33"
    assert document.kv_tokens_max == 207_000


def test_every_question_to_the_law_has_its_cost_measured() -> None:
    costs = bench_predict(load_profile(H100).latency, calls=100)
    assert {"iteration_s", "chunk_max", "decodes_max", "prefill_s"} <= {cost.question for cost in costs}
    assert all(cost.us > 0 for cost in costs)
