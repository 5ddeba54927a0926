"""Carries out the changes of a reconcile, in order, at the API server. One Applier a resource, called by `reconciler`.

The first change that fails ends the round: those after it rest on it. It is tried again at growing intervals, or as soon as its object has
changed. What is as it should be already, as far as the cache shows, costs no call.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multislo_operator.kubernetes.applied import Child, Due
from multislo_operator.kubernetes.cache import DEPLOYMENT, POD, Cache
from multislo_operator.kubernetes.changes import (
    Apply,
    Change,
    CreateSecret,
    Delete,
    DeletePod,
    Note,
    Object,
    PatchPod,
    Scale,
    SetServing,
)
from multislo_operator.kubernetes.client import (
    STRATEGIC,
    AlreadyExists,
    Api,
    ApiError,
    Conflict,
    Kind,
    NotFound,
    Refused,
)
from multislo_operator.kubernetes.fleet_metrics import Outcome
from multislo_operator.kubernetes.names import SERVING, START_GATE, Key
from multislo_operator.kubernetes.owners import other_owner
from multislo_operator.kubernetes.wire import Json
from multislo_operator.kubernetes.workloads import replicas_owner

LOG = logging.getLogger(__name__)
BACK_OFF_S = (0.5, 30.0)
TAKEN_AGAIN_S = 5.0
"""Between two looks at an object that is somebody else's: it is not watched."""
SECRET = Kind("v1", "Secret")
_NO_CONFIG = "CreateContainerConfigError"
"""What a pod waits for whose Secret is not there."""


class NotLeading(Exception):
    """Another replica may lead now: nothing more may be written."""


@dataclass(slots=True)
class Carried:
    """What became of a round."""

    outcome: Outcome = Outcome.DONE
    notes: list[Note] = field(default_factory=list)
    raised: bool = False
    """Replicas of a Deployment were raised."""
    again_in_s: float | None = None
    """When what failed is to be tried again."""


@dataclass(slots=True)
class _Failure:
    what: tuple[str, str]
    version: str
    words: str
    count: int
    retry_at: float


