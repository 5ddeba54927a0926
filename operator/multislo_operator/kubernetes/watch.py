"""Keeps the cache in step with the API server: a list, then a watch from its version on, for each kind and namespace. Started by `run`, on
the leader and on its stand-in alike.

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
from multislo_operator.kubernetes.client import Api, ApiError, Gone, Json, Kind, NotFound, Refused
from multislo_operator.kubernetes.names import FIELD_MANAGER, MANAGED_BY

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
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str | None = None
    lists: int = 0
    alive_at: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Until it is cancelled."""
        version: str | None = None
        failures = 0
        while True:
            self.alive_at = time.monotonic()
            try:
                if version is None:
                    version = await self._list()
                async for type, object in self.api.watch(
                    self.what.kind,
                    self.namespace,
                    version,
                    random.randint(*WATCH_FOR_S),
                    self.what.labels,
                    self.what.metadata_only,
                ):
                    self.alive_at = time.monotonic()
                    failures = 0
                    self._well()
                    self._take(type, object)
                    version = object["metadata"]["resourceVersion"]
                failures = 0
            except Gone:
                version = None
            except ApiError as error:
                failures += 1
                await self._failed(error, failures)
                if isinstance(error, Refused):
                    version = None

    async def _list(self) -> str:
        what = self.what
        objects, version = await self.api.list(what.kind, self.namespace, what.labels, what.metadata_only)
        self.lists += 1
        listed: list[Object] = [self._slim(object) for object in objects]
        self.cache.replace(what.kind, self.namespace, listed)
        self.cache.watched.add((what.kind, self.namespace))
        self.listed(self.namespace, listed)
        self._well()
        self.synced.set()
        return version

    def _take(self, type: str, object: Json) -> None:
        if type == "DELETED":
            self.cache.drop(self.what.kind, object)
        elif type in ("ADDED", "MODIFIED"):
            self.cache.put(self.what.kind, self._slim(object))
        if type != "BOOKMARK":
            self.changed(object)

    def _slim(self, object: Json) -> Json:
        """Without what nobody reads and what is half of a pod's size. Lists leave out the kind, which everybody reads."""
        if self.what.kind in (POD, REPLICA_SET):
            object["metadata"].pop("managedFields", None)
        if not self.what.metadata_only:
            object.setdefault("apiVersion", self.what.kind.api_version)
            object.setdefault("kind", self.what.kind.name)
        return object

    def _well(self) -> None:
        if self.trouble is not None:
            LOG.info("the watch of %s goes on", self.what.kind.plural)
            self.trouble = None

    async def _failed(self, error: ApiError, failures: int) -> None:
        words = str(error)
        if words != self.trouble:
            LOG.warning("the watch of %s has failed and is tried again: %s", self.what.kind.plural, words)
            self.trouble = words
        wait_s = min(BACK_OFF_S[0] * 2 ** (failures - 1), BACK_OFF_S[1])
        if isinstance(error, Refused):
            wait_s = min(2.0**failures, REFUSED_BACK_OFF_S)
            if not self.what.essential:
                self.synced.set()
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))


class Watches:
    """All of them, for the given namespaces (none: the whole cluster)."""

    def __init__(self, api: Api, cache: Cache, namespaces: Sequence[str] = ()) -> None:
        self._profiles = Profiles(api, cache)
        self._watches = [
            Watch(api, cache, what, namespace, *self._profiles.hears(what.kind))
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
            except ApiError as error:
                if failures == 0:
                    LOG.warning("ConfigMap %s/%s cannot be read: %s", *place, error)
                failures += 1
                self.read.put_nowait(place)
                await asyncio.sleep(min(BACK_OFF_S[0] * 2**failures, BACK_OFF_S[1]))
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
