"""Keeps the cache in step with the API server. Started by `run`, on the leader and on its stand-in alike.

Resources, Deployments, ReplicaSets and Pods are watched by kopf (`handlers`, `kopf_thread`) and counted by `census`. The kinds that are
only compared are watched here, by their metadata alone, which kopf cannot do: a list, then a watch from its version on, for each kind and
namespace. Whatever goes wrong in one watch here stays in it: it is counted, and begins anew.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from multislo_operator.kubernetes.cache import CONFIG_MAP, DEPLOYMENT, POD, REPLICA_SET, RESOURCE, Cache
from multislo_operator.kubernetes.census import Census
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Api, ApiError, Garbled, Gone, Kind, Refused
from multislo_operator.kubernetes.feed import OURS, Feed, is_whole
from multislo_operator.kubernetes.kopf_thread import NAME, KopfThread
from multislo_operator.kubernetes.profiles import Profiles
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
SERVICE = Kind("v1", "Service")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor")
WATCH_FOR_S = (240, 480)
"""A watch's length is drawn from here, so that not all end in the same second."""
BACK_OFF_S = (0.2, 10.0)
REFUSED_BACK_OFF_S = 60.0
PROFILES_S = 10.0
STUCK_S = 180.0
"""A watch that has done nothing for so long, not even failed, is stuck; each has a sign of life within 150 s."""


@dataclass(frozen=True, slots=True)
class Watched:
    """`essential`: nothing works without."""

    kind: Kind
    labels: str = OURS
    essential: bool = False


BY_KOPF = (RESOURCE, DEPLOYMENT, REPLICA_SET, POD)
BY_METADATA = (
    # All of them: a profile's ConfigMap is the user's, without a label of ours.
    Watched(CONFIG_MAP, labels="", essential=True),
    *(Watched(kind) for kind in (SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)),
)


@dataclass(slots=True)
class Watch:
    """The metadata of one kind in one namespace (None: in all)."""

    api: Api
    cache: Cache
    what: Watched
    namespace: str | None
    listed: Callable[[str | None, list[Object]], None] = lambda namespace, objects: None
    changed: Callable[[Object], None] = lambda object: None
    """Told of a new list, and of each object that came, changed or went after it."""
    failed: Callable[[str, str], None] = lambda kind, cause: None
    """Told each time that a watch has to begin anew, and by which class of error."""
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str | None = None
    lists: int = 0
    alive_at: float = field(default_factory=time.monotonic)
    _version: str | None = None
    """What has been seen; None: it has to be listed."""
    _failures: int = 0
    """Since something was last heard."""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.alive_at = time.monotonic()
            try:
                await self._follow()
            except Gone as error:
                # Too old, which is nobody's fault; but a server that says so again and again is not asked at once.
                self._version = None
                self._failures += 1
                if self._failures > 1:
                    await self._failed(error)
            except ApiError as error:
                self._failures += 1
                if isinstance(error, Refused | Garbled):
                    self._version = None
                await self._failed(error)
            except Exception as error:
                LOG.exception("the watch of %s met what it does not expect", self.what.kind.plural)
                self._version = None
                self._failures += 1
                await self._failed(error)

    async def _follow(self) -> None:
        """A list where one is due, and a watch until it ends."""
        what = self.what
        if self._version is None:
            self._version = await self._list()
        for_s = random.randint(*WATCH_FOR_S)
        async for type, object in self.api.watch(what.kind, self.namespace, self._version, for_s, what.labels, True):
            self.alive_at = time.monotonic()
            self._failures = 0
            self._well()
            version = (object.get("metadata") or {}).get("resourceVersion")
            if not isinstance(version, str):
                raise Garbled(f"watch {what.kind.plural}: an event without a resourceVersion")
            self._take(type, object)
            self._version = version
        self._failures = 0

    async def _list(self) -> str:
        what = self.what
        objects, version = await self.api.list(what.kind, self.namespace, what.labels, metadata_only=True)
        self.lists += 1
        listed: list[Object] = [object for object in objects if is_whole(what.kind, object)]
        self.cache.replace(what.kind, self.namespace, listed)
        self.cache.watched.add((what.kind, self.namespace))
        self.listed(self.namespace, listed)
        self._well()
        self.synced.set()
        return version

    def _take(self, type: str, object: Json) -> None:
        if type not in ("ADDED", "MODIFIED", "DELETED") or not is_whole(self.what.kind, object):
            return
        if type == "DELETED":
            self.cache.drop(self.what.kind, object)
        else:
            self.cache.put(self.what.kind, object)
        self.changed(object)

    def _well(self) -> None:
        if self.trouble is not None:
            LOG.info("the watch of %s goes on", self.what.kind.plural)
            self.trouble = None

    async def _failed(self, error: Exception) -> None:
        words = str(error) or type(error).__name__
        self.failed(self.what.kind.plural, type(error).__name__)
        if words != self.trouble:
            LOG.warning("the watch of %s has failed and is tried again: %s", self.what.kind.plural, words)
            self.trouble = words
        wait_s = min(BACK_OFF_S[0] * 2 ** min(self._failures - 1, 16), BACK_OFF_S[1])
        if isinstance(error, Refused):
            wait_s = min(2.0 ** min(self._failures, 16), REFUSED_BACK_OFF_S)
            if not self.what.essential:
                self.synced.set()
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))


