"""Every alert fires where it should and is silent where it should be, as promtool evaluates the rules; each has its page in the runbook."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from multislo_operator.observability.__main__ import files
from multislo_operator.observability.rules import ALERTS, GOAL_DEFAULT, RUNBOOK

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "multislo"

OF = 'namespace="serving",fleet="chat"'
TIER = f'{OF},tier="realtime"'
INSTANCE = f'{TIER},instance_id="chat-realtime-1",pod="router-0"'
STEPS = 1200
SLO = {
    f"multislo_slo_time_per_output_token_seconds{{{TIER}}}": f"0.02x{STEPS}",
    f"multislo_slo_time_to_first_token_seconds{{{TIER}}}": f"0.3x{STEPS}",
}


def counts(met: str, missed: str) -> dict[str, str]:
    of = "multislo_slo_requests_total"
    return {**SLO, f'{of}{{{TIER},result="met"}}': met, f'{of}{{{TIER},result="missed"}}': missed}


def goal(value: str) -> dict[str, str]:
    return {f"multislo_operator_attainment_goal_ratio{{{OF}}}": f"{value}x{STEPS}"}


def hold(cause: str, value: str) -> dict[str, str]:
    return {f'multislo_operator_holds{{{TIER},cause="{cause}"}}': value}


def histogram(name: str, labels: str, **buckets: str) -> dict[str, str]:
    """Buckets by their edge: `e0_05` is 0.05."""
    return {
        f'{name}_bucket{{{labels},le="{edge.removeprefix("e").replace("_", ".")}"}}': values
        for edge, values in buckets.items()
    }


@dataclass(frozen=True, slots=True)
class Case:
    """Series as promtool writes them (a value, and how often it is repeated, a `step` apart), looked at after `at`."""

    alert: str
    story: str
    series: dict[str, str]
    at: str
    fires: bool
    step: str = "1m"
    """Less than 5 m: promtool evaluates groups in any order, and a recorded value is seen for so long."""


def both(
    alert: str, at: str, fires: tuple[str, dict[str, str]], silent: tuple[str, dict[str, str]], step: str = "1m"
) -> list[Case]:
    return [Case(alert, *fires, at, True, step), Case(alert, *silent, at, False, step)]


DESIRED = f"multislo_operator_desired_instances{{{TIER}}}"
READY = f'multislo_operator_instances{{{TIER},state="ready"}}'
STARTING = f'multislo_operator_instances{{{TIER},state="starting"}}'
TTFT_ERROR = "multislo_time_to_first_token_error_seconds"
LAG = "multislo_event_loop_lag_seconds"

CASES = [
    *both(
        "MultisloAttainmentBurnsFast", "70m",
        ("a fifth of the requests is missed", counts("0+80x70", "0+20x70")),
        ("one in a hundred is missed, as the goal allows", counts("0+99x70", "0+1x70")),
    ),
    Case(
        "MultisloAttainmentBurnsFast", "a fifth is missed where the goal is 90 %, which is twice what it allows",
        {**counts("0+80x70", "0+20x70"), **goal("0.9")}, "70m", False,
    ),
    Case(
        "MultisloAttainmentBurnsFast", "two thirds are missed where the goal is 90 %",
        {**counts("0+30x70", "0+60x70"), **goal("0.9")}, "70m", True,
    ),
    Case(
        "MultisloAttainmentBurnsFast", "it is over: nothing was missed in the last five minutes",
        counts("0+80x50 4000+100x20", "0+20x50 1000x20"), "65m", False,
    ),
    Case("MultisloAttainmentBurnsFast", "three requests, one of them late", counts("0 2x70", "0 1x70"), "70m", False),
    Case("MultisloAttainmentBurnsFast", "nobody asks for anything", counts("5x70", "5x70"), "70m", False),
    *both(
        "MultisloAttainmentBurnsSteadily", "7h",
        ("a tenth of the requests is missed", counts("0+90x420", "0+10x420")),
        ("three in a hundred are missed", counts("0+97x420", "0+3x420")),
    ),
    *both(
        "MultisloAttainmentBurnsSlowly", "80h",
        ("two in a hundred are missed for three days", counts("0+98x1200", "0+2x1200")),
        ("one in two hundred is missed", counts("0+199x1200", "0+1x1200")),
        step="4m",
    ),
    *both(
        "MultisloInstancesNotComingUp", "12m",
        ("held for ten minutes", hold("InstancesNotComingUp", "1x20")),
        ("it came up after five minutes", hold("InstancesNotComingUp", "1x5 0x20")),
    ),
    *both(
        "MultisloBudgetShort", "17m",
        ("held for a quarter of an hour", hold("BudgetShort", "1x20")),
        ("another thing is held", hold("InstancesStarting", "1x20")),
    ),
    *both(
        "MultisloTierAtMaximum", "17m",
        ("held for a quarter of an hour", hold("TierAtMax", "1x20")),
        ("a peak of ten minutes", hold("TierAtMax", "1x10 0x20")),
    ),
    *both(
        "MultisloScalingStuck", "17m",
        ("three are wanted, two are ready", {DESIRED: "3x20", READY: "2x20", STARTING: "0x20"}),
        ("three are wanted, two are ready and one starts", {DESIRED: "3x20", READY: "2x20", STARTING: "1x20"}),
    ),
    *both(
        "MultisloNotReady", "17m",
        ("Ready is False, for changing reasons", {
            f'multislo_operator_condition{{{OF},type="Ready",reason="RouterNotReady"}}': "0x8 _x20",
            f'multislo_operator_condition{{{OF},type="Ready",reason="TierNotReady"}}': "_x8 0x20",
        }),
        ("Ready is True, and another one is not", {
            f'multislo_operator_condition{{{OF},type="Ready",reason="Serving"}}': "1x20",
            f'multislo_operator_condition{{{OF},type="ScalingReady",reason="BudgetShort"}}': "0x20",
        }),
    ),
    *both(
        "MultisloInstancesLost", "5m",
        ("an instance's node is silent", {f"multislo_operator_instances_lost{{{OF}}}": "1x20"}),
        ("all nodes are heard of", {f"multislo_operator_instances_lost{{{OF}}}": "0x20"}),
    ),
    *both(
        "MultisloTwoOperators", "8m",
        ("another one stands aside", {
            f'multislo_operator_condition{{{OF},type="SoleOperator",reason="AnotherOperator"}}': "0x20"
        }),
        ("there is one", {f'multislo_operator_condition{{{OF},type="SoleOperator",reason="Alone"}}': "1x20"}),
    ),
    *both(
        "MultisloChangeRefused", "12m",
        ("refused for ten minutes", {
            f'multislo_operator_condition{{{OF},type="ChangeRefused",reason="ChangeRefused"}}': "1x20"
        }),
        ("nothing is refused", {
            f'multislo_operator_condition{{{OF},type="ChangeRefused",reason="NothingRefused"}}': "0x20"
        }),
    ),
    *both(
        "MultisloRouterDataStale", "5m",
        ("the last answer is a minute old", {f"multislo_operator_router_data_age_seconds{{{OF}}}": "60x20"}),
        ("it is a second old", {
            f"multislo_operator_router_data_age_seconds{{{OF}}}": "1x20",
            f"multislo_operator_load_known{{{OF}}}": "1x20",
        }),
    ),
    Case(
        "MultisloRouterDataStale", "no router has ever answered",
        {f"multislo_operator_load_known{{{OF}}}": "0x20"}, "5m", True,
    ),
    *both(
        "MultisloRouterDown", "7m",
        ("the operator has a fleet of which no router is scraped", {DESIRED: "1x20"}),
        ("its router is scraped", {DESIRED: "1x20", f'multislo_uptime_seconds{{{OF},pod="router-0"}}': "9x20"}),
    ),
    *both(
        "MultisloRouterOverloaded", "20m",
        ("the loop wakes a tenth of a second late", histogram(
            LAG, f'{OF},pod="router-0"', e0_05="0+10x20", e0_1="0+600x20", e0_2="0+600x20", **{"+Inf": "0+600x20"})),
        ("it is in time", histogram(
            LAG, f'{OF},pod="router-0"', e0_05="0+600x20", e0_1="0+600x20", e0_2="0+600x20", **{"+Inf": "0+600x20"})),
    ),
    *both(
        "MultisloPredictionOff", "40m",
        ("most requests come 0.1 to 0.3 s late where the SLO is 0.3 s", {**SLO, **histogram(
            TTFT_ERROR, TIER, e0="0+1x40", e0_15="0+2x40", e0_3="0+100x40", **{"+Inf": "0+100x40"})}),
        ("most come as predicted, or earlier", {**SLO, **histogram(
            TTFT_ERROR, TIER, e0="0+90x40", e0_15="0+95x40", e0_3="0+100x40", **{"+Inf": "0+100x40"})}),
    ),
    *both(
        "MultisloCalibrationOff", "17m",
        ("twice as slow as its profile", {f"multislo_instance_calibration_ratio{{{INSTANCE}}}": "2x20"}),
        ("a tenth slower", {f"multislo_instance_calibration_ratio{{{INSTANCE}}}": "1.1x20"}),
    ),
    Case(
        "MultisloCalibrationOff", "three times as quick as its profile",
        {f"multislo_instance_calibration_ratio{{{INSTANCE}}}": "0.33x20"}, "17m", True,
    ),
    *both(
        "MultisloOperatorDown", "7m",
        ("nothing is heard of it", {"up": "1x20"}),
        ("one replica leads", {'multislo_operator_leader{namespace="multislo",pod="a"}': "1x20"}),
    ),
    *both(
        "MultisloNoLeader", "5m",
        ("two replicas, neither leads", {
            'multislo_operator_leader{namespace="multislo",pod="a"}': "0x20",
            'multislo_operator_leader{namespace="multislo",pod="b"}': "0x20",
        }),
        ("the other one took over", {
            'multislo_operator_leader{namespace="multislo",pod="a"}': "1x3 _x20",
            'multislo_operator_leader{namespace="multislo",pod="b"}': "0x3 1x20",
        }),
    ),
    *both(
        "MultisloReconcilesFail", "25m",
        ("all of them fail", {
            f'multislo_operator_reconciles_total{{{OF},outcome="failed"}}': "0+60x30",
            f'multislo_operator_reconciles_total{{{OF},outcome="done"}}': "5x30",
        }),
        ("a few fail", {
            f'multislo_operator_reconciles_total{{{OF},outcome="failed"}}': "0+1x30",
            f'multislo_operator_reconciles_total{{{OF},outcome="done"}}': "0+60x30",
        }),
    ),
]  # fmt: skip


def as_promtool_reads(case: Case) -> dict[str, Any]:
    """Which alerts fire is all that is asked."""
    return {
        "name": f"{case.alert}: {case.story}",
        "interval": case.step,
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": case.at,
                "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
            }
        ],
    }


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"), reason="there is no promtool here"
)


@needs_promtool
@pytest.mark.parametrize("step", sorted({case.step for case in CASES}))
def test_each_alert_fires_where_it_should_and_only_there(tmp_path: Path, step: str) -> None:
    (tmp_path / "rules.yaml").write_text(files()["rules/multislo.yaml"])
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": step,
        "tests": [as_promtool_reads(case) for case in CASES if case.step == step],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests, sort_keys=False))
    ran = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    names = {alert.name for alert in ALERTS}
    assert {case.alert for case in CASES if case.fires} == names
    assert {case.alert for case in CASES if not case.fires} == names


def test_each_alert_has_its_section_in_the_runbook_and_no_section_is_left_over() -> None:
    headings = re.findall(r"^## (Multislo\w+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alert.name for alert in ALERTS)


def test_the_chart_holds_what_the_code_says() -> None:
    written = files()
    assert {path: (CHART / path).read_text() for path in written} == written
    assert {f.name for f in (CHART / "dashboards").iterdir()} == {Path(p).name for p in written if "dashboards/" in p}


def test_the_goal_and_the_runbooks_place_stand_where_the_chart_replaces_them() -> None:
    text = files()["rules/multislo.yaml"]
    assert text.count(f"+ {GOAL_DEFAULT})") == 1
    assert text.count(f"{RUNBOOK}#") == len(ALERTS)
    template = (CHART / "templates" / "observability" / "rules.yaml").read_text()
    assert f'"+ {GOAL_DEFAULT})"' in template
    assert f'"{RUNBOOK}#"' in template
