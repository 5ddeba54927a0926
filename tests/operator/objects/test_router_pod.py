"""The router's pod: that its command starts with the files that are mounted, and how it starts and stops."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from multislo_operator.kubernetes.objects.children import Unbuildable

PATIENCE_S = 60.0
TOKEN = {"x-multislo-fleet-token": "sesame"}


def container(cluster: Any) -> dict[str, Any]:
    (router,) = cluster.pod("llama-router")["containers"]
    return router  # type: ignore[no-any-return]


def written(cluster: Any, folder: Path) -> list[str]:
    """The pod's command, its files written to a folder and its addresses on the loopback."""
    made = cluster.made()
    for name in ("llama-router", "llama-profile"):
        for key, text in made["ConfigMap", name]["data"].items():
            (folder / key).write_text(text)
    (folder / "api-keys").write_text("a-key\n")
    router = container(cluster)
    places = {"/etc/multislo": str(folder), "/var/run/multislo/keys": str(folder), "0.0.0.0": "127.0.0.1"}
    words = [*router["command"], *router["args"], "--port", "0", "--admin-port", "0"]
    words[0] = str(Path(sys.executable).with_name("multislo"))
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    return words


async def status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


async def test_it_starts_with_the_files_that_are_mounted_and_is_ready_when_it_knows_its_fleet(
    cluster: Any, tmp_path: Path
) -> None:
    cluster.spec["router"] = {"apiKeys": {"secret": "keys"}}
    command = written(cluster, tmp_path)
    ready = container(cluster)["readinessProbe"]["httpGet"]["path"]
    alive = container(cluster)["livenessProbe"]["httpGet"]["path"]
    router = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, env={"MULTISLO_FLEET_TOKEN": "sesame"}
    )
    try:
        assert router.stderr is not None
        seen = b""
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
            while not (found := re.search(rb"live page +(http://[0-9.]+:\d+)", seen)):
                line = await router.stderr.readline()
                assert line, seen
                seen += line
            admin = found[1].decode()
            assert await status(session, admin + alive) == 200
            assert await status(session, admin + ready) == 503
            async with session.put(f"{admin}/instances", json={"instances": []}, headers=TOKEN) as answer:
                assert answer.status == 200
            assert await status(session, admin + ready) == 200
            async with session.get(f"{admin}/fleet") as answer:
                fleet = await answer.json()
            assert [tier["name"] for tier in fleet["tiers"]] == ["realtime", "batch"]
    finally:
        router.terminate()
        await asyncio.wait_for(router.communicate(), PATIENCE_S)
    assert router.returncode == 0


def test_a_roll_out_lets_every_stream_finish(cluster: Any) -> None:
    cluster.spec["scaling"]["scaleDown"] = {"drainTimeout": "10m"}
    deployment = cluster.made()["Deployment", "llama-router"]["spec"]
    router = container(cluster)
    drain_s = int(router["args"][router["args"].index("--drain-timeout") + 1])
    (delay,) = (variable["value"] for variable in router["env"] if variable["name"] == "MULTISLO_SHUTDOWN_DELAY")
    assert (drain_s, delay) == (600, "5")
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > int(delay) + drain_s
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_router_serves_on_for_as_long_as_the_balancers_before_it_need(cluster: Any) -> None:
    before = cluster.made()["Deployment", "llama-router"]["spec"]["template"]["spec"]
    cluster.spec["router"] = {"shutdownDelay": "1m30s"}
    after = cluster.made()["Deployment", "llama-router"]["spec"]["template"]["spec"]
    assert {"name": "MULTISLO_SHUTDOWN_DELAY", "value": "90"} in after["containers"][0]["env"]
    assert after["terminationGracePeriodSeconds"] == before["terminationGracePeriodSeconds"] + 85


def test_its_users_say_where_it_runs_and_what_it_may_take(cluster: Any) -> None:
    resources = {"limits": {"memory": "2Gi"}}
    over = {"nodeSelector": {"pool": "cpu"}, "containers": [{"name": "router", "resources": resources}]}
    cluster.spec["router"] = {"podTemplate": {"spec": over}}
    assert cluster.pod("llama-router")["nodeSelector"] == {"pool": "cpu"}
    assert container(cluster)["resources"] == {
        "limits": {"memory": "2Gi"},
        "requests": {"cpu": "250m", "memory": "256Mi"},
    }
    cluster.spec["router"]["podTemplate"]["spec"]["containers"][0]["args"] = []
    with pytest.raises(Unbuildable, match=re.escape("spec.router.podTemplate.spec.containers[router].args")):
        cluster.made()


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_node_can_be_drained_of_its_router(cluster: Any, replicas: int) -> None:
    cluster.spec["router"] = {"replicas": replicas}
    budget = cluster.made()["PodDisruptionBudget", "llama-router"]["spec"]
    assert budget["maxUnavailable"] == 1


def test_the_service_finds_the_routers_and_no_engine(cluster: Any) -> None:
    made = cluster.made()
    selector = made["Service", "llama"]["spec"]["selector"].items()
    labels = {name: template["metadata"]["labels"].items() for name, template in cluster.templates().items()}
    assert [name for name, of in labels.items() if selector <= of] == ["llama-router"]
    assert made["Service", "llama"]["spec"]["ports"][0]["port"] == 8000


def test_its_manifest_holds_what_differs_from_the_defaults_so_that_an_older_image_reads_it(cluster: Any) -> None:
    plain = yaml.safe_load(cluster.made()["ConfigMap", "llama-router"]["data"]["manifest.yaml"])["spec"]
    cluster.spec["placement"] = "Spread"
    cluster.spec["router"] = {"port": 8001, "replicas": 2, "paths": [{"path": "/v1/mine"}]}
    changed = yaml.safe_load(cluster.made()["ConfigMap", "llama-router"]["data"]["manifest.yaml"])["spec"]

    assert "placement" not in plain
    assert plain["router"] == {}
    assert changed["placement"] == "Spread"
    assert changed["router"] == {"port": 8001, "paths": [{"path": "/v1/mine"}]}


def test_it_reads_a_manifest_of_a_newer_operator_with_a_warning(cluster: Any) -> None:
    assert {"name": "MULTISLO_UNKNOWN_FIELDS", "value": "ignore"} in container(cluster)["env"]
