"""The operator as kopf sees it: which kinds are watched, by which selectors, and what an event does. Open this file first.

An event puts the object in the cache or drops it, and the resource that it belongs to is reconciled (`reconciler`, `reconcile`). That is
all that kopf does here. A reconcile compares the whole cache with the manifest, so it needs none of kopf's state: no progress, no last
configuration, no finalizer, no timer. Nothing of kopf is written to any object.

`multislo operator` runs this (`kopf_thread`). `kopf run -A -m multislo_operator.kubernetes.handlers` only looks on: it logs each event and
reconciles nothing.
"""

import logging
from typing import Any

import kopf

from multislo_operator.kubernetes.cache import DEPLOYMENT, POD, REPLICA_SET, RESOURCE
from multislo_operator.kubernetes.feed import OURS, Feed
from multislo_operator.kubernetes.names import GROUP, PLURAL, VERSION

LOG = logging.getLogger(__name__)
PAGE = 100
"""Objects that are asked for at once."""
QUIET_MAX_S = 100.0
"""The API server sends a bookmark about once a minute; a watch that is silent for longer is dead, though TCP has not noticed."""


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Watches by labels on the server, and kopf's own state kept nowhere."""
    for kind in (("apps", "v1", "deployments"), ("apps", "v1", "replicasets"), ("", "v1", "pods")):
        settings.watching.label_selectors[kind] = OURS
    settings.watching.chunk_size = PAGE
    settings.watching.server_timeout = 360
    settings.watching.inactivity_timeout = QUIET_MAX_S
    settings.watching.connect_timeout = settings.networking.connect_timeout = 5.0
    settings.networking.request_timeout = 30.0
    settings.networking.error_backoffs = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    # One task an object, which ends as soon as it has nothing to do: it holds on to the object that it has heard last.
    settings.queueing.idle_timeout = 0.05
    settings.queueing.exit_timeout = 1.0
    settings.process.ultimate_exiting_timeout = None
    settings.scanning.disabled = True  # No right to list namespaces and CRDs is needed.
    settings.peering.standalone = True  # The Lease says who leads.
    settings.posting.enabled = False
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = NoProgress()
    settings.persistence.diffbase_storage = NoLastConfiguration()
    if "feed" not in memo:
        memo.feed = await Feed.that_only_looks()


@kopf.on.login()
async def login(memo: kopf.Memo, **_: Any) -> kopf.AiohttpSession:
    """With the operator's own credentials; asked again after a 401."""
    feed: Feed = memo.feed
    return await feed.login()


@kopf.on.event(GROUP, VERSION, PLURAL)
async def resource(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """The kind that this operator is for."""
    memo.feed.take(RESOURCE, event)


@kopf.on.event("apps", "v1", "deployments")
async def deployment(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """A tier's engines, the warm pool's, the routers."""
    memo.feed.take(DEPLOYMENT, event)


@kopf.on.event("apps", "v1", "replicasets")
async def replica_set(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Which template a pod is of, and the hash that a moved pod needs."""
    memo.feed.take(REPLICA_SET, event)


@kopf.on.event("", "v1", "pods")
async def pod(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """An engine or a router."""
    memo.feed.take(POD, event)


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    LOG.info("kopf has stopped; %d events were taken", memo.feed.taken)


class NoLastConfiguration(kopf.DiffBaseStorage):
    """Nothing is compared with what kopf saw last. It would copy each object at each event, and write the copy into an annotation."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class NoProgress(kopf.ProgressStorage):
    """A handler of events has no progress to keep."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
