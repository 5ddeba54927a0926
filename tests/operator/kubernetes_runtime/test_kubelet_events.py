"""The kubelet's events of pods that do not come up: asked for seldom, and not at all where that is not allowed."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from multislo_operator.kubernetes.client import Api, Kind, Refused
from multislo_operator.kubernetes.mishaps import AGAIN_S, FORBIDDEN_S, Mishaps

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
EARLY = "2026-11-01T11:00:00Z"


@dataclass
class Server:
    """As much of the API server as is asked."""

    forbidden: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def list(self, kind: Kind, namespace: str | None, *, fields: str) -> tuple[list[dict[str, Any]], str]:
        assert (kind.plural, namespace) == ("events", "ns")
        self.asked.append(fields)
        if self.forbidden:
            raise Refused(403, "Forbidden", "events is forbidden")
        return self.events, "1"


def stuck(name: str) -> dict[str, Any]:
    waiting = {"name": "engine", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "creationTimestamp": EARLY},
        "spec": {"nodeName": "n"},
        "status": {"containerStatuses": [waiting]},
    }


async def test_each_stuck_pod_is_asked_about_in_turn_and_the_last_warning_is_kept_until_it_moves() -> None:
    now = 0.0
    server = Server(
        events=[
            {"reason": "FailedMount", "message": "the last", "lastTimestamp": "2026-11-01T11:59:00Z"},
            {"reason": "FailedMount", "message": "an earlier one", "lastTimestamp": "2026-11-01T11:58:00Z"},
        ]
    )
    mishaps = Mishaps(cast(Api, server), lambda: now)
    pods = {name: stuck(name) for name in ("a", "b")}

    for _ in range(5):
        found = await mishaps.of(pods, AT)
    assert found == {"uid-a": ("FailedMount", "the last"), "uid-b": ("FailedMount", "the last")}
    assert server.asked == [f"involvedObject.uid=uid-{name},type=Warning" for name in "ab"]

    now = AGAIN_S
    await mishaps.of(pods, AT)
    assert len(server.asked) == 3
    pods["a"]["status"] = {"conditions": [{"type": "ContainersReady", "status": "True"}]}
    assert list(await mishaps.of(pods, AT)) == ["uid-b"]


async def test_where_events_may_not_be_listed_nobody_asks_again_and_again() -> None:
    now = 0.0
    server = Server(forbidden=True)
    mishaps = Mishaps(cast(Api, server), lambda: now)
    pods = {name: stuck(name) for name in ("a", "b")}

    for step in range(300):
        now = float(step)
        assert await mishaps.of(pods, AT) == {}
    assert len(server.asked) == 1
    now = FORBIDDEN_S + 1.0
    await mishaps.of(pods, AT)
    assert len(server.asked) == 2
