"""Which of the operator's replicas leads: the one that holds the Lease. Run by `run`, asked before every write.

The rules are client-go's: a holder that has not renewed for the lease's duration, by the watcher's own clock from when it saw the last
renewal, has lost it; a holder that cannot renew gives up earlier than that, so that two never write at once. The Lease of the `kubernetes`
package does not let go at a stop, and compares wall clocks.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from multislo_operator.kubernetes.client import Api, ApiError, Conflict, Kind, NotFound
from multislo_operator.kubernetes.names import LEASE
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
KIND = Kind("coordination.k8s.io/v1", "Lease")
DURATION_S, RENEW_S, RETRY_S = 15.0, 10.0, 2.0
"""How long a lease lasts; how long its holder tries to renew it; how often anybody tries."""
CALL_S = 4.0


class Move(Enum):
    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(slots=True)
class Claim:
    """One replica's view of the Lease. Times by its own monotonic clock."""

    identity: str
    duration_s: float = DURATION_S
    _seen: tuple[str, str] = ("", "")
    _seen_at: float = float("-inf")
    _renewed_at: float = float("-inf")
    _holds: bool = False

    def leading(self, now: float) -> bool:
        return self._holds and now - self._renewed_at < RENEW_S

    def see(self, lease: Mapping[str, Any] | None, now: float) -> Move:
        """What to do about the Lease as it is (None: there is none)."""
        if lease is None:
            return Move.CREATE
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        seen = holder, str(spec.get("renewTime") or "")
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        if holder == self.identity:
            return Move.RENEW
        self._holds = False
        duration_s = float(spec.get("leaseDurationSeconds") or self.duration_s)
        return Move.TAKE if not holder or now - self._seen_at >= duration_s else Move.WAIT

    def wrote(self, began: float) -> None:
        """The Lease is ours; the call that made it so began then."""
        self._holds, self._renewed_at = True, began

    def lost(self) -> None:
        self._holds = False

    def spec(self, before: Mapping[str, Any] | None, move: Move, at: datetime) -> Json:
        """The Lease's spec after the move."""
        old = dict((before or {}).get("spec") or {})
        time_ = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            **old,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration_s),
            "renewTime": time_,
        }
        if move is not Move.RENEW:
            spec["acquireTime"] = time_
            spec["leaseTransitions"] = int(old.get("leaseTransitions") or 0) + (0 if move is Move.CREATE else 1)
        return spec


class Election:
    """Runs for the Lease until it is cancelled; lets go of it then."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        owners: Sequence[Json] = (),
    ) -> None:
        """`owners`: references to what the Lease goes with."""
        self.claim = Claim(identity)
        self._owners = owners
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._lease: Json | None = None

    def leading(self) -> bool:
        return self.claim.leading(self._clock())

    async def run(self) -> None:
        was = False
        trouble: str | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(CALL_S):
                        await self._try()
                    trouble = None
                except Exception as error:  # Such as a Lease that somebody has written by hand.
                    words = str(error) or type(error).__name__
                    if words != trouble:
                        unexpected = not isinstance(error, ApiError | TimeoutError)
                        LOG.warning("Lease %s/%s: %s", self._namespace, LEASE, words, exc_info=unexpected)
                        trouble = words
                    self._lease = None
                if self.leading() is not was:
                    was = not was
                    LOG.info("%s %s", self.claim.identity, "leads" if was else "does not lead any more")
                await asyncio.sleep(RETRY_S if not was else self._next_s())
        finally:
            await self._let_go()

    def _next_s(self) -> float:
        """Of a leader that cannot renew: no later than the moment when it has to give up."""
        left = self.claim._renewed_at + RENEW_S - self._clock()
        return max(0.05, min(RETRY_S, left))

    async def _try(self) -> None:
        began = self._clock()
        if self._lease is None or not self.claim.leading(began):
            try:
                self._lease = await self._api.get(KIND, self._namespace, LEASE)
            except NotFound:
                self._lease = None
        move = self.claim.see(self._lease, began)
        if move is Move.WAIT:
            return
        spec = self.claim.spec(self._lease, move, datetime.now(UTC))
        try:
            if self._lease is None:
                metadata = {"namespace": self._namespace, "name": LEASE, "ownerReferences": list(self._owners)}
                self._lease = await self._api.create(
                    {"apiVersion": KIND.api_version, "kind": KIND.name, "metadata": metadata, "spec": spec}
                )
            else:
                # Rests on the version that was seen: of two that take it at once, one is refused.
                self._lease = await self._api.replace({**self._lease, "spec": spec})
        except (Conflict, NotFound):
            # Somebody else wrote it, or it was removed. Whether it is still ours shows at the next look.
            self._lease = None
            return
        self.claim.see(self._lease, began)
        self.claim.wrote(began)

    async def _let_go(self) -> None:
        """So that the other replica need not wait until it runs out."""
        held = self.claim.leading(self._clock())
        self.claim.lost()
        if not held or self._lease is None:
            return
        spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(CALL_S):
                await self._api.replace({**self._lease, "spec": spec})
        except (ApiError, TimeoutError) as error:
            LOG.warning("Lease %s/%s cannot be given back: %s", self._namespace, LEASE, error)
