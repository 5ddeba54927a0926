"""`multislo up`: the fleet of a manifest on this machine, from start to stop. Starts the router, looks once a second, lets `decide`
plan, and carries the plan out with processes.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import aiohttp

from multislo_api.fleet import FleetSnapshot
from multislo_api.manifest import MultiSLOServing
from multislo_operator.admin_client import AdminClient, AnotherRouter, RouterUnreachable
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.scale import decide
from multislo_operator.local.child import Child, Guarding
from multislo_operator.local.engines import EngineStart, multislo
from multislo_operator.local.fleet import LocalFleet, within
from multislo_operator.local.journal import Journal
from multislo_operator.local.router import RouterEnded, RouterProcess
from multislo_operator.observe import fleet_observed, fleet_spec
from multislo_perf.profile import Profile

LOOK_S = 1.0
"""Between two looks at the fleet."""
ROUTER_UP_LOOK_S = 0.1
"""Between two tries to reach a router that is starting: the engines wait for it."""
DRAIN_MAX_S = 120.0
"""How long answers under way may take after Ctrl-C, where the drain timeout allows more."""
EXIT_DONE, EXIT_FAILED, EXIT_AT_ONCE = 0, 1, 130


@dataclass(frozen=True, slots=True)
class UpSettings:
    """What the command line says. `pinned`: instances per tier, without scaling."""

    manifest_path: Path
    folder: Path
    port: int
    admin_port: int
    pinned: Mapping[str, int] | None = None
    router_options: tuple[str, ...] = ()
    say: Callable[[str], None] | None = None
    events: TextIO | None = None
    router_command: tuple[str, ...] | None = None
    """Instead of `multislo router`, for a router that is started in another way."""
    start_of: Callable[[str | None, int, int], EngineStart] | None = None
    """(tier, port, seed) -> how to start an engine; None: by the manifest."""


class Up:
    def __init__(self, manifest: MultiSLOServing, profile: Profile, settings: UpSettings) -> None:
        self._manifest = manifest
        self._profile = profile
        self._settings = settings
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._journal = Journal(settings.folder, settings.say, settings.events)
        self._shapes_itself = manifest.spec.engine.scheduler == "SLOAware"

    async def run(self) -> int:
        """Until it is told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            with Guarding() as guarding:
                async with aiohttp.ClientSession() as session:
                    return await self._serve(guarding, session)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            self._journal.close()

    def _told_to_stop(self) -> None:
        (self._at_once if self._stop.is_set() else self._stop).set()

    async def _serve(self, guarding: Guarding, session: aiohttp.ClientSession) -> int:
        settings = self._settings
        token = secrets.token_hex(16)
        router = RouterProcess(
            settings.router_command or self._router_command(),
            Child("router", settings.folder / "router.log", guarding),
            self._journal,
            token,
        )
        client = AdminClient(session, f"http://127.0.0.1:{settings.admin_port}", token)
        async with asyncio.TaskGroup() as tasks:
            fleet = LocalFleet(
                self._manifest,
                self._profile,
                settings.folder,
                self._journal,
                guarding,
                session,
                tasks,
                settings.start_of,
            )
            living = tasks.create_task(_quietly(router.live()), name="router")
            telling = tasks.create_task(self._tell(client, router, fleet), name="tell")
            looking = tasks.create_task(self._look(client, router, fleet), name="look")
            stopping = tasks.create_task(self._stop.wait(), name="stop")
            await asyncio.wait([living, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            looking.cancel()
            try:
                failure = living.result() if living.done() else None
                if failure is None:
                    await self._drain(router, living)
                else:
                    self._journal.note("failed", f"error: {failure}")
            finally:
                telling.cancel()
                await self._stop_engines(fleet)
        if self._at_once.is_set():
            self._journal.note("stopped", "stopped at once")
            return EXIT_AT_ONCE
        self._journal.note("stopped", f"stopped; {self._journal.instance_seconds:.0f} instance-seconds")
        return EXIT_DONE if failure is None else EXIT_FAILED

    def _router_command(self) -> tuple[str, ...]:
        settings = self._settings
        drain_s = min(self._manifest.spec.scaling.scale_down.drain_timeout_s, DRAIN_MAX_S)
        return (
            *multislo(),
            "router",
            *("-f", str(settings.manifest_path)),
            *("--port", str(settings.port), "--admin-port", str(settings.admin_port)),
            *("--drain-timeout", repr(drain_s), "--parent-pid", str(os.getpid())),
            *settings.router_options,
        )

    # -- while it runs -----------------------------------------------------------------------------------------------------

    async def _tell(self, client: AdminClient, router: RouterProcess, fleet: LocalFleet) -> None:
        """Hand the router the whole fleet, at each change and once a second."""
        while True:
            fleet.changed.clear()
            try:
                await client.put_instances(fleet.listed())
                router.stranger = None
                router.answered.set()
            except AnotherRouter as error:
                router.stranger = str(error)
            except RouterUnreachable:
                pass
            await within(fleet.changed, LOOK_S if router.answered.is_set() else ROUTER_UP_LOOK_S)

    async def _look(self, client: AdminClient, router: RouterProcess, fleet: LocalFleet) -> None:
        """See, decide, carry out; once the router is up, so that no engine starts for one that cannot."""
        await router.answered.wait()
        memory = Memory()
        failed_since: dict[str, float] = {}
        snapshot: FleetSnapshot | None = None
        seen_at = time.monotonic()
        while not self._stop.is_set():
            if router.stranger is None:
                with contextlib.suppress(RouterUnreachable):
                    snapshot = await client.fleet()
                    seen_at = time.monotonic()
            now = time.monotonic()
            spec = fleet_spec(self._manifest, self._profile, datetime.now(UTC), self._settings.pinned)
            present = [instance for instance in fleet.instances.values() if not instance.stopping]
            observed = fleet_observed(present, snapshot, now - seen_at, now, failed_since, self._shapes_itself)
            plan, memory = decide(spec, observed, memory, now)
            for action in plan.actions:
                fleet.carry_out(action)
            self._journal.holds(plan.holds)
            self._journal.fleet(fleet.counts(), {tier.name: tier.desired for tier in plan.tiers})
            await within(self._stop, max(0.0, now + LOOK_S - time.monotonic()))

    # -- the end -------------------------------------------------------------------------------------------------------------

    async def _drain(self, router: RouterProcess, living: asyncio.Task[str | None]) -> None:
        """Let the router finish its streams, unless there is no patience for it. The engines serve on meanwhile."""
        self._journal.note("stopping", "stopping: streams under way may finish; Ctrl-C again stops at once")
        router.stop()
        hurry = asyncio.create_task(self._at_once.wait())
        await asyncio.wait([living, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not living.done():
            router.child.kill()
            await living

    async def _stop_engines(self, fleet: LocalFleet) -> None:
        for instance in list(fleet.instances.values()):
            fleet.stop(instance)
        while fleet.instances:
            if self._at_once.is_set():
                fleet.kill_all()
            fleet.changed.clear()
            await within(fleet.changed, 0.1)
        self._journal.fleet({}, {})


async def _quietly(living: Coroutine[None, None, None]) -> str | None:
    """What went wrong, in words: a router that cannot start is the user's to mend, and no error of ours."""
    try:
        await living
    except RouterEnded as error:
        return str(error)
    return None
