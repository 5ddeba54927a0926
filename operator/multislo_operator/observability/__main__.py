"""`python -m multislo_operator.observability charts/multislo` writes the chart's dashboards and rules. Called by `make gen`."""

import json
import sys
from pathlib import Path

import yaml

from multislo_operator.observability.dashboards import DASHBOARDS
from multislo_operator.observability.grafana import render
from multislo_operator.observability.rules import rules

HEAD = "# Written by `make gen` from multislo_operator/observability/rules.py. Plain Prometheus rules: good without Helm too.\n"


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def files() -> dict[str, str]:
    """Path within the chart -> content."""
    written = {
        f"dashboards/{dashboard.uid}.json": json.dumps(render(dashboard), indent=1, sort_keys=True) + "\n"
        for dashboard in DASHBOARDS
    }
    written["rules/multislo.yaml"] = HEAD + yaml.dump(
        rules(), Dumper=_Dumper, sort_keys=False, width=140, allow_unicode=True
    )
    return written


def main(chart: Path) -> None:
    for path, text in files().items():
        target = chart / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m multislo_operator.observability CHART")
    main(Path(sys.argv[1]))
