"""A real Prometheus scrapes a real router, real emulated engines and the operator's metrics under real traffic; then every panel's query
and every rule runs, and must find data."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from multislo_api.fleet import FleetSnapshot
from multislo_api.manifest import MultiSLOServing, load_manifest
from multislo_operator.decide.fleet import InstanceState
from multislo_operator.decide.need import Memory
from multislo_operator.decide.plan import Start
from multislo_operator.decide.scale import decide
from multislo_operator.kubernetes.fleet_metrics import Outcome
from multislo_operator.kubernetes.metrics import OperatorMetrics
from multislo_operator.kubernetes.names import Key
from multislo_operator.observability.__main__ import files
from multislo_operator.observability.dashboards import DASHBOARDS
from multislo_operator.observability.grafana import render
from multislo_operator.observability.rules import rules
from multislo_operator.observe import fleet_observed, fleet_spec
from multislo_perf.profile import Profile, load_profile

EXAMPLES = Path(__file__).parents[3] / "examples" / "autoscaling"
FLEET = Key("serving", "test")
TRAFFIC_S = 12.0
WINDOW = "20s"
PATIENCE_S = 90.0
LOOK_S = 0.3
"""As the operator looks while requests wait."""

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None and not os.environ.get("CI"), reason="there is no prometheus here"
)

# -- Prometheus ------------------------------------------------------------------------------------------------------------


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


def scrape(job: str, url: str, honor_labels: bool = False, **labels: str) -> dict[str, Any]:
    """The labels are those that a PodMonitor gives."""
    target = url.removeprefix("http://")
    return {
        "job_name": job,
        "honor_labels": honor_labels,
        "static_configs": [{"targets": [target], "labels": {"namespace": FLEET.namespace, "pod": job, **labels}}],
    }


# -- the operator's side of it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """An instance as the router tells of it."""

    id: str
    tier: str | None
    state: InstanceState
    since: float
    ever_ready: bool = True
    batch_tokens: int = 0


class Operator(threading.Thread):
    """Decides for the fleet as the operator does, and exports it. Nobody carries it out: what is wanted stays wanted."""

    def __init__(self, manifest: MultiSLOServing, profile: Profile, fleet: Callable[[], Any]) -> None:
        super().__init__()
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.metrics = OperatorMetrics(registry)
        self.metrics.leading(True)
        self._manifest, self._profile, self._fleet = manifest, profile, fleet
        self._enough = threading.Event()
        self._server, self._serving = start_http_server(0, "127.0.0.1", registry)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self.error = error
            raise

    def _loop(self) -> None:
        memory = Memory()
        since: dict[str, float] = {}
        while not self._enough.wait(LOOK_S):
            answer = self._fleet()
            now = time.monotonic()
            snapshot = None if answer is None else FleetSnapshot.model_validate(answer)
            instances = [
                Seen(view.id, view.tier, InstanceState(view.state), since.setdefault(view.id, now))
                for view in (snapshot.instances if snapshot else ())
            ]
            spec = fleet_spec(self._manifest, self._profile, datetime.now(UTC))
            observed = fleet_observed(instances, snapshot, 0.0, now, {}, False)
            plan, memory = decide(spec, observed, memory, now)
            self.metrics.observe_plan(FLEET, spec, plan, observed, now)
            self.metrics.observe_conditions(FLEET, [("Ready", "True", "Serving"), ("ScalingReady", "True", "Scaling")])
            if any(isinstance(action, Start) for action in plan.actions):
                self.metrics.wrote("scale", "Deployment")
                self.metrics.scaled_up(FLEET, time.monotonic())
            self.metrics.reconciled(FLEET, Outcome.DONE, time.monotonic() - now)

    def close(self) -> None:
        self._enough.set()
        self.join()
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()


# -- the world -------------------------------------------------------------------------------------------------------------


def traffic(fleet: Any, url: str) -> None:
    """More than one instance of a tier carries, so that requests wait and something is decided."""
    subprocess.run(
        [
            Path(sys.executable).with_name("multislo"),
            *("replay", "--url", url, "-f", fleet.folder / "manifest.yaml", "--tiers", "realtime=0.5,batch=0.5"),
            *("--workload", "uniform", "--prompt-tokens", "1000-3000", "--output-tokens", "40-120"),
            *("--rate", "40", "--duration", f"{TRAFFIC_S:g}", "--drain", "5"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )


def provoke(fleet: Any, prometheus: Prometheus) -> None:
    """Traffic until something was scaled because requests wait."""
    until = time.monotonic() + PATIENCE_S
    traffic(fleet, fleet.url("OpenAI API"))
    while not prometheus.now("multislo_operator_scale_up_reaction_seconds_count > 0"):
        assert time.monotonic() < until, "no request had to wait, though there were too many"
        traffic(fleet, fleet.url("OpenAI API"))


@contextmanager
def running(fleet: Any, manifest: MultiSLOServing, profile: Profile) -> Iterator[tuple[Prometheus, Operator]]:
    """Prometheus and the operator beside a fleet that is up."""
    operator = Operator(manifest, profile, lambda: fleet.call("live page", "/fleet"))
    operator.start()
    prometheus: Prometheus | None = None
    try:
        engines = [
            scrape(i["id"], i["url"], fleet=FLEET.name, tier=i["tier"])
            for i in fleet.call("live page", "/fleet")["instances"]
        ]
        router = scrape("router", fleet.url("live page"), fleet=FLEET.name)
        own = scrape("operator", operator.url, honor_labels=True)
        prometheus = Prometheus(fleet.folder, [router, own, *engines])
        yield prometheus, operator
    finally:
        if prometheus is not None:
            prometheus.close()
        operator.close()


# -- what a dashboard asks -------------------------------------------------------------------------------------------------


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


def autoscalers_queries() -> Iterator[str]:
    """Of the examples, for this fleet."""
    keda = yaml.safe_load((EXAMPLES / "keda.yaml").read_text())
    query = keda["spec"]["triggers"][0]["metadata"]["query"]
    yield query.replace('"llama"', f'"{FLEET.name}"').replace('"interactive"', '"realtime"')
    _, adapter = yaml.safe_load_all((EXAMPLES / "hpa.yaml").read_text())
    (rule,) = yaml.safe_load(adapter["data"]["rules.yaml"])["externalRules"]
    matchers = f'namespace="{FLEET.namespace}",fleet="{FLEET.name}",tier="realtime"'
    yield rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "namespace")


def test_every_panel_and_every_rule_finds_data_in_a_prometheus_that_scraped_a_fleet_under_traffic(
    up: Callable[..., Any], manifest: dict[str, Any], patience: Callable[..., Any]
) -> None:
    manifest["spec"]["tiers"][1]["instances"]["min"] = 1
    fleet = up(manifest, "--fixed")
    fleet.ready(2)
    served = load_manifest(fleet.folder / "manifest.yaml")
    with running(fleet, served, load_profile(manifest["spec"]["profile"])) as (prometheus, operator):
        patience(lambda: len(prometheus.now("up == 1")) == 4, "router, operator and two engines to be scraped")
        begin = time.time()
        provoke(fleet, prometheus)
        patience(lambda: evaluated(prometheus), "all rules to be evaluated")
        end = time.time()
        assert operator.error is None
        problems = [
            *without_data(prometheus, begin, end),
            *rules_that_fail(prometheus),
            *(query for query in autoscalers_queries() if not prometheus.now(query)),
        ]
    assert not problems, "\n".join(problems)