class Applier:
    def __init__(self, api: Api, cache: Cache, key: Key, leading: Callable[[], bool] = lambda: True) -> None:
        self._api = api
        self._cache = cache
        self._key = key
        self._leading = leading
        self._children: dict[tuple[Kind, str], Child] = {}
        self._secrets: set[str] = set()
        self._failure: _Failure | None = None
        self._optional_failed: dict[str, float] = {}
        self._carried = Carried()
        self.held: dict[str, str] = {}
        """Children that an edit war keeps from being applied, "Kind name", and with whom."""
        self.taken: dict[str, str] = {}
        """Children whose name somebody else's object has, and whose."""
        self._taken_again: dict[str, float] = {}

    async def carry_out(self, changes: Sequence[Change], now: float) -> Carried:
        """`now` by the monotonic clock. Raises NotLeading."""
        carried = self._carried = Carried()
        if self.taken:
            wanted = {" ".join(_of_apply(change)) for change in changes if isinstance(change, Apply)}
            self.taken = {what: whose for what, whose in self.taken.items() if what in wanted}
        for change in changes:
            failure = self._failure
            if failure and now < failure.retry_at and self._is(change, failure):
                carried.outcome, carried.again_in_s = Outcome.FAILED, failure.retry_at - now
                break
            if not self._leading():
                raise NotLeading
            try:
                await self._carry_out(change, now)
            except Conflict as error:
                # What was seen has moved on, or is another object of the same name. The watch will tell, if it has not yet.
                LOG.debug("%s: %s %s: %s", self._key, *_what(change), error)
                carried.outcome, carried.again_in_s = Outcome.CONFLICT, 0.2
                break
            except ApiError as error:
                self._failed(change, error, now)
                break
            if failure and failure.what == _what(change):
                LOG.info("%s: %s %s is done now", self._key, *failure.what)
                self._failure = None
        return carried

    def _failed(self, change: Change, error: ApiError, now: float) -> None:
        before, what, words = self._failure, _what(change), str(error)
        same = before is not None and before.what == what
        count = before.count + 1 if same and before else 1
        wait_s = min(BACK_OFF_S[0] * 2 ** (count - 1), BACK_OFF_S[1])
        self._failure = _Failure(what, self._version(change), words, count, now + wait_s)
        self._carried.outcome, self._carried.again_in_s = Outcome.FAILED, wait_s
        if not (same and before and before.words == words):
            LOG.warning("%s: %s %s has failed and is tried again: %s", self._key, *what, words)
            if isinstance(error, Refused):
                self._note("ChangeRefused", f"{what[0]} {what[1]}: {error.message}"[:1000])

    def _note(self, reason: str, message: str) -> None:
        self._carried.notes.append(Note(reason, message, warning=True))

    def _is(self, change: Change, failure: _Failure) -> bool:
        """It is what failed, and its object has not changed since."""
        return failure.what == _what(change) and failure.version == self._version(change)

    def _version(self, change: Change) -> str:
        """Of the object that a change is about, as the cache has it."""
        live = self._live(*_of(change))
        return "" if live is None else str(live["metadata"]["resourceVersion"])

    def _live(self, kind: Kind, name: str) -> Object | None:
        return self._cache.child(self._key, kind, name)

    async def _carry_out(self, change: Change, now: float) -> None:
        match change:
            case Apply():
                await self._apply(change, now)
            case Scale():
                await self._scale(change)
            case PatchPod():
                await self._patch_pod(change)
            case SetServing():
                await self._set_serving(change)
            case DeletePod():
                await self._delete_pod(change)
            case CreateSecret():
                await self._create_secret(change)
            case Delete():
                await self._delete(change)

    # -- one change each ---------------------------------------------------------------------------------------------------------

    async def _apply(self, change: Apply, now: float) -> None:
        kind, name = _of(change)
        child = self._children.setdefault((kind, name), Child(whole=kind == DEPLOYMENT))
        due = child.due(change.object, self._live(kind, name), self._cache.watches(self._key, kind), now)
        what = f"{kind.name} {name}"
        if due is Due.HELD:
            if what not in self.held:
                self._war(what, child, now)
            self.held[what] = child.rival
            return
        if due is Due.NO:
            self.held.pop(what, None)
            return
        if change.optional and now < self._optional_failed.get(what, 0.0):
            return
        was_held = self.held.pop(what, None) is not None
        before = self._live(kind, name)
        known = before is not None and before["metadata"]["uid"] == child.uid
        try:
            if not known and await self._is_taken(change.object, what, now):
                return
            live = await self._api.apply(self._namespaced(change.object))
        except Refused as error:
            if not change.optional:
                raise
            if what not in self._optional_failed:
                LOG.warning("%s: %s cannot be applied, and is left out: %s", self._key, what, error)
            self._optional_failed[what] = now + 300.0
            return
        if was_held:
            LOG.info("%s: %s is applied again", self._key, what)
        child.applied(change.object, self._cache.put(kind, live), now)

    async def _is_taken(self, wanted: Object, what: str, now: float) -> bool:
        """Asked where none that was applied by us is known to be there: what is somebody else's is left alone."""
        if what in self.taken and now < self._taken_again[what]:
            return True
        kind, name = Kind.of(wanted), wanted["metadata"]["name"]
        live = self._live(kind, name)
        if live is None:
            with contextlib.suppress(NotFound):
                live = await self._api.get(kind, self._key.namespace, name)
        whose = None if live is None else other_owner(live, wanted)
        if whose is None:
            if self.taken.pop(what, None) is not None:
                LOG.info("%s: the name of %s is free", self._key, what)
            return False
        if self.taken.get(what) != whose:
            told = f"{what} is left alone: the name is taken, by {whose}"
            LOG.warning("%s: %s", self._key, told)
            self._note("NameTaken", told)
        self.taken[what] = whose
        self._taken_again[what] = now + TAKEN_AGAIN_S
        return True

    def _war(self, what: str, child: Child, now: float) -> None:
        whom = f'"{child.rival}"' if child.rival else "somebody"
        told = f"{whom} keeps changing {what} back; it is left so for {child.held_until - now:.0f} s"
        LOG.warning("%s: %s", self._key, told)
        self._note("EditWar", told)

    async def _scale(self, change: Scale) -> None:
        live = self._live(DEPLOYMENT, change.deployment)
        before = None if live is None else live["spec"].get("replicas")
        if live is not None and before == change.replicas and _has_owner(live):
            return
        if before == change.replicas:
            # The API server's default. A write that changes nothing makes nobody the owner of the count, so it is changed and back.
            await self._set_replicas(change.deployment, 0 if change.replicas else 1, change.seen_version)
            await self._set_replicas(change.deployment, change.replicas, "")
        else:
            await self._set_replicas(change.deployment, change.replicas, change.seen_version)
        self._carried.raised |= before is None or change.replicas > before

    async def _set_replicas(self, name: str, replicas: int, version: str) -> None:
        """Not through the scale subresource: that one leaves no trace in the managed fields of who wrote where nobody owned the count
        before, and no time where somebody did."""
        body: Json = {"spec": {"replicas": replicas}}
        if version:
            body["metadata"] = {"resourceVersion": version}
        live = await self._api.patch(DEPLOYMENT, self._key.namespace, name, body, verb="scale")
        self._cache.put(DEPLOYMENT, live)

    async def _patch_pod(self, change: PatchPod) -> None:
        live = self._live(POD, change.name)
        if live is not None and live["metadata"]["uid"] == change.uid and _is_patched(live, change):
            return
        metadata: Json = {"uid": change.uid}
        if change.labels:
            metadata["labels"] = dict(change.labels)
        if change.annotations:
            metadata["annotations"] = dict(change.annotations)
        body: Json = {"metadata": metadata}
        if change.ungate:
            body["spec"] = {"schedulingGates": [{"$patch": "delete", "name": START_GATE}]}
        await self._patch(change.name, body)

    async def _set_serving(self, change: SetServing) -> None:
        live = self._live(POD, change.name)
        status = "True" if change.serving else "False"
        before = _condition(live, SERVING)
        if before is not None and before.get("status") == status and before.get("reason") == change.reason:
            return
        since = before.get("lastTransitionTime") if before is not None and before.get("status") == status else None
        condition = {
            "type": SERVING,
            "status": status,
            "reason": change.reason,
            "lastTransitionTime": since or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        body: Json = {"metadata": {"uid": change.uid}, "status": {"conditions": [condition]}}
        await self._patch(change.name, body, "status")

    async def _patch(self, name: str, body: Json, subresource: str | None = None) -> None:
        try:
            pod = await self._api.patch(POD, self._key.namespace, name, body, STRATEGIC, subresource)
        except NotFound as error:
            raise Conflict(error.status, error.reason, error.message) from None
        except Refused as error:
            if error.status == 422 and "uid" in error.message:  # Another pod of that name.
                raise Conflict(error.status, error.reason, error.message) from None
            raise
        self._cache.put(POD, pod)

    async def _delete_pod(self, change: DeletePod) -> None:
        live = self._live(POD, change.name)
        if live is not None and live["metadata"]["uid"] == change.uid and live["metadata"].get("deletionTimestamp"):
            return
        try:
            await self._api.delete(POD, self._key.namespace, change.name, change.uid)
        except (NotFound, Conflict):  # It is gone, and maybe another one of its name is there.
            return
        LOG.info("%s: pod %s is deleted: %s", self._key, change.name, change.reason)

    async def _create_secret(self, change: CreateSecret) -> None:
        name = change.object["metadata"]["name"]
        if name in self._secrets and not self._missed():
            return
        with contextlib.suppress(AlreadyExists):
            await self._api.create(self._namespaced(change.object))
        self._secrets.add(name)

    def _missed(self) -> bool:
        """A pod waits for a Secret that somebody has removed. Secrets are not watched: the operator has no right to read them."""
        pods = (self._cache.children.get(self._key) or {}).get(POD, {}).values()
        return any(
            ((status.get("state") or {}).get("waiting") or {}).get("reason") == _NO_CONFIG
            for pod in pods
            for status in (pod.get("status") or {}).get("containerStatuses") or ()
        )

    async def _delete(self, change: Delete) -> None:
        kind = Kind(change.api_version, change.kind)
        if self._cache.watches(self._key, kind) and self._live(kind, change.name) is None:
            return
        with contextlib.suppress(NotFound):
            await self._api.delete(kind, self._key.namespace, change.name)
        self._children.pop((kind, change.name), None)

    def _namespaced(self, object: Object) -> Object:
        if object["metadata"].get("namespace") == self._key.namespace:
            return object
        return {**object, "metadata": {**object["metadata"], "namespace": self._key.namespace}}


def _of(change: Change) -> tuple[Kind, str]:
    match change:
        case Apply() | CreateSecret():
            return Kind.of(change.object), change.object["metadata"]["name"]
        case Delete():
            return Kind(change.api_version, change.kind), change.name
        case Scale():
            return DEPLOYMENT, change.deployment
        case _:
            return POD, change.name


def _of_apply(change: Apply) -> tuple[str, str]:
    return change.object["kind"], change.object["metadata"]["name"]


def _what(change: Change) -> tuple[str, str]:
    kind, name = _of(change)
    verb = type(change).__name__
    return (verb if verb.endswith(("Pod", "Secret")) else f"{verb} {kind.name}"), name


def _is_patched(pod: Object, change: PatchPod) -> bool:
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    gates = (pod.get("spec") or {}).get("schedulingGates") or ()
    return (
        all(labels.get(key) == value for key, value in change.labels.items())
        and all(annotations.get(key) == value for key, value in change.annotations.items())
        and not (change.ungate and any(gate["name"] == START_GATE for gate in gates))
    )


def _has_owner(deployment: Object) -> bool:
    """Somebody has set its replicas; else they are a default, which is to be owned."""
    return replicas_owner(deployment["metadata"].get("managedFields") or ())[0] is not None


def _condition(pod: Object | None, type: str) -> Object | None:
    conditions = ((pod or {}).get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == type), None)
