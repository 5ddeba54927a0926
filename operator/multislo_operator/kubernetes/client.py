"""The door to the API server: plain JSON objects in and out, each call counted, each failure one of a few classes. Called by `watch`,
`apply`, `lease`, `events` and `run`.

    ApiError
    ├── Refused          4xx: the request is at fault, or our rights are; the same again will be refused again
    │   ├── NotFound     404
    │   ├── Conflict     409: the object has moved on since it was seen
    │   │   └── AlreadyExists
    │   └── Gone         410: a watch or a page is too old, list again
    ├── Unreachable      network, timeout, 429: nobody's fault, the same again may work
    │   └── ServerFault  5xx: the server, or an admission webhook behind it, fails with this one; others may work
    └── Garbled          an answer that cannot be understood
        └── Oversized    or that is larger than `wire` reads

Who we are (kubeconfig with exec plug-ins, or the pod's token, read again as it rotates), TLS and proxies are the work of the
`kubernetes` package; its generated classes for every kind are not used, since they lose fields that they do not know.
"""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from multislo_operator.kubernetes import wire
from multislo_operator.kubernetes.names import FIELD_MANAGER
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
CALL_TIMEOUT_S = 15.0
ANSWER_WITHIN_S = 12
"""The API server is told to answer within this time. A webhook may take 10 s by default: if it hangs, the answer names it."""
CONNECT_TIMEOUT_S = 5.0
CALLS_AT_ONCE = 16
"""More would only queue in the API server, which then sheds us by its own fairness (429)."""
PAGE = 500
WATCH_QUIET_MAX_S = 100.0
"""The server sends a bookmark about once a minute; a watch that is silent for longer is dead, though TCP has not noticed."""
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class ApiError(Exception):
    """A call that did not do what it should."""


class Refused(ApiError):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status, self.reason, self.message = status, reason, message


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class AlreadyExists(Conflict):
    pass


class Gone(Refused):
    pass


class Unreachable(ApiError):
    pass


class ServerFault(Unreachable):
    pass


class Garbled(ApiError):
    pass


class Oversized(Garbled):
    pass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind as the API's paths name it."""

    api_version: str
    name: str

    @property
    def plural(self) -> str:
        lower = self.name.lower()
        return lower[:-1] + "ies" if lower.endswith("y") else lower + "s"

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        parts = [root, f"namespaces/{quote(namespace)}"] if namespace else [root]
        parts += [self.plural, *(quote(part) for part in (name, subresource) if part)]
        return "/".join(parts)

    @staticmethod
    def of(object: Mapping[str, Any]) -> "Kind":
        return Kind(object["apiVersion"], object["kind"])


