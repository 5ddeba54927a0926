"""The routers of one resource: asks each what it sees, about once a second, and tells each its fleet. Owned by `reconciler`.

A router is told when its list has changed, when it lacks what it was told (its `generation` says so: it restarted, or somebody
else has told it something), and every ten seconds in any case. Routers that are being stopped are told too: they still relay streams.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from multislo_api.fleet import InstanceList
from multislo_operator.admin_client import AdminClient, RouterUnreachable
from multislo_operator.kubernetes.seen import RouterSeen

LOOK_S = 1.0
"""Between two looks where nobody asks for more."""
LOOK_EARLY = 0.9
"""Of that time: a round that comes a little early finds a look due, too."""
PATIENCE_S = 0.25
"""How long a round waits for answers. A slow one comes in while the round goes on, and is there at the next."""
TELL_S = 10.0
"""Between two tellings of the same list; after a failed one, `LOOK_S`."""


@dataclass(slots=True)
class _Router:
    client: AdminClient
    seen: RouterSeen
    looking: asyncio.Task[None] | None = None
    telling: asyncio.Task[None] | None = None
    told: str | None = None
    told_at: float = float("-inf")
    generation: int | None = None
    """What it said after it was told; None: it has said nothing since."""


@dataclass(slots=True)
class Routers:
    session: aiohttp.ClientSession
    clock: Callable[[], float] = time.monotonic
    answered: Callable[[], None] = lambda: None
    """Called when an answer came too late for the round that asked."""
    _routers: dict[str, _Router] = field(default_factory=dict)
    _looked_at: float = float("-inf")
    _token: str = ""

    def seen(self) -> dict[str, RouterSeen]:
        return {pod: router.seen for pod, router in self._routers.items()}

    def set(self, urls: Mapping[str, str], token: str) -> None:
        """Which routers there are, by pod. One with another address has nothing in common with its predecessor."""
        for pod in [
            pod for pod, router in self._routers.items() if urls.get(pod) != router.client.url or token != self._token
        ]:
            self._drop(self._routers.pop(pod))
        self._token = token
        for pod, url in urls.items():
            if pod not in self._routers:
                self._routers[pod] = _Router(AdminClient(self.session, url, token), RouterSeen(pod))
                self._looked_at = float("-inf")

    async def look(self, every_s: float = LOOK_S) -> None:
        """Ask them, unless that was done just now, and wait a moment for their answers."""
        now = self.clock()
        if now - self._looked_at >= LOOK_EARLY * every_s:
            self._looked_at = now
            for router in self._routers.values():
                if router.looking is None:
                    router.looking = asyncio.create_task(self._ask(router))
        waiting = [router.looking for router in self._routers.values() if router.looking is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE_S)

    def tell(self, lists: Mapping[str, InstanceList]) -> None:
        """Each its list; the calls go on while the caller does."""
        now = self.clock()
        for pod, fleet in lists.items():
            router = self._routers.get(pod)
            if router is None or router.telling is not None:
                continue
            text = fleet.model_dump_json()
            if text != router.told or now - router.told_at >= TELL_S:
                router.telling = asyncio.create_task(self._tell(router, text))

    async def close(self) -> None:
        for router in self._routers.values():
            self._drop(router)
        self._routers.clear()

    def _drop(self, router: _Router) -> None:
        for task in (router.looking, router.telling):
            if task is not None:
                task.cancel()

    async def _ask(self, router: _Router) -> None:
        began = self.clock()
        pod, before = router.seen.pod, router.seen
        try:
            snapshot = await router.client.fleet()
            router.seen = RouterSeen(pod, snapshot, self.clock())
            if router.generation is None and router.told_at < began:
                router.generation = snapshot.generation
            elif router.generation is not None and snapshot.generation != router.generation:
                router.told = None
        except RouterUnreachable as error:
            router.seen = RouterSeen(pod, before.snapshot, before.at, str(error))
        finally:
            router.looking = None
        if self.clock() - began > PATIENCE_S:
            self.answered()

    async def _tell(self, router: _Router, text: str) -> None:
        router.generation = None
        try:
            await router.client.put_instances_json(text)
            router.told = text
        except RouterUnreachable as error:
            router.told = None
            router.seen = RouterSeen(router.seen.pod, router.seen.snapshot, router.seen.at, str(error))
        finally:
            router.told_at = self.clock()
            router.telling = None
