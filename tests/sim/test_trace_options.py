"""The options of a trace are the same for every command that reads one, and are checked in one place."""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from multislo_bench.cli import demo, replay
from multislo_sim.cli import simulate
from multislo_sim.experiments.goodput import goodput
from multislo_sim.plan_cli import plan
from multislo_sim.whatif.cli import what_if

ROOT = Path(__file__).parents[2]
URL = ["--url", "http://127.0.0.1:9", "--duration", "10"]
MANIFEST = ["-f", str(ROOT / "examples" / "llama-h200.yaml")]
WITH_A_TRACE: list[tuple[click.Command, list[str]]] = [
    (replay, URL),
    (demo, ["-f", str(ROOT / "examples" / "demo.yaml"), "--duration", "20"]),
    (simulate, ["--rate", "1"]),
    (goodput, []),
    (what_if, MANIFEST),
    (plan, [*MANIFEST, "--rate", "5"]),
]


def said(command: click.Command, arguments: Sequence[str]) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def ambiguous(folder: Path) -> Path:
    """One request a second, if its stamps are seconds; a thousand, if they are milliseconds."""
    path = folder / "trace.jsonl"
    lines = [json.dumps({"timestamp": n, "input_length": 100, "output_length": 5}) + "\n" for n in range(100)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("command", "arguments"), WITH_A_TRACE, ids=[str(c.name) for c, _ in WITH_A_TRACE])
def test_every_command_reads_a_part_of_a_trace_only_if_the_unit_is_sure(
    tmp_path: Path, command: click.Command, arguments: list[str]
) -> None:
    path = str(ambiguous(tmp_path))

    refused = said(command, [*arguments, "--trace", path, "--from", "5s"])
    behind = said(command, [*arguments, "--trace", path, "--time-unit", "s", "--from", "1h"])

    assert "timestamp: milliseconds or seconds? (1e+03 requests/s as milliseconds, 1 as seconds)" in refused
    assert "holds no request from 3600 to " in behind
    assert "its stamps come to 99 s" in behind


@pytest.mark.parametrize(("command", "arguments"), WITH_A_TRACE, ids=[str(c.name) for c, _ in WITH_A_TRACE])
def test_options_of_a_trace_without_a_trace_are_refused(command: click.Command, arguments: list[str]) -> None:
    assert "--from is for a trace: give --trace PATH, too" in said(command, [*arguments, "--from", "5s"])
    assert "'x' must be seconds or a duration such as 90, 1m30s or 36h" in said(command, [*arguments, "--from", "x"])
    assert "'weeks' is not one of 's', 'ms', 'us', 'ns'" in said(command, [*arguments, "--time-unit", "weeks"])


def test_what_if_and_plan_read_so_much_of_a_trace(tmp_path: Path) -> None:
    path = str(ambiguous(tmp_path))

    assert "its requests span 9 s" in said(
        what_if, [*MANIFEST, "--trace", path, "--time-unit", "s", "--duration", "10s"]
    )
    assert "must be seconds or a duration" in said(plan, [*MANIFEST, "--rate", "5", "--trace", path, "--duration", "0"])


def test_what_was_assumed_and_skipped_is_said_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": 500 * n, "input_length": 100, "output_length": n % 50}) for n in range(200)]
    path.write_text("\n".join(lines), encoding="utf-8")
    arguments = [*MANIFEST, "--trace", str(path), "--jobs", "1", "--json"]

    result = CliRunner().invoke(what_if, arguments)

    noted = json.loads(result.stdout)["notes"]
    assert result.exit_code == 0
    assert noted[0].startswith("trace.jsonl: its stamps are taken as milliseconds (2 requests/s as milliseconds")
    assert noted[1] == "trace.jsonl: 4 of 200 lines skipped: 4 with 0 output tokens (first: line 1)"
    stderr = " ".join(result.stderr.split())
    assert all(note in stderr for note in noted[:2])
