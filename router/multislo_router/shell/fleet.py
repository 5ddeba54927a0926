"""The instances as the data path holds them: applied from PUT /instances, failed and revived, each watched by a task. Owned by the
gateway."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_perf.profile import is_another_size
from multislo_router.core.config import CoreConfig
from multislo_router.core.decisions import Suspect
from multislo_router.core.events import (
    Event,
    FleetChanged,
    InstanceFailed,
    InstanceRevived,
    InstanceSpec,
    InstanceState,
)
from multislo_router.core.status import CoreStatus
from multislo_router.shell.engine import EngineInstance
from multislo_router.shell.internal_errors import InternalErrors, Owner, Seam
from multislo_router.shell.settings import ShellSettings
from multislo_router.shell.watch import healthy, watch

LOG = logging.getLogger(__name__)


class Fleet:
    """`tell` takes an event to the core and carries out what it decides."""

    def __init__(
        self,
        core_config: CoreConfig,
        settings: ShellSettings,
        errors: InternalErrors,
        tell: Callable[[Event], bool],
        stalled: Callable[[EngineInstance], None],
    ) -> None:
        self.instances: dict[str, EngineInstance] = {}
        self.told = False
        """Somebody has said what the fleet is, though it may be empty."""
        self.kv_tokens_max = core_config.engine.kv_tokens_max
        self.settings = settings
        self.errors = errors
        self.tell = tell
        self.stalled = stalled
        """Told of an instance that was suspect and does not compute."""
        self._default_tier = core_config.default_tier
        self._tiers = frozenset(tier.name for tier in core_config.tiers)
        self._dice = random.Random(0)
        self._session: aiohttp.ClientSession | None = None
        self._watches: dict[EngineInstance, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """On the event loop: the watches begin."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.settings.probe_max_s))
        for instance in self.instances.values():
            self._watch(instance)

    async def close(self) -> None:
        tasks = [*self._watches.values(), *self._retiring, *self._asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for instance in self.instances.values():
            await instance.close()
        if self._session is not None:
            await self._session.close()

    def apply(self, fleet: InstanceList) -> None:
        """The whole fleet as it is now. Raises ValueError for an unknown tier or a doubled id, and changes nothing then."""
        seen: set[str] = set()
        for index, entry in enumerate(fleet.instances):
            if entry.tier is not None and entry.tier not in self._tiers:
                legal = ", ".join(sorted(self._tiers))
                raise ValueError(f"instances[{index}].tier: {entry.tier!r} must be null or one of: {legal}")
            if entry.id in seen:
                raise ValueError(f"instances[{index}].id: {entry.id!r} is given twice")
            seen.add(entry.id)
        # Made before anything is changed: an entry that cannot be used leaves the fleet as it was.
        fresh = {
            entry.id: EngineInstance(entry, self.settings, self.errors)
            for entry in fleet.instances
            if not self._is_known(entry)
        }
        self.told = True
        for id in self.instances.keys() - seen:
            self._retire(self.instances.pop(id))
        revived: list[str] = []
        for entry in fleet.instances:
            known = self.instances.get(entry.id)
            if known is not None and entry.id not in fresh:
                known.entry = entry
                continue
            if known is not None:
                self._retire(known)
                if known.failed.is_set():
                    revived.append(entry.id)
            self.instances[entry.id] = fresh[entry.id]
            self._watch(self.instances[entry.id])
        now = time.monotonic()
        specs = [InstanceSpec(e.id, e.tier, InstanceState(e.state), e.batch_tokens, e.epoch) for e in fleet.instances]
        if not self.tell(FleetChanged(now, specs)):
            raise RuntimeError("the router failed to take the fleet in; say it again")
        for id in revived:
            self.tell(InstanceRevived(now, id))

    def _is_known(self, entry: InstanceEntry) -> bool:
        known = self.instances.get(entry.id)
        return known is not None and (known.entry.url, known.entry.epoch) == (entry.url, entry.epoch)

    def with_passing(self, status: CoreStatus) -> CoreStatus:
        """The core's status with the requests that it does not know added to their instances: a drain waits for them too."""
        for index, view in enumerate(status.instances):
            instance = self.instances.get(view.id)
            if instance is not None and instance.passing:
                requests = view.requests + instance.passing
                status.instances[index] = replace(view, requests=requests, empty_s=0.0)
        return status

    def for_passing(self) -> EngineInstance | None:
        """Where a request goes that the core does not place: a random ready instance of the default tier, or any, if it has none."""
        ready = [i for i in self.instances.values() if i.entry.state == "ready" and not i.failed.is_set()]
        homes = [instance for instance in ready if instance.entry.tier == self._default_tier]
        return self._dice.choice(homes or ready) if ready else None

    def failed(self, instance: EngineInstance) -> None:
        """A connection could not be made, or broke. The instance's watch probes it from now on."""
        if instance.failed.is_set() or instance.retired:
            return
        instance.failed.set()
        instance.close_idle(float("inf"))
        self.tell(InstanceFailed(time.monotonic(), instance.entry.id))

    def suspect(self, decision: Suspect) -> None:
        """The core places nothing there any more. The instance's watch lets it compute a token."""
        instance = self.instances[decision.instance]
        LOG.warning(
            "instance %s: %s; nothing is sent there until it computes a token", decision.instance, decision.reason
        )
        instance.suspect = True
        instance.failed.set()

    def check_size(self, instance: EngineInstance, kv_tokens_max: int | None) -> None:
        """Says once of an engine that its KV cache is not at all the profile's. The core believes the engine."""
        if kv_tokens_max is None or instance.sized:
            return
        instance.sized = True
        if is_another_size(kv_tokens_max, self.kv_tokens_max):
            LOG.warning(
                "instance %s: its KV cache holds %d tokens, and %d by the profile: is it the profile of this model and accelerator?",
                *(instance.entry.id, kv_tokens_max, self.kv_tokens_max),
            )

    def revived(self, instance: EngineInstance) -> None:
        """A probe has reached it. What could not be told the core is told after the next probe."""
        instance.failed.clear()
        instance.suspect = False
        if not instance.retired and not self.tell(InstanceRevived(time.monotonic(), instance.entry.id)):
            instance.failed.set()

    def ask_health(self, instance: EngineInstance, told: Callable[[bool], None], owner: Owner) -> "asyncio.Task[None]":
        """Asks the engine now whether it is well, and tells the owner."""
        task = asyncio.create_task(self._ask_health(instance, told, owner))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _ask_health(self, instance: EngineInstance, told: Callable[[bool], None], owner: Owner) -> None:
        try:
            assert self._session is not None
            told(await healthy(instance, self._session, self.settings.health_timeout_s))
        except Exception as error:
            self.errors.failed(Seam.WATCH, error, owner)

    def close_idle(self, before: float) -> None:
        for instance in self.instances.values():
            instance.close_idle(before)

    def _watch(self, instance: EngineInstance) -> None:
        if self._session is not None:
            self._watches[instance] = asyncio.create_task(watch(self, instance, self._session))

    def _retire(self, instance: EngineInstance) -> None:
        instance.retire()
        task = self._watches.pop(instance, None)
        if task is not None:
            task.cancel()
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
