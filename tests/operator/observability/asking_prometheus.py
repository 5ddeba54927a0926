"""A real Prometheus with the project's rules, and all that the dashboards and rules ask of it. Used here beside `multislo up`, and in
`e2e/` beside the operator on a cluster."""

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from multislo_operator.observability.__main__ import files
from multislo_operator.observability.dashboards import DASHBOARDS
from multislo_operator.observability.grafana import render
from multislo_operator.observability.rules import rules

WINDOW = "20s"


class Prometheus:
    def __init__(self, folder: Path, targets: list[dict[str, Any]]) -> None:
        for path, text in files().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules" / "*.yaml")],
            "scrape_configs": targets,
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{a_free_port()}"
        self._log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None where there is no answer yet. Raises AssertionError where the query is refused."""
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30.0) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            if error.code == 503:  # It is starting.
                return None
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except (URLError, OSError):
            return None

    def values(self, expr: str, begin: float, end: float) -> list[float]:
        """All numbers of a query between two times."""
        data = self.get("query_range", query=expr, start=f"{begin:.3f}", end=f"{end:.3f}", step="1")
        return finite(value for series in data["result"] for _, value in series["values"])

    def now(self, expr: str) -> list[float]:
        data = self.get("query", query=expr) or {"result": []}
        return finite(series["value"][1] for series in data["result"])

    def labels(self, variable: str) -> list[str]:
        """What Grafana makes of `label_values(series, label)`."""
        series, _, label = variable.removeprefix("label_values(").removesuffix(")").rpartition(", ")
        found: list[str] = self.get(f"label/{label}/values", **{"match[]": series})
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


def finite(values: Iterator[str] | Any) -> list[float]:
    return [value for value in map(float, values) if isfinite(value)]


def a_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def filled(text: str, variables: Mapping[str, str]) -> str:
    """As Grafana fills in its variables, the longer names first."""
    for name in sorted(variables, key=len, reverse=True):
        text = text.replace(f"${name}", variables[name])
    return text


def without_data(prometheus: Prometheus, begin: float, end: float) -> Iterator[str]:
    for dashboard in map(render, DASHBOARDS):
        chosen = {
            "window": WINDOW,
            "__range": f"{int(end - begin)}s",
            "__rate_interval": WINDOW,
            "__interval": "5s",
        }
        tiers: list[str] = []
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found = prometheus.labels(filled(variable["query"]["query"], chosen))
                assert found, f"{dashboard['title']}: variable {variable['name']} has no value"
                chosen[variable["name"]] = f"({'|'.join(found)})"
                tiers = found if variable["name"] == "tier" else tiers
        for mark in dashboard["annotations"]["list"]:
            # Whether anything was refused is up to the load; there the query must only be right.
            if "expr" in mark:
                marked = prometheus.values(filled(mark["expr"], chosen), begin, end)
                if not marked and mark["name"] != "Refusals":
                    yield f"{dashboard['title']} / marks {mark['name']}: {filled(mark['expr'], chosen)}"
        repeated = False
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                repeated = panel.get("repeat") == "tier"
                continue
            for target in panel["targets"]:
                for tier in tiers if repeated else [chosen["tier"]]:
                    expr = filled(target["expr"], {**chosen, "tier": tier})
                    values = prometheus.now(expr) if target["instant"] else prometheus.values(expr, begin, end)
                    if not values:
                        yield f"{dashboard['title']} / {panel['title']}: {expr}"


def rules_that_fail(prometheus: Prometheus) -> Iterator[str]:
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                yield f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
            elif rule["type"] == "recording" and not prometheus.now(rule["name"]):
                yield f"{rule['name']} has no value: {rule['query']}"


def evaluated(prometheus: Prometheus) -> bool:
    known = prometheus.get("rules")
    found = [rule["health"] for group in known["groups"] for rule in group["rules"]] if known else []
    return len(found) == sum(len(group["rules"]) for group in rules()["groups"]) and "unknown" not in found
