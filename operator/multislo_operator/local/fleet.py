"""The engines of one machine: processes that are started, probed, restarted and stopped, and that carry out the actions of a plan.
Owned by `up`."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_api.manifest import MultiSLOServing
from multislo_operator.decide.fleet import InstanceState
from multislo_operator.decide.plan import Action, CallOffDrain, Convert, Drain, Start, Stop
from multislo_operator.local.child import Child, Guarding, back_off_s
from multislo_operator.local.engines import EngineStart, engine_start
from multislo_operator.local.journal import Journal
from multislo_operator.local.ports import ENGINE_PORTS, Ports
from multislo_perf.profile import Profile

PROBE_STARTING_S = 0.1
PROBE_READY_S = 2.0
PROBE_TIMEOUT_S = 5.0
PROBES_FAILED_MAX = 3
"""An instance that misses so many probes in a row hangs. One miss is a busy machine."""
EXITS_MAX = 3
"""After so many ends without having been ready, an instance counts as one that does not come up (it is still tried)."""
STEADY_S = 60.0
"""An engine that ran for so long is not in a crash loop: the next restart is quick again."""
STOP_GRACE_S = 10.0


@dataclass(slots=True)
class LocalInstance:
    id: str
    tier: str | None
    url: str
    child: Child
    start: EngineStart
    seed: int
    state: InstanceState = InstanceState.STARTING
    since: float = field(default_factory=time.monotonic)
    epoch: int = 0
    ever_ready: bool = False
    exits: int = 0
    """Ends of the process since it was last ready for a while."""
    stopping: bool = False
    unplaced: bool = False
    """Never: a process needs no node."""
    stop_now: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def batch_tokens(self) -> int:
        return self.start.batch_tokens

    def become(self, state: InstanceState) -> None:
        self.state = state
        self.since = time.monotonic()


class LocalFleet:
    """Every instance is a task of `tasks`; `changed` is set whenever the router should hear of it."""

    def __init__(
        self,
        manifest: MultiSLOServing,
        profile: Profile,
        folder: Path,
        journal: Journal,
        guarding: Guarding,
        session: aiohttp.ClientSession,
        tasks: asyncio.TaskGroup,
        start_of: Callable[[str | None, int, int], EngineStart] | None = None,
    ) -> None:
        self.instances: dict[str, LocalInstance] = {}
        self.changed = asyncio.Event()
        self._folder = folder
        self._journal = journal
        self._guarding = guarding
        self._session = session
        self._tasks = tasks
        self._ports = Ports(ENGINE_PORTS, os.getpid())
        self._count = 0
        self.exited = 0
        """Processes that ended unasked."""
        self._start_of = start_of or (
            lambda tier, port, seed: engine_start(manifest, profile, tier, port, seed, os.getpid())
        )

    # -- for the router and for decide -----------------------------------------------------------------------------------

    def listed(self) -> InstanceList:
        """The whole fleet as the router is told it. A failed one is told as starting: it exists, and takes nothing."""
        words = {InstanceState.READY: "ready", InstanceState.DRAINING: "draining"}
        return InstanceList(
            instances=[
                InstanceEntry(
                    id=i.id,
                    url=i.url,
                    tier=i.tier,
                    state=words.get(i.state, "starting"),  # type: ignore[arg-type]
                    batch_tokens=i.batch_tokens,
                    epoch=i.epoch,
                )
                for i in self.instances.values()
                if not i.stopping
            ]
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """tier ("" for the warm pool) -> state -> instances."""
        answer: dict[str, dict[str, int]] = {}
        for instance in self.instances.values():
            of_tier = answer.setdefault(instance.tier or "", {})
            of_tier[instance.state.value] = of_tier.get(instance.state.value, 0) + 1
        return answer

    # -- what a plan asks for --------------------------------------------------------------------------------------------

    def carry_out(self, action: Action) -> None:
        instance = self._start(action.tier) if isinstance(action, Start) else self.instances[action.instance]
        self._journal.action(action, instance.id, instance.tier)
        match action:
            case Drain():
                instance.become(InstanceState.DRAINING)
            case CallOffDrain():
                instance.become(InstanceState.READY)
            case Convert(tier=tier):
                instance.tier = tier
                instance.since = time.monotonic()
            case Stop():
                self.stop(instance)
        self.changed.set()

    def stop(self, instance: LocalInstance) -> None:
        instance.stopping = True
        instance.stop_now.set()
        self.changed.set()

    def kill_all(self) -> None:
        for instance in self.instances.values():
            instance.stopping = True
            instance.stop_now.set()
            instance.child.kill()

    # -- the life of an instance -----------------------------------------------------------------------------------------

    def _start(self, tier: str | None) -> LocalInstance:
        self._count += 1
        id = f"engine-{self._count}"
        port = self._ports.take()
        child = Child(id, self._folder / f"{id}.log", self._guarding)
        instance = LocalInstance(id, tier, _url(port), child, self._start_of(tier, port, self._count), self._count)
        self.instances[id] = instance
        self._tasks.create_task(self._live(instance), name=id)
        return instance

    async def _live(self, instance: LocalInstance) -> None:
        """Start, and start again, until it is told to stop."""
        try:
            while not instance.stopping:
                began = time.monotonic()
                code = await self._once(instance)
                if instance.stopping or instance.state is InstanceState.DRAINING:
                    break
                self._ended(instance, code, time.monotonic() - began)
                await within(instance.stop_now, back_off_s(instance.exits))
        finally:
            del self.instances[instance.id]
            self.changed.set()
        self._journal.note("stopped", f"{instance.id} has stopped", instance=instance.id)

    async def _once(self, instance: LocalInstance) -> int | None:
        """One process from start to end; its exit code, None where it could not be started."""
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(instance))
            ending = tasks.create_task(self._end_when_told(instance))
            try:
                return await instance.child.run(instance.start.command)
            except OSError as error:
                instance.child.log.write_text(f"cannot start {instance.start.command[0]}: {error}\n")
                return None
            finally:
                watch.cancel()
                ending.cancel()

    async def _end_when_told(self, instance: LocalInstance) -> None:
        await instance.stop_now.wait()
        instance.child.terminate()
        await asyncio.sleep(STOP_GRACE_S)
        instance.child.kill()

    def _ended(self, instance: LocalInstance, code: int | None, lived_s: float) -> None:
        if instance.state is InstanceState.READY and lived_s >= STEADY_S:
            instance.exits = 0
        if not instance.ever_ready:
            # Perhaps somebody else took its port while it loaded.
            port = self._ports.take()
            instance.url, instance.start = _url(port), self._start_of(instance.tier, port, instance.seed)
        self.exited += 1
        instance.exits += 1
        instance.epoch += 1
        if instance.exits < EXITS_MAX:
            instance.become(InstanceState.STARTING)
        elif instance.ever_ready or instance.state is not InstanceState.FAILED:
            # Its time as failed goes on over all that it is tried again.
            instance.ever_ready = False
            instance.become(InstanceState.FAILED)
        how = (
            "could not be started"
            if code is None
            else f"ended with code {code}"
            if code >= 0
            else f"was killed by signal {-code}"
        )
        words = instance.child.last_words()
        told = f"{instance.id} {how} after {lived_s:.1f} s, starting it again in {back_off_s(instance.exits):g} s"
        self._journal.note(
            "ended", f'{told}; its log ends with "{words}" ({instance.child.log})' if words else told,
            instance=instance.id, code=code, lived_s=round(lived_s, 3), last_words=words,
        )  # fmt: skip
        self.changed.set()

    async def _watch(self, instance: LocalInstance) -> None:
        """Probe until ready, then on, as long as the process runs."""
        began = time.monotonic()
        failed = 0
        while True:
            answers = await self._answers(instance)
            failed = 0 if answers else failed + 1
            if answers and instance.state in (InstanceState.STARTING, InstanceState.FAILED):
                hung = instance.state is InstanceState.FAILED and instance.ever_ready
                instance.ever_ready = True
                instance.become(InstanceState.READY)
                self.changed.set()
                waited = time.monotonic() - began
                text = f"{instance.id} answers again" if hung else f"{instance.id} is ready after {waited:.1f} s"
                self._journal.note("ready", text, instance=instance.id, waited_s=round(waited, 3))
            elif instance.state is InstanceState.READY and failed >= PROBES_FAILED_MAX:
                instance.become(InstanceState.FAILED)
                self.changed.set()
                text = f"{instance.id} has not answered {failed} probes of {PROBE_TIMEOUT_S:g} s"
                self._journal.note("failed", text, instance=instance.id)
            ready = instance.state in (InstanceState.READY, InstanceState.DRAINING)
            await asyncio.sleep(PROBE_READY_S if ready else PROBE_STARTING_S)

    async def _answers(self, instance: LocalInstance) -> bool:
        try:
            async with self._session.get(
                f"{instance.url}/v1/models", timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def within(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, so long at most. (`wait_for` may swallow a cancellation that comes together with the event.)"""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
