"""Each change is on its own: what the API server does not take keeps nothing else from being carried out. The real applier and cache before
a store that refuses what a test says."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from multislo_operator.kubernetes.apply import Applier
from multislo_operator.kubernetes.cache import DEPLOYMENT, POD, REPLICA_SET, RESOURCE, Cache
from multislo_operator.kubernetes.changes import Apply, Change, CreateSecret, DeletePod, PatchPod, Scale
from multislo_operator.kubernetes.client import Api, ApiError, Kind, NotFound, Refused, ServerFault, Unreachable
from multislo_operator.kubernetes.fleet_metrics import Outcome
from multislo_operator.kubernetes.names import FIELD_MANAGER, INSTANCE, MANAGED_BY, Key
from multislo_operator.kubernetes.obstacles import in_words
from multislo_operator.kubernetes.troubles import FAULTS_TOLD

KEY = Key("ns", "fleet")
LABELS = {INSTANCE: "fleet", MANAGED_BY: FIELD_MANAGER}
Json = dict[str, Any]
INVALID = Refused(422, "Invalid", 'Deployment "fleet-chat" is invalid: must be less than or equal to cpu limit of 1')


def child(kind: str, name: str, api_version: str = "v1", **more: Any) -> Json:
    owner = {"kind": "MultiSLOServing", "name": "fleet", "uid": "r", "controller": True}
    metadata = {"name": name, "namespace": "ns", "labels": LABELS, "ownerReferences": [owner]}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}


def deployment(tier: str, image: str = "a") -> Json:
    spec = {"template": {"metadata": {"labels": {"tier": tier}}, "spec": {"containers": [{"image": image}]}}}
    return child("Deployment", f"fleet-{tier}", "apps/v1", spec=spec)


@dataclass(slots=True)
class Store:
    """`refuses` is asked before each call: (verb, object or body, name)."""

    refuses: Callable[[str, Mapping[str, Any], str], Exception | None] = lambda verb, object, name: None
    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    taken: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    version: int = 100

    def _ask(self, verb: str, object: Mapping[str, Any], name: str) -> None:
        self.asked.append((verb, name))
        no = self.refuses(verb, object, name)
        if no is not None:
            raise no
        if not verb.startswith("try"):
            self.taken.append((verb, name))

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Json:
        try:
            return copy.deepcopy(self.objects[kind.name, name])
        except KeyError:
            raise NotFound(404, "NotFound", name) from None

    async def apply(self, object: Json, dry_run: bool = False) -> Json:
        kind, name = object["kind"], object["metadata"]["name"]
        self._ask("try" if dry_run else "apply", object, name)
        before = self.objects.get((kind, name), {"metadata": {"uid": f"uid {name}", "managedFields": []}})
        self.version += 1
        live = copy.deepcopy({**before, **object})
        live["metadata"] = {**before["metadata"], **object["metadata"], "resourceVersion": str(self.version)}
        if not dry_run:
            self.objects[kind, name] = live
        return live

    async def create(self, object: Json, dry_run: bool = False) -> Json:
        self._ask("try create" if dry_run else "create", object, object["metadata"]["name"])
        return object

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Json, style: str = "", subresource: str | None = None,
        verb: str = "patch",
    ) -> Json:  # fmt: skip
        self._ask(f"{verb} {subresource}" if subresource else verb, body, name)
        self.version += 1
        live = copy.deepcopy(self.objects[kind.name, name])
        live["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind.name, name] = live
        return live

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Json:
        self._ask("delete", {}, name)
        return {}


@dataclass(slots=True)
class Scene:
    store: Store
    cache: Cache
    applier: Applier
    notes: list[str] = field(default_factory=list)
    at: float = 0.0

    async def round(self, *changes: Change, after_s: float = 1.0) -> Outcome:
        self.at += after_s
        carried = await self.applier.carry_out(changes, self.at)
        self.notes += [f"{note.reason}: {note.message}" for note in carried.notes]
        return carried.outcome

    def told(self) -> str:
        return in_words(self.applier.obstacles().refused)

    def count(self, verb: str, name: str) -> int:
        return self.store.asked.count((verb, name))


@pytest.fixture
def scene() -> Scene:
    """A fleet that runs: two tiers, each with its Deployment, its ReplicaSet and a gated pod."""
    store, cache = Store(), Cache()
    resource = {"metadata": {"name": "fleet", "namespace": "ns", "uid": "r", "resourceVersion": "1"}, "spec": {}}
    cache.put(RESOURCE, resource)
    for tier in ("chat", "batch"):
        live = deployment(tier)
        live["spec"]["replicas"] = 1
        fields = {"f:spec": {"f:replicas": {}}}
        written = {"manager": FIELD_MANAGER, "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsV1": fields}
        live["metadata"] |= {"uid": f"uid fleet-{tier}", "resourceVersion": "2", "managedFields": [written]}
        owned = [{"uid": f"uid fleet-{tier}", "controller": True}]
        sets = child("ReplicaSet", f"fleet-{tier}-1", "apps/v1", spec={})
        sets["metadata"] |= {"uid": f"set {tier}", "resourceVersion": "3", "ownerReferences": owned}
        pod = child("Pod", f"fleet-{tier}-1-a", spec={"schedulingGates": [{"name": "multislo.dev/start"}]}, status={})
        pod["metadata"] |= {"uid": f"pod {tier}", "resourceVersion": "4"}
        for kind, object in ((DEPLOYMENT, live), (REPLICA_SET, sets), (POD, pod)):
            store.objects[kind.name, object["metadata"]["name"]] = object
            cache.put(kind, object)
    for kind in (DEPLOYMENT, REPLICA_SET, POD):
        cache.watched.add((kind, None))
    return Scene(store, cache, Applier(cast(Api, store), cache, KEY))


UNGATE = PatchPod("fleet-batch-1-a", "pod batch", annotations={"multislo.dev/started-at": "now"}, ungate=True)
RAISE = Scale("fleet-batch", 3, "")


async def test_a_refused_template_keeps_no_gate_no_count_and_no_other_child_waiting(scene: Scene) -> None:
    scene.store.refuses = lambda verb, object, name: INVALID if name == "fleet-chat" else None
    bad, good = Apply(deployment("chat", "b")), Apply(deployment("batch", "b"))
    service = Apply(child("Service", "fleet", spec={}))
    assert await scene.round(bad, UNGATE, RAISE, good, service) is Outcome.REFUSED
    assert scene.store.taken == [
        ("patch", "fleet-batch-1-a"),
        ("scale", "fleet-batch"),
        ("apply", "fleet-batch"),
        ("apply", "fleet"),
    ]
    assert scene.told() == f"Deployment fleet-chat: {INVALID.message}"


async def test_a_refusal_is_one_event_and_is_tried_again_at_growing_intervals_until_it_is_mended(scene: Scene) -> None:
    scene.store.refuses = lambda verb, object, name: INVALID if name == "fleet-chat" else None
    bad = Apply(deployment("chat", "b"))
    for _ in range(600):
        await scene.round(bad)
    assert len(scene.notes) == 1
    assert scene.notes[0] == f"ChangeRefused: Deployment fleet-chat: {INVALID.message}"
    assert 15 < scene.count("try", "fleet-chat") < 40
    scene.store.refuses = lambda verb, object, name: None
    assert await scene.round(bad, after_s=31.0) is Outcome.DONE
    assert scene.told() == ""


async def test_a_mended_manifest_is_tried_at_once(scene: Scene) -> None:
    def refuses(verb: str, object: Mapping[str, Any], name: str) -> Exception | None:
        images = str(object)
        return INVALID if "'bad'" in images else None

    scene.store.refuses = refuses
    for _ in range(100):
        await scene.round(Apply(deployment("chat", "bad")))
    assert await scene.round(Apply(deployment("chat", "good")), after_s=0.2) is Outcome.DONE
    assert scene.told() == ""


@pytest.mark.parametrize(
    "error",
    [
        ServerFault("the API server answers 500 InternalError: failed calling webhook"),
        Refused(403, "Forbidden", "exceeded quota"),
        Refused(400, "BadRequest", "unmarshal number into string"),
        NotFound(404, "NotFound", "the server could not find the requested resource"),
        KeyError("an answer that nobody expects"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "api_version"),
    [
        ("Service", "v1"),
        ("PodDisruptionBudget", "policy/v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
        ("Role", "rbac.authorization.k8s.io/v1"),
    ],
)
async def test_no_kind_holds_up_another(scene: Scene, kind: str, api_version: str, error: Exception) -> None:
    scene.store.refuses = lambda verb, object, name: error if name == "refused" else None
    refused = Apply(child(kind, "refused", api_version))
    for _ in range(40):
        await scene.round(refused, UNGATE, RAISE, Apply(deployment("chat", "b")))
    assert ("apply", "fleet-chat") in scene.store.taken
    assert ("scale", "fleet-batch") in scene.store.taken
    assert scene.told().startswith(f"{kind} refused: ")
    assert len(scene.notes) == 1


@pytest.mark.parametrize("kind", ["ConfigMap", "ServiceAccount", "Secret"])
async def test_no_pod_is_started_on_a_configuration_that_was_refused(scene: Scene, kind: str) -> None:
    scene.store.refuses = lambda verb, object, name: INVALID if name == "refused" else None
    refused = child(kind, "refused")
    change = CreateSecret(refused) if kind == "Secret" else Apply(refused)
    for _ in range(5):
        await scene.round(UNGATE, change, Apply(deployment("chat", "b")), Apply(child("Service", "fleet")))
    assert ("apply", "fleet-chat") not in scene.store.taken
    assert ("apply", "fleet") in scene.store.taken
    assert ("patch", "fleet-batch-1-a") in scene.store.taken


async def test_pods_whose_changes_are_refused_hold_up_no_others_and_are_named_together(scene: Scene) -> None:
    refusal = Refused(403, "Forbidden", "denied by policy")
    scene.store.refuses = lambda verb, object, name: refusal if name.startswith("bad") else None
    patches = [PatchPod(f"bad-{n}", f"u{n}", annotations={"a": "b"}) for n in range(6)]
    await scene.round(*patches, DeletePod("bad-9", "u9", "drained"), UNGATE)
    assert scene.store.taken == [("patch", "fleet-batch-1-a")]
    assert scene.told() == "Pod bad-0, Pod bad-1, Pod bad-2, Pod bad-3, and 3 more: denied by policy"
    await scene.round(UNGATE)
    assert scene.told() == ""


async def test_a_fault_of_the_server_is_told_when_it_lasts(scene: Scene) -> None:
    fault = ServerFault("the API server answers 500 InternalError: failed calling webhook")
    scene.store.refuses = lambda verb, object, name: fault if name == "fleet-chat" else None
    change = Apply(deployment("chat", "b"))
    for tried in range(FAULTS_TOLD):
        assert scene.told() == ""
        assert not scene.notes
        await scene.round(change, after_s=60.0)
        assert scene.count("try", "fleet-chat") == tried + 1
    assert "failed calling webhook" in scene.told()
    assert len(scene.notes) == 1


async def test_while_nobody_answers_nothing_more_is_asked_in_that_round_and_each_gets_its_turn(scene: Scene) -> None:
    scene.store.refuses = lambda verb, object, name: Unreachable("no answer in time") if name == "slow" else None
    slow, service = Apply(child("Service", "slow")), Apply(child("Service", "fleet"))
    await scene.round(slow, service)
    assert scene.store.taken == []
    await scene.round(slow, service, after_s=0.1)
    assert scene.store.taken == [("apply", "fleet")]


async def test_a_policy_that_refuses_every_write_of_a_deployment_does_not_stop_its_scaling(scene: Scene) -> None:
    denied = Refused(422, "Invalid", "ValidatingAdmissionPolicy 'strict' denied request")

    def refuses(verb: str, object: Mapping[str, Any], name: str) -> ApiError | None:
        return denied if name.startswith("fleet-") and verb in ("try", "apply", "scale") else None

    scene.store.refuses = refuses
    assert await scene.round(RAISE, Apply(deployment("batch", "b"))) is Outcome.REFUSED
    assert scene.store.taken == [("scale scale", "fleet-batch")]
    assert scene.told() == f"Deployment fleet-batch: {denied.message}"


# -- the dry run -----------------------------------------------------------------------------------------------------------------


async def test_a_template_whose_pods_would_be_refused_is_not_applied(scene: Scene) -> None:
    violates = Refused(
        403, "Forbidden", 'pods "fleet-chat-dry-run" is forbidden: violates PodSecurity "restricted:latest"'
    )
    tried: list[Mapping[str, Any]] = []

    def refuses(verb: str, object: Mapping[str, Any], name: str) -> ApiError | None:
        if verb != "try create":
            return None
        tried.append(object)
        return violates

    scene.store.refuses = refuses
    await scene.round(Apply(deployment("chat", "b")))
    assert scene.store.taken == []
    assert scene.told() == f"Deployment fleet-chat: a pod of its new template is refused: {violates.message}"
    (pod,) = tried
    assert pod["metadata"]["labels"] == {"tier": "chat"}
    assert pod["metadata"]["ownerReferences"][0]["uid"] == "set chat"
    assert pod["spec"] == {"containers": [{"image": "b"}]}


@pytest.mark.parametrize(
    "no",
    [
        Refused(403, "Forbidden", 'pods is forbidden: User "op" cannot create resource "pods" in API group ""'),
        Refused(400, "BadRequest", 'admission webhook "w" does not support dry run'),
    ],
)
async def test_where_pods_cannot_be_tried_the_template_is_applied(scene: Scene, no: ApiError) -> None:
    scene.store.refuses = lambda verb, object, name: no if verb == "try create" else None
    assert await scene.round(Apply(deployment("chat", "b"))) is Outcome.DONE
    assert scene.store.taken == [("apply", "fleet-chat")]


async def test_what_leaves_the_template_as_it_is_tries_no_pod(scene: Scene) -> None:
    relabelled = deployment("chat")
    relabelled["metadata"] = {**relabelled["metadata"], "labels": {**LABELS, "app.kubernetes.io/version": "2"}}
    await scene.round(Apply(relabelled))
    assert scene.store.asked == [("try", "fleet-chat"), ("apply", "fleet-chat")]
