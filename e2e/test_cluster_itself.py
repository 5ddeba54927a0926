"""The suite's own ground: what every other scenario takes for granted is so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.processes import until
from cluster.scene import IMAGE, Scene, condition, wait_for

HERE = Path(__file__).parent
GPU = "nvidia.com/gpu"
PROFILE = "llama-3.1-8b-h200-tp1"


def pod(name: str, gpus: int = 0, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "pause", "resources": {"limits": {GPU: str(gpus)}} if gpus else {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


async def test_of_twenty_pods_of_two_accelerators_eight_run_on_two_nodes_of_eight(scene: Scene) -> None:
    await scene.add_nodes(2, gpus=8)
    scene.apply([pod(f"p{index}", gpus=2) for index in range(20)])

    async def placed() -> None:
        pods = await scene.pods()
        ready = [p for p in pods if condition(p, "Ready").get("status") == "True"]
        refused = [p for p in pods if f"Insufficient {GPU}" in condition(p, "PodScheduled").get("message", "")]
        assert (len(ready), len(refused)) == (8, 12)

    await wait_for("8 pods are Ready, 12 find no accelerator", placed)


async def test_a_fake_pod_is_ready_only_when_its_gate_is_open_and_not_when_it_is_closed_again(scene: Scene) -> None:
    await scene.add_nodes(1)
    scene.apply(pod("gated", readinessGates=[{"conditionType": "multislo.dev/serving"}]))
    path = f"/api/v1/namespaces/{scene.namespace}/pods/gated/status"

    async def ready_is(status: str, reason: str | None) -> None:
        (found,) = await scene.pods()
        assert condition(found, "ContainersReady").get("status") == "True", found["status"]
        assert (condition(found, "Ready").get("status"), condition(found, "Ready").get("reason")) == (status, reason)

    async def gate(status: str) -> None:
        kind = "application/strategic-merge-patch+json"
        await scene.api.patch(
            path, {"status": {"conditions": [{"type": "multislo.dev/serving", "status": status}]}}, kind
        )

    await wait_for("containers are ready, the gate is closed", lambda: ready_is("False", "ContainersNotReady"))
    await gate("True")
    await wait_for("the pod is ready", lambda: ready_is("True", None))
    await gate("False")
    await wait_for("the pod is unready again", lambda: ready_is("False", "ReadinessGatesNotReady"))


async def test_a_lost_nodes_pods_are_evicted_and_made_again_on_another(scene: Scene) -> None:
    lost, other = await scene.add_nodes(2, gpus=1)
    scene.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "one"},
            "spec": {
                "selector": {"matchLabels": {"app": "one"}},
                "template": {
                    "metadata": {"labels": {"app": "one"}},
                    "spec": {
                        "containers": pod("x", gpus=1)["spec"]["containers"],
                        "affinity": {
                            "nodeAffinity": {
                                "preferredDuringSchedulingIgnoredDuringExecution": [
                                    {
                                        "weight": 100,
                                        "preference": {
                                            "matchExpressions": [
                                                {"key": "kubernetes.io/hostname", "operator": "In", "values": [lost]}
                                            ]
                                        },
                                    }
                                ]
                            }
                        },
                    },
                },
            },
        }
    )

    async def runs_on(node: str) -> None:
        nodes = [
            p["spec"].get("nodeName")
            for p in await scene.pods(app="one")
            if condition(p, "Ready").get("status") == "True"
        ]
        assert node in nodes, nodes

    await wait_for("it runs on the preferred node", lambda: runs_on(lost))
    await scene.lose_node(lost)
    await wait_for("it runs on the other node", lambda: runs_on(other))
    await scene.find_node(lost)


async def test_a_pod_that_asks_the_api_server_has_the_rights_of_its_service_account(scene: Scene) -> None:
    await scene.add_nodes(1, processes=True)
    ask = (
        "import os, yaml, ssl, urllib.request, urllib.error\n"
        + """