class Watches:
    """All of them, for the given namespaces (none: the whole cluster)."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        namespaces: Sequence[str] = (),
        failed: Callable[[str, str], None] = lambda kind, cause: None,
    ) -> None:
        self._profiles = Profiles(api, cache)
        places: Sequence[str | None] = namespaces or (None,)
        feed = Feed(api, cache, asyncio.get_running_loop(), self._profiles.resource, self._listed, failed)
        self._kopf = KopfThread(api, feed, namespaces, failed)
        self._counts = [
            Census(api, cache, kind, place, self._kopf.restart, failed) for kind in BY_KOPF for place in places
        ]
        self._watches = [
            Watch(api, cache, what, place, self._began_anew(what.kind), self._changed(what.kind), failed)
            for what in BY_METADATA
            for place in places
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._profiles.run(), name="profiles")
            tasks.create_task(self._kopf.run(), name=NAME)
            for count in self._counts:
                tasks.create_task(count.run(), name=f"count {count.kind.plural}")
            for watch in self._watches:
                tasks.create_task(watch.run(), name=f"watch {watch.what.kind.plural}")

    async def synced(self) -> None:
        for synced in self._synced():
            await synced.wait()
        with contextlib.suppress(TimeoutError):  # One that cannot be read is missed where it is named, and there alone.
            async with asyncio.timeout(PROFILES_S):
                await self._profiles.read.join()

    def ready(self) -> bool:
        return all(synced.is_set() for synced in self._synced())

    def _synced(self) -> list[asyncio.Event]:
        return [count.synced for count in self._counts] + [watch.synced for watch in self._watches]

    def stuck(self, now: float) -> list[str]:
        """What shows no sign of life, by the monotonic clock."""
        alive_at = [(NAME, self._kopf.alive_at)]
        alive_at += [(count.kind.plural, count.alive_at) for count in self._counts]
        alive_at += [(watch.what.kind.plural, watch.alive_at) for watch in self._watches]
        return [name for name, at in alive_at if now - at > STUCK_S]

    def troubles(self) -> dict[str, str]:
        found = [(NAME, self._kopf.trouble)]
        found += [(count.kind.plural, count.trouble) for count in self._counts]
        found += [(watch.what.kind.plural, watch.trouble) for watch in self._watches]
        return {name: trouble for name, trouble in found if trouble is not None}

    def _listed(self, kind: Kind) -> None:
        """By kopf: a watch of it has begun anew."""
        for count in self._counts:
            if count.kind == kind:
                count.soon()

    def _began_anew(self, kind: Kind) -> Callable[[str | None, list[Object]], None]:
        """A watch here had to list again. Kopf's may have had to as well, and does not say so where nothing is left to be listed."""

        def listed(namespace: str | None, objects: list[Object]) -> None:
            if kind == CONFIG_MAP:
                self._profiles.listed(namespace, objects)
            for count in self._counts:
                count.soon()

        return listed

    def _changed(self, kind: Kind) -> Callable[[Object], None]:
        return self._profiles.config_map if kind == CONFIG_MAP else lambda object: None
