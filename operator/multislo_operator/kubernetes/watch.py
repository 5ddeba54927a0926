"""Keeps the cache in step with the API server: a list, then a watch from its version on, for each kind and namespace. Started by `run`, on
the leader and on its stand-in alike. Whatever goes wrong in one watch stays in it: it is counted, and begins anew.

Why not kopf's event handlers: after a watch has expired (410, which every restart of the API server brings) kopf lists again and hands out
what is there, without a word about what has vanished meanwhile, so a cache that it fills keeps the dead for ever; an error inside a watch
ends its operator; and each object costs a task. At 200 resources it took 177 MB and 3.3 s of CPU to know 2,400 objects; what is here took
152 MB and 0.7 s for 4,600, of more kinds. The asyncio side of the `kubernetes` package has no informer.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from multislo_operator.kubernetes.cache import (
    CONFIG_MAP,
    DEPLOYMENT,
    POD,
    REPLICA_SET,
    RESOURCE,
    Cache,
    profile_of,
    profile_text,
)
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Api, ApiError, Garbled, Gone, Kind, NotFound, Refused
from multislo_operator.kubernetes.names import FIELD_MANAGER, MANAGED_BY
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
OURS = f"{MANAGED_BY}={FIELD_MANAGER}"
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
NEEDED = ("name", "namespace", "uid", "resourceVersion")
"""Of an object's metadata."""
STUCK_S = 180.0
"""A watch that has done nothing for so long, not even failed, is stuck; each has a sign of life within 100 s."""


@dataclass(frozen=True, slots=True)
class Watched:
    """`metadata_only`: of kinds whose content nobody reads; a few hundred bytes each. `essential`: nothing works without."""

    kind: Kind
    labels: str = OURS
    metadata_only: bool = False
    essential: bool = True


WATCHED = (
    Watched(RESOURCE, labels=""),
    Watched(DEPLOYMENT),
    Watched(REPLICA_SET),
    Watched(POD),
    # All of them: a profile's ConfigMap is the user's, without a label of ours.
    Watched(CONFIG_MAP, labels="", metadata_only=True),
    *(
        Watched(kind, metadata_only=True, essential=False)
        for kind in (SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)
    ),
)


@dataclass(slots=True)
class Watch:
    """One kind in one namespace (None: in all)."""

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
        async for type, object in self.api.watch(
            what.kind, self.namespace, self._version, for_s, what.labels, what.metadata_only
        ):
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
        objects, version = await self.api.list(what.kind, self.namespace, what.labels, what.metadata_only)
        self.lists += 1
        listed = [self._named(object) for object in objects if self._is_whole(object)]
        self.cache.replace(what.kind, self.namespace, listed)
        self.cache.watched.add((what.kind, self.namespace))
        self.listed(self.namespace, listed)
        self._well()
        self.synced.set()
        return version

    def _take(self, type: str, object: Json) -> None:
        if type not in ("ADDED", "MODIFIED", "DELETED") or not self._is_whole(object):
            return
        if type == "DELETED":
            self.cache.drop(self.what.kind, object)
        else:
            self.cache.put(self.what.kind, self._named(object))
        self.changed(object)

    def _is_whole(self, object: Json) -> bool:
        """What everything rests on is there. No API server leaves it out; what stands in front of one may."""
        metadata = object.get("metadata") if isinstance(object, dict) else None
        if isinstance(metadata, dict) and all(isinstance(metadata.get(key), str) for key in NEEDED):
            return True
        LOG.warning("a %s without %s is left out: %.200s", self.what.kind.name, ", ".join(NEEDED), object)
        return False

    def _named(self, object: Json) -> Object:
        """Lists leave out the kind, which everybody reads."""
        kind = self.what.kind
        return object if self.what.metadata_only else {"apiVersion": kind.api_version, "kind": kind.name, **object}

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
        self._watches = [
            Watch(api, cache, what, namespace, *self._profiles.hears(what.kind), failed)
            for what in WATCHED
            for namespace in (namespaces or (None,))
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._profiles.run(), name="profiles")
            for watch in self._watches:
                tasks.create_task(watch.run(), name=f"watch {watch.what.kind.plural}")

    async def synced(self) -> None:
        for watch in self._watches:
            await watch.synced.wait()
        with contextlib.suppress(TimeoutError):  # One that cannot be read is missed where it is named, and there alone.
            async with asyncio.timeout(PROFILES_S):
                await self._profiles.read.join()

    def ready(self) -> bool:
        return all(watch.synced.is_set() for watch in self._watches)

    def stuck(self, now: float) -> list[str]:
        """The watches that show no sign of life, by the monotonic clock."""
        return [watch.what.kind.plural for watch in self._watches if now - watch.alive_at > STUCK_S]

    def troubles(self) -> dict[str, str]:
        return {watch.what.kind.plural: watch.trouble for watch in self._watches if watch.trouble is not None}


class Profiles:
    """Reads the ConfigMaps that resources name as their profiles; the others are known by their metadata alone."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self.read: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._api = api
        self._cache = cache
        self._versions: dict[tuple[str, str], str] = {}

    def hears(self, kind: Kind) -> tuple[Callable[[str | None, list[Object]], None], Callable[[Object], None]]:
        """What to call for a new list of a kind, and for a single change."""
        if kind == RESOURCE:
            return self._listed_resources, self._resource
        if kind == CONFIG_MAP:
            return self._listed_config_maps, self._config_map
        return lambda namespace, objects: None, lambda object: None

    def _listed_resources(self, namespace: str | None, resources: list[Object]) -> None:
        for resource in resources:
            self._resource(resource)

    def _resource(self, resource: Object) -> None:
        named = profile_of(resource)
        place = resource["metadata"]["namespace"], named or ""
        if named is not None and place not in self._cache.profiles:
            self.read.put_nowait(place)

    def _listed_config_maps(self, namespace: str | None, config_maps: list[Object]) -> None:
        """Those that are known and have changed, or vanished, since the last list."""
        versions = {(m["namespace"], m["name"]): m["resourceVersion"] for m in (o["metadata"] for o in config_maps)}
        for place in self._cache.profiles:
            if namespace in (None, place[0]) and versions.get(place) != self._versions.get(place):
                self.read.put_nowait(place)

    def _config_map(self, config_map: Object) -> None:
        metadata = config_map["metadata"]
        place = metadata["namespace"], metadata["name"]
        if self._cache.naming(*place):
            self.read.put_nowait(place)

    async def run(self) -> None:
        failures = 0
        while True:
            place = await self.read.get()
            try:
                await self._read(place)
                failures = 0
            except Exception as error:
                if not isinstance(error, ApiError):
                    LOG.exception("ConfigMap %s/%s", *place)
                if failures == 0:
                    LOG.warning("ConfigMap %s/%s cannot be read: %s", *place, error)
                failures += 1
                self.read.put_nowait(place)
                await asyncio.sleep(min(BACK_OFF_S[0] * 2 ** min(failures, 16), BACK_OFF_S[1]))
            finally:
                self.read.task_done()

    async def _read(self, place: tuple[str, str]) -> None:
        try:
            config_map = await self._api.get(CONFIG_MAP, *place)
        except NotFound:
            self._versions.pop(place, None)
            self._cache.set_profile(*place, None)
            return
        self._versions[place] = config_map["metadata"]["resourceVersion"]
        self._cache.set_profile(*place, profile_text(config_map))
