"""`multislo plan`: the cheapest counts by tier for a rate and an attainment."""

import json
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from multislo_api.manifest import manifest_from, manifest_yaml
from multislo_sim import plan as planning
from multislo_sim.plan_cli import plan
from multislo_sim.whatif.case import case_of


def manifest_file(folder: Path, accelerators_max: int = 4, chat_max: int = 4, ttft: str = "500ms") -> str:
    manifest = manifest_from(
        {
            "apiVersion": "multislo.dev/v1alpha1",
            "kind": "MultiSLOServing",
            "metadata": {"name": "llama"},
            "spec": {
                "model": {"name": "m", "maxLength": 16384},
                "profile": "llama-3.1-8b-h200-tp1",
                "engine": {"scheduler": "SLOAware"},
                "tiers": [
                    {"name": "chat", "slo": {"ttft": ttft, "tpot": "30ms"}, "instances": {"min": 0, "max": chat_max}},
                    {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 0}},
                ],
                "scaling": {"acceleratorsMax": accelerators_max},
            },
        }
    )
    path = folder / "fleet.yaml"
    path.write_text(manifest_yaml(manifest))
    return str(path)


def short_windows(patch) -> None:  # type: ignore[no-untyped-def]
    for name, value in {"WARMUP_S": 5.0, "MEASURED_S": 10.0, "AFTER_S": 3.0, "COUNTED": 100}.items():
        patch.setattr(planning, name, value)


def asked(path: str, *arguments: str) -> Result:
    return CliRunner().invoke(plan, ["--manifest", path, *arguments])


def test_a_rate_that_one_instance_carries_takes_one(tmp_path, monkeypatch) -> None:
    short_windows(monkeypatch)
    result = asked(manifest_file(tmp_path), "--rate", "5", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rate"]["accelerators"] == 1
    assert report["attainment"] == 0.99
    assert 0.0 < report["rate"]["share_of_bound"] < 1.0


def test_what_it_says_to_write_into_the_manifest_can_be_written_there(tmp_path, monkeypatch) -> None:
    short_windows(monkeypatch)
    path = manifest_file(tmp_path)
    result = asked(path, "--rate", "10", "--peak", "60", "--attainment", "0.95", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    snippet = yaml.safe_load(report["snippet"])
    document = yaml.safe_load(Path(path).read_text())
    for tier, of in zip(document["spec"]["tiers"], snippet["tiers"], strict=True):
        assert tier["name"] == of["name"]
        tier["instances"] = of["instances"]
    document["spec"]["scaling"] |= snippet["scaling"]
    planned = case_of("x", manifest_from(document)).manifest.spec
    assert planned.scaling.accelerators_max == report["peak"]["accelerators"]
    assert {tier.name: tier.instances.min for tier in planned.tiers} == report["rate"]["instances"]
    assert planned.tiers[0].instances.max == 4
    assert report["peak"]["accelerators"] > report["rate"]["accelerators"]


def test_limits_that_have_no_room_are_named_and_the_answer_is_no(tmp_path, monkeypatch) -> None:
    short_windows(monkeypatch)
    result = asked(manifest_file(tmp_path, accelerators_max=1), "--rate", "60")
    assert result.exit_code == 1
    assert "scaling.acceleratorsMax is 1; 2 are needed" in " ".join(result.stderr.split())
    assert "acceleratorsMax: 2" in result.stdout


def test_an_slo_that_no_fleet_keeps_is_told_with_what_can_be_reached(tmp_path, monkeypatch) -> None:
    short_windows(monkeypatch)
    result = asked(manifest_file(tmp_path, ttft="5ms"), "--rate", "5", "--shares", "chat=1")
    assert result.exit_code == 1
    assert "tier chat: at most 0.0000 can be in time whatever the fleet" in " ".join(result.stderr.split())


def test_wrong_use_is_told_by_its_option(tmp_path) -> None:
    path = manifest_file(tmp_path)
    for arguments, said in (
        (["--rate", "0"], "0.01<=x<=100000"),
        (["--rate", "5", "--peak", "4"], "--peak: 4 must be at least --rate (5)"),
        (["--rate", "5", "--attainment", "1.5"], "0.5<=x<=1.0"),
        (["--rate", "5", "--shares", "gold=1"], "'gold' must be a tier of the manifest: chat, batch"),
        (["--rate", "5", "--trace", "nowhere.csv"], "nowhere.csv: cannot be read"),
    ):
        result = asked(path, *arguments)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.output.split()), result.output
