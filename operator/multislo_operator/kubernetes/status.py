"""What of a resource's status is to be written: the difference to what is there, and only when it is worth a write. Pure; used by
`reconciler`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

FIGURES = frozenset({"load", "attainment"})
"""Fields that change all the time. Alone they are written at most every `FIGURES_S`."""
FIGURES_S = 15.0
BACK_OFF_S = (1.0, 60.0)
"""Between two tries to write what was not taken."""
FIRST_TYPES = frozenset({"Ready", "RouterReady", "WorkloadsReady", "ScalingReady", "ProfileReady"})
"""Types of conditions that every version of the CRD has. An older one than this operator refuses the others, and the whole status with
them; it gets these alone, for `FIRST_ONLY_S`."""
FIRST_ONLY_S = 600.0


@dataclass(slots=True)
class StatusWriter:
    """Of one resource. Times by the operator's monotonic clock."""

    wrote_at: float = float("-inf")
    _failures: int = 0
    _retry_at: float = float("-inf")
    _first_only_until: float = float("-inf")
    _asked: Any = None
    _answered: Any = None

    def patch(self, live: Mapping[str, Any], wanted: Mapping[str, Any], at: datetime, now: float) -> dict[str, Any]:
        """The merge patch that makes the resource's status what it should be; empty where nothing is worth a write."""
        if now < self._retry_at:
            return {}
        before = live.get("status") or {}
        after = with_transitions(before, self._narrowed(wanted, now), at)
        stored = as_stored(after, self._asked, self._answered)
        if before == stored:
            return {}
        if now - self.wrote_at < FIGURES_S and _without_figures(before) == _without_figures(stored):
            return {}
        return merge_patch(before, after)

    def wrote(self, wanted: Mapping[str, Any], answer: Mapping[str, Any], at: datetime, now: float) -> None:
        self.wrote_at = now
        self._failures = 0
        self._answered = answer.get("status") or {}
        self._asked = with_transitions(self._answered, self._narrowed(wanted, now), at)

    def failed(self, is_invalid: bool, now: float) -> None:
        """It was not taken; `is_invalid`: its schema is at fault."""
        if is_invalid and now >= self._first_only_until:
            self._first_only_until = now + FIRST_ONLY_S
        else:
            self._failures += 1
            self._retry_at = now + min(BACK_OFF_S[0] * 2 ** min(self._failures - 1, 16), BACK_OFF_S[1])

    def _narrowed(self, wanted: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        if now >= self._first_only_until:
            return wanted
        kept = [condition for condition in wanted.get("conditions") or () if condition["type"] in FIRST_TYPES]
        return {**wanted, "conditions": kept}


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


def as_stored(value: Any, asked: Any, answered: Any) -> Any:
    """What the API server would store of `value`, by what it stored (`answered`) of the last write (`asked`). Another version of the CRD
    drops fields that it does not know, and fills in defaults that we do not know."""
    if isinstance(value, Mapping) and isinstance(asked, Mapping) and isinstance(answered, Mapping):
        filled_in = {key: answered[key] for key in answered if key not in asked}
        kept = {key: inner for key, inner in value.items() if key in answered or key not in asked}
        return filled_in | {key: as_stored(inner, asked.get(key), answered.get(key)) for key, inner in kept.items()}
    if isinstance(value, list) and isinstance(asked, list) and isinstance(answered, list) and asked and answered:
        # All items of a list have one schema.
        return [as_stored(item, asked[0], answered[0]) for item in value]
    return value


def _without_figures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_figures(inner) for key, inner in value.items() if key not in FIGURES}
    if isinstance(value, list | tuple):
        return [_without_figures(inner) for inner in value]
    return value
