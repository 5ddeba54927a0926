"""A life of one resource on the toy cluster: the real cache, reconcile and applier between lagging watches, toy routers and all that may
happen to a fleet; with what must hold at every moment. Used by the stories in `test_cluster_lives`."""

import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import cluster_model as model
from cluster_model import (
    BROKEN,
    DEPLOYMENT,
    EPOCH,
    POD,
    REPLICA_SET,
    Cluster,
    Json,
    component,
    copied,
    is_gated,
    is_terminating,
)
from router_model import Router

from multislo_api.fleet import InstanceList
from multislo_operator.kubernetes import cache as caches
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.apply import Applier
from multislo_operator.kubernetes.changes import Apply, CreateSecret, Note
from multislo_operator.kubernetes.client import Api, Kind, Refused, ServerFault, Unreachable
from multislo_operator.kubernetes.pods import NODE_LOST_S
from multislo_operator.kubernetes.reconcile import OperatorSettings, Outcome, ResourceMemory, reconcile
from multislo_operator.kubernetes.seen import RouterSeen
from multislo_operator.kubernetes.workloads import OUTSIDE_KEPT_S

KEY = names.Key("serving", "llama")
SETTINGS = OperatorSettings(key=b"k" * 32, image="multislo:test", namespace="multislo-system", version="1")
KINDS = {
    DEPLOYMENT: caches.DEPLOYMENT,
    REPLICA_SET: caches.REPLICA_SET,
    POD: caches.POD,
    **{name: Kind("v1", name) for name in ("ConfigMap", "Service", "ServiceAccount")},
    "PodDisruptionBudget": Kind("policy/v1", "PodDisruptionBudget"),
    "NetworkPolicy": Kind("networking.k8s.io/v1", "NetworkPolicy"),
}
MANIFEST: Json = {
    "apiVersion": "multislo.dev/v1alpha1",
    "kind": "MultiSLOServing",
    "metadata": {"name": "llama", "namespace": "serving", "uid": "resource-1", "generation": 1, "resourceVersion": "1"},
    "spec": {
        "model": {"name": "llama"},
        "profile": "llama-3.1-8b-h100-third-tp1",
        "engine": {"type": "Emulated", "emulation": {"startup": "3s"}},
        "tiers": [
            {"name": "realtime", "slo": {"ttft": "300ms", "tpot": "25ms"}, "instances": {"min": 1, "max": 4}},
            {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 1, "max": 4}},
        ],
        "router": {"replicas": 1},
        "scaling": {
            "acceleratorsMax": 6,
            "warmPool": {"min": 0, "max": 0},
            "scaleDown": {"stabilization": "6s", "drainTimeout": "20s"},
        },
    },
}
DRAIN_TIMEOUT_S = 20.0
BULK: Json = {"name": "bulk", "slo": {"ttft": "5s", "tpot": "200ms"}, "instances": {"min": 1, "max": 2}}


class Crash(BaseException):
    """The operator dies in the middle of a round."""


@dataclass(slots=True)
class FakeApi:
    """The calls that the applier makes, on the toy cluster. Between two of them time passes, and the operator may die."""

    life: "Life"
    policy: Callable[[Mapping[str, Any]], str | None] = lambda object: None
    """Why an object, or a patch of one, is refused."""
    writes: list[str] = field(default_factory=list)

    def _call(self, what: str) -> None:
        life = self.life
        if life.dice.random() < life.crash_share:
            raise Crash
        if life.dice.random() < life.failure_share:
            failure = life.dice.choice(
                (Unreachable("no answer"), ServerFault("a fault"), Refused(422, "Invalid", "no"))
            )
            raise failure
        if life.dice.random() < 0.5:
            life.pass_time(life.dice.uniform(0.0, 0.1))
        self.writes.append(what)

    def _judge(self, object: Mapping[str, Any]) -> None:
        refusal = self.policy(object)
        if refusal is not None:
            raise Refused(422, "Invalid", refusal)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Json:
        return copied(self.life.cluster.get(kind.name, name))

    async def apply(self, object: Mapping[str, Any], dry_run: bool = False) -> Json:
        self._judge(object)
        if dry_run:
            return copied(object)
        self._call(f"apply {object['kind']} {object['metadata']['name']}")
        return self.life.cluster.apply(cast(Json, object), names.FIELD_MANAGER)

    async def create(self, object: Mapping[str, Any], dry_run: bool = False) -> Json:
        if dry_run:
            return copied(object)
        self._call(f"create {object['kind']}")
        return self.life.cluster.create(object["kind"], cast(Json, object))

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Json, style: str = "", subresource: str | None = None,
        verb: str = "patch",
    ) -> Json:  # fmt: skip
        self._call(f"patch {kind.name} {name} {body}")
        cluster = self.life.cluster
        if kind == caches.POD:
            answer = cluster.patch_pod(name, body, subresource == "status")
            self.life.patched(answer, body)
            return answer
        if "spec" not in body:
            annotations = body["metadata"]["annotations"]
            return cluster.write(
                DEPLOYMENT, name, lambda live: live["metadata"].setdefault("annotations", {}).update(annotations)
            )
        version = (body.get("metadata") or {}).get("resourceVersion")
        return cluster.set_replicas(name, body["spec"]["replicas"], names.FIELD_MANAGER, version)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Json:
        self._call(f"delete {kind.name} {name}")
        thing = self.life.cluster.get(kind.name, name)
        assert uid in (None, thing["metadata"]["uid"])
        self.life.cluster.delete(kind.name, name, "operator")
        return {}


