"""Why pods do not serve: what scheduler, kubelet and admission say, in one word and in words, in every condition that it belongs to."""

from datetime import timedelta
from typing import Any

import pytest
from as_seen import AT, Json, deployment, pod
from cluster_life import Life

from multislo_operator.kubernetes import cache as caches
from multislo_operator.kubernetes.causes import Cause, asks_for_events, causes

SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-01T11:00:00Z"}
UNREADY = {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2026-11-01T11:00:00Z"}


def waiting(reason: str, message: str = "", **more: Any) -> Json:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": "engine", "image": "a/b:c", "ready": False, "state": state} | more


def ended(code: int, reason: str = "Error", message: str = "") -> Json:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def unscheduled(message: str) -> Json:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def on_node(*containers: Json, init: tuple[Json, ...] = ()) -> Json:
    return {"conditions": [SCHEDULED, UNREADY], "containerStatuses": [*containers], "initContainerStatuses": [*init]}


def stuck(status: Json, node: str | None = "n") -> Json:
    made = pod("p", ready=False, serving=False, status=status)
    made["spec"] = {"nodeName": node} if node else {}
    return made


def cause(status: Json, event: tuple[str, str] | None = None, node: str | None = "n") -> Cause | None:
    events = {} if event is None else {"uid-p": event}
    return causes({"p": stuck(status, node)}, {}, events, AT).pods.get("p")


RUNNING = {"name": "engine", "ready": False, "started": True, "state": {"running": {"startedAt": "2026-11-01T11:00:00Z"}}}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            "Unschedulable",
            "no node has room: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ),
        (
            unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}."),
            "Unschedulable",
            "untolerated taint {gpu: true}",
        ),
        (
            unscheduled('0/1 nodes are available: persistentvolumeclaim "weights" not found.'),
            "VolumePending",
            'persistentvolumeclaim "weights" not found',
        ),
        (
            unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
            "VolumePending",
            "unbound immediate PersistentVolumeClaims",
        ),
        (
            on_node(waiting("ImagePullBackOff", "Back-off pulling image: not found")),
            "ImagePullFailed",
            "container engine: its image a/b:c cannot be pulled: Back-off pulling image: not found",
        ),
        (on_node(waiting("InvalidImageName", "bad")), "ImagePullFailed", "bad"),
        (on_node(waiting("CreateContainerConfigError", 'secret "hf" not found')), "ConfigMissing", 'secret "hf" not found'),
        (
            on_node(waiting("CrashLoopBackOff", "back-off", restartCount=4, lastState=ended(3, message="a\nno flag --x\n\n"))),
            "Crashing",
            "container engine ended with exit code 3 (4 restarts): no flag --x",
        ),
        (
            on_node({**RUNNING, "started": False, "restartCount": 1, "lastState": ended(1)}),
            "Crashing",
            "container engine ended with exit code 1 (1 restart)",
        ),
        (
            on_node(waiting("CrashLoopBackOff", "back-off", restartCount=2, lastState=ended(137, "OOMKilled"))),
            "OutOfMemory",
            "container engine was killed for using more memory than its limit (2 restarts)",
        ),
        (on_node(waiting("RunContainerError", "exec: no such file")), "Crashing", "exec: no such file"),
        (
            on_node(waiting("PodInitializing"), init=({"name": "fetch", "state": ended(2, message="no network")},)),
            "InitFailing",
            "init container fetch ended with exit code 2: no network",
        ),
        (
            on_node(waiting("PodInitializing"), init=(waiting("ImagePullBackOff", "denied", name="fetch"),)),
            "ImagePullFailed",
            "init container fetch",
        ),
    ],
)  # fmt: skip
def test_a_pods_status_says_why_it_does_not_come_up(status: Json, reason: str, words: str) -> None:
    found = cause(status, node=None if "PodScheduled" in str(status) and "Unschedulable" in str(status) else "n")
    assert found is not None
    assert found.reason == reason
    assert words in found.message
    assert "\n" not in found.message


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (("FailedMount", 'MountVolume.SetUp failed for volume "keys" : secret "api-keys" not found'), "ConfigMissing"),
        (("FailedMount", 'MountVolume.SetUp failed for volume "c" : configmap "mine" not found'), "ConfigMissing"),
        (("FailedMount", 'MountVolume.SetUp failed for volume "k" : references non-existent secret key: a'), "ConfigMissing"),
        (("FailedAttachVolume", "Multi-Attach error for volume"), "VolumeNotMounted"),
        (("FailedCreatePodSandBox", "no network"), "FailedCreatePodSandBox"),
    ],
)  # fmt: skip
def test_what_only_the_kubelets_events_say_is_asked_for_and_told(event: tuple[str, str], reason: str) -> None:
    status = on_node(waiting("ContainerCreating"))
    assert asks_for_events(stuck(status), AT)
    assert cause(status) is None
    found = cause(status, event)
    assert found is not None
    assert (found.reason, found.message) == (reason, event[1])


