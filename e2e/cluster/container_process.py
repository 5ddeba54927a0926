"""One container's life as a process: start, probes, restarts with back-off, preStop and stop. Used by pod_processes.py alone."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from cluster.api import Api, Object
from cluster.pod_container import CannotStart, port_of, start_of

BACK_OFF_MAX_S = 30.0
"""A kubelet's is 300 s; its first restart is at once too."""
LONG_LIFE_S = 60.0
"""Who lived for so long starts again at once."""
CONFIG_RETRY_S = 0.5
GRACE_MIN_S = 2.0
"""After a preStop hook that took the whole grace; a kubelet gives the same."""


class ContainerProcess:
    """`news` is set whenever its status has changed."""

    def __init__(
        self, api: Api, pod: Object, spec: Object, ip: str, directory: Path, news: asyncio.Event, *, once: bool = False
    ) -> None:
        self._api, self._pod, self._spec, self._ip, self._directory, self._news = api, pod, spec, ip, directory, news
        self._policy = pod["spec"].get("restartPolicy", "Always")
        if once:
            self._policy = "Never" if self._policy == "Never" else "OnFailure"
        self.ready = False
        self.over = False
        """It ended and will not start again."""
        self._exit_code: int | None = None
        known = [s for s in pod.get("status", {}).get("containerStatuses", []) if s["name"] == spec["name"]]
        self._restarts = 1 + known[0]["restartCount"] if known else 0  # Known: its node came back, or we did.
        self._process: asyncio.subprocess.Process | None = None
        self._state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self._last: Object = {}
        self._started_up = False
        self._stopping = False

    @property
    def done(self) -> bool:
        return self.over and self._exit_code == 0

    @property
    def failed(self) -> bool:
        return self.over and self._exit_code != 0

    @property
    def waits_first(self) -> bool:
        """It never ran."""
        return "waiting" in self._state and self._exit_code is None

    def status(self) -> Object:
        return {
            "name": self._spec["name"],
            "image": self._spec["image"],
            "imageID": "",
            "ready": self.ready,
            "started": self._started_up,
            "restartCount": self._restarts,
            # A strategic patch merges: the states that are no more must be said to be none.
            "state": {"waiting": None, "running": None, "terminated": None, **self._state},
            "lastState": self._last,
        }

    async def live(self) -> None:
        failures = 0
        while not self._stopping:
            began = time.monotonic()
            if not await self._start():
                await asyncio.sleep(CONFIG_RETRY_S)
                continue
            assert self._process is not None
            async with asyncio.TaskGroup() as group:
                probes = group.create_task(self._probe())
                await self._process.wait()
                probes.cancel()
            self._ended(self._process.returncode)
            if self._stopping or self._policy == "Never" or (self._policy == "OnFailure" and self._exit_code == 0):
                self.over = True
                self._news.set()
                return
            failures = 0 if time.monotonic() - began > LONG_LIFE_S else failures + 1
            if failures > 1:
                self._wait_for("CrashLoopBackOff", f"it ended with exit code {self._exit_code}")
                await asyncio.sleep(min(2.0 ** (failures - 2), BACK_OFF_MAX_S))
            self._restarts += 1

    async def stop(self, grace_s: float) -> None:
        """preStop, SIGTERM, and when the grace is over SIGKILL."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        end = time.monotonic() + grace_s
        hook = (self._spec.get("lifecycle") or {}).get("preStop")
        if hook is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._hook(hook)
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(max(end - time.monotonic(), GRACE_MIN_S if grace_s else 0.0)):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        self._stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _start(self) -> bool:
        name = self._spec["name"]
        try:
            start = await start_of(self._api, self._pod, self._spec, self._ip, self._directory)
        except (CannotStart, OSError) as error:
            self._wait_for("CreateContainerConfigError", str(error))
            return False
        with (self._directory / f"{name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", "--", *start.command,
                env=start.environment, cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        (self._directory / f"{name}.pid").write_text(f"{self._process.pid}\n")
        if self._stopping:  # Told between the two: nobody else would end it.
            self.kill()
        self._state = {"running": {"startedAt": _now()}}
        self._news.set()
        return True

    def _ended(self, code: int | None) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # What it started and left.
            os.killpg(self._process.pid, signal.SIGKILL)
        (self._directory / f"{self._spec['name']}.pid").unlink(missing_ok=True)
        self.ready = self._started_up = False
        self._exit_code = 128 - code if code is not None and code < 0 else code
        over = {
            "exitCode": self._exit_code,
            "reason": "Error" if self._exit_code else "Completed",
            "finishedAt": _now(),
        }
        over["startedAt"] = self._state.get("running", {}).get("startedAt", over["finishedAt"])
        self._state, self._last = {"terminated": over}, {"terminated": over}
        self._news.set()

    def _wait_for(self, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        if state != self._state:
            self._state = state
            self._news.set()

    # -- probes ------------------------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        """For as long as the process runs: startup first, then readiness and liveness beside each other."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, ssl=False)) as session:
            startup = self._spec.get("startupProbe")
            if startup is not None and not await self._starts_up(session, startup):
                self._signal(signal.SIGTERM)
                return
            self._started_up = True
            async with asyncio.TaskGroup() as group:
                if "livenessProbe" in self._spec:
                    group.create_task(self._watch_liveness(session, self._spec["livenessProbe"]))
                if "readinessProbe" in self._spec:
                    group.create_task(self._watch_readiness(session, self._spec["readinessProbe"]))
                else:
                    self._says(True)

    async def _starts_up(self, session: aiohttp.ClientSession, probe: Object) -> bool:
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        failures = 0
        while failures < probe.get("failureThreshold", 3):
            if await self._answers(session, probe):
                return True
            failures += 1
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return False

    async def _watch_readiness(self, session: aiohttp.ClientSession, probe: Object) -> None:
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        good = bad = 0
        while True:
            good, bad = (good + 1, 0) if await self._answers(session, probe) else (0, bad + 1)
            if good >= probe.get("successThreshold", 1):
                self._says(True)
            elif bad >= probe.get("failureThreshold", 3):
                self._says(False)
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _watch_liveness(self, session: aiohttp.ClientSession, probe: Object) -> None:
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        failures = 0
        while failures < probe.get("failureThreshold", 3):
            failures = 0 if await self._answers(session, probe) else failures + 1
            await asyncio.sleep(probe.get("periodSeconds", 10))
        self._signal(signal.SIGTERM)
        await asyncio.sleep(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
        self._signal(signal.SIGKILL)

    async def _answers(self, session: aiohttp.ClientSession, probe: Object) -> bool:
        timeout_s = probe.get("timeoutSeconds", 1)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._act(session, probe)
        except (aiohttp.ClientError, OSError):
            return False

    async def _act(self, session: aiohttp.ClientSession, what: Object) -> bool:
        """A probe's or a hook's httpGet, tcpSocket, exec or sleep."""
        if "httpGet" in what:
            get = what["httpGet"]
            url = (
                f"{get.get('scheme', 'HTTP').lower()}://{get.get('host', self._ip)}:{port_of(self._spec, get['port'])}"
            )
            async with session.get(url + get.get("path", "/"), allow_redirects=False) as response:
                return 200 <= response.status < 400
        if "tcpSocket" in what:
            _, writer = await asyncio.open_connection(self._ip, port_of(self._spec, what["tcpSocket"]["port"]))
            writer.close()
            return True
        if "sleep" in what:
            await asyncio.sleep(what["sleep"]["seconds"])
            return True
        changed = {**self._spec, "command": what["exec"]["command"], "args": []}
        start = await start_of(self._api, self._pod, changed, self._ip, self._directory)
        process = await asyncio.create_subprocess_exec(
            *start.command, env=start.environment, cwd=self._directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()

    def _hook(self, hook: Object) -> Awaitable[bool]:
        async def act() -> bool:
            async with aiohttp.ClientSession() as session:
                with contextlib.suppress(aiohttp.ClientError, OSError, CannotStart):
                    return await self._act(session, hook)
                return False

        return act()

    def _says(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._news.set()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