def driven(work: Coroutine[Any, Any, Any]) -> Any:
    """Nothing in it ever waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class Broken(AssertionError):
    """What must always hold, and did not."""


@dataclass(slots=True)
class Life:
    seed: int
    dice: random.Random = field(init=False)
    cluster: Cluster = field(init=False)
    resource: Json = field(init=False)
    api: FakeApi = field(init=False)
    cache: caches.Cache = field(init=False)
    applier: Applier = field(init=False)
    memory: ResourceMemory = field(init=False)
    heard: dict[str, RouterSeen] = field(default_factory=dict)
    routers: dict[str, Router] = field(default_factory=dict)
    mail: list[tuple[float, str, InstanceList]] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    """Requests a second, by tier."""
    crash_share: float = 0.0
    failure_share: float = 0.0
    down_until: float = 0.0
    look_at: float = 0.0
    ask_at: float = 0.0
    outcome: Outcome | None = None
    pinned: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Replicas that somebody else has set, by Deployment, and until when they are kept."""
    loosened: dict[str, float] = field(default_factory=dict)
    """Deployments that somebody else has edited, and until when their pods may go by that."""
    moved: dict[str, float] = field(default_factory=dict)
    let_go_before: int = 0
    journal: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    """The events of all looks."""
    stepping: bool = False

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.cluster = Cluster(random.Random(self.seed + 1))
        self.cluster.busy = self.requests_on
        self.cluster.told = lambda pod: pod in self.routers and self.routers[pod].generation > 0
        self.cluster.on_delete = self._on_delete
        self.resource = model.copied(MANIFEST)
        self.api = FakeApi(self)
        self.start_operator()

    # -- the operator --------------------------------------------------------------------------------------------------

    def start_operator(self) -> None:
        """With nothing but what the API server holds."""
        self.cache = caches.Cache()
        self.cache.watched.update(KINDS.values())
        self.cache.put(caches.RESOURCE, self.resource)
        for name, kind in KINDS.items():
            self.cache.replace(kind, None, self.cluster.all(name))
            self.cluster.streams.setdefault(name, model.Stream()).waiting.clear()
        self.applier = Applier(cast(Api, self.api), self.cache, KEY)
        self.memory = ResourceMemory()
        self.heard = {}

    def look(self) -> Outcome:
        at = datetime.fromtimestamp(EPOCH + self.cluster.now, UTC)
        seen = self.cache.seen(KEY)
        assert seen is not None
        outcome = reconcile(seen, self.heard, self.memory, SETTINGS, at, self.cluster.now)
        self.outcome, self.memory = outcome, outcome.memory
        for pod in [pod for pod in self.heard if pod not in outcome.routers]:
            del self.heard[pod]
        for pod in outcome.routers:
            self.heard.setdefault(pod, RouterSeen(pod))
        for pod, fleet in outcome.instances.items():
            self.mail.append((self.cluster.now + self.dice.choice((0.0, 0.02, 0.2, 0.6)), pod, fleet))
        self.note(outcome)
        carried = driven(self.applier.carry_out(outcome.changes, self.cluster.now))
        self.memory = replace(self.memory, obstacles=self.applier.obstacles())
        self.look_at = self.cluster.now + min(outcome.wake_in_s, carried.again_in_s or outcome.wake_in_s)
        status = model.copied(dict(outcome.status))
        self.resource = {**self.resource, "status": {**(self.resource.get("status") or {}), **status}}
        return outcome

    def note(self, outcome: Outcome) -> None:
        self.notes += outcome.notes
        for change in self.asked(outcome):
            self.say(f"operator: {change}")

    @staticmethod
    def asked(outcome: Outcome) -> list[Any]:
        """What it asks for besides the children."""
        return [change for change in outcome.changes if not isinstance(change, (Apply, CreateSecret))]

    def patched(self, pod: Json, body: Json) -> None:
        name = pod["metadata"]["name"]
        if names.TIER in ((body.get("metadata") or {}).get("labels") or {}):
            self.moved[name] = self.cluster.now
        self.check()

    # -- time ----------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = self.cluster.now + seconds
        while self.cluster.now < end:
            self.step()

    def step(self) -> None:
        self.pass_time(self.dice.uniform(0.1, 0.4))
        if self.cluster.now < self.down_until:
            return
        if self.down_until:
            self.down_until = 0.0
            self.start_operator()
        woken = self._watch()
        self._ask()
        if self.cluster.now >= self.look_at or (woken and self.dice.random() < 0.7):
            try:
                self.look()
            except Crash:
                self.say("the operator dies")
                self.down_until = self.cluster.now + self.dice.choice((0.1, 2.0, 15.0))
            self.check()

    def pass_time(self, seconds: float) -> None:
        if self.stepping or seconds <= 0.0:
            return
        self.stepping = True
        self.cluster.advance(seconds)
        self._routers(seconds)
        self.check()
        self.stepping = False

    def _watch(self) -> bool:
        woken = False
        for name, kind in KINDS.items():
            for there, thing in self.cluster.seen(name):
                woken = True
                (self.cache.put if there else self.cache.drop)(kind, thing)
        return woken

    def _ask(self) -> None:
        if self.cluster.now < self.ask_at:
            return
        self.ask_at = self.cluster.now + self.dice.uniform(0.8, 1.1)
        for pod, seen in self.heard.items():
            if pod in self.routers and self.dice.random() > 0.02:
                self.heard[pod] = RouterSeen(pod, self.routers[pod].snapshot(self.cluster.now), self.cluster.now)
            else:
                self.heard[pod] = RouterSeen(pod, seen.snapshot, seen.at, "no answer")

    def _routers(self, seconds: float) -> None:
        now = self.cluster.now
        pods = {pod["metadata"]["name"]: pod for pod in self.cluster.all(POD)}
        doors = {name: pod for name, pod in pods.items() if component(pod) == names.ROUTER and "podIP" in pod["status"]}
        self.routers = {name: router for name, router in self.routers.items() if name in doors}
        for name in doors.keys() - self.routers.keys():
            tiers = tuple(tier["name"] for tier in self.resource["spec"]["tiers"])
            self.routers[name] = Router(random.Random(self.dice.random()), tiers, now)
        due = [letter for letter in self.mail if letter[0] <= now]
        self.mail = [letter for letter in self.mail if letter[0] > now]
        for _, name, fleet in sorted(due, key=lambda letter: letter[0]):
            if name in self.routers:
                self.routers[name].tell(fleet)
        up = {
            name
            for name, pod in pods.items()
            if component(pod) == names.ENGINE
            and "podIP" in pod["status"]
            and model.is_true(pod, "ContainersReady")
            and name not in self.cluster.lost
        }
        open_ = [name for name, pod in doors.items() if model.is_true(pod, "Ready") and not is_terminating(pod)]
        arrived: dict[str, dict[str, int]] = {name: {} for name in self.routers}
        for tier, rate in self.rates.items():
            expected = rate * seconds
            count = int(expected) + (self.dice.random() < expected % 1.0)
            for _ in range(count if open_ else 0):
                name = self.dice.choice(open_)
                self.routers[name].arrive(tier, now)
                arrived[name][tier] = arrived[name].get(tier, 0) + 1
        for name, router in self.routers.items():
            router.step(now, seconds, up, arrived[name])

    def requests_on(self, pod: str) -> int:
        if pod in self.routers:
            return self.routers[pod].requests
        return sum(len(router.held.get(pod, ())) for router in self.routers.values())

    # -- what must hold ------------------------------------------------------------------------------------------------

    def engines(self, tier: str | None = None) -> list[Json]:
        pods = [pod for pod in self.cluster.all(POD) if component(pod) == names.ENGINE]
        return [pod for pod in pods if tier in (None, pod["metadata"]["labels"].get(names.TIER))]

    def ready(self, tier: str) -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in self.engines(tier)
            if model.is_true(pod, "ContainersReady") and not is_terminating(pod)
        ]

    def check(self) -> None:
        now, cluster = self.cluster.now, self.cluster
        away = {**{name: now - at for name, at in cluster.lost.items()}, **cluster.found}
        gone = {
            name for name, seconds in away.items() if seconds >= NODE_LOST_S - 1.0
        }  # Conditions tell whole seconds.
        let_go = sum(not is_gated(pod) and pod["metadata"]["name"] not in gone for pod in self.engines())
        budget = self.resource["spec"]["scaling"]["acceleratorsMax"]
        if let_go > max(budget, self.let_go_before):
            raise Broken(self._told(f"{let_go} instances hold accelerators, the budget is {budget}"))
        self.let_go_before = let_go
        most = sum(tier["instances"]["max"] for tier in self.resource["spec"]["tiers"]) + 10
        alive = [pod for pod in self.engines() if not is_terminating(pod)]
        if len(alive) > max(most, budget + 10):
            raise Broken(self._told(f"{len(alive)} engine pods"))
        for name, (replicas, until) in list(self.pinned.items()):
            if now >= until or name not in cluster.objects[DEPLOYMENT]:
                del self.pinned[name]
            elif cluster.get(DEPLOYMENT, name)["spec"]["replicas"] != replicas:
                raise Broken(self._told(f"replicas of {name} were set to {replicas} by somebody else"))

    def _on_delete(self, pod: Json, cause: str) -> None:
        name = pod["metadata"]["name"]
        self.say(f"{name} is deleted by {cause}, {self.requests_on(name)} requests on it")
        if component(pod) != names.ENGINE or cause == "outside":
            return
        now = self.cluster.now
        tier = pod["metadata"]["labels"][names.TIER]
        if now < self.loosened.get(names.engines_of("llama", tier), 0.0):
            return
        ready = model.condition(pod, "Ready")
        since_s = now - (datetime.fromisoformat(ready["lastTransitionTime"]).timestamp() - EPOCH) if ready else 0.0
        if (ready.get("status") != "True" or since_s < 4.0) and self._is_superseded(pod):
            return  # A new template came before the controller knew that it was ready; it ends its requests in its grace period.
        since = (pod["metadata"].get("annotations") or {}).get(names.DRAINING_SINCE)
        drained = since is not None and EPOCH + now - datetime.fromisoformat(since).timestamp() >= DRAIN_TIMEOUT_S - 1.1
        if self.requests_on(name) and not drained:
            raise Broken(self._told(f"{name} is deleted by {cause} with {self.requests_on(name)} requests on it"))
        if since is None and now - self.moved.get(name, -1e9) < 5.0:
            raise Broken(self._told(f"{name} has only just been moved to {tier} and is deleted by {cause}"))

    def _is_superseded(self, pod: Json) -> bool:
        deployment = self.cluster.objects[DEPLOYMENT].get(
            names.engines_of("llama", pod["metadata"]["labels"][names.TIER])
        )
        if deployment is None:
            return True
        template = deployment["spec"]["template"]["metadata"]["annotations"]
        return any(pod["metadata"]["annotations"].get(key) != template.get(key) for key in ("test/image", BROKEN))

    def say(self, what: str) -> None:
        self.journal.append(f"{self.cluster.now:8.2f} {what}")

    def _told(self, what: str) -> str:
        return (
            f"seed {self.seed}, at {self.cluster.now:.2f}: {what}\n"
            + "\n".join(self.journal[-60:])
            + "\n"
            + self.scene()
        )

    def scene(self) -> str:
        lines = [f"{d['metadata']['name']} replicas {d['spec']['replicas']}" for d in self.cluster.all(DEPLOYMENT)]
        lines += [
            f"  {s['metadata']['name']} {s['spec']['replicas']} {s['status']}" for s in self.cluster.all(REPLICA_SET)
        ]
        for pod in self.cluster.all(POD):
            meta = pod["metadata"]
            own = {key.split("/")[-1]: value for key, value in (meta.get("annotations") or {}).items() if "/" in key}
            for dull in ("batch-tokens", "default-container", "config-hash", "started-at"):
                own.pop(dull, None)
            flags = [c["type"] + ("" if c["status"] == "True" else "-") for c in pod["status"].get("conditions", ())]
            gone = " terminating" if is_terminating(pod) else ""
            gated = " gated" if is_gated(pod) else ""
            owned = "" if model.owner(pod) else " ORPHAN"
            requests = self.requests_on(meta["name"])
            lines.append(f"    {meta['name']}{gated}{gone}{owned} {own} {' '.join(flags)} requests {requests}")
        return "\n".join(lines)

    # -- what happens --------------------------------------------------------------------------------------------------

    def edit(self, spec: Json) -> None:
        """The manifest, as a user would apply it."""
        self.say(f"manifest: {spec}")
        metadata = {**self.resource["metadata"]}
        metadata["generation"] += 1
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        self.resource = {**self.resource, "metadata": metadata, "spec": model.copied(spec)}
        kept = {names.engines_of("llama", tier["name"]) for tier in spec["tiers"]}
        self.pinned = {name: pin for name, pin in self.pinned.items() if name in kept}
        self.cache.put(caches.RESOURCE, self.resource)

    @property
    def spec(self) -> Json:
        return cast(Json, model.copied(self.resource["spec"]))

    def set_template(self, **annotations: str) -> None:
        spec = self.spec
        spec["engine"]["podTemplate"] = {"metadata": {"annotations": annotations}}
        self.edit(spec)

    def set_outside(self, deployment: str, replicas: int) -> None:
        self.say(f"kubectl scale {deployment} {replicas}")
        before = self.cluster.get(DEPLOYMENT, deployment)["spec"]["replicas"]
        if before == replicas:
            return
        self.cluster.set_replicas(deployment, replicas, "kubectl")
        # Times in managed fields are whole seconds.
        self.pinned[deployment] = (replicas, self.cluster.now + OUTSIDE_KEPT_S - 2.0)
        self.loosened[deployment] = self.cluster.now + 60.0

    def converge(self, within_s: float) -> None:
        """Nothing disturbs it any more: the minima are reached, and then nothing is asked for."""
        end = self.cluster.now + within_s
        self.crash_share = self.failure_share = 0.0
        self.cluster.eagerness = 0.95
        calm_since = self.cluster.now
        while self.cluster.now < end:
            self.step()
            writes = [w for w in self.api.writes if not w.startswith("apply")]
            self.api.writes.clear()
            if writes or self.cluster.now < self.down_until or not self.is_settled():
                calm_since = self.cluster.now
            elif self.cluster.now - calm_since > 10.0:
                assert self.outcome is not None
                assert self.asked(self.outcome) == []
                return
        raise Broken(self._told(f"no rest within {within_s:.0f} s; status {self.outcome and self.outcome.status}"))

    def is_settled(self) -> bool:
        """Every tier has its minimum, every pod its owner, and every Deployment what its replicas ask for."""
        for tier in self.resource["spec"]["tiers"]:
            name = names.engines_of("llama", tier["name"])
            least = self.pinned[name][0] if name in self.pinned else tier["instances"]["min"]
            if len(self.ready(tier["name"])) < least:
                return False
        if any(model.owner(pod) is None or is_gated(pod) for pod in self.engines()):
            return False
        wanted = {names.engines_of("llama", tier["name"]) for tier in self.resource["spec"]["tiers"]}
        for deployment in self.cluster.all(DEPLOYMENT):
            if component(deployment) != names.ENGINE:
                continue
            tier = deployment["metadata"]["labels"][names.TIER]
            if len(self.ready(tier)) != deployment["spec"]["replicas"]:
                return False
            if deployment["metadata"]["name"] not in wanted and tier != names.WARM:
                return False
        return True