def test_a_readiness_probe_that_never_passes_is_told_after_a_while_with_the_kubelets_words() -> None:
    status = on_node(RUNNING)
    found = cause(status, ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"))
    assert found is not None
    assert found.reason == "ProbeFailing"
    assert "statuscode: 503" in found.message
    soon = AT.replace(hour=11) + timedelta(seconds=20)
    assert not causes({"p": stuck(status)}, {}, {}, soon).pods
    assert not asks_for_events(stuck(status), soon)


@pytest.mark.parametrize(
    "status",
    [
        on_node({**RUNNING, "started": False}),  # It loads its model.
        on_node(waiting("ContainerCreating")),
        on_node(waiting("PodInitializing"), init=({"name": "i", "ready": False, "state": {"running": {}}},)),
        on_node(waiting("PodInitializing"), init=({"name": "i", "ready": True, "state": ended(0, "Completed")},)),
        {"conditions": []},
    ],
)
def test_a_pod_that_only_needs_its_time_has_no_cause(status: Json) -> None:
    assert cause(status) is None


def test_neither_ready_nor_gated_nor_leaving_pods_have_a_cause() -> None:
    crashed = [waiting("CrashLoopBackOff", lastState=ended(1))]
    ready = pod("a", status={"containerStatuses": crashed, "conditions": [{**UNREADY, "status": "True"}]})
    gated = pod("b", gated=True, ready=False, status=unscheduled("x"))
    leaving = pod("c", ready=False, metadata={"deletionTimestamp": "2026-11-01T11:00:00Z"}, status=on_node(*crashed))
    over = pod("d", ready=False, status=on_node(*crashed) | {"phase": "Failed"})
    made = {p["metadata"]["name"]: p for p in (ready, gated, leaving, over)}
    assert not causes(made, {}, {}, AT).pods


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "p" is forbidden: exceeded quota: small, requested: limits.memory=1Gi, used: 0, limited: 512Mi', "QuotaExceeded"),
        ('pods "p" is forbidden: failed quota: small: must specify limits.memory for: router', "QuotaExceeded"),
        ('pods "p" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi', "LimitRangeViolated"),
        ('pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', "PodSecurityRefused"),
        ('pods "p" is forbidden: unable to validate against any security context constraint: []', "PodSecurityRefused"),
        ('admission webhook "w" denied the request: no', "PodsRefused"),
    ],
)  # fmt: skip
def test_a_replica_set_that_may_make_no_pods_says_whose_rule_it_is(message: str, reason: str) -> None:
    made = deployment()
    made["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    ]
    found = causes({}, {"llama-batch": made}, {}, AT).why([], "llama-batch")
    assert found is not None
    assert found.reason == reason
    assert message in found.message
    made["status"]["conditions"][0]["status"] = "False"
    assert causes({}, {"llama-batch": made}, {}, AT).why([], "llama-batch") is None


def test_pods_with_one_trouble_are_named_together_and_no_more_than_five() -> None:
    pods = {}
    for number in range(8):
        pods[f"p{number}"] = stuck(unscheduled("0/1 nodes"), node=None)
    found = causes(pods, {}, {}, AT).why(pods, "d")
    assert found == Cause("Unschedulable", "p0, p1, p2, p3, p4 and 3 more: no node has room: 0/1 nodes")


# -- in the conditions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def life() -> Life:
    """Two tiers of one instance each, at rest."""
    life = Life(11)
    spec = life.spec
    for tier in spec["tiers"]:
        tier["instances"] = {"min": 1, "max": 4}
    spec["scaling"]["acceleratorsMax"] = 8
    life.edit(spec)
    life.converge(120)
    return life


def told(life: Life) -> dict[str, tuple[str, str, str]]:
    outcome = life.look()
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in outcome.status["conditions"]}


