"""A real Prometheus scrapes the operator's own process, the routers and the engines of a fleet under load, by the labels that its
PodMonitors give; then every query of every dashboard, and every rule, must find data."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asking_prometheus import Prometheus, evaluated, rules_that_fail, without_data

from cluster.api import Object
from cluster.processes import Process
from cluster.scene import Scene
from fleet_story import COMPONENT, LONG, NAME, TIER, Fleet, a_fleet, figures, scaling, spec, tier, until
from traffic import Flow

ENGINE_PORT, ADMIN_PORT = 8000, 9090
CANNOT_RUN = 2


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleet]:
    if shutil.which("prometheus") is None:
        pytest.exit("cannot run here: prometheus is not on PATH (Debian's package prometheus)", returncode=CANNOT_RUN)
    async with a_fleet(scene, tmp_path) as made:
        yield made
        made.no_errors()


def job(name: str, target: str, labels: dict[str, str], honor_labels: bool = False) -> dict[str, Any]:
    return {
        "job_name": name,
        "honor_labels": honor_labels,
        "static_configs": [{"targets": [target], "labels": labels}],
    }


def of_pod(pod: Object) -> dict[str, Any]:
    """As the operator's PodMonitor has it scraped."""
    metadata, ip = pod["metadata"], pod["status"]["podIP"]
    labels = {"namespace": metadata["namespace"], "pod": metadata["name"], "fleet": NAME}
    if metadata["labels"][COMPONENT] == "router":
        return job(metadata["name"], f"{ip}:{ADMIN_PORT}", labels)
    return job(metadata["name"], f"{ip}:{ENGINE_PORT}", {**labels, "tier": metadata["labels"][TIER]})


async def metrics_of(operator: Process) -> str:
    await until("the operator serves its metrics", lambda: "metrics at http://" in operator.text())
    found = re.search(r"metrics at http://([^/]+)/", operator.text())
    assert found is not None
    return found[1]


async def test_every_panel_and_every_rule_finds_data_of_a_fleet_that_the_operator_scales(
    fleet: Fleet, tmp_path: Path
) -> None:
    tiers = [tier("chat", "500ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 1, 3)]
    await fleet.ready(spec(tiers=tiers, scaling=scaling(5)), chat=1, batch=1)
    own = {"namespace": fleet.scene.namespace, "pod": "operator"}
    targets = [
        job("operator", await metrics_of(fleet.operators[0]), own, honor_labels=True),
        *(of_pod(pod) for pod in await fleet.scene.pods(**{"app.kubernetes.io/instance": NAME})),
    ]
    prometheus = await asyncio.to_thread(Prometheus, tmp_path, targets)
    try:
        await until("all are scraped", lambda: len(prometheus.now("up == 1")) == len(targets))
        begin = time.time()
        async with fleet.traffic() as traffic:
            traffic.flow("batch", Flow(2.0))
            # More at once than an instance can do in time: some wait in the router, and for them one is started.
            await traffic.burst("chat", 60, LONG, 8)
            reacted = "multislo_operator_scale_up_reaction_seconds_count > 0"
            await until("an instance was started for those that waited", lambda: bool(prometheus.now(reacted)))
            # And more than the tier may have instances for.
            traffic.flow("chat", Flow(16.0, LONG, 8))
            await fleet.change({"tiers": [tier("chat", "500ms", "40ms", 1, 1), tiers[1]]})
            held = 'multislo_operator_holds{cause="TierAtMax"} > 0'
            await until("the tier is held at its maximum", lambda: bool(prometheus.now(held)))
            traffic.flow("chat", Flow(1.0))
            await until("all rules are evaluated", lambda: evaluated(prometheus))
            await asyncio.sleep(5.0)
            end = time.time()
            problems = await asyncio.to_thread(
                lambda: [*without_data(prometheus, begin, end), *rules_that_fail(prometheus)]
            )
        traffic.nobody_was_dropped()
        figures("observability", targets=len(targets), seconds=round(end - begin, 1))
    finally:
        await asyncio.to_thread(prometheus.close)
    assert not problems, "\n".join(problems)
