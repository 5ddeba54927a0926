"""An HTTP server on loopback that answers as an API server would, by a script: what stands in it goes over a real connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from multislo_operator.kubernetes.client import Api

Json = dict[str, Any]
Answer = bytes | Json | tuple[int, Json]


def pod(name: str, version: int, **metadata: Any) -> Json:
    own = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version), **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": {}, "status": {}}


def event(type: str, object: Json) -> bytes:
    return json.dumps({"type": type, "object": object}).encode() + b"\n"


@dataclass(slots=True)
class Script:
    """Each list and each watch takes the next of its answers; the last one stays. After a watch's bytes the connection is held open,
    unless `cut`."""

    lists: list[Answer] = field(default_factory=list)
    watches: list[list[bytes]] = field(default_factory=list)
    page: Callable[[Json], Answer] | None = None
    """Answers a list by its query instead."""
    cut: bool = False
    asked: list[Json] = field(default_factory=list)
    """The queries of lists and watches, in order."""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append({**query, "accept": request.headers["Accept"]})
        if "watch" not in query:
            found = self.page(self.asked[-1]) if self.page else self._next(self.lists)
            status, body = found if isinstance(found, tuple) else (200, found)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            return web.Response(status=status, body=raw, content_type="application/json")
        response = web.StreamResponse()
        await response.prepare(request)
        for part in self._next(self.watches):
            await response.write(part)
        if not self.cut:
            await self.over.wait()
        return response

    @staticmethod
    def _next(answers: list[Any]) -> Any:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def watched(self) -> list[str]:
        """From which versions it was watched."""
        return [query["resourceVersion"] for query in self.asked if "watch" in query]

    def listed(self) -> list[Json]:
        return [query for query in self.asked if "watch" not in query]


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api = Api(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield api
    finally:
        script.over.set()
        await api.close()
        await runner.cleanup()


def listing(*items: Json, version: int = 1, more: str = "") -> Json:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": list(items)}
