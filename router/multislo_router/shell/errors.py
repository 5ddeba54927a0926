"""What the data path answers when it cannot serve: the reasons, who is at fault, and the bytes. Used by every module of the shell.

    Fault                          the one exception: a request is answered with an error, and its raiser must stop
    |-- the client's   400 malformed, invalid_json, invalid_field, invalid_slo, unknown_tier, too_long
    |                  401 unauthorized    404 not_found, unknown_model    405 method_not_allowed
    |                  408 timeout         413 body_too_large   415 unsupported_encoding
    |                  417 expectation_failed   431 head_too_large
    |                  501 not_implemented
    |-- the fleet's    429 deadline, queue_full                 (right now it has too little room)
    |                  503 no_instance, engine_full
    |-- the engine's   502 engine_failed   504 engine_silent
    `-- ours           500 internal        503 shutting_down, connections_full, bodies_full

An engine that fails is no exception but an event for the core, which answers with a decision.
"""

import json
import math
from enum import Enum, StrEnum, auto

from multislo_router.core.decisions import Cause, Refuse


class Dialect(Enum):
    """In which form a client expects errors."""

    OPENAI = auto()
    RESPONSES = auto()
    """OpenAI's; an event inside a stream has another form."""
    ANTHROPIC = auto()


class Reason(StrEnum):
    """Value of the `x-multislo-reason` header, for ever; the core's `Cause`s are among them."""

    MALFORMED = "malformed"
    INVALID_JSON = "invalid_json"
    INVALID_FIELD = "invalid_field"
    INVALID_SLO = "invalid_slo"
    UNKNOWN_TIER = "unknown_tier"
    TOO_LONG = "too_long"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    UNKNOWN_MODEL = "unknown_model"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TIMEOUT = "timeout"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    EXPECTATION_FAILED = "expectation_failed"
    HEAD_TOO_LARGE = "head_too_large"
    DEADLINE = "deadline"
    QUEUE_FULL = "queue_full"
    NO_INSTANCE = "no_instance"
    ENGINE_FULL = "engine_full"
    ENGINE_FAILED = "engine_failed"
    ENGINE_SILENT = "engine_silent"
    INTERNAL = "internal"
    SHUTTING_DOWN = "shutting_down"
    CONNECTIONS_FULL = "connections_full"
    BODIES_FULL = "bodies_full"
    NOT_IMPLEMENTED = "not_implemented"


STATUS: dict[Reason, tuple[int, str]] = {
    Reason.MALFORMED: (400, "invalid_request_error"),
    Reason.INVALID_JSON: (400, "invalid_request_error"),
    Reason.INVALID_FIELD: (400, "invalid_request_error"),
    Reason.INVALID_SLO: (400, "invalid_request_error"),
    Reason.UNKNOWN_TIER: (400, "invalid_request_error"),
    Reason.TOO_LONG: (400, "invalid_request_error"),
    Reason.UNAUTHORIZED: (401, "authentication_error"),
    Reason.NOT_FOUND: (404, "invalid_request_error"),
    Reason.UNKNOWN_MODEL: (404, "invalid_request_error"),
    Reason.METHOD_NOT_ALLOWED: (405, "invalid_request_error"),
    Reason.TIMEOUT: (408, "invalid_request_error"),
    Reason.BODY_TOO_LARGE: (413, "invalid_request_error"),
    Reason.UNSUPPORTED_ENCODING: (415, "invalid_request_error"),
    Reason.EXPECTATION_FAILED: (417, "invalid_request_error"),
    Reason.HEAD_TOO_LARGE: (431, "invalid_request_error"),
    Reason.DEADLINE: (429, "rate_limit_error"),
    Reason.QUEUE_FULL: (429, "rate_limit_error"),
    Reason.NO_INSTANCE: (503, "server_error"),
    Reason.ENGINE_FULL: (503, "server_error"),
    Reason.ENGINE_FAILED: (502, "server_error"),
    Reason.ENGINE_SILENT: (504, "server_error"),
    Reason.INTERNAL: (500, "server_error"),
    Reason.SHUTTING_DOWN: (503, "server_error"),
    Reason.CONNECTIONS_FULL: (503, "server_error"),
    Reason.BODIES_FULL: (503, "server_error"),
    Reason.NOT_IMPLEMENTED: (501, "invalid_request_error"),
}
"""HTTP status and the `type` of OpenAI's error body. `code` is the reason, but for the two that OpenAI's clients know by a name."""

CODE = {
    Reason.UNAUTHORIZED: "invalid_api_key",
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.TOO_LONG: "context_length_exceeded",
    Reason.DEADLINE: "rate_limit_exceeded",
    Reason.QUEUE_FULL: "rate_limit_exceeded",
}

ANTHROPIC_TYPE = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The `type` of Anthropic's error object, by status; of all others it is invalid_request_error."""

