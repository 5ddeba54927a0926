"""What the operator costs while nothing changes, by the number of fleets: CPU, memory, and the calls that the API server counts. Each fleet
has two tiers, one engine and one router, which is real and answers.

`MULTISLO_E2E_SCALE=1,50,200` measures more than CI does (200 take ten minutes and all of two cores).
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cluster.fleets import CHAT, Fleets, emulated, figure, fleet, tier
from cluster.processes import Process
from cluster.scene import Scene, condition, wait_for

SIZES = [int(size) for size in os.environ.get("MULTISLO_E2E_SCALE", "1,50").split(",")]
WINDOW_S = 40.0
READS_A_MINUTE_MAX = 60
"""Nine watches that are begun anew every four to eight minutes, and now and then a list. A poll of each fleet would be thousands."""
WRITES_A_MINUTE_MAX = 0.5
"""Of each fleet. Nothing is written while nothing changes. But on two cores that all routers share, one may answer late, and the status
says so."""
FLOWS = {
    "e2e-lease": (["*"], ["leases"], 400),
    "e2e-writes": (["create", "update", "patch", "delete"], ["*"], 401),
    "e2e-reads": (["get", "list", "watch"], ["*"], 402),
}
"""Flow schemas by which the API server counts the operator's calls: verbs, resources, precedence."""
FLOW_PATH = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"


@dataclass(frozen=True, slots=True)
class Row:
    fleets: int
    cpu_share: float
    """Of one core."""
    rss_mb: float
    rss_peak_mb: float
    reads: float
    writes: float
    lease: float
    """Calls a minute."""
    ready_s: float
    """From the first manifest of this size's to the last fleet's Ready."""


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    """The operator of this scene is a service account, whose calls the API server counts."""
    async with aiohttp.ClientSession() as session:
        made = Fleets.install(scene, session, tmp_path)
        scene.kubectl("create", "serviceaccount", "operator")
        account = f"--serviceaccount={scene.namespace}:operator"
        scene.kubectl("create", "rolebinding", "operator", "--clusterrole=cluster-admin", account)
        for name, (verbs, resources, precedence) in FLOWS.items():
            await scene.api.create(FLOW_PATH, flow_schema(name, scene.namespace, verbs, resources, precedence))
        try:
            yield made
        finally:
            for name in FLOWS:
                await scene.api.delete(f"{FLOW_PATH}/{name}")


@pytest.mark.slow
async def test_what_the_operator_costs_while_nothing_changes(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(4)
    fleets.scene.start_many_routers()
    operator = fleets.operator(kubeconfig=fleets.scene.account_kubeconfig("operator"), election=True)
    rows: list[Row] = []
    made = 0
    for size in SIZES:
        began_at = time.monotonic()
        for number in range(made, size):
            tiers = [CHAT, tier("batch", "100ms", 0)]
            await asyncio.to_thread(fleets.scene.apply, emulated(fleet(f"fleet-{number:03}", tiers)))
        made = size
        await wait_for(f"{size} fleets serve", lambda size=size: all_serve(fleets, size), 600, every_s=2.0)  # type: ignore[misc]
        ready_s = time.monotonic() - began_at
        await fleets.rests(operator, 180)
        rows.append(await measured(fleets, operator, size, ready_s))

    say(rows)
    for row in rows:
        assert row.writes <= WRITES_A_MINUTE_MAX * row.fleets, row
        assert row.reads < READS_A_MINUTE_MAX, row
        assert row.cpu_share < 0.1 + 0.01 * row.fleets, row
        assert row.rss_mb < 250 + row.fleets, row


async def measured(fleets: Fleets, operator: Process, size: int, ready_s: float) -> Row:
    calls, cpu_s, at = counted(fleets.scene), cpu_of(operator), time.monotonic()
    assert min(calls.values()) > 0, f"the API server counts: {calls}"
    await asyncio.sleep(WINDOW_S)
    took_s = time.monotonic() - at
    cpu_share = (cpu_of(operator) - cpu_s) / took_s
    later = counted(fleets.scene)
    each = {name: (later[name] - calls[name]) * 60.0 / took_s for name in FLOWS}
    memory = memory_of(operator)
    return Row(
        size, cpu_share, memory["VmRSS"], memory["VmHWM"], each["e2e-reads"], each["e2e-writes"], each["e2e-lease"], ready_s
    )  # fmt: skip


def say(rows: list[Row]) -> None:
    print(
        "\n\n| fleets | CPU, % of a core | RSS, MB | peak, MB | reads/min | writes/min | of the Lease/min | all Ready, s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row.fleets} | {100 * row.cpu_share:.1f} | {row.rss_mb:.0f} | {row.rss_peak_mb:.0f} | {row.reads:.1f} | "
            f"{row.writes:.1f} | {row.lease:.0f} | {row.ready_s:.0f} |"
        )
    for row in rows:
        figure(
            "operator at rest", fleets=row.fleets, cpu_share=round(row.cpu_share, 4), rss_mb=round(row.rss_mb),
            reads_a_minute=round(row.reads, 1), writes_a_minute=round(row.writes, 1), lease_a_minute=round(row.lease, 1),
            ready_s=round(row.ready_s, 1),
        )  # fmt: skip


async def all_serve(fleets: Fleets, number: int) -> None:
    found = await fleets.scene.api.items(fleets.path("/apis/multislo.dev/v1alpha1", "multisloservings"))
    assert len(found) == number
    not_yet = [r["metadata"]["name"] for r in found if condition(r, "Ready").get("status") != "True"]
    assert not not_yet, f"{len(not_yet)} not yet: {not_yet[:3]}"


def counted(scene: Scene) -> dict[str, float]:
    """Calls that the API server has let in so far, by flow schema."""
    text = scene.kubectl("get", "--raw", "/metrics")
    found = re.findall(
        r'^apiserver_flowcontrol_dispatched_requests_total\{flow_schema="([^"]+)".*\} (\S+)$', text, re.M
    )
    counts = dict.fromkeys(FLOWS, 0.0)
    for name, value in found:
        if name in counts:
            counts[name] += float(value)
    return counts


def flow_schema(
    name: str, namespace: str, verbs: list[str], resources: list[str], precedence: int
) -> dict[str, object]:
    rule: dict[str, object] = {
        "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "operator", "namespace": namespace}}],
        "resourceRules": [
            {"verbs": verbs, "apiGroups": ["*"], "resources": resources, "namespaces": ["*"], "clusterScope": True}
        ],
    }
    if "list" in verbs:
        rule["nonResourceRules"] = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": name},
        "spec": {
            "matchingPrecedence": precedence,
            "priorityLevelConfiguration": {"name": "workload-high"},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [rule],
        },
    }


def cpu_of(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(process: Process) -> dict[str, float]:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return {name: int(value) / 1024 for name, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.M)}