@dataclass(slots=True)
class Calls:
    """How many calls were made, by (verb, kind); a read reads, anything else writes. `try` is a dry run: it changes nothing."""

    made: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (verb, class of the error)."""

    READS: ClassVar = frozenset({"get", "list", "watch", "try"})

    def reads(self) -> int:
        return sum(count for (verb, _), count in self.made.items() if verb in self.READS)

    def writes(self) -> int:
        return sum(count for (verb, _), count in self.made.items() if verb not in self.READS)


class Api:
    """The API server. Objects that are handed out are the caller's to keep, not to change."""

    def __init__(self, configuration: Configuration) -> None:
        self.calls = Calls()
        self.wrote: Callable[[str, str], None] = lambda verb, kind: None
        """Told the verb and the kind of each write that was taken."""
        self.host: str = configuration.host
        self.configuration = configuration
        self._rest = RESTClientObject(configuration)
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)

    def another(self) -> "Api":
        """The same server with connections of its own."""
        return Api(self.configuration)

    async def close(self) -> None:
        await self._rest.close()

    # -- calls ---------------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Json:
        return await self._call("get", "GET", kind, kind.path(namespace, name))

    async def plurals(self, api_version: str) -> set[str]:
        """The kinds that the server has under an API version, as its paths name them. Raises NotFound where it has none."""
        kind = Kind(api_version, "APIResourceList")
        found = await self._call("get", "GET", kind, kind.path(None).rsplit("/", 1)[0])
        return {resource["name"] for resource in found.get("resources") or ()}

    async def groups(self) -> set[str]:
        """The API groups that the server has made known."""
        found = await self._call("get", "GET", Kind("v1", "APIGroupList"), "/apis")
        return {group["name"] for group in found.get("groups") or ()}

    async def list(
        self, kind: Kind, namespace: str | None, labels: str = "", metadata_only: bool = False, fields: str = ""
    ) -> tuple[list[Json], str]:
        """All of them, page by page, and the version of the list, from which a watch goes on. Raises Oversized for one that is too large
        alone."""
        found: list[Json] = []
        limit = PAGE
        query = {"labelSelector": labels} if labels else {}
        if fields:
            query["fieldSelector"] = fields
        while True:
            path = f"{kind.path(namespace)}?{urlencode({**query, 'limit': limit})}"
            try:
                page = await self._page(kind, path, metadata_only)
                found += page.get("items") or []
            except Oversized:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return found, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def _page(self, kind: Kind, path: str, metadata_only: bool) -> Json:
        page = await self._call("list", "GET", kind, path, accept=_METADATA_LIST if metadata_only else _JSON)
        if not isinstance((page.get("metadata") or {}).get("resourceVersion"), str):
            raise Garbled(f"list {kind.plural}: a list without a resourceVersion")
        return page

    async def watch(
        self, kind: Kind, namespace: str | None, since: str, for_s: int, labels: str = "", metadata_only: bool = False
    ) -> AsyncIterator[tuple[str, Json]]:
        """(type, object) as they come, bookmarks too, until the server ends it or it falls silent. Raises ApiError."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(for_s),
            **({"labelSelector": labels} if labels else {}),
        }
        self.calls.made["watch", kind.name] += 1
        path = f"{kind.path(namespace)}?{urlencode(query)}"
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=WATCH_QUIET_MAX_S)
        try:
            response = await self._send("GET", path, None, _JSON, timeout, _METADATA if metadata_only else _JSON)
            try:
                if response.status != 200:
                    raise _failure(response.status, await wire.document(response.content))
                async for type, object in wire.events(response.content):
                    if type == "ERROR":
                        raise _failure_told(object)
                    yield type, object
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _of(error, f"watch {kind.plural}") from None

    async def create(self, object: Mapping[str, Any], dry_run: bool = False) -> Json:
        """With `dry_run` it is defaulted and judged, also by admission, and not kept."""
        kind = Kind.of(object)
        path = _managed(kind.path(object["metadata"].get("namespace")), dry_run)
        return await self._call("try" if dry_run else "create", "POST", kind, path, dict(object))

    async def replace(self, object: Mapping[str, Any]) -> Json:
        """The whole object; its resourceVersion says on which one it rests."""
        kind, metadata = Kind.of(object), object["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        return await self._call("update", "PUT", kind, _managed(path), dict(object))

    async def apply(self, object: Mapping[str, Any], dry_run: bool = False) -> Json:
        """Server-side apply, by force, as the one field manager. `dry_run` as for `create`."""
        kind, metadata = Kind.of(object), object["metadata"]
        path = _managed(kind.path(metadata.get("namespace"), metadata["name"]), dry_run) + "&force=true"
        return await self._call("try" if dry_run else "apply", "PATCH", kind, path, dict(object), _APPLY)

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Json, style: str = MERGE, subresource: str | None = None,
        verb: str = "patch",
    ) -> Json:  # fmt: skip
        path = _managed(kind.path(namespace, name, subresource))
        return await self._call(verb, "PATCH", kind, path, body, style)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Json:
        """Gracefully; its children by the garbage collector. With a uid: only that very object, else Conflict."""
        body: Json = {"propagationPolicy": "Background", **({"preconditions": {"uid": uid}} if uid else {})}
        return await self._call("delete", "DELETE", kind, kind.path(namespace, name), body)

    # -- how -----------------------------------------------------------------------------------------------------------------

    async def _call(
        self, verb: str, method: str, kind: Kind, path: str, body: Json | None = None, style: str = _JSON,
        accept: str = _JSON,
    ) -> Json:  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self.calls.made[verb, kind.name] += 1
        path += f"{'&' if '?' in path else '?'}timeout={ANSWER_WITHIN_S}s"
        try:
            async with self._slots:
                response = await self._send(method, path, body, style, timeout, accept)
                try:
                    answer = await wire.document(response.content)
                except BaseException:
                    response.close()  # What is left of it is not waited for.
                    raise
                response.release()
            if not 200 <= response.status < 300:
                raise _failure(response.status, answer)
            document = wire.parsed(answer)
            if verb not in Calls.READS:
                self.wrote(verb, kind.name)
            return document
        except ApiError as error:
            self.calls.failed[verb, type(error).__name__] += 1
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _of(error, f"{verb} {kind.plural}")
            self.calls.failed[verb, type(failure).__name__] += 1
            raise failure from None

    async def _send(
        self, method: str, path: str, body: Json | None, style: str, limits: aiohttp.ClientTimeout, accept: str
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "Content-Type": style, "User-Agent": FIELD_MANAGER}
        bearer = (await self.configuration.auth_settings()).get("BearerToken")  # Reads a token again that has run out.
        if bearer is not None:
            headers["Authorization"] = str(bearer["value"])
        url = self.host + path
        answer = await self._rest.request(method, url, headers, body, _request_timeout=limits)  # type: ignore[no-untyped-call]
        response: aiohttp.ClientResponse = answer.response
        return response


async def connect(kubeconfig: Path | None = None) -> Api:
    """By the kubeconfig that is named here or in KUBECONFIG; else as the pod that this is; else by ~/.kube/config. Raises ApiError."""
    configuration = Configuration()
    try:
        if kubeconfig is None and "KUBECONFIG" not in os.environ and _IN_POD.exists():  # noqa: ASYNC240
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            path = None if kubeconfig is None else str(kubeconfig)
            loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
                path, client_configuration=configuration, persist_config=False
            )
            if "exec" in (loader._user or {}):  # Its tokens run out; the package renews them only where it is asked to.
                configuration.refresh_api_key_hook = _exec_again(loader)
    except (config.ConfigException, OSError) as error:
        raise Unreachable(f"no way to the API server: {error}") from None
    return Api(configuration)


def _exec_again(loader: Any) -> Any:
    due = asyncio.get_running_loop().time() + 60.0

    async def renew(configuration: Configuration) -> None:
        nonlocal due
        now = asyncio.get_running_loop().time()
        if now >= due:
            due = now + 60.0
            await loader.load_from_exec_plugin()
            configuration.api_key["BearerToken"] = loader.token

    return renew


def _managed(path: str, dry_run: bool = False) -> str:
    return f"{path}?fieldManager={FIELD_MANAGER}{'&dryRun=All' if dry_run else ''}"


def _failure(status: int, body: bytes) -> ApiError:
    try:
        document = wire.parsed(body)
        reason, message = str(document.get("reason") or ""), str(document.get("message") or "")
    except ValueError:  # Something in front of the API server answered.
        reason, message = "", body[:300].decode(errors="replace")
    answer = f"the API server answers {f'{status} {reason}'.rstrip()}: {message}"
    if status >= 500:
        return ServerFault(answer)
    if status == 429:
        return Unreachable(answer)
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(status, reason, message)
    return {404: NotFound, 409: Conflict, 410: Gone}.get(status, Refused)(status, reason, message)


def _failure_told(status: Json) -> ApiError:
    """The Status in an ERROR event of a watch."""
    code = status.get("code")
    if not isinstance(code, int):
        code = 410 if status.get("reason") in ("Expired", "Gone") else 500
    return _failure(code, json.dumps(status).encode())


def _of(error: Exception, what: str) -> ApiError:
    """The class of what went wrong below HTTP, or with its body."""
    words = f"{what}: {_words(error)}"
    if isinstance(error, wire.TooLarge):
        return Oversized(words)
    known = isinstance(error, (aiohttp.ClientError, OSError))  # Some of them are ValueErrors too.
    return Garbled(words) if isinstance(error, ValueError) and not known else Unreachable(words)


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error.strerror or error.os_error}"
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    return str(error) or type(error).__name__
