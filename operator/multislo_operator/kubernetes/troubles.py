"""Which changes of a resource the API server does not take, and when each is tried again. Each is on its own: one that fails keeps no other
from being carried out. Used by `apply`."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from multislo_operator.kubernetes.changes import (
    Apply,
    AskAgain,
    Change,
    CreateSecret,
    Delete,
    DeletePod,
    PatchPod,
    Scale,
    SetServing,
)
from multislo_operator.kubernetes.client import NotFound, Refused
from multislo_operator.kubernetes.obstacles import Refusal

BACK_OFF_S = (0.5, 30.0)
OPTIONAL_BACK_OFF_S = 300.0
FAULTS_TOLD = 3
"""A fault of the server (a webhook that restarts) is said once it has come back so often; a refusal is one at once."""


@dataclass(slots=True)
class _Trouble:
    change: Change
    refusal: Refusal
    count: int
    retry_at: float
    told: bool
    refused: bool
    """It was judged; else something is out of order."""


@dataclass(slots=True)
class Troubles:
    """Of one resource. Times by the operator's monotonic clock."""

    _now: dict[Hashable, _Trouble] = field(default_factory=dict)

    def waits(self, change: Change, now: float) -> tuple[float, bool] | None:
        """How long a change that has failed is left alone, and whether it was refused; None: it is tried now. What is to be applied
        otherwise than before is tried at once."""
        trouble = self._now.get(_identity(change))
        if trouble is None or now >= trouble.retry_at:
            return None
        if (
            isinstance(change, Apply)
            and isinstance(trouble.change, Apply)
            and change.object is not trouble.change.object
        ):
            return None
        return trouble.retry_at - now, trouble.refused

    def failed(self, change: Change, error: Exception, now: float) -> tuple[float, Refusal | None]:
        """In how many seconds to try again, and what is to be told of it: once, until it is taken or wanted otherwise."""
        key = _identity(change)
        before = self._now.get(key)
        same = before is not None and (not isinstance(change, Apply) or before.change == change)
        count = before.count + 1 if same and before else 1
        refusal = _refusal(change, error)
        wait_s = (
            OPTIONAL_BACK_OFF_S if refusal.optional else min(BACK_OFF_S[0] * 2 ** min(count - 1, 16), BACK_OFF_S[1])
        )
        refused = isinstance(error, Refused)
        says = (refused or count >= FAULTS_TOLD) and not _is_missing(refusal, error)
        told = same and before is not None and before.told
        self._now[key] = _Trouble(change, refusal, count, now + wait_s, told or says, refused)
        return wait_s, refusal if says and not told else None

    def done(self, change: Change) -> bool:
        """It was taken. Whether it had failed before."""
        return self._now.pop(_identity(change), None) is not None

    def forget_all_but(self, changes: Iterable[Change]) -> None:
        """What is no longer asked for is no trouble any more."""
        if self._now:
            wanted = {_identity(change) for change in changes}
            self._now = {key: trouble for key, trouble in self._now.items() if key in wanted}

    def refusals(self) -> tuple[Refusal, ...]:
        """What the conditions say."""
        return tuple(trouble.refusal for trouble in self._now.values() if trouble.told)


def what(change: Change) -> str:
    """Kind and name of what a change is about."""
    match change:
        case Apply() | CreateSecret():
            return f"{change.object['kind']} {change.object['metadata']['name']}"
        case Delete():
            return f"{change.kind} {change.name}"
        case AskAgain():
            return f"annotations of Deployment {change.deployment}"
        case Scale():
            return f"replicas of Deployment {change.deployment}"
        case PatchPod() | SetServing() | DeletePod():
            return f"Pod {change.name}"


def _identity(change: Change) -> Hashable:
    """The same for the same wish of another round, whose times differ."""
    match change:
        case PatchPod():
            return what(change), change.uid, frozenset({*change.labels, *change.annotations}), change.ungate
        case SetServing() | DeletePod():
            return what(change), change.uid, type(change)
        case _:
            return what(change), type(change)


def _refusal(change: Change, error: Exception) -> Refusal:
    words = error.message or str(error) if isinstance(error, Refused) else str(error) or type(error).__name__
    return Refusal(
        what(change),
        words,
        of_child=isinstance(change, Apply | CreateSecret | Delete),
        optional=isinstance(change, Apply) and change.optional,
    )


def _is_missing(refusal: Refusal, error: Exception) -> bool:
    """An API that this cluster does not have (any more), and need not."""
    return refusal.optional and isinstance(error, NotFound)
