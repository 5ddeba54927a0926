"""What a real API server and its admission refuse, and what goes on all the same. On fake nodes, whose pods are only said to run."""

import contextlib
import copy
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cluster.api import Object, Refused
from cluster.fleets import BATCH, CHAT, Fleets, fleet, gated, tier, uids
from cluster.scene import Scene, wait_for


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


def with_pods(manifest: Object, spec: Object) -> Object:
    """Engines of this podTemplate."""
    changed = copy.deepcopy(manifest)
    changed["spec"]["engine"]["podTemplate"] = {"spec": spec}
    return changed


def container(**fields: object) -> Object:
    return {"containers": [{"name": "engine", **fields}]}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            container(resources={"requests": {"cpu": "5"}, "limits": {"cpu": "1"}}),
            "must be less than or equal to cpu limit",
        ),
        (container(imagePullPolicy=5), "imagePullPolicy"),
        (container(volumeMounts=[{"name": "nowhere", "mountPath": "/x"}]), "nowhere"),
    ],
    ids=["requests beyond limits", "a number for a word", "a volume that is not there"],
)
async def test_a_pod_template_that_the_server_refuses_stops_neither_gates_nor_scaling(
    fleets: Fleets, spec: Object, words: str
) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    good = fleet()
    fleets.scene.apply(good)
    await fleets.runs(chat=1, batch=1)
    before = uids([*await fleets.engines("chat"), *await fleets.engines("batch")])

    fleets.scene.apply(with_pods(good, spec))
    message = await fleets.says("ChangeRefused", "ChangeRefused")
    assert words in message
    assert "Deployment fleet-chat" in message
    status, reason, told = await fleets.told("Ready")
    assert (status, reason) == ("False", "ChangeRefused")
    assert words in told
    assert words in (await fleets.resource())["status"]["tiers"][0]["reason"]
    assert uids([*await fleets.engines("chat"), *await fleets.engines("batch")]) == before

    # What the fleet loses comes again, and a raised minimum is met, while the template is still refused.
    victim = (await fleets.engines("batch"))[0]["metadata"]["name"]
    fleets.scene.kubectl("delete", "pod", victim, "--wait=false")
    raised = with_pods(fleet(tiers=[tier("chat", "50ms", 2), BATCH]), spec)
    fleets.scene.apply(raised)
    await fleets.runs(chat=2, batch=1)
    assert (await fleets.told("ChangeRefused"))[0] == "True"
    events = [note for note in await fleets.events("ChangeRefused") if "fleet-chat" in note]
    assert len(events) <= 2, events  # One for each manifest.

    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), BATCH], pods={"mended": "yes"}), force=True)
    await fleets.says("ChangeRefused", "NothingRefused")
    await fleets.says("Ready", "Serving")
    await fleets.rests(operator)


