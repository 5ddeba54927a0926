"""The router of a fleet on one machine: its process, kept alive, and the two calls to its admin listener. Owned by `up`."""

import asyncio
import time
from collections.abc import Sequence

import aiohttp
from pydantic import ValidationError

from multislo_api.fleet import FleetSnapshot, InstanceList
from multislo_operator.local.child import Child, back_off_s
from multislo_operator.local.journal import Journal

CALL_TIMEOUT_S = 2.0
STEADY_S = 60.0


class RouterUnreachable(Exception):
    """The admin listener did not answer, or not with what this version understands."""


class RouterEnded(Exception):
    """The router ended before it had ever answered: it would do so again."""


class AdminClient:
    """`GET /fleet` and `PUT /instances` of a router. Both raise RouterUnreachable."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = session

    async def fleet(self) -> FleetSnapshot:
        body = await self._call("GET", "/fleet")
        try:
            return FleetSnapshot.model_validate_json(body)
        except ValidationError as error:
            raise RouterUnreachable(f"{self.url}/fleet is no fleet snapshot of version 1: {error}") from None

    async def put_instances(self, fleet: InstanceList) -> None:
        await self._call("PUT", "/instances", fleet.model_dump_json())

    async def _call(self, method: str, path: str, body: str | None = None) -> bytes:
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
            ) as response:  # fmt: skip
                answer = await response.read()
                if response.status != 200:
                    text = answer[:500].decode(errors="replace")
                    raise RouterUnreachable(f"{method} {self.url}{path} answered {response.status}: {text}")
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise RouterUnreachable(f"{method} {self.url}{path}: {reason}") from None


class RouterProcess:
    def __init__(self, command: Sequence[str], child: Child, journal: Journal) -> None:
        self.child = child
        self.answered = False
        """Set by whoever has seen its admin listener answer."""
        self.stopping = False
        self._command = command
        self._journal = journal

    async def live(self) -> None:
        """Start, and start again, until it is told to stop. Raises RouterEnded."""
        failures = 0
        while not self.stopping:
            began = time.monotonic()
            try:
                code = await self.child.run(self._command)
            except OSError as error:
                raise RouterEnded(f"the router cannot be started: {error}") from None
            if self.stopping:
                return
            words = self.child.last_words(5)
            if not self.answered:
                raise RouterEnded(
                    f"the router ended with code {code}:\n{words}" if words else f"the router ended with code {code}"
                )
            lived_s = time.monotonic() - began
            failures = 1 if lived_s >= STEADY_S else failures + 1
            wait_s = back_off_s(failures)
            told = f"the router ended with code {code} after {lived_s:.0f} s, starting it again in {wait_s:g} s"
            self._journal.note("router_ended", f"{told} ({self.child.log})", code=code, last_words=words)
            await asyncio.sleep(wait_s)

    def stop(self) -> None:
        """SIGTERM: answers under way may finish."""
        self.stopping = True
        self.child.terminate()
