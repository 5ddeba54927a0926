"""Carries out the changes of a reconcile at the API server. One Applier a resource, called by `reconciler`.

Changes are independent of each other: one that is refused is tried again at growing intervals (`troubles`), and the others go on. Two
things rest on others. No Deployment is changed while the configuration that its pods read cannot be written. And where the API server does
not answer, nothing more is tried in that round. What is as it should be already, as far as the cache shows, costs no call.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multislo_operator.kubernetes.applied import Child, Due
from multislo_operator.kubernetes.cache import CONFIG_MAP, DEPLOYMENT, POD, REPLICA_SET, Cache
from multislo_operator.kubernetes.changes import (
    Apply,
    AskAgain,
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
    ServerFault,
    Unreachable,
)
from multislo_operator.kubernetes.fleet_metrics import Outcome
from multislo_operator.kubernetes.names import ASKED_AGAIN_AT, SERVING, START_GATE, Key
from multislo_operator.kubernetes.obstacles import Obstacles
from multislo_operator.kubernetes.owners import other_owner
from multislo_operator.kubernetes.trial import try_template
from multislo_operator.kubernetes.troubles import Troubles, what
from multislo_operator.kubernetes.wire import Json
from multislo_operator.kubernetes.workloads import replicas_owner

LOG = logging.getLogger(__name__)
CONFLICT_AGAIN_S = 0.2
WORSE = (Outcome.DONE, Outcome.CONFLICT, Outcome.REFUSED, Outcome.FAILED)
TAKEN_AGAIN_S = 5.0
"""Between two looks at an object that is somebody else's: it is not watched."""
CONFIGURATION = frozenset({"Secret", CONFIG_MAP.name, "ServiceAccount"})
"""Kinds that pods cannot do without, or read once, at their start."""
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