said = yaml.safe_load(open(os.environ["KUBECONFIG"]))
cluster, user = said["clusters"][0]["cluster"], said["users"][0]["user"]
trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
asked = urllib.request.Request(cluster["server"] + "/api/v1/nodes", headers={"Authorization": "Bearer " + user["token"]})
try:
    urllib.request.urlopen(asked, context=trust)
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""
    )
    asking = pod("asks", restartPolicy="Never")
    asking["spec"]["containers"][0] |= {"command": ["python3", "-c", ask]}
    scene.apply(asking)

    async def over() -> None:
        (found,) = await scene.pods()
        assert found["status"]["phase"] == "Succeeded", found["status"]

    await wait_for("it has asked", over)
    assert f"system:serviceaccount:{scene.namespace}:default" in scene.pod_log("asks", "main")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_cluster_and_leaves_no_process_and_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        up = subprocess.Popen(
            [sys.executable, "-m", "cluster", "up"], cwd=HERE, stdout=out, stderr=out, start_new_session=True
        )
    try:
        until(lambda: "KUBECONFIG=" in printed.read_text() or up.poll() is not None, "the cluster is up", timeout_s=120)
        folder = Path(printed.read_text().split("KUBECONFIG=")[1].split()[0]).parent
        everybody = _descendants(up.pid)
        assert len(everybody) >= 6
        os.kill(up.pid, number)
        up.wait(60)
    finally:
        up.kill()
    until(lambda: not folder.exists(), "its folder is gone", timeout_s=30)
    until(
        lambda: not [pid for pid in everybody if Path(f"/proc/{pid}").exists()], "its processes are gone", timeout_s=30
    )


async def test_a_request_goes_through_a_router_pod_to_an_engine_pod(scene: Scene) -> None:
    await scene.add_nodes(1, gpus=1, processes=True)
    began = time.monotonic()
    scene.apply((HERE / "manifests" / "router_and_engine.yaml").read_text().replace("IMAGE", IMAGE))
    token = "a-token-of-the-fleet-a-token-of-the-fleet"

    async def address(name: str) -> str:
        (found,) = await scene.pods(app=name)
        assert condition(found, "ContainersReady").get("status") == "True", found["status"]
        return str(found["status"]["podIP"])

    engine, router = await wait_for("engine is ready", lambda: address("engine")), ""
    assert condition((await scene.pods(app="engine"))[0], "Ready")["reason"] == "ReadinessGatesNotReady"
    router = await wait_for("router runs", lambda: address("router"))
    async with aiohttp.ClientSession() as session:
        fleet = {"instances": [{"id": "e", "url": f"http://{engine}:8000", "tier": "interactive", "state": "ready"}]}
        headers = {"x-multislo-fleet-token": token}
        async with session.put(f"http://{router}:9090/instances", json=fleet, headers=headers) as answer:
            assert answer.status == 200, await answer.text()

        async def complete() -> dict[str, Any]:
            ask = {"model": "llama", "prompt": "tok tok tok", "max_tokens": 5}
            async with session.post(f"http://{router}:8000/v1/completions", json=ask) as answer:
                assert answer.status == 200, await answer.text()
                found: dict[str, Any] = await answer.json()
                return found

        found = await wait_for("the router serves", complete)
    assert found["usage"]["completion_tokens"] == 5
    print(f"{time.monotonic() - began:.1f} s from apply to the answer")

    before = scene.pod_pid((await scene.pods(app="engine"))[0]["metadata"]["name"], "engine")
    os.kill(before, signal.SIGKILL)

    async def again() -> None:
        (found,) = await scene.pods(app="engine")
        (status,) = found["status"]["containerStatuses"]
        assert (status["restartCount"], status["ready"]) == (1, True), status
        assert status["lastState"]["terminated"]["exitCode"] == 137

    await wait_for("the engine is restarted", again)


def _descendants(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], text=True, capture_output=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found
