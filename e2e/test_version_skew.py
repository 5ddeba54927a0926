"""An upgrade and its rollback, one part at a time, under traffic: a CRD that is newer than the operator, one that is older, routers and an
operator that read each other's newer documents. What serves goes on serving, and the fleet is still scaled."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
import yaml

from cluster.api import APPLY, Object
from cluster.scene import Scene, condition, wait_for
from fleet_story import CRD, Fleet, a_fleet, spec, tier
from traffic import Flow

SHIPPED = Path(__file__).parents[1] / "profiles" / "multislo_perf" / "shipped" / "llama-3.1-8b-h200-tp1.yaml"
KIND = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/multisloservings.multislo.dev"


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(scene, tmp_path) as made:
        yield made
        made.no_errors()
        await install(made, crd())


def crd() -> Any:
    return yaml.safe_load(CRD.read_text())


def schema(of: Any) -> Any:
    return of["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]


def newer() -> Any:
    """One more field with a default, in three places: of the spec, of each tier, and of the router."""
    made = crd()
    whole = schema(made)["spec"]["properties"]
    for properties in (whole, whole["tiers"]["items"]["properties"], whole["router"]["properties"]):
        properties["later"] = {"type": "object", "default": {"on": True}, "properties": {"on": {"type": "boolean"}}}
    return made


def older() -> Any:
    """It knows fewer conditions than the operator writes, and fewer figures of a tier."""
    made = crd()
    status = schema(made)["status"]["properties"]
    kinds = ["Ready", "RouterReady", "WorkloadsReady", "ScalingReady", "ProfileReady"]
    status["conditions"]["items"]["properties"]["type"] = {"type": "string", "enum": kinds}
    rows = status["tiers"]["items"]
    rows["required"].remove("starting")
    del rows["properties"]["starting"], rows["properties"]["attainment"]
    return made


async def install(fleet: Fleet, wanted: Any) -> None:
    await fleet.scene.api.patch(KIND, wanted, APPLY, fieldManager="e2e", force="true")


async def token_of(fleet: Fleet, router: Object) -> str:
    """With which the operator shows that it is this router's."""
    source = next(v["valueFrom"] for v in router["spec"]["containers"][0]["env"] if "valueFrom" in v)["secretKeyRef"]
    path = f"/api/v1/namespaces/{fleet.scene.namespace}/secrets/{source['name']}"
    return base64.b64decode((await fleet.scene.api.get(path))["data"][source["key"]]).decode()


async def scaled(fleet: Fleet, chat: int) -> None:
    """The operator still acts on the manifest."""
    await fleet.change({"tiers": [tier("chat", "500ms", "40ms", chat, 3), tier("batch", "2s", "100ms", 0, 3)]})
    await fleet.has(chat=chat, batch=0)
    await fleet.becomes("Ready", "True")


async def test_a_crd_that_is_newer_than_the_operator_and_its_rollback_disturb_nothing(fleet: Fleet) -> None:
    await fleet.ready(spec(), chat=1, batch=0)
    routers = [life.name for life in fleet.routers()]
    async with fleet.traffic() as traffic:
        traffic.flow("chat", Flow(4.0))

        await install(fleet, newer())

        async def has_the_new_fields() -> None:
            stored = (await fleet.resource())["spec"]
            assert stored["later"] == stored["tiers"][0]["later"] == {"on": True}, stored

        await wait_for("the new CRD is served", has_the_new_fields)

        async def told() -> None:
            # A watch that was begun under the old CRD leaves the new fields out, and only a write is an event.
            touched = f"e2e={time.monotonic()}"
            await asyncio.to_thread(fleet.scene.kubectl, "annotate", "--overwrite", "mslo/fleet", touched)
            notes = (await fleet.resource())["status"].get("notes") or []
            assert any("spec.later" in note and "spec.tiers[1].later" in note for note in notes), notes
            assert await fleet.events("UnknownFields")

        await wait_for("the operator names what it ignores", told, every_s=1.0)
        await scaled(fleet, 2)

        await install(fleet, crd())
        await scaled(fleet, 3)

        await traffic.all_ended()
        traffic.nobody_was_dropped()
    found = condition(await fleet.resource(), "Ready")
    assert found["status"] == "True", found
    assert set(routers) <= {life.name for life in fleet.routers()}
    assert not any(life.restarts for life in fleet.lives.values())


async def test_under_an_older_crd_the_rest_of_the_status_is_written_and_the_fleet_is_run(fleet: Fleet) -> None:
    await install(fleet, older())
    operator = fleet.start_operator()
    await fleet.apply(spec())

    await fleet.becomes("Ready", "True")
    await scaled(fleet, 2)
    await fleet.becomes("ScalingReady", "True")

    status = (await fleet.resource())["status"]
    told = {c["type"]: c["status"] for c in status["conditions"]}
    assert told == dict.fromkeys(("Ready", "RouterReady", "WorkloadsReady", "ScalingReady", "ProfileReady"), "True")
    assert status["tiers"][0]["ready"] == 2
    assert "starting" not in status["tiers"][0]
    assert "the status cannot be written" in operator.text()  # Once, with the API server's words.

    await fleet.change({"profile": {"configMap": "nobody-made-it"}})
    await fleet.becomes("Ready", "False", "ProfileMissing")
    assert (await fleet.resource())["status"]["tiers"] == status["tiers"]
    await fleet.change({"profile": spec()["profile"]})
    await fleet.becomes("Ready", "True")

    await install(fleet, crd())
    await scaled(fleet, 3)
    assert (await fleet.resource())["status"]["tiers"][0]["starting"] == 0


async def test_operator_routers_and_engines_read_the_profile_of_a_newer_version(fleet: Fleet) -> None:
    measured = yaml.safe_load(SHIPPED.read_text())
    measured["later"] = measured["latency"]["later"] = {"a": [1]}
    made = {"metadata": {"name": "measured"}, "data": {"profile.yaml": yaml.safe_dump(measured, sort_keys=False)}}
    await fleet.scene.api.create(f"/api/v1/namespaces/{fleet.scene.namespace}/configmaps", made)

    await fleet.ready(spec(profile={"configMap": "measured"}), chat=1, batch=0)

    (note,) = (await fleet.resource())["status"]["notes"]
    assert "latency.later in ConfigMap measured" in note
    async with fleet.traffic() as traffic:
        streams = await traffic.burst("chat", 3)
        await traffic.all_ended()
    assert [stream.tokens for stream in streams] == [stream.tokens_wanted for stream in streams]
    assert not any(life.restarts for life in fleet.lives.values())


async def test_a_router_takes_the_list_of_a_newer_operator_and_names_what_it_ignores(fleet: Fleet) -> None:
    await fleet.ready(spec(), chat=1, batch=0)
    snapshot = await fleet.snapshot()
    pod = (await fleet.scene.pods(**{"app.kubernetes.io/component": "router"}))[0]
    token = await token_of(fleet, pod)
    entries = [
        {"id": i["id"], "url": i["url"], "tier": i["tier"], "state": i["state"], "later": {"a": [1]}}
        for i in snapshot["instances"]
    ]
    url = f"http://{pod['status']['podIP']}:9090/instances"
    body = {"version": 1, "instances": entries, "later": True}
    async with fleet.session.put(url, json=body, headers={"x-multislo-fleet-token": token}) as answer:
        said = await answer.json()
        assert answer.status == 200, said
    assert said["ignored"] == ["instances[0].later", "later"]
    async with fleet.traffic() as traffic:
        streams = await traffic.burst("chat", 3)
        await traffic.all_ended()
    assert [stream.tokens for stream in streams] == [stream.tokens_wanted for stream in streams]
