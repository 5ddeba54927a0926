"""One task a resource: wait for a change or for the next second, look, carry out, tell. Runs on the leader alone; started by `run`.

What goes wrong with one resource stays with it: it is logged once, counted and tried again later, and the others do not notice.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import aiohttp

from multislo_operator.kubernetes.apply import Applier, Carried, NotLeading
from multislo_operator.kubernetes.cache import RESOURCE, Cache
from multislo_operator.kubernetes.changes import Note, Object
from multislo_operator.kubernetes.claims import Claims
from multislo_operator.kubernetes.client import Api, ApiError, NotFound, Refused
from multislo_operator.kubernetes.events import Events
from multislo_operator.kubernetes.fleet_metrics import Outcome as Ended
from multislo_operator.kubernetes.metrics import OperatorMetrics
from multislo_operator.kubernetes.mishaps import Mishaps
from multislo_operator.kubernetes.names import Key
from multislo_operator.kubernetes.reconcile import OperatorSettings, Outcome, ResourceMemory
from multislo_operator.kubernetes.routers import Routers
from multislo_operator.kubernetes.seen import RouterSeen, Seen
from multislo_operator.kubernetes.status import StatusWriter
from multislo_operator.kubernetes.wanted import Unusable

LOG = logging.getLogger(__name__)
ROUND_MIN_S = 0.2
"""Between the beginnings of two rounds of one resource: a burst of changes is one round."""
CRASH_BACK_OFF_S = (1.0, 60.0)
ASIDE_LOOK_S, CLAIM_LOOK_S = 1.0, 0.05
"""Between two looks at whether this operator still stands aside; and whether its claim has been looked at."""
LEADING_S = 0.1
"""Between two looks at whether this replica leads; each write looks for itself."""
STARTED_A_SECOND = 20
"""Resources of a new leader are taken up over time, so that their first applies do not come all at once."""


class Reconcile(Protocol):
    """`reconcile.reconcile`, or a test's."""

    def __call__(
        self,
        seen: Seen,
        routers: Mapping[str, RouterSeen],
        memory: ResourceMemory,
        settings: OperatorSettings,
        at: datetime,
        now: float,
    ) -> Outcome: ...


@dataclass(slots=True)
class Shared:
    """What all resources use together. `settings` may answer otherwise later: an API that this cluster had not may have come."""

    api: Api
    cache: Cache
    session: aiohttp.ClientSession
    metrics: OperatorMetrics
    events: Events
    reconcile: Reconcile
    settings: Callable[[], OperatorSettings]
    leading: Callable[[], bool]
    claims: Claims
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Resource:
    """One resource with all that is remembered of it; a new one of the same name is another."""

    key: Key
    uid: str
    shared: Shared
    routers: Routers
    applier: Applier
    mishaps: Mishaps
    status: StatusWriter = field(default_factory=StatusWriter)
    memory: ResourceMemory = field(default_factory=ResourceMemory)
    trouble: str = ""
    look_s: float = 1.0
    """How soon the routers are asked again: sooner while there is something to wait for."""

    async def round(self) -> float:
        """One look and what follows from it; in how many seconds to look again. Raises NotLeading."""
        shared = self.shared
        await self.routers.look(self.look_s)
        seen = shared.cache.seen(self.key)
        if seen is None or seen.resource["metadata"]["uid"] != self.uid:
            return 0.0
        began, at = shared.clock(), datetime.now(UTC)
        aside = shared.claims.aside(self.key.namespace)
        seen = replace(seen, warnings=await self.mishaps.of(seen.pods, at), other_operator=aside)
        outcome = shared.reconcile(seen, self.routers.seen(), self.memory, shared.settings(), at, began)
        self.memory = outcome.memory
        self.look_s = outcome.wake_in_s
        self.routers.set(outcome.routers, outcome.token)
        self.routers.tell(outcome.instances)
        self._measure(outcome, began)
        carried = await self.applier.carry_out(outcome.changes, began)
        obstacles = self.applier.obstacles()
        if self.memory.obstacles != obstacles:
            self.memory = replace(self.memory, obstacles=obstacles)
        if carried.raised:
            shared.metrics.scaled_up(self.key, shared.clock())
        await self._write_status(seen, outcome.status, at, carried)
        for note in (*outcome.notes, *carried.notes):
            await shared.events.tell(self.key, seen.resource, note)
        ended = carried.outcome
        if ended is Ended.DONE and isinstance(outcome.memory.wanted, Unusable):
            ended = Ended.INVALID
        shared.metrics.reconciled(self.key, ended, shared.clock() - began)
        return min(outcome.wake_in_s, carried.again_in_s or outcome.wake_in_s)

    async def _write_status(self, seen: Seen, wanted: Mapping[str, Any], at: datetime, carried: Carried) -> None:
        shared, now = self.shared, self.shared.clock()
        patch = self.status.patch(seen.resource, wanted, at, now)
        if not patch:
            return
        if not shared.leading():
            raise NotLeading
        body = {"metadata": {"uid": self.uid}, "status": patch}
        try:
            answer = await shared.api.patch(RESOURCE, self.key.namespace, self.key.name, body, subresource="status")
        except NotFound:
            return  # It has just been deleted.
        except ApiError as error:
            carried.outcome = Ended.FAILED
            self.status.failed(isinstance(error, Refused) and error.status == 422, now)
            if str(error) != self.trouble:
                LOG.warning("%s: the status cannot be written: %s", self.key, error)
                if isinstance(error, Refused):
                    carried.notes.append(Note("StatusRefused", error.message, warning=True))
                self.trouble = str(error)
            return
        self.trouble = ""
        self.status.wrote(wanted, answer, at, now)
        shared.cache.put(RESOURCE, answer)

    def _measure(self, outcome: Outcome, now: float) -> None:
        metrics, spec = self.shared.metrics, outcome.spec
        if spec is not None and outcome.plan is not None and outcome.observed is not None:
            used = (outcome.status.get("accelerators") or {}).get("used")
            metrics.observe_plan(self.key, spec, outcome.plan, outcome.observed, now, accelerators_used=used)
        metrics.observe_lost(self.key, outcome.instances_lost)
        conditions = outcome.status.get("conditions") or ()
        metrics.observe_conditions(self.key, [(c["type"], c["status"], c.get("reason", "")) for c in conditions])


