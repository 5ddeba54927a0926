"""A real Prometheus scrapes a real router, real emulated engines and the operator's metrics under real traffic; then every panel's query
and every rule runs, and must find data."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking_prometheus import Prometheus, evaluated, rules_that_fail, without_data
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from multislo_api.fleet import FleetSnapshot
from multislo_api.manifest import MultiSLOServing, load_manifest
from multislo_operator.decide.fleet import InstanceState
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.plan import Start
from multislo_operator.decide.scale import decide
from multislo_operator.kubernetes.fleet_metrics import Outcome
from multislo_operator.kubernetes.metrics import OperatorMetrics
from multislo_operator.kubernetes.names import Key
from multislo_operator.observe import fleet_observed, fleet_spec
from multislo_perf.profile import Profile, load_profile

EXAMPLES = Path(__file__).parents[3] / "examples" / "autoscaling"
FLEET = Key("serving", "test")
TRAFFIC_S = 12.0
PATIENCE_S = 90.0
LOOK_S = 0.3
"""As the operator looks while requests wait."""

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None and not os.environ.get("CI"), reason="there is no prometheus here"
)


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
    unplaced: bool = False


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


def provoke(fleet: Any, prometheus: Prometheus, operator: Operator) -> None:
    """Traffic until something was scaled because requests wait."""
    until = time.monotonic() + PATIENCE_S
    traffic(fleet, fleet.url("OpenAI API"))
    while not prometheus.now("multislo_operator_scale_up_reaction_seconds_count > 0"):
        assert operator.is_alive(), operator.error
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


# -- what else is asked -----------------------------------------------------------------------------------------------------


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
        provoke(fleet, prometheus, operator)
        patience(lambda: evaluated(prometheus), "all rules to be evaluated")
        end = time.time()
        assert operator.error is None
        problems = [
            *without_data(prometheus, begin, end),
            *rules_that_fail(prometheus),
            *(query for query in autoscalers_queries() if not prometheus.now(query)),
        ]
    assert not problems, "\n".join(problems)
