"""Kubernetes events on a MultiSLOServing, best effort: one that cannot be written is lost, as events are. Called by `reconciler`."""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multislo_operator.kubernetes.changes import Note, Object
from multislo_operator.kubernetes.client import Api, ApiError
from multislo_operator.kubernetes.names import FIELD_MANAGER, Key

LOG = logging.getLogger(__name__)
REPEAT_S = 300.0
"""The same words about the same resource are not said again within this time."""
REMEMBERED = 4096
BURST, REFILL_S = 30, 5.0
"""Of one resource: so many at once, then one each so many seconds."""
NOTE_MAX = 1024
"""The API server's limit."""


@dataclass(slots=True)
class Allowance:
    """What may still be said of each resource, by its uid: one that is made anew under an old name begins anew. `now` by one clock."""

    _said: OrderedDict[tuple[str, str, str], float] = field(default_factory=OrderedDict)
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, uid: str, note: Note, now: float) -> bool:
        what = (uid, note.reason, note.message)
        if now - self._said.get(what, float("-inf")) < REPEAT_S:
            return False
        left, at = self._buckets.get(uid, (float(BURST), now))
        left = min(float(BURST), left + (now - at) / REFILL_S)
        if left < 1.0:
            self._buckets[uid] = (left, now)
            return False
        self._buckets[uid] = (left - 1.0, now)
        self._said[what] = now
        self._said.move_to_end(what)
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return True

    def forget(self, uid: str) -> None:
        self._buckets.pop(uid, None)


class Events:
    def __init__(self, api: Api, identity: str, clock: Callable[[], float]) -> None:
        self.allowance = Allowance()
        self._api = api
        self._identity = identity
        self._clock = clock

    async def tell(self, key: Key, resource: Object, note: Note) -> None:
        if not self.allowance.take(resource["metadata"]["uid"], note, self._clock()):
            return
        LOG.info("%s: %s: %s", key, note.reason, note.message)
        try:
            await self._api.create(self._event(key, resource, note))
        except ApiError as error:
            LOG.debug("%s: an event is lost: %s", key, error)

    def _event(self, key: Key, resource: Object, note: Note) -> Object:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"namespace": key.namespace, "name": f"{key.name}.{secrets.token_hex(8)}"},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Warning" if note.warning else "Normal",
            "reason": note.reason,
            "action": note.reason,
            "note": note.message.encode()[:NOTE_MAX].decode(errors="ignore"),
            "regarding": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "namespace": key.namespace,
                "name": key.name,
                "uid": resource["metadata"]["uid"],
            },
            "reportingController": f"multislo.dev/{FIELD_MANAGER}",
            "reportingInstance": self._identity[:128],
        }