async def test_pods_that_admission_would_refuse_are_found_before_a_roll_out_begins(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    space = fleets.scene.namespace
    fleets.scene.kubectl("label", "namespace", space, "pod-security.kubernetes.io/enforce=restricted")
    good = fleet()
    fleets.scene.apply(good)
    await fleets.runs(chat=1, batch=1)
    before = uids(await fleets.engines("chat"))
    generation = (await fleets.deployment("fleet-chat"))["metadata"]["generation"]

    fleets.scene.apply(with_pods(good, {"hostNetwork": True}))
    message = await fleets.says("ChangeRefused", "ChangeRefused")
    assert 'violates PodSecurity "restricted:latest"' in message
    assert (await fleets.deployment("fleet-chat"))["metadata"]["generation"] == generation
    assert uids(await fleets.engines("chat")) == before

    fleets.scene.apply(fleet(pods={"a": "b"}), force=True)
    await fleets.says("ChangeRefused", "NothingRefused")

    async def rolled() -> None:
        assert uids(await fleets.engines("chat")).isdisjoint(before)

    await wait_for("the mended template is rolled out", rolled)


POLICY = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - apiGroups: ["*"]
        apiVersions: ["*"]
        operations: [CREATE, UPDATE]
        resources: RESOURCES
  validations:
    - expression: "false"
      message: the platform team says no
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: NAME}
spec:
  policyName: NAME
  validationActions: [Deny]
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: SPACE}}}
"""


async def test_an_upgraded_operator_that_meets_a_new_policy_stops_nothing_that_runs(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator(image="multislo:0.1.0")
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    await fleets.says("Ready", "Serving")
    routers = uids(await fleets.scene.pods(**{"app.kubernetes.io/component": "router"}))
    assert operator.stop() == 0

    space = fleets.scene.namespace
    resources = "[deployments, services, networkpolicies, poddisruptionbudgets, configmaps, serviceaccounts]"
    policy = POLICY.replace("NAME", f"no-{space}").replace("SPACE", space).replace("RESOURCES", resources)
    fleets.scene.kubectl("apply", "-f", "-", given=policy)
    try:
        await wait_for("the policy is in force", lambda: refused(fleets))
        fleets.operator(image="multislo:0.1.1")
        message = await fleets.says("ChangeRefused", "ChangeRefused")
        assert "the platform team says no" in message

        victim = (await fleets.engines("batch"))[0]["metadata"]["name"]
        fleets.scene.kubectl("delete", "pod", victim, "--wait=false")
        fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), BATCH]))
        await fleets.runs(chat=2, batch=1)
        assert victim not in {pod["metadata"]["name"] for pod in await fleets.engines("batch")}
        assert uids(await fleets.scene.pods(**{"app.kubernetes.io/component": "router"})) == routers
        assert len(await fleets.events("ChangeRefused")) < 30
    finally:
        fleets.scene.kubectl("delete", "-f", "-", given=policy)
    await fleets.says("ChangeRefused", "NothingRefused")
    await fleets.says("Ready", "Serving")


async def refused(fleets: Fleets) -> None:
    """A new policy is in force some moments after it was made."""
    path = fleets.path("/api/v1", "services")
    probe = {"metadata": {"name": "probe"}, "spec": {"ports": [{"port": 1}]}}
    with contextlib.suppress(Refused):
        await fleets.scene.api.request("POST", path, probe, query={"dryRun": "All"})
        raise AssertionError("not yet")


WEBHOOK = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: NAME}
webhooks:
  - name: hangs.e2e.multislo.dev
    clientConfig: {url: "https://127.0.0.1:PORT/"}
    rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [services]}]
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: SPACE}}
    admissionReviewVersions: [v1]
    sideEffects: None
"""


async def test_a_webhook_that_hangs_is_named_and_the_fleet_is_made_without_the_object(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    silent = socket.create_server(("127.0.0.1", 0))  # The kernel takes connections, and nobody answers.
    space, port = fleets.scene.namespace, silent.getsockname()[1]
    webhook = WEBHOOK.replace("NAME", f"hangs-{space}").replace("SPACE", space).replace("PORT", str(port))
    fleets.scene.kubectl("apply", "-f", "-", given=webhook)
    try:
        fleets.operator()
        fleets.scene.apply(fleet(tiers=[CHAT]))
        message = await fleets.says("ChangeRefused", "ChangeRefused")
        assert "Service fleet: " in message
        assert "hangs.e2e.multislo.dev" in message
        await fleets.runs(chat=1)
    finally:
        fleets.scene.kubectl("delete", "-f", "-", given=webhook)
        silent.close()
    await fleets.says("Ready", "Serving")


async def test_a_refused_service_is_told_and_the_fleet_is_made_without_it(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    bad = fleet(tiers=[CHAT])
    space = fleets.scene.namespace
    policy = POLICY.replace("NAME", f"no-{space}").replace("SPACE", space).replace("RESOURCES", "[services]")
    fleets.scene.kubectl("apply", "-f", "-", given=policy)
    try:
        fleets.scene.apply(bad)
        await fleets.runs(chat=1)
        message = await fleets.says("ChangeRefused", "ChangeRefused")
        assert message.startswith("Service fleet: "), message
    finally:
        fleets.scene.kubectl("delete", "-f", "-", given=policy)
    await fleets.says("Ready", "Serving")
    assert not [pod for pod in await fleets.engines("chat") if gated(pod)]
