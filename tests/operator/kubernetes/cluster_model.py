"""A toy of what Kubernetes does with the operator's changes: the API server's store with conflicts and lagging watches, the Deployment
and ReplicaSet controllers (rules of Kubernetes 1.36), the scheduler and kubelets. Used by the lives in `cluster_life`.

Every controller acts on the truth, but late: each step runs a random part of them. `delete` tells `on_delete` who wanted it.
"""

import hashlib
import json
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from multislo_operator.kubernetes.client import AlreadyExists, Conflict, NotFound
from multislo_operator.kubernetes.names import (
    ASKED_AGAIN_AT,
    COMPONENT,
    DELETION_COST,
    ENGINE,
    ROUTER,
    SERVING,
    START_GATE,
)

Json = dict[str, Any]
EPOCH = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
DEPLOYMENT, REPLICA_SET, POD = "Deployment", "ReplicaSet", "Pod"
HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED, MAXIMUM = "deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas"
BROKEN = "test/broken"
"""Annotation of a pod whose image cannot be pulled."""
SURGE = 1
BACK_OFF_S = 900.0
"""Until a ReplicaSet's controller asks for refused pods again by itself, at worst."""


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, -1))


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(EPOCH + at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(pod: Json, type: str) -> Json:
    return next((c for c in pod["status"].get("conditions") or () if c["type"] == type), {})


def is_true(pod: Json, type: str) -> bool:
    return condition(pod, type).get("status") == "True"


def is_gated(pod: Json) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def is_terminating(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def owner(thing: Json) -> str | None:
    return next((o["uid"] for o in thing["metadata"].get("ownerReferences") or () if o.get("controller")), None)


def component(thing: Json) -> str | None:
    return (thing["metadata"].get("labels") or {}).get(COMPONENT)


@dataclass(slots=True)
class Stream:
    """One watch: what it has not delivered yet, and how late it is."""

    lag_s: float = 0.05
    waiting: list[tuple[float, bool, Json]] = field(default_factory=list)


@dataclass(slots=True)
class Cluster:
    dice: random.Random
    accelerators: int = 16
    now: float = 0.0
    busy: Callable[[str], int] = lambda pod: 0
    """Requests on an engine, or relayed by a router."""
    told: Callable[[str], bool] = lambda pod: True
    """Whether a router has been told its fleet."""
    on_delete: Callable[[Json, str], None] = lambda pod, cause: None
    objects: dict[str, dict[str, Json]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    start_s: tuple[float, float] = (1.0, 4.0)
    stop_s: tuple[float, float] = (0.5, 3.0)
    finish_s: float = 20.0
    lost: dict[str, float] = field(default_factory=dict)
    """Pods whose node has fallen silent, and when the node controller said so: no kubelet does anything for them."""
    quota: Callable[[Json], str | None] = lambda pod: None
    """Why a pod may not be made."""
    refused: dict[str, tuple[str, float, str]] = field(default_factory=dict)
    """By ReplicaSet: the words, when, and what its Deployment's annotation was then."""
    found: dict[str, float] = field(default_factory=dict)
    """Those whose node is back, and how long it was away."""
    eagerness: float = 0.8
    """Share of the steps in which a controller gets to run."""
    _version: int = 0
    _born: int = 0
    _timers: dict[tuple[str, str], float] = field(default_factory=dict)

    # -- the API server ------------------------------------------------------------------------------------------------

    def all(self, kind: str) -> list[Json]:
        return list(self.objects.get(kind, {}).values())

    def get(self, kind: str, name: str) -> Json:
        try:
            return self.objects[kind][name]
        except KeyError:
            raise NotFound(404, "NotFound", f"{kind} {name}") from None

    def create(self, kind: str, thing: Json) -> Json:
        name = thing["metadata"]["name"]
        if name in self.objects.setdefault(kind, {}):
            raise AlreadyExists(409, "AlreadyExists", f"{kind} {name}")
        self._born += 1
        made: Json = copied(thing)
        made["metadata"] |= {"uid": f"uid-{self._born}", "generation": 1, "creationTimestamp": rfc3339(self.now)}
        made["metadata"].setdefault("namespace", "serving")
        made.setdefault("status", {})
        return self._store(kind, made)

    def write(self, kind: str, name: str, change: Callable[[Json], None]) -> Json:
        before = self.get(kind, name)
        after = copied(before)
        change(after)
        if after == before:
            return before
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] += 1
        return self._store(kind, after)

    def remove(self, kind: str, name: str) -> None:
        gone = self.objects[kind].pop(name)
        self._version += 1
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self._version)}}
        self._tell(kind, False, gone)

    def delete(self, kind: str, name: str, cause: str) -> None:
        thing = self.get(kind, name)
        if kind != POD:
            self.remove(kind, name)
            return
        if is_terminating(thing):
            return
        self.on_delete(thing, cause)
        if "nodeName" not in thing["spec"]:
            self.remove(kind, name)
            return
        self.write(kind, name, lambda pod: pod["metadata"].update(deletionTimestamp=rfc3339(self.now)))
        self._timers["term", thing["metadata"]["uid"]] = self.now

    def apply(self, thing: Json, manager: str) -> Json:
        """Server-side apply by force. Of who owns what, only the replicas are kept."""
        kind, name = thing["kind"], thing["metadata"]["name"]
        if name not in self.objects.get(kind, {}):
            made = copied(thing)
            if kind == DEPLOYMENT:
                made["metadata"]["managedFields"] = self._owned(manager) if "replicas" in made["spec"] else []
                made["spec"].setdefault("replicas", 1)
            return self.create(kind, made)

        def change(live: Json) -> None:
            for key, value in thing.items():
                if key == "metadata":
                    for part in ("labels", "annotations"):
                        live["metadata"].setdefault(part, {}).update(value.get(part) or {})
                elif key == "spec" and kind == DEPLOYMENT:
                    replicas = value.get("replicas", live["spec"]["replicas"])
                    live["spec"] = {**copied(value), "replicas": replicas}
                else:
                    live[key] = copied(value)

        return self.write(kind, name, change)

    def set_replicas(self, name: str, replicas: int, manager: str, version: str | None = None) -> Json:
        live = self.get(DEPLOYMENT, name)
        if version and live["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "Conflict", f"Deployment {name} has been modified")
        if live["spec"]["replicas"] == replicas:
            return live

        def change(deployment: Json) -> None:
            deployment["spec"]["replicas"] = replicas
            deployment["metadata"]["managedFields"] = self._owned(manager)

        return self.write(DEPLOYMENT, name, change)

    def _owned(self, manager: str) -> list[Json]:
        fields = {"f:spec": {"f:replicas": {}}}
        return [{"manager": manager, "operation": "Update", "time": rfc3339(self.now), "fieldsV1": fields}]

    def _store(self, kind: str, thing: Json) -> Json:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        self.objects[kind][thing["metadata"]["name"]] = thing
        self._tell(kind, True, thing)
        return thing

    def _tell(self, kind: str, there: bool, thing: Json) -> None:
        self.streams.setdefault(kind, Stream()).waiting.append((self.now, there, thing))

    def seen(self, kind: str) -> Iterator[tuple[bool, Json]]:
        """What its watch delivers by now: (whether it is there, object)."""
        stream = self.streams.setdefault(kind, Stream())
        while stream.waiting and stream.waiting[0][0] + stream.lag_s <= self.now:
            _, there, thing = stream.waiting.pop(0)
            yield there, thing

    # -- everybody who lives in it -------------------------------------------------------------------------------------

    def advance(self, step_s: float) -> None:
        self.now += step_s
        self._collect()
        for deployment in self.all(DEPLOYMENT):
            if self.dice.random() < self.eagerness:
                self._deployment(deployment)
        for replica_set in self.all(REPLICA_SET):
            if self.dice.random() < self.eagerness:
                self._replica_set(replica_set)
        if self.dice.random() < self.eagerness:
            self._schedule()
        for pod in self.all(POD):
            self._kubelet(pod)

    def _collect(self) -> None:
        uids = {thing["metadata"]["uid"] for kind in (DEPLOYMENT, REPLICA_SET) for thing in self.all(kind)}
        for replica_set in self.all(REPLICA_SET):
            if owner(replica_set) not in uids:
                self.remove(REPLICA_SET, replica_set["metadata"]["name"])
        for pod in self.all(POD):
            of = owner(pod)
            if of is not None and of not in uids and not is_terminating(pod):
                self.delete(POD, pod["metadata"]["name"], "garbage collector")

    # -- Deployments ---------------------------------------------------------------------------------------------------

    def _deployment(self, deployment: Json) -> None:
        name, replicas = deployment["metadata"]["name"], deployment["spec"]["replicas"]
        sets = sorted(self._sets(deployment), key=lambda s: s["metadata"]["creationTimestamp"])
        new = self._new_set(deployment, sets)
        sets = sorted(self._sets(deployment), key=lambda s: s["metadata"]["creationTimestamp"])
        new = self.get(REPLICA_SET, new["metadata"]["name"])
        active = [s for s in sets if s["spec"]["replicas"] > 0]
        if any(s["metadata"]["annotations"].get(DESIRED) != str(replicas) for s in active):
            self._scale(deployment, sets, new, active)
        elif not self._grow_new(deployment, sets, new):
            self._shrink_old(deployment, sets, new)
        old = [s for s in sets if s["metadata"]["name"] != new["metadata"]["name"]]
        empty = [s for s in old if not s["spec"]["replicas"] and not s["status"].get("replicas")]
        for stale in empty[: max(0, len(empty) - deployment["spec"].get("revisionHistoryLimit", 10))]:
            self.remove(REPLICA_SET, stale["metadata"]["name"])
        revision = new["metadata"]["annotations"][REVISION]
        generation = deployment["metadata"]["generation"]

        refusal = self.refused.get(new["metadata"]["name"], ("", 0.0, ""))[0]
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": refusal}
        status = {
            "conditions": [failure] if refusal else [],
            "observedGeneration": generation,
            "replicas": sum(s["status"].get("replicas", 0) for s in sets),
            "availableReplicas": sum(s["status"].get("availableReplicas", 0) for s in sets),
        }

        def change(live: Json) -> None:
            live["metadata"].setdefault("annotations", {})[REVISION] = revision
            live["status"] = status

        if deployment["status"] != status or deployment["metadata"].get("annotations", {}).get(REVISION) != revision:
            self.write(DEPLOYMENT, name, change)

    def _sets(self, deployment: Json) -> list[Json]:
        return [s for s in self.all(REPLICA_SET) if owner(s) == deployment["metadata"]["uid"]]

    def _new_set(self, deployment: Json, sets: list[Json]) -> Json:
        template = deployment["spec"]["template"]
        hash = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:9]
        newest = max((int(s["metadata"]["annotations"][REVISION]) for s in sets), default=0)
        found = next((s for s in sets if s["metadata"]["labels"][HASH] == hash), None)
        if found is not None:
            others = [int(s["metadata"]["annotations"][REVISION]) for s in sets if s is not found]
            if int(found["metadata"]["annotations"][REVISION]) < max(others, default=0):
                revision = str(newest + 1)
                self.write(
                    REPLICA_SET,
                    found["metadata"]["name"],
                    lambda s: s["metadata"]["annotations"].update({REVISION: revision}),
                )
            return found
        made = copied(template)
        made["metadata"]["labels"][HASH] = hash
        name = deployment["metadata"]["name"]
        replicas = deployment["spec"]["replicas"]
        return self.create(
            REPLICA_SET,
            {
                "metadata": {
                    "name": f"{name}-{hash}",
                    "labels": made["metadata"]["labels"],
                    "annotations": {REVISION: str(newest + 1), DESIRED: str(replicas), MAXIMUM: str(replicas + SURGE)},
                    "ownerReferences": [{"uid": deployment["metadata"]["uid"], "controller": True}],
                },
                "spec": {
                    "replicas": self._new_count(replicas, 0, sum(s["spec"]["replicas"] for s in sets)),
                    "selector": {"matchLabels": {**deployment["spec"]["selector"]["matchLabels"], HASH: hash}},
                    "template": made,
                },
            },
        )

    @staticmethod
    def _new_count(replicas: int, new: int, all_: int) -> int:
        room = replicas + SURGE - all_
        return new if room <= 0 else new + min(room, max(0, replicas - new))

    def _set_count(self, deployment: Json, replica_set: Json, count: int) -> None:
        replicas = deployment["spec"]["replicas"]

        def change(live: Json) -> None:
            live["spec"]["replicas"] = max(0, count)
            live["metadata"]["annotations"] |= {DESIRED: str(replicas), MAXIMUM: str(replicas + SURGE)}

        self.write(REPLICA_SET, replica_set["metadata"]["name"], change)

    def _scale(self, deployment: Json, sets: list[Json], new: Json, active: list[Json]) -> None:
        """A change of the replicas: in the middle of a roll-out it is shared out in proportion."""
        replicas = deployment["spec"]["replicas"]
        if len(active) <= 1:
            self._set_count(deployment, active[0] if active else new, replicas)
            return
        full = new["metadata"]["annotations"].get(DESIRED) == str(replicas) and new["spec"]["replicas"] == replicas
        if full and new["status"].get("availableReplicas", 0) == replicas:
            for old in active:
                if old["metadata"]["name"] != new["metadata"]["name"]:
                    self._set_count(deployment, old, 0)
            return
        total = sum(s["spec"]["replicas"] for s in active)
        more = (replicas + SURGE if replicas > 0 else 0) - total
        newer_first = sorted(active, key=lambda s: s["metadata"]["creationTimestamp"], reverse=more > 0)
        ranked = sorted(newer_first, key=lambda s: -s["spec"]["replicas"])
        counts, added = [], 0
        for replica_set in ranked:
            have = replica_set["spec"]["replicas"]
            share = 0
            if more != 0 and more != added:
                base = int(replica_set["metadata"]["annotations"].get(MAXIMUM) or deployment["status"]["replicas"])
                fraction = -have if replicas == 0 else round(have * (replicas + SURGE) / base) - have
                share = min(fraction, more - added) if more > 0 else max(fraction, more - added)
            added += share
            counts.append(have + share)
        counts[0] += more - added
        for replica_set, count in zip(ranked, counts, strict=True):
            self._set_count(deployment, replica_set, count)

    def _grow_new(self, deployment: Json, sets: list[Json], new: Json) -> bool:
        replicas, have = deployment["spec"]["replicas"], new["spec"]["replicas"]
        count = replicas
        if have < replicas:
            count = self._new_count(replicas, have, sum(s["spec"]["replicas"] for s in sets))
        if count == have:
            return False
        self._set_count(deployment, new, count)
        return True

    def _shrink_old(self, deployment: Json, sets: list[Json], new: Json) -> None:
        replicas = deployment["spec"]["replicas"]
        old = [s for s in sets if s["metadata"]["name"] != new["metadata"]["name"] and s["spec"]["replicas"] > 0]
        unavailable = new["spec"]["replicas"] - new["status"].get("availableReplicas", 0)
        most = sum(s["spec"]["replicas"] for s in [*old, new]) - replicas - unavailable
        if not old or most <= 0:
            return
        counts = {s["metadata"]["name"]: s["spec"]["replicas"] for s in old}
        left = most
        for replica_set in old:  # The unhealthy ones first.
            unhealthy = replica_set["spec"]["replicas"] - replica_set["status"].get("availableReplicas", 0)
            less = max(0, min(left, unhealthy))
            counts[replica_set["metadata"]["name"]] -= less
            left -= less
        left = sum(s["status"].get("availableReplicas", 0) for s in [*old, new]) - replicas
        for replica_set in old:
            less = max(0, min(left, counts[replica_set["metadata"]["name"]]))
            counts[replica_set["metadata"]["name"]] -= less
            left -= less
            if counts[replica_set["metadata"]["name"]] != replica_set["spec"]["replicas"]:
                self._set_count(deployment, replica_set, counts[replica_set["metadata"]["name"]])

    # -- ReplicaSets ---------------------------------------------------------------------------------------------------

    def _replica_set(self, replica_set: Json) -> None:
        uid, name = replica_set["metadata"]["uid"], replica_set["metadata"]["name"]
        selector = replica_set["spec"]["selector"]["matchLabels"]
        active = []
        for pod in self.all(POD):
            labels = pod["metadata"].get("labels") or {}
            matches = all(labels.get(key) == value for key, value in selector.items())
            gone = is_terminating(pod) or pod["status"].get("phase") in ("Failed", "Succeeded")
            mine = owner(pod) == uid
            if mine and not matches and not is_terminating(pod):
                self.write(POD, pod["metadata"]["name"], lambda p: p["metadata"].pop("ownerReferences"))
                continue
            if matches and owner(pod) is None and not gone:
                adopted = [{"uid": uid, "controller": True}]
                pod = self.write(
                    POD,
                    pod["metadata"]["name"],
                    lambda p: p["metadata"].update(ownerReferences=adopted),  # noqa: B023
                )
                mine = True
            if mine and matches and not gone:
                active.append(pod)
        for _ in range(replica_set["spec"]["replicas"] - len(active)):
            if self._backs_off(replica_set):
                break
            self._new_pod(replica_set)
        for pod in sorted(active, key=self._rank)[: max(0, len(active) - replica_set["spec"]["replicas"])]:
            self.delete(POD, pod["metadata"]["name"], name)
        ready = sum(is_true(pod, "Ready") for pod in active)
        counts = {"replicas": len(active), "readyReplicas": ready, "availableReplicas": ready}
        counts["observedGeneration"] = replica_set["metadata"]["generation"]
        if replica_set["status"] != counts:
            self.write(REPLICA_SET, name, lambda live: live.update(status=counts))

    def _rank(self, pod: Json) -> tuple[Any, ...]:
        phase = {"Pending": 0, "Unknown": 1}.get(pod["status"].get("phase", "Pending"), 2)
        cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0"))
        ready = is_true(pod, "Ready")
        restarts = sum(c.get("restartCount", 0) for c in pod["status"].get("containerStatuses") or ())
        return ("nodeName" in pod["spec"], phase, ready, cost, self.dice.random() if ready else 0.0, -restarts)

    def _new_pod(self, replica_set: Json) -> None:
        template = copied(replica_set["spec"]["template"])
        self._born += 1
        template["metadata"] |= {
            "name": f"{replica_set['metadata']['name']}-{self._born:05d}",
            "ownerReferences": [{"uid": replica_set["metadata"]["uid"], "controller": True}],
        }
        template["status"] = {"phase": "Pending", "conditions": []}
        refusal = self.quota(template)
        if refusal is None:
            self.refused.pop(replica_set["metadata"]["name"], None)
            self.create(POD, template)
        else:
            self.refused[replica_set["metadata"]["name"]] = refusal, self.now, self._handed_on(replica_set)

    def _backs_off(self, replica_set: Json) -> bool:
        """Its controller tries again after a while, or when the ReplicaSet changes: its Deployment hands annotations on."""
        _, at, then = self.refused.get(replica_set["metadata"]["name"], ("", float("-inf"), ""))
        return self.now - at < BACK_OFF_S and then == self._handed_on(replica_set)

    def _handed_on(self, replica_set: Json) -> str:
        mine = (
            deployment for deployment in self.all(DEPLOYMENT) if deployment["metadata"]["uid"] == owner(replica_set)
        )
        return str((next(mine)["metadata"].get("annotations") or {}).get(ASKED_AGAIN_AT, ""))

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        pods = self.all(POD)
        taken = sum(component(pod) == ENGINE and "nodeName" in pod["spec"] for pod in pods)
        for pod in pods:
            if "nodeName" in pod["spec"] or is_terminating(pod):
                continue
            name = pod["metadata"]["name"]
            if is_gated(pod):
                self._set(name, "PodScheduled", "False", "SchedulingGated")
            elif component(pod) == ENGINE and taken >= self.accelerators:
                self._set(name, "PodScheduled", "False", "Unschedulable")
            else:
                taken += component(pod) == ENGINE
                self.write(POD, name, lambda p: p["spec"].update(nodeName="node"))
                self._set(name, "PodScheduled", "True", "")
                self._timers["start", pod["metadata"]["uid"]] = self.now + self.dice.uniform(*self.start_s)

    def _set(self, name: str, type: str, status: str, reason: str = "") -> None:
        live = condition(self.get(POD, name), type)
        if live.get("status") == status and live.get("reason", "") == reason:
            return

        def change(pod: Json) -> None:
            found = condition(pod, type)
            if not found:
                found = {"type": type}
                pod["status"].setdefault("conditions", []).append(found)
            found.pop("reason", None)
            if found.get("status") != status:
                found["lastTransitionTime"] = rfc3339(self.now)
            found |= {"status": status, **({"reason": reason} if reason else {})}

        self.write(POD, name, change)

    def _kubelet(self, pod: Json) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if "nodeName" not in pod["spec"]:
            return
        if name in self.lost:
            return
        if is_terminating(pod):
            began = self._timers["term", uid]
            if self.busy(name) and self.now < began + self.finish_s:
                return
            end = self._timers.setdefault(("end", uid), self.now + self.dice.uniform(*self.stop_s))
            if self.now >= end:
                self.remove(POD, name)
            return
        if BROKEN in (pod["metadata"].get("annotations") or {}):
            waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}, "restartCount": 0}
            if pod["status"].get("containerStatuses") != [waiting]:
                self.write(POD, name, lambda p: p["status"].update(podIP=self._ip(uid), containerStatuses=[waiting]))
            self._set(name, "ContainersReady", "False")
            return
        up = self.now >= self._timers["start", uid]
        restarts = int(self._timers.get(("restarts", uid), 0))
        running = {"state": {"running": {}}, "restartCount": restarts}
        if pod["status"].get("containerStatuses") != [running] or pod["status"]["phase"] != "Running":
            status = {"podIP": self._ip(uid), "phase": "Running", "containerStatuses": [running]}
            self.write(POD, name, lambda live: live["status"].update(status))
        if component(pod) == ROUTER:
            up = up and self.told(name)
        self._set(name, "ContainersReady", "True" if up else "False")
        gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
        live = self.get(POD, name)
        gates_open = all(is_true(live, gate) for gate in gates)
        reason = "ContainersNotReady" if not up else "" if gates_open else "ReadinessGatesNotReady"
        self._set(name, "Ready", "False" if reason else "True", reason)

    @staticmethod
    def _ip(uid: str) -> str:
        number = int(uid.removeprefix("uid-"))
        return f"10.244.{number // 250}.{number % 250 + 1}"

    def crash_container(self, name: str) -> None:
        """It ends and is started again."""
        uid = self.get(POD, name)["metadata"]["uid"]
        self._timers["restarts", uid] = self._timers.get(("restarts", uid), 0) + 1
        self._timers["start", uid] = self.now + self.dice.uniform(*self.start_s)
        self._set(name, "ContainersReady", "False")
        self._set(name, "Ready", "False", "ContainersNotReady")

    def lose(self, name: str) -> None:
        """With its node. The node controller marks it."""
        self.lost[name] = self.now
        self._set(name, "Ready", "False")

    def find(self, name: str) -> None:
        self.found[name] = self.now - self.lost.pop(name)

    # -- what the operator asks for ------------------------------------------------------------------------------------

    def patch_pod(self, name: str, body: Json, status: bool) -> Json:
        live = self.get(POD, name)
        metadata = body.get("metadata") or {}
        if metadata.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise Conflict(409, "Conflict", f"pod {name} is another one")

        def change(pod: Json) -> None:
            if status:
                for new in body["status"]["conditions"]:
                    assert new["type"] == SERVING
                    others = [c for c in pod["status"].get("conditions") or () if c["type"] != SERVING]
                    pod["status"]["conditions"] = [*others, {**new, "lastTransitionTime": rfc3339(self.now)}]
                return
            for part in ("labels", "annotations"):
                values = pod["metadata"].setdefault(part, {})
                for key, value in (metadata.get(part) or {}).items():
                    values.pop(key, None)
                    if value is not None:
                        values[key] = value
            for gate in (body.get("spec") or {}).get("schedulingGates") or ():
                assert gate == {"$patch": "delete", "name": START_GATE}
                kept = [g for g in pod["spec"].get("schedulingGates") or () if g["name"] != START_GATE]
                pod["spec"]["schedulingGates"] = kept

        return self.write(POD, name, change)
