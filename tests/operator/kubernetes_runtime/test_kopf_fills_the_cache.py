"""kopf itself, in its thread, against a server: what it hears is in the cache, what it cannot say is noticed, and its end is not ours."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from kind_server import KINDS, LABELS, Server, served

from multislo_operator.kubernetes import census
from multislo_operator.kubernetes.cache import DEPLOYMENT, POD, RESOURCE, Cache
from multislo_operator.kubernetes.handlers import PAGE
from multislo_operator.kubernetes.names import FIELD_MANAGER, MANAGED_BY, Key
from multislo_operator.kubernetes.watch import Watches

KEY = Key("ns", "fleet")


@dataclass(slots=True)
class Scene:
    server: Server
    cache: Cache
    watches: Watches
    failures: Counter[tuple[str, str]]
    woken: Counter[Key] = field(default_factory=Counter)

    def pods(self) -> dict[str, str]:
        return {name: pod["metadata"]["resourceVersion"] for name, pod in self.cache.children[KEY][POD].items()}

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(40):
            while not so():  # noqa: ASYNC110  any condition at all
                await asyncio.sleep(0.02)


@asynccontextmanager
async def playing(server: Server) -> AsyncIterator[Scene]:
    failures: Counter[tuple[str, str]] = Counter()

    def failed(kind: str, cause: str) -> None:
        failures[kind, cause] += 1

    async with served(server) as api:
        cache = Cache()
        watches = Watches(api, cache, (), failed)
        scene = Scene(server, cache, watches, failures)
        cache.wake = lambda key: scene.woken.update([key])
        running = asyncio.create_task(watches.run())
        try:
            async with asyncio.timeout(40):
                await watches.synced()
            yield scene
        finally:
            assert not running.done(), running
            began_at = time.monotonic()
            running.cancel()
            await asyncio.wait([running])
            assert time.monotonic() - began_at < 5.0, "kopf ends when it is asked to"


async def fleet() -> Server:
    server = Server()
    await server.put(RESOURCE, "fleet")
    await server.put(DEPLOYMENT, "fleet-chat")
    for number in range(3):
        await server.put(POD, f"pod-{number}")
    return server


async def test_what_is_there_and_what_comes_changes_and_goes_is_in_the_cache_and_wakes_its_resource() -> None:
    async with playing(await fleet()) as scene:
        assert scene.watches.ready()
        assert set(scene.pods()) == {"pod-0", "pod-1", "pod-2"}
        assert set(scene.cache.resources) == {KEY}
        before = scene.woken[KEY]

        await scene.server.put(POD, "pod-3")
        await scene.server.put(POD, "pod-0")
        await scene.server.delete(POD, "pod-1")
        await scene.until(lambda: set(scene.pods()) == {"pod-0", "pod-2", "pod-3"})
        await scene.until(lambda: scene.pods()["pod-0"] == "8")
        assert scene.woken[KEY] >= before + 3

        await scene.server.delete(RESOURCE, "fleet")
        await scene.until(lambda: not scene.cache.resources)
        assert not scene.failures


async def test_kopf_asks_for_our_labels_in_pages_and_writes_nothing() -> None:
    server = await fleet()
    for number in range(PAGE):
        await server.put(POD, f"more-{number}")
    async with playing(server) as scene:
        assert len(scene.pods()) == PAGE + 3
        own = f"{MANAGED_BY}={FIELD_MANAGER}"
        for kind in KINDS:
            asked = [query for plural, query in server.queries if plural == kind.plural]
            assert any("watch" in query for query in asked)
            assert {query.get("labelSelector") for query in asked} == ({None} if kind == RESOURCE else {own})
        assert {query["limit"] for plural, query in server.queries if "limit" in query} >= {str(PAGE)}
        await server.put(POD, "pod-0", deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["example.com/theirs"])
        await server.put(RESOURCE, "fleet", deletionTimestamp="2026-01-01T00:00:00Z")
        await scene.until(lambda: scene.pods()["pod-0"] == str(server.version - 1))
    assert {method for method, _ in server.asked} == {"GET"}, "no finalizer, no annotation, no event, no peering"


async def test_what_vanished_while_a_watch_was_too_old_is_dropped() -> None:
    """kopf lists again after a 410, and does not say what is not there any more."""
    async with playing(await fleet()) as scene:
        await scene.server.delete(POD, "pod-1", told=False)
        await scene.server.error(POD, 410)
        await scene.until(lambda: set(scene.pods()) == {"pod-0", "pod-2"})


async def test_the_last_of_its_kind_that_vanished_is_dropped_as_soon_as_any_watch_begins_anew() -> None:
    """kopf's list is empty then, and it says nothing at all."""
    async with playing(await fleet()) as scene:
        await scene.server.delete(RESOURCE, "fleet", told=False)
        await scene.server.error(RESOURCE, 410)
        watch = next(watch for watch in scene.watches._watches if watch.what.kind.plural == "configmaps")
        watch.listed(None, [])
        await scene.until(lambda: not scene.cache.resources)


async def test_an_error_that_ends_kopf_ends_nothing_else_and_kopf_begins_anew() -> None:
    async with playing(await fleet()) as scene:
        bystander = asyncio.create_task(asyncio.sleep(3600))
        await scene.server.error(POD, 500)
        await scene.until(lambda: scene.watches._kopf.starts == 2)
        assert scene.failures == {("kopf", "WatchingError"): 1}
        await scene.server.put(POD, "pod-9")
        await scene.until(lambda: "pod-9" in scene.pods())
        assert not bystander.done()
        bystander.cancel()


async def test_what_kopf_does_not_tell_of_is_missed_counted_and_heard_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(census, "CATCH_UP_S", 0.5)
    async with playing(await fleet()) as scene:
        scene.server.hidden.add("pods")
        await scene.server.put(POD, "unheard")
        for count in scene.watches._counts:
            count.soon()
        await scene.until(lambda: scene.failures["pods", "Deaf"] >= 1)
        assert "unheard" not in scene.pods()
        assert scene.watches.troubles()["pods"] == "kopf does not tell of 1 objects"
        scene.server.hidden.clear()
        await scene.until(lambda: "unheard" in scene.pods())
        await scene.until(lambda: "pods" not in scene.watches.troubles())


async def test_objects_without_a_resource_are_not_missed() -> None:
    server = await fleet()
    await server.put(POD, "nobodys", labels={MANAGED_BY: LABELS[MANAGED_BY]})
    async with playing(server) as scene:
        assert scene.watches.ready()
        assert "nobodys" not in scene.pods()


def test_what_has_shown_no_sign_of_life_is_named() -> None:
    async def made() -> Watches:
        async with served(Server()) as api:
            return Watches(api, Cache())

    watches = asyncio.run(made())
    now = time.monotonic()
    assert watches.stuck(now + 170.0) == []
    assert "kopf" in watches.stuck(now + 190.0)
    assert "pods" in watches.stuck(now + 190.0)
