"""Whether a child must be applied (again), from what was applied last and what is there now. Pure; used by `apply`.

Two writers who want different values of one field would rewrite it for ever, a few times a second. So the fourth re-apply within a minute
is put off, for twice as long each time.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.names import FIELD_MANAGER

EDITS_MAX, EDITS_WITHIN_S = 3, 60.0
HOLD_FIRST_S, HOLD_MAX_S = 20.0, 600.0
UNWATCHED_AGAIN_S = 600.0
"""A child whose kind cannot be watched is applied again so often, unseen."""
_CONTROLLERS = ("kube-controller-manager", "kube-scheduler", "kubelet")


class Due(Enum):
    NO = "no"
    APPLY = "apply"
    HELD = "held"
    """It is not as it should be, and is left so for a while: somebody else wants it otherwise."""


@dataclass(slots=True)
class Child:
    """What is remembered of one child. Times by the operator's monotonic clock."""

    whole: bool
    """The cache holds all of it, and not only its metadata."""
    desired: Object | None = None
    digest: str = ""
    uid: str = ""
    mark: str = ""
    at: float = float("-inf")
    edits: deque[float] = field(default_factory=deque)
    """When it was found changed by somebody else, of late."""
    held_until: float = float("-inf")
    holds: int = 0
    _fine: Object | None = None
    """The very object that was last found to be as it should: the cache hands it out until it changes, once a second."""
    rival: str = ""
    """Who changes it, where that is known."""

    def due(self, desired: Object, live: Object | None, watched: bool, now: float) -> Due:
        """`live`: as the cache holds it; None: it is not there, or its kind is not watched. A yes is followed by the apply."""
        if desired is not self.desired and digest(desired) != self.digest:
            return Due.APPLY
        self.desired = desired
        if not watched:
            return Due.APPLY if now - self.at >= UNWATCHED_AGAIN_S else Due.NO
        if live is not None and live is self._fine:
            return Due.NO
        if live is not None and live["metadata"]["uid"] == self.uid and mark(live, desired, self.whole) == self.mark:
            self._fine = live
            return Due.NO
        return self._edited(live, now)

    def applied(self, desired: Object, live: Object, now: float) -> None:
        self.desired, self.digest = desired, digest(desired)
        self._fine = None
        self.uid, self.mark, self.at = live["metadata"]["uid"], mark(live, desired, self.whole), now

    def not_applied(self) -> None:
        """The API server refused what `due` asked for: that it is not as it should be is nobody's edit."""
        if self.edits:
            self.edits.pop()

    def _edited(self, live: Object | None, now: float) -> Due:
        if now < self.held_until:
            return Due.HELD
        if self.holds and now - self.held_until > HOLD_MAX_S:
            self.holds = 0
        self.edits.append(now)
        while now - self.edits[0] > EDITS_WITHIN_S:
            self.edits.popleft()
        again_after_hold = self.holds > 0 and self.at >= self.held_until and now - self.at < EDITS_WITHIN_S
        if len(self.edits) > EDITS_MAX or again_after_hold:
            self.held_until = now + min(HOLD_FIRST_S * 2**self.holds, HOLD_MAX_S)
            self.holds += 1
            self.edits.clear()
            self.rival = rival(live)
            return Due.HELD
        return Due.APPLY


def digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def mark(live: Object, desired: Object, whole: bool) -> str:
    """Of all that we ask for as it is in the live object, defaults within lists included. `whole` False: only the metadata are known, and
    the generation (or version, where there is none) stands for the rest."""
    metadata = live["metadata"]
    if whole:
        return digest(_where(live, desired))
    rest = metadata.get("generation") or metadata["resourceVersion"]
    return digest([rest, _where(metadata, {k: v for k, v in desired["metadata"].items() if k != "managedFields"})])


def rival(live: Object | None) -> str:
    """Who last wrote it besides us and the controllers, by its managed fields."""
    entries = (live or {}).get("metadata", {}).get("managedFields") or []
    others = [
        entry
        for entry in entries
        if entry.get("manager") not in (FIELD_MANAGER, *_CONTROLLERS) and entry.get("subresource") != "status"
    ]
    newest = max(others, key=lambda entry: str(entry.get("time") or ""), default=None)
    return str(newest["manager"]) if newest else ""


def _where(live: Any, desired: Any) -> Any:
    """The part of `live` at the places that `desired` fills."""
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        return {key: _where(live.get(key), value) for key, value in desired.items()}
    return live
