"""The API server as dictionaries: requests by path, and a watch that heals itself. Credentials are the `kubernetes` package's matter.
Used by pod_processes.py and by the scenarios; what they apply goes through kubectl, as users' manifests do.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from multislo_operator.kubernetes.wire import events

Object = dict[str, Any]
STRATEGIC, MERGE, APPLY = (
    "application/strategic-merge-patch+json", "application/merge-patch+json", "application/apply-patch+yaml",
)  # fmt: skip
WATCH_S = 240
RETRY_S = 0.5


class Refused(Exception):
    """The API server said no; `message` is its own."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Api:
    """One user's access. `requests` counts what was asked."""

    def __init__(self, made: client.ApiClient) -> None:
        self._client = made
        self.requests = 0

    @classmethod
    async def connect(cls, kubeconfig: Path | str) -> "Api":
        settings = client.Configuration()
        settings.connection_pool_maxsize = 200  # Each watch holds a connection.
        await config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
        return cls(client.ApiClient(settings))

    @property
    def url(self) -> str:
        """The server's."""
        return str(self._client.configuration.host)

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, path: str, **query: object) -> Object:
        return await self.request("GET", path, query=query)

    async def items(self, path: str, **query: object) -> list[Object]:
        """Of a list."""
        found: list[Object] = (await self.get(path, **query))["items"]
        return found

    async def find(self, path: str) -> Object | None:
        """None where there is no such thing."""
        try:
            return await self.get(path)
        except Refused as no:
            if no.status != 404:
                raise
            return None

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Any, kind: str = MERGE, **query: object) -> Object:
        return await self.request("PATCH", path, body, kind, query)

    async def delete(self, path: str, **options: object) -> Object | None:
        """Options are those of DeleteOptions. None where it was gone already."""
        try:
            return await self.request("DELETE", path, dict(options))
        except Refused as no:
            if no.status != 404:
                raise
            return None

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str = "application/json",
        query: dict[str, object] | None = None,
    ) -> Object:
        async with await self._open(method, path, body, kind, query or {}, 60) as response:
            found: Object = await response.json(content_type=None)
            return found

    async def watch(self, path: str, **query: object) -> AsyncIterator[tuple[str, Object]]:
        """(ADDED | MODIFIED | DELETED, object), first of all there is; for ever, over cut connections and restarts of the server.

        After a gap everything is said again as ADDED, and what vanished in it as DELETED.
        """
        known: dict[str, Object] = {}
        while True:
            try:
                listed = await self.get(path, **query)
                version = listed["metadata"]["resourceVersion"]
                now = {item["metadata"]["uid"]: item for item in listed["items"]}
                for uid in [uid for uid in known if uid not in now]:
                    yield "DELETED", known.pop(uid)
                for uid, item in now.items():
                    known[uid] = item
                    yield "ADDED", item
                async for event, item in self._events(path, version, query):
                    uid = item["metadata"]["uid"]
                    if event == "DELETED":
                        known.pop(uid, None)
                    else:
                        known[uid] = item
                    yield event, item
            except (aiohttp.ClientError, Refused, OSError, ValueError):  # ValueError: half a line of a killed server.
                await asyncio.sleep(RETRY_S)

    async def _events(self, path: str, version: str, query: dict[str, object]) -> AsyncIterator[tuple[str, Object]]:
        while True:
            asked = {
                **query,
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": WATCH_S,
            }
            async with await self._open("GET", path, None, "application/json", asked, WATCH_S + 30) as response:
                async for type, item in events(response.content):
                    if type == "ERROR":  # Mostly 410: too long ago.
                        return
                    version = item["metadata"]["resourceVersion"]
                    if type != "BOOKMARK":
                        yield type, item

    async def _open(
        self, method: str, path: str, body: Any, kind: str, query: dict[str, object], timeout_s: float
    ) -> aiohttp.ClientResponse:
        self.requests += 1
        request = await self._client.param_serialize(
            method, path, query_params=[(name, str(value)) for name, value in query.items()], body=body,
            header_params={"Accept": "application/json", "Content-Type": kind}, auth_settings=["BearerToken"],
        )  # fmt: skip
        answer = await self._client.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=timeout_s))
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 400:
            async with response:
                text = await response.text()
            try:
                told = json.loads(text)
            except ValueError:
                told = {}
            if not isinstance(told, dict):
                told = {}
            raise Refused(response.status, told.get("reason", ""), told.get("message", text))
        return response
