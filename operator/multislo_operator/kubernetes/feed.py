"""Carries what kopf's handlers hear in kopf's thread into the cache, on the event loop that the cache belongs to. Made by `watch`, used
by `handlers`."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client.rest import RESTClientObject

from multislo_operator.kubernetes.cache import RESOURCE, Cache
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Api, Kind, connect
from multislo_operator.kubernetes.names import FIELD_MANAGER, MANAGED_BY

LOG = logging.getLogger(__name__)
OURS = f"{MANAGED_BY}={FIELD_MANAGER}"
NEEDED = ("name", "namespace", "uid", "resourceVersion")
"""Of an object's metadata."""
LOGIN_PAUSE_S = 1.0
TOGETHER_S = 0.02
"""What is heard within this time is handed over at once. To wake the other thread for each event costs half as much as kopf itself."""


class Feed:
    """`resource` is told of each resource that came or changed, `listed` of each kind of which kopf has begun a new list, and
    `failed` of the kind and the class of what went wrong."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        loop: asyncio.AbstractEventLoop,
        resource: Callable[[Object], None],
        listed: Callable[[Kind], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self.taken = 0
        self._api = api
        self._cache = cache
        self._loop = loop
        self._resource = resource
        self._listed = listed
        self._failed = failed
        self._logins = 0
        self._heard: list[tuple[Kind, str | None, Any]] = []

    @classmethod
    async def that_only_looks(cls) -> "Feed":
        """For `kopf run`: a cache that nobody reads. Raises ApiError."""
        return cls(await connect(), Cache(), asyncio.get_running_loop(), _nothing, _nothing, _nothing)

    # -- on kopf's loop ------------------------------------------------------------------------------------------------------

    def take(self, kind: Kind, event: kopf.RawEvent) -> None:
        """An event of one object; without a type it is from a list."""
        if not self._heard:
            asyncio.get_running_loop().call_later(TOGETHER_S, self._hand_over)
        self._heard.append((kind, event["type"], event["object"]))

    def _hand_over(self) -> None:
        heard, self._heard = self._heard, []
        with contextlib.suppress(RuntimeError):  # The other loop has ended: so does the process.
            self._loop.call_soon_threadsafe(self._keep_all, heard)

    async def login(self) -> kopf.AiohttpSession:
        self._logins += 1
        if self._logins > 1:  # The API server has refused the last one.
            await asyncio.sleep(LOGIN_PAUSE_S)
        return kopf.AiohttpSession(server=self._api.host, aiohttp_session=session_as(self._api))

    # -- on the cache's loop -------------------------------------------------------------------------------------------------

    def _keep_all(self, heard: list[tuple[Kind, str | None, Any]]) -> None:
        for kind, type, object in heard:
            self._keep(kind, type, object)

    def _keep(self, kind: Kind, type: str | None, object: Any) -> None:
        try:
            self.taken += 1
            if is_whole(kind, object):
                self._put_or_drop(kind, type, {"apiVersion": kind.api_version, "kind": kind.name, **object})
            if type is None:
                self._listed(kind)
        except Exception as error:
            LOG.exception("a %s met what nobody expected", kind.name)
            self._failed(kind.plural, type_of(error))
            self._listed(kind)  # So that it is looked at whether something is missing now.

    def _put_or_drop(self, kind: Kind, type: str | None, object: Object) -> None:
        if type == "DELETED":
            self._cache.drop(kind, object)
            return
        self._cache.put(kind, object)
        if kind == RESOURCE:
            self._resource(object)


def is_whole(kind: Kind, object: Any) -> bool:
    """What everything rests on is there. No API server leaves it out; what stands in front of one may."""
    metadata = object.get("metadata") if isinstance(object, Mapping) else None
    if isinstance(metadata, Mapping) and all(isinstance(metadata.get(key), str) for key in NEEDED):
        return True
    LOG.warning("a %s without %s is left out: %.200s", kind.name, ", ".join(NEEDED), object)
    return False


def session_as(api: Api) -> aiohttp.ClientSession:
    """A session with the operator's credentials, for the running loop; tokens are read again as they rotate."""
    configuration = api.configuration
    rest = RESTClientObject(configuration)

    async def with_token(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        bearer = (await configuration.auth_settings()).get("BearerToken")
        if bearer is not None:
            request.headers["Authorization"] = str(bearer["value"])
        return await send(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=rest.ssl_context),
        headers={"User-Agent": FIELD_MANAGER},
        middlewares=(with_token,),
        proxy=rest.proxy,
    )


def type_of(error: BaseException) -> str:
    return type(error).__name__


def _nothing(*_: object) -> None:
    pass
