"""An API server on loopback that knows four kinds, as far as kopf asks: discovery, lists in pages, watches. A test changes its objects."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from multislo_operator.kubernetes.cache import DEPLOYMENT, POD, REPLICA_SET, RESOURCE
from multislo_operator.kubernetes.client import Api, Kind
from multislo_operator.kubernetes.names import FIELD_MANAGER, INSTANCE, MANAGED_BY

Json = dict[str, Any]
KINDS = (RESOURCE, DEPLOYMENT, REPLICA_SET, POD)
NEEDED_BY_KOPF = (
    Kind("v1", "Namespace"),
    Kind("v1", "Event"),
    Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
)
LABELS = {MANAGED_BY: FIELD_MANAGER, INSTANCE: "fleet"}


@dataclass(slots=True)
class Server:
    objects: dict[str, dict[str, Json]] = field(default_factory=dict)
    """By the kind's plural and the name."""
    version: int = 1
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By method and the kind's plural."""
    queries: list[tuple[str, Json]] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    """Plurals of which only the metadata is told: kopf hears of none of them."""
    _watchers: dict[str, list[web.StreamResponse]] = field(default_factory=dict)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, kind: Kind, name: str, **metadata: Any) -> None:
        """A new object, or a new version of one; watches are told."""
        self.version += 1
        known = self.objects.setdefault(kind.plural, {})
        type = "MODIFIED" if name in known else "ADDED"
        own = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(self.version), "labels": LABELS}
        known[name] = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {**own, **metadata}, "spec": {}}
        await self.tell(kind, type, known[name])

    async def delete(self, kind: Kind, name: str, told: bool = True) -> None:
        self.version += 1
        gone = self.objects[kind.plural].pop(name)
        if told:
            gone["metadata"]["resourceVersion"] = str(self.version)
            await self.tell(kind, "DELETED", gone)

    async def tell(self, kind: Kind, type: str, object: Json) -> None:
        if kind.plural in self.hidden:
            return
        line = json.dumps({"type": type, "object": object}).encode() + b"\n"
        for watcher in self._watchers.get(kind.plural, []):
            await watcher.write(line)

    async def error(self, kind: Kind, code: int) -> None:
        """Ends the kind's watches with a Status."""
        status = {
            "kind": "Status",
            "code": code,
            "reason": "Expired" if code == 410 else "InternalError",
            "message": "no",
        }
        watchers = self._watchers.pop(kind.plural, [])
        for watcher in watchers:
            await watcher.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            groups = {kind.api_version for kind in (*KINDS, *NEEDED_BY_KOPF) if "/" in kind.api_version}
            return web.json_response({"groups": [_group(*version.split("/")) for version in sorted(groups)]})
        known = [kind for kind in (*KINDS, *NEEDED_BY_KOPF) if kind.path(None).rsplit("/", 1)[0] == path]
        if known:
            return web.json_response({"resources": [_resource(kind) for kind in known]})
        plural = path.rsplit("/", 1)[1]
        self.asked[request.method, plural] += 1
        self.queries.append((plural, dict(request.query)))
        return await self._watch(request, plural) if "watch" in request.query else self._list(request, plural)

    def _list(self, request: web.Request, plural: str) -> web.Response:
        items = list(self.objects.get(plural, {}).values())
        if "PartialObjectMetadata" in request.headers["Accept"]:
            items = [{"metadata": item["metadata"]} for item in items]
        elif plural in self.hidden:
            items = []
        begin, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        more = {"continue": str(begin + limit)} if begin + limit < len(items) else {}
        metadata = {"resourceVersion": str(self.version), **more}
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[begin : begin + limit]})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self._watchers.setdefault(plural, []).append(response)
        await self._over.wait()
        return response


def _group(group: str, version: str) -> Json:
    return {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}


def _resource(kind: Kind) -> Json:
    names = {"name": kind.plural, "kind": kind.name, "singularName": kind.name.lower()}
    return {**names, "namespaced": True, "verbs": ["list", "watch", "patch"]}


@asynccontextmanager
async def served(server: Server) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = Api(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        yield api
    finally:
        server._over.set()
        await api.close()
        await runner.cleanup()
