"""The commands as their users meet them: options and their mistakes, a replay of the router's own kind of server, the benches."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from multislo.command import main
from multislo_bench.processes import free_ports, running, wait_for
from multislo_bench.proxy_cost import Load, _compared
from multislo_engine.planners import PLANNERS


def called(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@contextmanager
def paced_server(period_s: float, folder: Path) -> Iterator[str]:
    """The benchmark's own back end, as a process."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "multislo_bench.paced_server", str(period_s), str(port)]
    with running("the paced back end", command, folder / "log") as process:
        wait_for(f"http://127.0.0.1:{port}/v1/models", process, folder / "log")
        yield f"http://127.0.0.1:{port}"


def test_a_replay_writes_json_and_a_picture_and_exits_by_what_was_required(tmp_path: Path) -> None:
    with paced_server(0.01, tmp_path) as url:
        args = ["replay", "--url", url, "--workload", "uniform", "--rate", "20", "--duration", "1", "--drain", "20"]
        args += ["--prompt-tokens", "5-9", "--output-tokens", "3", "--tiers", "gold=1:10s/5s", "--require", "1.0"]
        good = called(*args, "--json", str(tmp_path / "out.json"), "--png", str(tmp_path / "out.png"))
        impossible = called(*args, "--tiers", "gold=1:1ms/1ms", "--json", "-")

    assert good.exit_code == 0, good.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["tiers"]["gold"]["attainment"] == 1.0
    assert document["client"]["tokens"] == 3 * document["total"]["requests"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert impossible.exit_code == 1
    assert json.loads(impossible.stdout)["tiers"]["gold"]["attainment"] == 0.0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either --trace PATH or --workload NAME"),
        (["--workload", "azure-like", "--trace", "x.csv"], "give either --trace PATH or --workload NAME"),
        (["--trace", "absent.csv"], "absent.csv: cannot be read"),
        (["--workload", "uniform"], "--workload uniform has no rate of its own: give --rate"),
        (["--workload", "azure-like", "--peak", "9"], "give --rate"),
        (["--workload", "azure-like", "--burst", "3/60"], "must be FACTOR/EVERY_S/LENGTH_S"),
        (["--workload", "azure-like", "--tiers", "gold"], "must be NAME=SHARE"),
        (["--workload", "azure-like", "--tiers", "gold=1:300ms"], "must be TTFT/TPOT"),
        (["--workload", "azure-like", "--rate-factor", "-1"], "is not in the range"),
        (["--workload", "azure-like", "--slo-classes", "polyserve"], "needs --profile"),
        (["--workload", "azure-like", "--duration", "5", "--warmup", "9"], "leave nothing of"),
        (["--workload", "azure-like", "--slo", "1s/1s", "--tiers", "a=1"], "--slo is for requests without tiers"),
        (["--workload", "azure-like", "--api-key-file", "absent"], "absent cannot be read"),
        (["--workload", "azure-like", "--api-key-file", "/bin/ls"], "/bin/ls is not UTF-8 text"),
        (["--workload", "azure-like", "--json", "absent/out.json"], "absent/out.json cannot be written"),
        (["--workload", "azure-like", "--png", "absent/out.png"], "absent/out.png cannot be written"),
    ],
)
def test_wrong_use_of_replay_is_named_and_exits_2(args: list[str], message: str) -> None:
    result = called("replay", "--url", "http://127.0.0.1:1", *args)

    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_server_that_cannot_be_asked_exits_1(tmp_path: Path) -> None:
    (port,) = free_ports(1)

    result = called("replay", "--url", f"http://127.0.0.1:{port}", "--workload", "azure-like", "--duration", "5")

    assert result.exit_code == 1
    assert "cannot be asked" in result.stderr


def test_bench_placement_prints_quantiles_by_fleet_size_and_engine() -> None:
    result = called("bench", "placement", "--sizes", "8,16", "--arrivals", "100", "--json")

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert list(figures) == ["8", "16"]
    for row in figures.values():
        assert 0.0 < row["p50_us"] <= row["p99_us"]
        assert row["requests_per_instance"] > 10
        assert 0.0 < row["slo_aware"]["p50_us"] <= row["slo_aware"]["p99_us"]


def test_bench_placement_names_a_wrong_size() -> None:
    result = called("bench", "placement", "--sizes", "8,many")

    assert result.exit_code == 2
    assert "must be numbers from 4 to 100000" in " ".join(result.output.split())


def test_bench_planner_prints_quantiles_of_every_planner_and_of_the_plug_in() -> None:
    result = called("bench", "planner", "--running", "16,64", "--calls", "100", "--json")

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["running"]
    assert set(figures) == {"16", "64"}
    for rows in figures.values():
        assert set(rows) == {*PLANNERS, "vLLM plug-in"}
        assert all(0 < row["p50_us"] <= row["p99_us"] for row in rows.values())
        assert rows["fcfs"]["p50_us"] < rows["slo-aware"]["p50_us"] < rows["vLLM plug-in"]["p50_us"]


def test_both_routers_are_compared_by_medians() -> None:
    ours = [Load(rate, p99, 10.0) for rate, p99 in ((900.0, 9.0), (1000.0, 1.0), (5000.0, 2.0))]
    theirs = [Load(500.0, 4.0, 40.0)] * 3

    compared = _compared({"ours": ours, "vllm_router": theirs})

    assert compared["ratio_vllm_router"] == 2.0
    assert compared["p99_ratio"] == 0.5
    assert compared["vllm_router"] == {"requests_per_s": 500.0, "p99_ms": 4.0, "cpu_us_per_request": 40.0}