def spoil(life: Life, name: str, status: Json) -> None:
    """As the watch would show it."""
    known = life.cache.child(next(iter(life.cache.resources)), caches.POD, name)
    assert known is not None
    version = str(int(known["metadata"]["resourceVersion"]) + 1)
    spoiled = {**known, "metadata": {**known["metadata"], "resourceVersion": version}}
    life.cache.put(caches.POD, {**spoiled, "spec": {**known["spec"], "nodeName": "n"}, "status": status})


def test_a_tier_below_its_minimum_makes_the_fleet_not_ready_by_its_cause_once_in_events(life: Life) -> None:
    (victim,) = life.ready("batch")
    spoil(life, victim, on_node(waiting("CrashLoopBackOff", restartCount=5, lastState=ended(3, message="bad flag"))))

    outcomes = [life.look() for _ in range(5)]

    conditions = {c["type"]: c for c in outcomes[-1].status["conditions"]}
    for kind in ("Ready", "WorkloadsReady"):
        assert (conditions[kind]["status"], conditions[kind]["reason"]) == ("False", "Crashing")
        assert "batch 0 of 1" in conditions[kind]["message"]
        assert "exit code 3 (5 restarts): bad flag" in conditions[kind]["message"]
    row = next(row for row in outcomes[-1].status["tiers"] if row["name"] == "batch")
    assert "bad flag" in row["reason"]
    notes = [note for outcome in outcomes for note in outcome.notes if note.reason == "Crashing"]
    assert len(notes) == 1
    assert notes[0].warning


def test_an_extra_instance_that_finds_no_place_leaves_the_fleet_ready(life: Life) -> None:
    spec = life.spec
    for tier in spec["tiers"]:
        tier["instances"] = {"min": 2, "max": 4}
    life.edit(spec)
    life.converge(120)
    victim = life.ready("batch")[-1]
    spoil(life, victim, unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))
    for tier in spec["tiers"]:
        tier["instances"] = {"min": 1, "max": 4}
    life.edit(spec)

    conditions = told(life)

    assert conditions["Ready"][:2] == ("True", "Serving")
    assert conditions["WorkloadsReady"][0] == "True"
    assert conditions["ScalingReady"][:2] == ("False", "CapacityShort")
    assert "Insufficient nvidia.com/gpu" in conditions["ScalingReady"][2]
    assert victim in conditions["ScalingReady"][2]


def test_a_router_that_cannot_start_says_why_instead_of_only_that_it_is_not_ready(life: Life) -> None:
    key = next(iter(life.cache.resources))
    pods = life.cache.children[key][caches.POD]
    (router,) = [name for name, p in pods.items() if p["metadata"]["labels"].get("app.kubernetes.io/component") == "router"]  # fmt: skip
    spoil(life, router, on_node(waiting("ImagePullBackOff", "denied", name="router")))

    conditions = told(life)

    assert conditions["RouterReady"][:2] == ("False", "ImagePullFailed")
    assert conditions["Ready"][:2] == ("False", "ImagePullFailed")
    assert "container router: its image a/b:c cannot be pulled: denied" in conditions["Ready"][2]


def test_engines_that_hold_much_less_than_their_profile_says_are_told_of(life: Life) -> None:
    assert told(life)["ProfileReady"][1] == "ProfileLoaded"
    for router in life.routers.values():
        router.kv_tokens_max = 8192
    life.run(5.0)

    conditions = told(life)

    assert conditions["ProfileReady"][:2] == ("True", "ProfileDisagrees")
    assert "holds 141000 tokens" in conditions["ProfileReady"][2]
    assert "holds 8192" in conditions["ProfileReady"][2]
    assert conditions["Ready"][0] == "True"
