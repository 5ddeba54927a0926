"""The production guide names every reason that a condition or an event can have, and every right that the chart asks for."""

import re
from pathlib import Path

import pytest
import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "production.md").read_text()
OPERATOR = ROOT / "operator" / "multislo_operator" / "kubernetes"


def said(pattern: str, *modules: str) -> set[str]:
    return {found for module in modules for found in re.findall(pattern, (OPERATOR / module).read_text())}


def test_every_reason_of_a_condition_is_in_the_guide() -> None:
    reasons = said(r'(?:True|False|None), ?\s*"([A-Z]\w+)"', "conditions.py")
    reasons |= said(r'Unusable\(\s*"([A-Z]\w+)"', "wanted.py", "reconcile.py")
    assert {"Serving", "RouterSilent", "ReplicasEditedOutside", "SLOUnattainable"} <= reasons
    assert not {reason for reason in reasons if f"`{reason}`" not in GUIDE}


def test_every_reason_of_an_event_is_in_the_guide() -> None:
    reasons = said(r'_note\((?:draft, )?"([A-Z]\w+)"', "actions.py", "apply.py")
    reasons |= said(r'draft\.note\(\s*"([A-Z]\w+)"', "rollout.py", "actions.py")
    assert {"ScaledUp", "Replaced", "EditWar"} <= reasons
    assert not {reason for reason in reasons if f"`{reason}`" not in GUIDE}


@pytest.mark.parametrize("verb", ["create", "patch", "delete", "update"])
def test_every_right_to_write_is_in_the_guide_with_its_reason(verb: str) -> None:
    with Chart.load(ROOT / "charts" / "multislo") as chart:
        rendered = chart.render({}, name="multislo", namespace="multislo-system")
    texts = [text for path, text in rendered.items() if path.endswith("rbac.yaml")]
    roles = [role for text in texts for role in yaml.safe_load_all(text) if role and "rules" in role]
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    rights = {
        resource.split("/")[0]
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        if verb in rule["verbs"]
    }
    assert rights
    for resource in rights:
        assert any(f"`{resource}`" in row and verb in row for row in rows), f"{verb} {resource}"
