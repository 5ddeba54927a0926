"""Which objects of a kind there are, by their metadata alone: prunes the cache of what vanished while nobody looked, and knows whether kopf
has told of all the others. One for each kind that kopf watches, and each namespace. Started by `watch`.

Kopf lists again after a watch has expired (410, which every restart of the API server brings) and hands out what is there, without a word
about what is not there any more. A cache that kopf alone fills would keep dead pods for ever, and an autoscaler would count them.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from multislo_operator.kubernetes.cache import RESOURCE, Cache, newer
from multislo_operator.kubernetes.client import Api, ApiError, Kind, Refused
from multislo_operator.kubernetes.feed import OURS, is_whole, type_of
from multislo_operator.kubernetes.names import INSTANCE

LOG = logging.getLogger(__name__)
AGAIN_S = (90.0, 150.0)
"""Between two counts where nothing happens; drawn, so that not all come in the same second."""
SETTLE_S = 0.5
"""Kopf has just begun a list: the rest of it is on its way."""
CATCH_UP_S = 20.0
"""Kopf is given so long to tell of what the list holds, before the list is asked for again."""
LOOK_S = 0.1
BACK_OFF_S = (0.5, 10.0)
REFUSED_BACK_OFF_S = 60.0


@dataclass(slots=True)
class Census:
    api: Api
    cache: Cache
    kind: Kind
    namespace: str | None
    deaf: Callable[[], None]
    """Told when kopf does not tell of objects that are there, and catches up with none of them."""
    failed: Callable[[str, str], None]
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str | None = None
    alive_at: float = field(default_factory=time.monotonic)
    counts: int = 0
    _due: asyncio.Event = field(default_factory=asyncio.Event)
    _failures: int = 0
    _missed: dict[str, str] = field(default_factory=dict)
    """uid -> version of what kopf had not told of at the end of the last count."""

    def soon(self) -> None:
        """A watch has begun anew, of this kind or of another."""
        self._due.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            wait_s = 0.0
            self._due.clear()
            try:
                await self._count()
                self._failures = 0
                wait_s = random.uniform(*AGAIN_S) if not self._missed else 0.0
            except ApiError as error:
                wait_s = self._failed(error)
            except Exception as error:
                LOG.exception("the count of %s met what it does not expect", self.kind.plural)
                wait_s = self._failed(error)
            await self._rest(wait_s)

    async def _count(self) -> None:
        labels = "" if self.kind == RESOURCE else OURS
        objects, version = await self.api.list(self.kind, self.namespace, labels, metadata_only=True)
        listed = {
            o["metadata"]["uid"]: o["metadata"]["resourceVersion"]
            for o in objects
            if is_whole(self.kind, o) and (self.kind == RESOURCE or INSTANCE in (o["metadata"].get("labels") or {}))
        }
        self.counts += 1
        self.cache.prune(self.kind, self.namespace, listed.keys(), version)
        missing = await self._missing(listed)
        if missing and self._missed and len(missing) >= len(self._missed) and missing.items() & self._missed.items():
            LOG.warning("kopf does not tell of %d %s, and begins anew", len(missing), self.kind.plural)
            self.failed(self.kind.plural, "Deaf")
            self.trouble = f"kopf does not tell of {len(missing)} objects"
            self._missed = {}
            self.deaf()
            return
        self._missed = missing
        if not missing:
            self._complete()

    def _complete(self) -> None:
        if self.trouble is not None:
            LOG.info("the watch of %s goes on", self.kind.plural)
            self.trouble = None
        self.cache.watched.add((self.kind, self.namespace))
        self.synced.set()

    async def _missing(self, listed: dict[str, str]) -> dict[str, str]:
        """What the cache does not hold yet; empty as soon as it holds all."""
        until = time.monotonic() + CATCH_UP_S
        while True:
            self.alive_at = time.monotonic()
            known = self.cache.versions(self.kind)
            listed = {uid: version for uid, version in listed.items() if uid not in known or newer(version, known[uid])}
            if not listed or time.monotonic() >= until:
                return listed
            await asyncio.sleep(LOOK_S)

    def _failed(self, error: Exception) -> float:
        """How long to wait."""
        self._failures += 1
        words = str(error) or type_of(error)
        self.failed(self.kind.plural, type_of(error))
        if words != self.trouble:
            LOG.warning("%s cannot be counted, which is tried again: %s", self.kind.plural, words)
            self.trouble = words
        most_s = REFUSED_BACK_OFF_S if isinstance(error, Refused) else BACK_OFF_S[1]
        wait_s: float = min(BACK_OFF_S[0] * 2 ** min(self._failures - 1, 16), most_s)
        return wait_s * random.uniform(0.5, 1.0)

    async def _rest(self, wait_s: float) -> None:
        self.alive_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._due.wait()
        self.alive_at = time.monotonic()
        await asyncio.sleep(SETTLE_S)
