"""The times in a pod's template, worked out together: how long it may take to start, and how it stops. Pure; called by `engine_pod` and
`router_pod`."""

import math
from dataclasses import dataclass
from typing import Any

ROUTES_CLOSE_S = 5
"""From the deletion of an engine's pod to SIGTERM, so that the routers hear of it first, from the operator. Sent later, a request would
meet a server that stops. A router waits by itself, for the manifest's shutdownDelay, and tells its clients meanwhile."""
TEARDOWN_S = 15
"""From the end of the last request to the end of the process: vLLM ends its workers and frees the accelerator's memory."""
STARTUPS = 3
STARTUP_EXTRA_S = 300
"""An engine may take three start-ups of its profile and five minutes: weights that are downloaded the first time."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """What happens after the deletion of a pod, in order: it serves on for `routes_close_s`, then at most `finish_s` for what is under
    way, an abort of what is left, SIGKILL at `grace_s`. A pod without requests is gone after `routes_close_s` and its own
    teardown."""

    routes_close_s: int
    finish_s: int
    grace_s: int


def stopping(drain_timeout_s: float, routes_close_s: int = ROUTES_CLOSE_S) -> Stopping:
    """An instance that scaling removes has been drained before and uses none of this. One that a node's drain or a person deletes has its
    requests in it, and gets the manifest's drainTimeout for them; kubelet's SIGKILL comes after the engine's own abort, never before."""
    finish_s = math.ceil(drain_timeout_s)
    return Stopping(routes_close_s, finish_s, routes_close_s + finish_s + TEARDOWN_S)


def startup_most_s(startup_s: float) -> int:
    """How long an engine may take before it is started again, in whole minutes: a profile that changes by a second changes no template."""
    return math.ceil((STARTUPS * startup_s + STARTUP_EXTRA_S) / 60) * 60


def pre_stop(stop: Stopping) -> dict[str, Any]:
    """Of an engine. kubelet's own sleep: an image needs no shell for it."""
    return {"preStop": {"sleep": {"seconds": stop.routes_close_s}}}


def probe(path: str, port: str, period_s: int, failures: int, timeout_s: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": timeout_s,
    }