class Applier:
    def __init__(self, api: Api, cache: Cache, key: Key, leading: Callable[[], bool] = lambda: True) -> None:
        self._api = api
        self._cache = cache
        self._key = key
        self._leading = leading
        self._children: dict[tuple[Kind, str], Child] = {}
        self._secrets: set[str] = set()
        self._troubles = Troubles()
        self._carried = Carried()
        self.held: dict[str, str] = {}
        """Children that an edit war keeps from being applied, "Kind name", and with whom."""
        self.taken: dict[str, str] = {}
        """Children whose name somebody else's object has, and whose."""
        self._taken_again: dict[str, float] = {}

    async def carry_out(self, changes: Sequence[Change], now: float) -> Carried:
        """`now` by the monotonic clock. Raises NotLeading."""
        carried = self._carried = Carried()
        self._troubles.forget_all_but(changes)
        if self.taken:
            wanted = {what(change) for change in changes if isinstance(change, Apply)}
            self.taken = {child: whose for child, whose in self.taken.items() if child in wanted}
        unwritten = False
        for change in changes:
            if unwritten and isinstance(change, Apply) and change.object["kind"] == DEPLOYMENT.name:
                continue
            try:
                done = await self._try(change, now)
            except Unreachable:
                break
            if not done and isinstance(change, Apply | CreateSecret) and change.object["kind"] in CONFIGURATION:
                unwritten = True
        return carried

    async def _try(self, change: Change, now: float) -> bool:
        """Whether a change is carried out; what keeps it from that is noted. Raises NotLeading, and Unreachable where nobody answers."""
        waits = self._troubles.waits(change, now)
        if waits is not None:
            in_s, refused = waits
            self._again(Outcome.REFUSED if refused else Outcome.FAILED, in_s)
            return False
        if not self._leading():
            raise NotLeading
        try:
            await self._carry_out(change, now)
        except Conflict as error:
            # What was seen has moved on, or is another object of the same name. The watch will tell, if it has not yet.
            LOG.debug("%s: %s: %s", self._key, what(change), error)
            self._again(Outcome.CONFLICT, CONFLICT_AGAIN_S)
            return False
        except Exception as error:
            if not isinstance(error, ApiError):
                LOG.exception("%s: %s", self._key, what(change))
            self._failed(change, error, now)
            if isinstance(error, Unreachable) and not isinstance(error, ServerFault):
                raise
            return False
        if self._troubles.done(change):
            LOG.info("%s: %s: taken now", self._key, what(change))
        return True

    def _failed(self, change: Change, error: Exception, now: float) -> None:
        if isinstance(change, Apply):
            self._children[_of(change)].not_applied()
        wait_s, new = self._troubles.failed(change, error, now)
        self._again(Outcome.REFUSED if isinstance(error, Refused) else Outcome.FAILED, wait_s)
        if new is not None:
            LOG.warning("%s: refused, and tried again: %s", self._key, new)
            self._note("ChangeRefused", str(new)[:1000])

    def _again(self, outcome: Outcome, in_s: float) -> None:
        carried = self._carried
        carried.outcome = max(carried.outcome, outcome, key=WORSE.index)
        carried.again_in_s = min(in_s, carried.again_in_s or in_s)

    def obstacles(self) -> Obstacles:
        """What keeps changes from being carried out now."""
        return Obstacles(dict(self.taken), dict(self.held), self._troubles.refusals())

    def _note(self, reason: str, message: str) -> None:
        self._carried.notes.append(Note(reason, message, warning=True))

    def _live(self, kind: Kind, name: str) -> Object | None:
        return self._cache.child(self._key, kind, name)

    async def _carry_out(self, change: Change, now: float) -> None:
        match change:
            case Apply():
                await self._apply(change, now)
            case Scale():
                await self._scale(change)
            case AskAgain():
                await self._ask_again(change)
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
        named = what(change)
        if due is Due.HELD:
            if named not in self.held:
                self._war(named, child, now)
            self.held[named] = child.rival
            return
        if due is Due.NO:
            self.held.pop(named, None)
            return
        was_held = self.held.pop(named, None) is not None
        before = self._live(kind, name)
        known = before is not None and before["metadata"]["uid"] == child.uid
        if not known and await self._is_taken(change.object, named, now):
            return
        wanted = self._namespaced(change.object)
        if kind == DEPLOYMENT and before is not None:
            sets = (self._cache.children.get(self._key) or {}).get(REPLICA_SET, {})
            await try_template(self._api, wanted, before, sets.values())
        live = await self._api.apply(wanted)
        if was_held:
            LOG.info("%s: %s is applied again", self._key, named)
        child.applied(change.object, self._cache.put(kind, live), now)

    async def _is_taken(self, wanted: Object, named: str, now: float) -> bool:
        """Asked where none that was applied by us is known to be there: what is somebody else's is left alone."""
        if named in self.taken and now < self._taken_again[named]:
            return True
        kind, name = Kind.of(wanted), wanted["metadata"]["name"]
        live = self._live(kind, name)
        if live is None:
            with contextlib.suppress(NotFound):
                live = await self._api.get(kind, self._key.namespace, name)
        whose = None if live is None else other_owner(live, wanted)
        if whose is None:
            if self.taken.pop(named, None) is not None:
                LOG.info("%s: the name of %s is free", self._key, named)
            return False
        if self.taken.get(named) != whose:
            told = f"{named} is left alone: the name is taken, by {whose}"
            LOG.warning("%s: %s", self._key, told)
            self._note("NameTaken", told)
        self.taken[named] = whose
        self._taken_again[named] = now + TAKEN_AGAIN_S
        return True

    def _war(self, named: str, child: Child, now: float) -> None:
        whom = f'"{child.rival}"' if child.rival else "somebody"
        told = f"{whom} keeps changing {named} back; it is left so for {child.held_until - now:.0f} s"
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
        place = DEPLOYMENT, self._key.namespace, name
        try:
            self._cache.put(DEPLOYMENT, await self._api.patch(*place, body, verb="scale"))
        except (Conflict, NotFound):
            raise
        except Refused:
            # A policy may refuse every write of a Deployment as it stands. It is not asked about its scale.
            owned = self._live(DEPLOYMENT, name)
            if owned is None or not _has_owner(owned):
                raise
            await self._api.patch(*place, body, subresource="scale", verb="scale")

    async def _ask_again(self, change: AskAgain) -> None:
        body: Json = {"metadata": {"annotations": {ASKED_AGAIN_AT: change.at}}}
        place = DEPLOYMENT, self._key.namespace, change.deployment
        self._cache.put(DEPLOYMENT, await self._api.patch(*place, body))

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
        case Scale() | AskAgain():
            return DEPLOYMENT, change.deployment
        case _:
            return POD, change.name


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
