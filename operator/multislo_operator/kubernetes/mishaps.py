"""The kubelet's events of pods that do not come up and whose status does not say why. They are asked for seldom, and only then. Owned by
`reconciler`.

Where the operator has no right to list events, as under an older chart, the conditions say less and nothing else changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from multislo_operator.kubernetes.causes import Words, asks_for_events
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Api, ApiError, Kind, Refused

EVENT = Kind("v1", "Event")
AGAIN_S = 15.0
"""Between two questions about the same pod."""
FORBIDDEN_S = 600.0


@dataclass(slots=True)
class Mishaps:
    """Of one resource's pods."""

    api: Api
    clock: Callable[[], float]
    _asked_at: dict[str, float] = field(default_factory=dict)
    _known: dict[str, Words] = field(default_factory=dict)
    _not_before: float = float("-inf")

    async def of(self, pods: Mapping[str, Object], at: datetime) -> dict[str, Words]:
        """The last warning of each pod that is in trouble, by its uid."""
        stuck = {pod["metadata"]["uid"]: pod for pod in pods.values() if asks_for_events(pod, at)}
        for known in (self._asked_at, self._known):
            for uid in [uid for uid in known if uid not in stuck]:
                del known[uid]
        now = self.clock()
        due = [uid for uid in stuck if now - self._asked_at.get(uid, float("-inf")) >= AGAIN_S]
        if due and now >= self._not_before:
            # One in a look: a look is not to wait for many answers, and a whole fleet usually has the same trouble.
            self._asked_at[due[0]] = now
            await self._ask(stuck[due[0]], now)
        return dict(self._known)

    async def _ask(self, pod: Object, now: float) -> None:
        metadata = pod["metadata"]
        fields = f"involvedObject.uid={metadata['uid']},type=Warning"
        try:
            events, _ = await self.api.list(EVENT, metadata["namespace"], fields=fields)
        except ApiError as error:
            if isinstance(error, Refused):
                self._not_before = now + FORBIDDEN_S
            return
        if events:
            last = max(events, key=_time)
            self._known[metadata["uid"]] = (str(last.get("reason") or ""), str(last.get("message") or ""))


def _time(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
