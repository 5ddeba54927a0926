"""`multislo check` as a user and a program see it, and a wrong manifest given to any other command."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from multislo_api.cli import check, manifest_at

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    text = (EXAMPLES / "llama-h200.yaml").read_text()
    path.write_text(text.replace("tpot: 100ms", "tpot: 0ms").replace("port: 8000", "port: 80000"))
    return path


def test_legal_manifests_are_one_line_each() -> None:
    result = CliRunner().invoke(check, [str(EXAMPLES / "llama-h200.yaml"), str(EXAMPLES / "minimal.yaml")])

    assert result.exit_code == 0
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        str(EXAMPLES / "llama-h200.yaml"),
        str(EXAMPLES / "minimal.yaml"),
    ]


def test_a_wrong_manifest_is_listed_and_ends_with_1(wrong: Path) -> None:
    result = CliRunner().invoke(check, [str(wrong), str(EXAMPLES / "minimal.yaml")])

    assert result.exit_code == 1
    assert result.stdout.splitlines()[:3] == [
        f"{wrong}: 2 problems",
        '  spec.tiers[2].slo.tpot: "0ms" must be greater than 0 and at most 1m',
        "  spec.router.port: 80000 must be an integer from 1 to 65535",
    ]
    assert "minimal.yaml" in result.stdout.splitlines()[3]


def test_a_program_reads_the_same_as_json(wrong: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        check, ["--json", str(wrong), str(EXAMPLES / "minimal.yaml"), str(tmp_path / "none.yaml")]
    )

    first, second, third = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (first["file"], first["valid"], len(first["problems"])) == (str(wrong), False, 2)
    assert (second["valid"], second["problems"]) == (True, [])
    assert third["problems"] == ["the file cannot be read: No such file or directory"]


def test_no_file_at_all_is_wrong_use() -> None:
    assert CliRunner().invoke(check, []).exit_code == 2


def test_another_command_prints_the_same_problems_on_stderr_and_ends_with_2(wrong: Path) -> None:
    @click.command()
    def other() -> None:
        manifest_at(wrong)

    result = CliRunner().invoke(other, [])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == CliRunner().invoke(check, [str(wrong)]).stdout
