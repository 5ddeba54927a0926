"""Which installation of the operator looks after the fleets of a namespace: the one that holds its Lease `multislo-fleets`. Two over one
namespace, with different keys, versions or images, would undo each other's work for ever. The one that came first goes on and says so in
its fleets' conditions; the other stands aside, says so in an event of each fleet, and takes over when the first is gone. Run by `run` while
it leads, asked by `reconciler`.

The replicas of an installation are one holder. Only another holder that is alive keeps an operator back: where a Lease cannot be read or
written, it goes on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multislo_operator.kubernetes.client import Api, ApiError, Conflict, NotFound
from multislo_operator.kubernetes.lease import KIND, Claim, Move
from multislo_operator.kubernetes.names import CLAIM, STANDS_ASIDE
from multislo_operator.kubernetes.wire import Json

LOG = logging.getLogger(__name__)
DURATION_S, RENEW_S, RETRY_S = 30.0, 10.0, 5.0
"""How long a claim lasts, how often its holder renews it, how often the others look."""
ASIDE_AGAIN_S, ASIDE_KEPT_S = 20.0, 60.0
"""How often one that stands aside says so, and how long that is believed."""
CALL_S = 5.0
LOOK_S = 0.2


@dataclass(slots=True)
class _Namespace:
    """One namespace's Lease as it was last seen. Times by the monotonic clock."""

    claim: Claim
    lease: Json | None = None
    due_at: float = float("-inf")
    known: bool = False
    rival: str = ""
    """The other holder."""
    aside: str = ""
    """What the annotation said last."""
    aside_at: float = float("-inf")
    trouble: str = ""


@dataclass(slots=True)
class Claims:
    api: Api
    identity: str
    """Of the installation: the same for all of its replicas."""
    home: str = ""
    owners: Sequence[Json] = ()
    """References to what a Lease in the operator's own namespace goes with. In others nothing of the operator's is."""
    lets_go: bool = False
    """At its end, so that the next start need not wait. Not where other replicas go on."""
    clock: Callable[[], float] = time.monotonic
    _namespaces: dict[str, _Namespace] = field(default_factory=dict)

    def known(self, namespace: str) -> bool:
        """It has been looked at, or cannot be."""
        found = self._namespaces.get(namespace)
        return found is not None and found.known

    def rival(self, namespace: str) -> str:
        """Another installation that holds it, for which this one stands aside; empty: none."""
        found = self._namespaces.get(namespace)
        return found.rival if found else ""

    def aside(self, namespace: str) -> str:
        """Another installation that stands aside for this one; empty: none."""
        found = self._namespaces.get(namespace)
        fresh = found is not None and not found.rival and self.clock() - found.aside_at < ASIDE_KEPT_S
        return found.aside.partition(" ")[0] if found is not None and fresh else ""

    async def run(self, namespaces: Callable[[], Collection[str]]) -> None:
        """Keeps them for the namespaces that have fleets now, until it is cancelled."""
        try:
            while True:
                await self.look(namespaces())
                await asyncio.sleep(LOOK_S)
        finally:
            held = list(self._namespaces.items()) if self.lets_go else []
            self._namespaces.clear()
            await asyncio.gather(*(self._let_go(name, found) for name, found in held))

    async def look(self, namespaces: Collection[str]) -> None:
        """At those that are due; what has no fleets any more is let go."""
        for name in self._namespaces.keys() - set(namespaces):
            await self._let_go(name, self._namespaces.pop(name))
        due = [name for name in namespaces if self.clock() >= self._of(name).due_at]
        await asyncio.gather(*(self._look(name, self._of(name)) for name in due))

    def _of(self, name: str) -> _Namespace:
        return self._namespaces.setdefault(name, _Namespace(Claim(self.identity, DURATION_S)))

    async def _look(self, name: str, found: _Namespace) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                await self._try(name, found)
            found.trouble = ""
        except Exception as error:
            words = str(error) or type(error).__name__
            if words != found.trouble:
                unexpected = not isinstance(error, ApiError | TimeoutError)
                LOG.warning("Lease %s/%s: %s", name, CLAIM, words, exc_info=unexpected)
                found.trouble = words
            found.lease = None
            if not isinstance(error, Conflict | NotFound):
                found.known = True
        at_once = found.lease is None and not found.trouble
        found.due_at = self.clock() + (0.0 if at_once else RETRY_S if found.rival or found.trouble else RENEW_S)

    async def _try(self, name: str, found: _Namespace) -> None:
        began = self.clock()
        if found.lease is None or found.rival:
            try:
                found.lease = await self.api.get(KIND, name, CLAIM)
            except NotFound:
                found.lease = None
        move = found.claim.see(found.lease, began)
        self._hear(found)
        if move is Move.WAIT:
            await self._stand_aside(name, found)
            return
        spec = found.claim.spec(found.lease, move, datetime.now(UTC))
        try:
            if found.lease is None:
                owners = list(self.owners) if name == self.home else []
                metadata = {"namespace": name, "name": CLAIM, "ownerReferences": owners}
                object = {"apiVersion": KIND.api_version, "kind": KIND.name, "metadata": metadata, "spec": spec}
                found.lease = await self.api.create(object)
            else:
                found.lease = await self.api.replace({**found.lease, "spec": spec})
        except (Conflict, NotFound):
            found.lease = None  # Somebody was quicker: looked at again at once.
            return
        if found.rival:
            LOG.info("the fleets of namespace %s are taken over from %s", name, found.rival)
        found.rival, found.known = "", True
        found.claim.see(found.lease, began)
        found.claim.wrote(began)

    def _hear(self, found: _Namespace) -> None:
        annotations = ((found.lease or {}).get("metadata") or {}).get("annotations") or {}
        aside = str(annotations.get(STANDS_ASIDE) or "")
        if aside != found.aside:
            found.aside, found.aside_at = aside, self.clock()
        if aside.partition(" ")[0] == self.identity:
            found.aside_at = float("-inf")

    async def _stand_aside(self, name: str, found: _Namespace) -> None:
        assert found.lease is not None
        holder = str(found.lease["spec"]["holderIdentity"])
        if holder != found.rival:
            LOG.warning("the fleets of namespace %s are looked after by %s: this operator stands aside", name, holder)
        found.rival, found.known = holder, True
        metadata = found.lease["metadata"]
        said = str((metadata.get("annotations") or {}).get(STANDS_ASIDE) or "")
        now = datetime.now(UTC)
        mine, _, at = said.partition(" ")
        if mine == self.identity and _age_s(at, now) < ASIDE_AGAIN_S:
            return
        annotations = {
            **(metadata.get("annotations") or {}),
            STANDS_ASIDE: f"{self.identity} {now.isoformat(timespec='seconds')}",
        }
        with contextlib.suppress(Conflict, NotFound):  # Its holder has just renewed it; the next look says it.
            await self.api.replace({**found.lease, "metadata": {**metadata, "annotations": annotations}})

    async def _let_go(self, name: str, found: _Namespace) -> None:
        """So that another installation, or the next start of this one, need not wait."""
        if found.lease is None or found.rival:
            return
        try:
            async with asyncio.timeout(CALL_S):
                await self.api.delete(KIND, name, CLAIM, found.lease["metadata"]["uid"])
        except (ApiError, TimeoutError) as error:
            LOG.debug("Lease %s/%s cannot be given back: %s", name, CLAIM, error)


def _age_s(at: str, now: datetime) -> float:
    try:
        return (now - datetime.fromisoformat(at)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
