"""The two calls to a router's admin listener, `GET /fleet` and `PUT /instances`. Called by both actuators, and by `multislo top`."""

import logging
import os

import aiohttp
from pydantic import ValidationError

from multislo_api.fleet import TOKEN_HEADER, FleetSnapshot, InstanceList
from multislo_api.tolerant import read_json, warning

LOG = logging.getLogger(__name__)
CALL_TIMEOUT_S = 2.0


class RouterUnreachable(Exception):
    """The admin listener did not answer, or not with what this version understands."""


class AnotherRouter(RouterUnreachable):
    """A router answered, but not the one that was meant: its fleet is somebody else's."""


class AdminClient:
    """`GET /fleet` and `PUT /instances` of a router. Both raise RouterUnreachable. `token` is what the router was started with."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._passed_over: list[str] = []
        self._headers = {"Content-Type": "application/json", **({} if token is None else {TOKEN_HEADER: token})}

    async def fleet(self) -> FleetSnapshot:
        body = await self._call("GET", "/fleet")
        try:
            snapshot, passed = read_json(FleetSnapshot, body)
        except ValidationError as error:
            raise RouterUnreachable(f"{self.url}/fleet is no fleet snapshot of version 1: {error}") from None
        if passed and not self._passed_over:  # Told once: a newer router says it once a second.
            LOG.warning("%s", warning(f"{self.url}/fleet", passed))
        self._passed_over = passed
        return snapshot

    async def put_instances(self, fleet: InstanceList) -> None:
        await self.put_instances_json(fleet.model_dump_json())

    async def put_instances_json(self, fleet: str) -> None:
        """An InstanceList that was written down once for several routers."""
        await self._call("PUT", "/instances", fleet)

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
