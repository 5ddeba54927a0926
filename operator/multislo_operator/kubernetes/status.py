"""What of a resource's status is to be written: the difference to what is there, and only when it is worth a write. Pure; used by
`reconciler`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

FIGURES = frozenset({"load", "attainment"})
"""Fields that change all the time. Alone they are written at most every `FIGURES_S`."""
FIGURES_S = 15.0


@dataclass(slots=True)
class StatusWriter:
    """Of one resource."""

    wrote_at: float = float("-inf")
    _asked: Any = None
    _answered: Any = None

    def patch(self, live: Mapping[str, Any], wanted: Mapping[str, Any], at: datetime, now: float) -> dict[str, Any]:
        """The merge patch that makes the resource's status what it should be; empty where nothing is worth a write."""
        before = live.get("status") or {}
        after = with_transitions(before, wanted, at)
        if before == after or (self._asked == after and self._answered == before):
            # The second: it was written so already, and the API server keeps it otherwise. Again would not help.
            return {}
        if now - self.wrote_at < FIGURES_S and _without_figures(before) == _without_figures(after):
            return {}
        return merge_patch(before, after)

    def wrote(self, wanted: Mapping[str, Any], answer: Mapping[str, Any], at: datetime, now: float) -> None:
        self.wrote_at = now
        self._answered = answer.get("status") or {}
        self._asked = with_transitions(self._answered, wanted, at)


def with_transitions(before: Mapping[str, Any], wanted: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """The wanted status, in which each condition has the time at which it came into its state."""
    known = {condition["type"]: condition for condition in before.get("conditions") or ()}
    now = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for condition in wanted.get("conditions") or ():
        old = known.get(condition["type"])
        same = old is not None and old.get("status") == condition["status"]
        since = old.get("lastTransitionTime") if same and old is not None else None
        conditions.append({**condition, "lastTransitionTime": since or now})
    return {**wanted, "conditions": conditions} if conditions else dict(wanted)


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7386: what is gone becomes null, a list that differs is given whole."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key in before and isinstance(value, Mapping) and isinstance(before[key], Mapping):
            inner = merge_patch(before[key], value)
            if inner:
                patch[key] = inner
        elif key not in before or before[key] != value:
            patch[key] = value
    return patch


def _without_figures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_figures(inner) for key, inner in value.items() if key not in FIGURES}
    if isinstance(value, list | tuple):
        return [_without_figures(inner) for inner in value]
    return value
