"""Runs kopf in a thread with an event loop of its own, and starts it anew when it has ended. Started by `watch`.

Why a thread: an error in one watch ends kopf's operator, and kopf then cancels every task of its event loop that is younger than itself.
In a loop of its own it takes nothing but itself with it. It also leaves the signals to `run`, since only a main thread may handle them.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import kopf

from multislo_operator.kubernetes import handlers  # noqa: F401  Registers them.
from multislo_operator.kubernetes.cache import RESOURCE
from multislo_operator.kubernetes.client import Api, ApiError
from multislo_operator.kubernetes.feed import Feed, type_of
from multislo_operator.kubernetes.names import FIELD_MANAGER, GROUP

LOG = logging.getLogger(__name__)
logging.getLogger("kopf").setLevel(logging.WARNING)
# That signals are ignored in a thread is meant. That the API server is away is said by `watch`, once and not at each attempt.
logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
logging.getLogger("kopf._cogs.clients.watching").setLevel(logging.CRITICAL)
NAME = "kopf"
"""Stands for a kind in metrics and health, where kopf does not say which watch it was."""
BACK_OFF_S = (0.5, 15.0)
LASTED_S = 60.0
"""Who has run for so long begins with the first back-off again."""
BEAT_S = 5.0
STOP_WITHIN_S = 8.0
DISCOVERED_WITHIN_S = 30.0


class KopfThread:
    def __init__(self, api: Api, feed: Feed, namespaces: Sequence[str], failed: Callable[[str, str], None]) -> None:
        self.alive_at = time.monotonic()
        self.trouble: str | None = None
        self.starts = 0
        self._api = api
        self._feed = feed
        self._namespaces = namespaces
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        failures = 0
        await self._discovered()
        while True:
            began_at = self.alive_at = time.monotonic()
            over: Future[None] = Future()
            self.starts += 1
            threading.Thread(target=self._live, args=(over,), name=NAME, daemon=True).start()
            waiting = asyncio.wrap_future(over)
            try:
                await asyncio.shield(waiting)
                self.trouble = None
            except asyncio.CancelledError:
                self.restart()
                await asyncio.wait([waiting], timeout=STOP_WITHIN_S)
                raise
            except Exception as error:
                if time.monotonic() - began_at > LASTED_S:
                    failures = 0
                failures += 1
                self._failed(NAME, type_of(error))
                self.trouble = str(error) or type_of(error)
                LOG.warning("kopf has ended and is started again: %s: %s", type_of(error), self.trouble)
                wait_s = min(BACK_OFF_S[0] * 2 ** min(failures - 1, 16), BACK_OFF_S[1])
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    def restart(self) -> None:
        """Its watches begin anew, each with a list."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # It has just ended.
                self._loop.call_soon_threadsafe(self._stop.set)

    async def _discovered(self) -> None:
        """Kopf asks once what the API server has, and does not watch a kind that is made known a moment later."""
        until = time.monotonic() + DISCOVERED_WITHIN_S
        while time.monotonic() < until:
            with contextlib.suppress(ApiError):
                groups, plurals = await self._api.groups(), await self._api.plurals(RESOURCE.api_version)
                if GROUP in groups and RESOURCE.plural in plurals:
                    return
            self.alive_at = time.monotonic()
            await asyncio.sleep(0.5)

    # -- in the thread -------------------------------------------------------------------------------------------------------

    def _live(self, over: "Future[None]") -> None:
        try:
            asyncio.run(self._operate())
        except asyncio.CancelledError:
            over.set_exception(RuntimeError("kopf was cancelled"))
        except BaseException as error:
            over.set_exception(error)
        else:
            over.set_result(None)

    async def _operate(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        beat = asyncio.create_task(self._beat(), name="beat")
        # `kopf.operator` is this and its own way to end, which waits five seconds for watches that it has forgotten to stop. Here
        # `asyncio.run` stops all that is left at once.
        tasks = await kopf.spawn_tasks(
            registry=kopf.get_default_registry(),
            settings=kopf.OperatorSettings(),
            memo=kopf.Memo(feed=self._feed),
            stop_flag=self._stop,
            # Its own way to find a name asks for the user's, and a container's user may have none.
            identity=FIELD_MANAGER,  # type: ignore[arg-type]
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
        )
        ended, _ = await asyncio.wait((*tasks, beat), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()

    async def _beat(self) -> None:
        """Kopf's event loop is alive."""
        while True:
            self.alive_at = time.monotonic()
            await asyncio.sleep(BEAT_S)
