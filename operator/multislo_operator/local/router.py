"""The router of a fleet on one machine: its process, kept alive, and the two calls to its admin listener. Owned by `up`."""

import asyncio
import os
import time
from collections.abc import Sequence

import aiohttp
from pydantic import ValidationError

from multislo_api.fleet import TOKEN_HEADER, TOKEN_VARIABLE, FleetSnapshot, InstanceList
from multislo_operator.local.child import Child, back_off_s
from multislo_operator.local.journal import Journal

CALL_TIMEOUT_S = 2.0
STEADY_S = 60.0


class RouterUnreachable(Exception):
    """The admin listener did not answer, or not with what this version understands."""


class AnotherRouter(RouterUnreachable):
    """A router answered, but not the one that was started here: its fleet is somebody else's."""


class RouterEnded(Exception):
    """The router ended, and would do so again: it had never answered, or another one has its port."""


class AdminClient:
    """`GET /fleet` and `PUT /instances` of a router. Both raise RouterUnreachable. `token` is what the router was started with."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._headers = {"Content-Type": "application/json", **({} if token is None else {TOKEN_HEADER: token})}

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
                method, self.url + path, data=body, headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
            ) as response:  # fmt: skip
                answer = await response.read()
                if response.status in (401, 403):
                    raise AnotherRouter(f"another router answers at {self.url}")
                if response.status != 200:
                    text = answer[:500].decode(errors="replace")
                    raise RouterUnreachable(f"{method} {self.url}{path} answered {response.status}: {text}")
                return answer
        except aiohttp.ClientConnectorError as error:
            raise RouterUnreachable(f"{error.host}:{error.port}: {_reason(error.os_error)}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterUnreachable(f"{method} {self.url}{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


class RouterProcess:
    def __init__(self, command: Sequence[str], child: Child, journal: Journal, token: str) -> None:
        self.child = child
        self.answered = False
        """Set by whoever has seen its admin listener answer to its token."""
        self.stranger: str | None = None
        """Set while another router answers in its place."""
        self.stopping = False
        self._command = command
        self._journal = journal
        self._environment = {TOKEN_VARIABLE: token}

    async def live(self) -> None:
        """Start, and start again, until it is told to stop. Raises RouterEnded."""
        failures = 0
        while not self.stopping:
            began = time.monotonic()
            try:
                code = await self.child.run(self._command, self._environment)
            except OSError as error:
                raise RouterEnded(f"the router cannot be started: {error}") from None
            if self.stopping:
                return
            words = self.child.last_words(5)
            if not self.answered or self.stranger is not None:
                ended = f"the router ended with code {code}" + (f":\n{words}" if words else "")
                raise RouterEnded(ended if self.stranger is None else f"{self.stranger}; {ended}")
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
