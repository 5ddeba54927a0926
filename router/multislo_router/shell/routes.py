"""What a request's target means. This is the only place that knows: a client's spelling of a path ends here, and an engine is asked for the
path as it stands in the table below.

A target is decoded once, empty and dot segments are resolved and a trailing slash is dropped. The result is looked up whole. Whatever is
not in the table does not exist here, so an engine's own administration is out of reach: vLLM serves /sleep, /collective_rpc,
/v1/load_lora_adapter and some thirty others on the port that it serves its API on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from urllib.parse import unquote_to_bytes

from multislo_router.shell.errors import Dialect, Fault, Reason


class Route(Enum):
    """What is done with a request."""

    CHAT = auto()
    COMPLETIONS = auto()
    RESPONSES = auto()
    MESSAGES = auto()
    PASSED = auto()
    """Relayed to an instance, not scheduled."""
    MODELS = auto()
    HEALTH = auto()
    OPTIONS = auto()
    """Answered with the methods of the path."""
    NOT_FOUND = auto()
    WRONG_METHOD = auto()


OPEN: Final = frozenset((Route.HEALTH, Route.OPTIONS))
"""Answered without a key: load balancers and browsers' preflights show none."""

READ: Final = frozenset((Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES))
"""Their bodies are read here, and not only relayed."""

MODELS: Final = b"/v1/models"
MESSAGES: Final = b"/v1/messages"
ANY_PATH: Final = b"*"
"""The target of `OPTIONS *`: the server as a whole."""

_POST: Final = ("POST",)
PASSED: Final[Mapping[str, tuple[str, ...]]] = {
    "/classify": _POST,
    "/detokenize": _POST,
    "/pooling": _POST,
    "/rerank": _POST,
    "/score": _POST,
    "/tokenize": _POST,
    "/v1/audio/transcriptions": _POST,
    "/v1/audio/translations": _POST,
    "/v1/chat/completions/derender": _POST,
    "/v1/chat/completions/render": _POST,
    "/v1/completions/derender": _POST,
    "/v1/completions/render": _POST,
    "/v1/embeddings": _POST,
    "/v1/messages/count_tokens": _POST,
    "/v1/messages/render": _POST,
    "/v1/rerank": _POST,
    "/v1/responses/render": _POST,
    "/v1/score": _POST,
    "/v2/embed": _POST,
    "/v2/rerank": _POST,
}
"""What vLLM 0.32 serves as an API and what does not generate text. What generates in other formats (/v1/chat/completions/batch,
/inference/v1/generate, /invocations, ...) would go past the scheduling; a manifest may add it."""

_OWN: Final = (
    (b"/v1/chat/completions", b"POST", Route.CHAT),
    (b"/v1/completions", b"POST", Route.COMPLETIONS),
    (b"/v1/responses", b"POST", Route.RESPONSES),
    (MESSAGES, b"POST", Route.MESSAGES),
    (MODELS, b"GET", Route.MODELS),
    (b"/health", b"GET", Route.HEALTH),
    (b"/", b"GET", Route.HEALTH),
)
_ABSOLUTE = re.compile(rb"https?://[A-Za-z0-9._~%:\[\]-]+(?=[/?]|\Z)", re.IGNORECASE)
_METHODS_OF_ANY_PATH: Final = b"GET, HEAD, OPTIONS, POST"


@dataclass(frozen=True, slots=True)
class Target:
    """`path` is normalised; `wire` is what an engine is asked for: the path and the client's query."""

    route: Route
    path: bytes
    wire: bytes
    allow: bytes = b""
    """The methods of the path, as the header `Allow` lists them."""

    @property
    def dialect(self) -> Dialect:
        """In which form its clients expect errors."""
        if self.is_anthropic:
            return Dialect.ANTHROPIC
        return Dialect.RESPONSES if self.route is Route.RESPONSES else Dialect.OPENAI

    @property
    def is_anthropic(self) -> bool:
        """Whether its clients speak Anthropic's dialect: they show their key as `x-api-key`."""
        return self.path == MESSAGES or self.path.startswith(MESSAGES + b"/")

    @property
    def model(self) -> bytes:
        """Of GET /v1/models/NAME, normalised like a path; empty for the list."""
        return self.path[len(MODELS) + 1 :]


class Routes:
    """`extra` are further paths to relay, with their methods."""

    __slots__ = ("_allow", "_table")

    def __init__(self, extra: Iterable[tuple[str, tuple[str, ...]]] = ()) -> None:
        self._table: dict[bytes, dict[bytes, Route]] = {}
        for path, method, route in _OWN:
            self._add(path, method, route)
        for added, methods in (*PASSED.items(), *extra):
            for name in methods:
                self._add(added.encode(), name.encode(), Route.PASSED)
        self._allow = {path: b", ".join(sorted((*methods, b"OPTIONS"))) for path, methods in self._table.items()}

    def _add(self, path: bytes, method: bytes, route: Route) -> None:
        methods = self._table.setdefault(path, {})
        methods.setdefault(method, route)
        if method == b"GET":
            methods.setdefault(b"HEAD", route)

    def find(self, method: bytes, target: bytes) -> Target:
        """Raises a `Fault` for a target that is none (RFC 9112, 3.2)."""
        if target == ANY_PATH and method == b"OPTIONS":
            return Target(Route.OPTIONS, target, target, _METHODS_OF_ANY_PATH)
        if method == b"CONNECT":
            raise Fault(
                Reason.METHOD_NOT_ALLOWED, "CONNECT: this is no forward proxy", allow=_METHODS_OF_ANY_PATH.decode()
            )
        if target[:1] != b"/":
            target = _origin_form(target)
        if b"#" in target:
            raise Fault(Reason.MALFORMED, "the request's target has a fragment (#), which belongs to clients alone")
        raw, mark, query = target.partition(b"?")
        path = raw if raw in self._table else normalised(raw)
        wire = path + mark + query
        known = path if not path.startswith(MODELS + b"/") else MODELS
        methods = self._table.get(known)
        if methods is None:
            return Target(Route.NOT_FOUND, path, wire)
        allow = self._allow[known]
        if method == b"OPTIONS":
            return Target(Route.OPTIONS, path, wire, allow)
        return Target(methods.get(method, Route.WRONG_METHOD), path, wire, allow)


def unknown(method: bytes, target: Target) -> Fault:
    """Why there is no route: the path does not exist here, or exists for other methods."""
    path = target.path.decode("utf-8", "replace")
    if target.route is Route.WRONG_METHOD:
        allow = target.allow.decode()
        message = f"{method.decode()} {path}: the method must be one of {allow}"
        return Fault(Reason.METHOD_NOT_ALLOWED, message, allow=allow)
    stored = path.startswith("/v1/responses/") and (method != b"POST" or path.endswith("/cancel"))
    why = "responses are not stored here" if stored else "there is no such path"
    return Fault(Reason.NOT_FOUND, f"{method.decode()} {path}: {why}")


def normalised(path: bytes) -> bytes:
    """The path that a spelling means: what two spellings have in common."""
    segments: list[bytes] = []
    for segment in unquote_to_bytes(path).split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment and segment != b".":
            segments.append(segment)
    return b"/" + b"/".join(segments)


def _origin_form(target: bytes) -> bytes:
    """Of a target in absolute form (`http://host/path`), which every server must take; its host means nothing here."""
    host = _ABSOLUTE.match(target)
    if host is None:
        raise Fault(Reason.MALFORMED, "the request's target must be a path or an http URL")
    rest = target[host.end() :]
    return rest if rest[:1] == b"/" else b"/" + rest
