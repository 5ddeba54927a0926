"""Reads the ConfigMaps that resources name as their profiles. Told by `watch` what came or changed."""

import asyncio
import logging

from multislo_operator.kubernetes.cache import CONFIG_MAP, Cache, profile_of, profile_text
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Api, ApiError, NotFound

LOG = logging.getLogger(__name__)
BACK_OFF_S = (0.2, 10.0)


class Profiles:
    """The ConfigMaps that no resource names are known by their metadata alone."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self.read: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._api = api
        self._cache = cache
        self._versions: dict[tuple[str, str], str] = {}

    def resource(self, resource: Object) -> None:
        named = profile_of(resource)
        place = resource["metadata"]["namespace"], named or ""
        if named is not None and place not in self._cache.profiles:
            self.read.put_nowait(place)

    def listed(self, namespace: str | None, config_maps: list[Object]) -> None:
        """Those that are known and have changed, or vanished, since the last list."""
        versions = {(m["namespace"], m["name"]): m["resourceVersion"] for m in (o["metadata"] for o in config_maps)}
        for place in self._cache.profiles:
            if namespace in (None, place[0]) and versions.get(place) != self._versions.get(place):
                self.read.put_nowait(place)

    def config_map(self, config_map: Object) -> None:
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
