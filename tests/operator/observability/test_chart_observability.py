"""What the chart makes of the dashboards, the rules and the PodMonitor, as Helm renders it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

CHART = Path(__file__).parents[3] / "charts" / "multislo"
ON = {
    "observability": {
        "podMonitors": {"enabled": True, "interval": "5s", "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "attainmentGoal": 0.95, "runbookUrl": "https://wiki.example/multislo"},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "multislo"}},
    }
}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        texts = chart.render(values, name="multislo", namespace="multislo-system").values()
    return [found for text in texts if "\nkind:" in text for found in yaml.safe_load_all(text) if found]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return rendered(ON)


def test_each_dashboard_is_a_config_map_that_grafanas_side_car_finds(objects: list[dict[str, Any]]) -> None:
    maps = [m for m in of_kind(objects, "ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard") == "1"]
    found = {name: json.loads(text) for m in maps for name, text in m["data"].items()}
    assert found == {file.name: json.loads(file.read_text()) for file in (CHART / "dashboards").iterdir()}
    assert len({m["metadata"]["name"] for m in maps}) == len(found)
    assert all(m["metadata"]["annotations"] == {"grafana_folder": "multislo"} for m in maps)


def test_the_rules_take_the_goal_and_the_runbooks_place_from_the_values(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    (rule,) = of_kind(objects, "PrometheusRule")
    groups = rule["spec"]["groups"]
    (goal,) = (r for group in groups for r in group["rules"] if r.get("record") == "multislo:slo_attainment_goal:ratio")
    assert goal["expr"].rstrip().endswith("+ 0.95)")
    alerts = [r for group in groups for r in group["rules"] if "alert" in r]
    assert all(a["annotations"]["runbook_url"].startswith("https://wiki.example/multislo#multislo") for a in alerts)
    if shutil.which("promtool"):
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
        checked = subprocess.run(
            ["promtool", "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_pod_monitor_finds_the_operators_pods_and_leaves_their_series_labels(objects: list[dict[str, Any]]) -> None:
    (monitor,) = of_kind(objects, "PodMonitor")
    (deployment,) = of_kind(objects, "Deployment")
    template = deployment["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
    assert endpoint["port"] in ports
    assert endpoint["honorLabels"] is True
    assert endpoint["interval"] == "5s"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_nothing_of_it_is_made_unasked() -> None:
    kinds = {found["kind"] for found in rendered({})}
    assert not kinds & {"PodMonitor", "PrometheusRule", "ConfigMap"}