class Reconciler:
    """All resources in the cache. `wake` is the cache's."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._wakes: dict[Key, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._aside: dict[Key, str] = {}
        """The resources for which this operator stands aside, and for which other."""
        self._running = False

    def wake(self, key: Key) -> None:
        """Something of this resource has changed."""
        wake = self._wakes.get(key)
        if wake is not None:
            wake.set()
        elif self._running and key in self._shared.cache.resources:
            self._begin(key, 0.0)

    async def run(self) -> None:
        """Until it is cancelled, or may not write any more."""
        self._running = True
        try:
            for number, key in enumerate(list(self._shared.cache.resources)):
                self._begin(key, number / STARTED_A_SECOND)
            while self._shared.leading():  # noqa: ASYNC110 - A lease runs out by the clock, which sets no event.
                await asyncio.sleep(LEADING_S)
        finally:
            self._running = False
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, key: Key, in_s: float) -> None:
        self._wakes[key] = asyncio.Event()
        task = asyncio.create_task(self._live(key, self._wakes[key], in_s), name=f"reconcile {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, key: Key, wake: asyncio.Event, in_s: float) -> None:
        shared = self._shared
        resource: _Resource | None = None
        failures = 0
        try:
            await asyncio.sleep(in_s)
            while (object := shared.cache.resources.get(key)) is not None:
                if not shared.claims.known(key.namespace):
                    await asyncio.sleep(CLAIM_LOOK_S)
                    continue
                if rival := shared.claims.rival(key.namespace):
                    if resource is not None:
                        await resource.routers.close()
                        resource = None
                    await self._stand_aside(object, key, rival)
                    continue
                uid = object["metadata"]["uid"]
                if resource is None or resource.uid != uid:
                    resource = await self._anew(resource, key, uid, wake)
                wake.clear()
                began = shared.clock()
                if object["metadata"].get("deletionTimestamp"):
                    await wake.wait()  # The garbage collector has the word.
                    continue
                try:
                    wait_s = await resource.round()
                    failures = 0
                except NotLeading:
                    return
                except Exception:
                    failures += 1
                    await self._crashed(object, key, failures)
                    continue
                await _within(wake, began + wait_s * random.uniform(0.95, 1.0) - shared.clock())
                await asyncio.sleep(max(0.0, began + ROUND_MIN_S - shared.clock()))
        finally:
            if resource is not None:
                await resource.routers.close()
                shared.events.allowance.forget(resource.uid)
            self._wakes.pop(key, None)
            shared.metrics.forget(key)

    async def _anew(self, old: _Resource | None, key: Key, uid: str, wake: asyncio.Event) -> _Resource:
        shared = self._shared
        if old is not None:
            await old.routers.close()
            shared.metrics.forget(key)
            shared.events.allowance.forget(old.uid)
        return _Resource(
            key,
            uid,
            shared,
            Routers(shared.session, shared.clock, wake.set),
            Applier(shared.api, shared.cache, key, shared.leading),
            Mishaps(shared.api, shared.clock),
        )

    async def _stand_aside(self, object: Object, key: Key, rival: str) -> None:
        """Nothing is written but this event: what the resource's conditions say is the other's."""
        shared = self._shared
        if not shared.leading():
            await asyncio.sleep(ASIDE_LOOK_S)
            return
        me = shared.claims.identity
        words = f"the operator {rival} looks after this namespace, so {me} stands aside: uninstall one of the two, or give each its own"
        if self._aside.get(key) != rival:
            self._aside[key] = rival
            await shared.events.tell(key, object, Note("AnotherOperator", words, warning=True))
        await asyncio.sleep(ASIDE_LOOK_S)

    async def _crashed(self, object: Object, key: Key, failures: int) -> None:
        """A fault of ours: told the first time, and each time that the patience grows."""
        wait_s = min(CRASH_BACK_OFF_S[0] * 2 ** (failures - 1), CRASH_BACK_OFF_S[1])
        if wait_s < CRASH_BACK_OFF_S[1] or failures % 60 == 0:
            LOG.exception("%s: the reconcile has failed %d times in a row, next in %g s", key, failures, wait_s)
        if failures == 1:
            words = "the operator has met a fault of its own with this resource, and leaves it as it is; its log has the trace"
            await self._shared.events.tell(key, object, Note("OperatorFault", words, warning=True))
        self._shared.metrics.reconciled(key, Ended.FAILED, 0.0)
        await asyncio.sleep(wait_s)


async def _within(event: asyncio.Event, wait_s: float) -> None:
    if wait_s > 0:
        try:
            async with asyncio.timeout(wait_s):
                await event.wait()
        except TimeoutError:
            pass