PHRASE = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}

RETRY_AFTER_MAX_S = 3600
"""A client told to come back later than that would be better told that it cannot be served."""


class Fault(Exception):
    """A request that cannot be served. `param` names the field or header at fault; `allow` lists the methods of a 405."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow

    @property
    def status(self) -> int:
        return STATUS[self.reason][0]


def fault_of(refusal: Refuse) -> Fault:
    """The core's refusal as the client sees it."""
    message = {
        Cause.DEADLINE: f"tier {refusal.tier!r} rejects what it cannot serve in time: {refusal.reason}",
        Cause.QUEUE_FULL: f"too many requests wait already: {refusal.reason}",
        Cause.NO_INSTANCE: f"no instance is ready: {refusal.reason}",
        Cause.TOO_LONG: f"prompt and output are too long: {refusal.reason}",
        Cause.ENGINE_FULL: f"the engines are full: {refusal.reason}",
        Cause.ENGINE_FAILED: f"the request failed on its instance and could not be placed again: {refusal.reason}",
    }[refusal.cause]
    return Fault(Reason(refusal.cause.value), message, retry_after_s=refusal.retry_after_s)


def _error(fault: Fault, dialect: Dialect, request_id: bytes | None) -> dict[str, object]:
    """The error document of the client's API."""
    if dialect is Dialect.ANTHROPIC:
        kind = ANTHROPIC_TYPE.get(fault.status, "invalid_request_error")
        document: dict[str, object] = {"type": "error", "error": {"type": kind, "message": fault.message}}
        if request_id is not None:
            document["request_id"] = request_id.decode("latin-1")
        return document
    code = CODE.get(fault.reason, fault.reason.value)
    error = {"message": fault.message, "type": STATUS[fault.reason][1], "param": fault.param, "code": code}
    return {"error": error}


def error_response(
    fault: Fault,
    request_id: bytes | None,
    dialect: Dialect,
    *,
    close: bool,
    extra: bytes = b"",
    head_only: bool = False,
) -> bytes:
    """A whole response; `extra` are whole header lines, `head_only` is for HEAD requests."""
    body = json.dumps(_error(fault, dialect, request_id)).encode()
    if dialect is Dialect.ANTHROPIC and request_id is not None:
        extra += b"request-id: " + request_id + b"\r\n"
    extra += b"x-multislo-reason: " + fault.reason.value.encode() + b"\r\n"
    retry_after_s = fault.retry_after_s
    if retry_after_s is None and fault.status == 429:
        retry_after_s = 1.0
    if retry_after_s is not None and math.isfinite(retry_after_s):
        extra += b"retry-after: %d\r\n" % min(RETRY_AFTER_MAX_S, max(1, math.ceil(retry_after_s)))
    if fault.reason is Reason.UNSUPPORTED_ENCODING:
        extra += b"accept-encoding: identity\r\n"
    if fault.reason is Reason.UNAUTHORIZED:
        extra += b"www-authenticate: Bearer\r\n"
    if fault.allow is not None:
        extra += b"allow: %b\r\n" % fault.allow.encode()
    return response(fault.status, body, request_id, close=close, extra=extra, head_only=head_only)


def response(
    status: int, body: bytes, request_id: bytes | None, *, close: bool, extra: bytes = b"", head_only: bool = False
) -> bytes:
    """A response that the router makes itself; `extra` are whole header lines."""
    if request_id is not None:
        extra += b"x-request-id: " + request_id + b"\r\n"
    if close:
        extra += b"connection: close\r\n"
    if status != 204:  # which has no body and may not give its length (RFC 9110, 8.6)
        extra = b"content-type: application/json\r\ncontent-length: %d\r\n%b" % (len(body), extra)
    head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, PHRASE.get(status, b"Error"), extra)
    return head if head_only else head + body


def error_event(fault: Fault, dialect: Dialect, request_id: bytes) -> bytes:
    """An error inside a stream that has begun, as a server-sent event."""
    return event_of(_error(fault, dialect, request_id), dialect)


def event_of(document: dict[str, object], dialect: Dialect) -> bytes:
    """An API's error document as the event that ends a stream of that API."""
    if dialect is Dialect.OPENAI:
        return b"data: %b\n\n" % json.dumps(document).encode()
    if dialect is Dialect.RESPONSES:
        # The fields of the API's own event, and the object by which OpenAI's clients know that they have to raise.
        error = document.get("error")
        said = error if isinstance(error, dict) else {"message": str(error)}
        document = {
            "type": "error",
            "code": said.get("code"),
            "message": said.get("message"),
            "param": said.get("param"),
            "sequence_number": 0,
            "error": error,
        }
    return b"event: error\ndata: %b\n\n" % json.dumps(document).encode()
