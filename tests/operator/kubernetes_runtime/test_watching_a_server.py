"""One watch against a server that says what no server should: it goes on, and knows in the end what there is."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from api_server import Answer, Json, Script, event, listing, pod, served

from multislo_operator.kubernetes import wire
from multislo_operator.kubernetes.cache import POD, RESOURCE, Cache
from multislo_operator.kubernetes.client import CALL_TIMEOUT_S, Oversized, ServerFault
from multislo_operator.kubernetes.names import INSTANCE, Key
from multislo_operator.kubernetes.watch import Watch, Watched

LABELS = {INSTANCE: "fleet"}
RESOURCE_OBJECT: Json = {
    "metadata": {"name": "fleet", "namespace": "ns", "uid": "r", "resourceVersion": "1"},
    "spec": {},
}


def child(name: str, version: int, **metadata: Any) -> Json:
    return pod(name, version, labels=LABELS, **metadata)


def known(cache: Cache) -> dict[str, str]:
    seen = cache.seen(Key("ns", "fleet"))
    assert seen is not None
    return {name: object["metadata"]["resourceVersion"] for name, object in seen.pods.items()}


async def followed(script: Script, so: Callable[[Cache], bool]) -> tuple[Cache, Counter[tuple[str, str]]]:
    """The cache as soon as it is so, and which failures were counted; fails where that does not come."""
    cache = Cache()
    cache.put(RESOURCE, RESOURCE_OBJECT)
    failures: Counter[tuple[str, str]] = Counter()

    def failed(kind: str, cause: str) -> None:
        failures[kind, cause] += 1

    async with served(script) as api:
        watch = Watch(api, cache, Watched(POD), "ns", failed=failed)
        running = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(60):
                while not so(cache):
                    assert not running.done(), running
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.wait([running])
    return cache, failures


async def test_an_event_of_nine_megabytes_is_read_and_hardly_kept() -> None:
    large = child("p", 2, annotations={"theirs": "<" * 1_500_000})
    text = event("ADDED", large).replace(b"<", b"\\u003c")
    assert len(text) > 9_000_000
    script = Script([listing()], [[text, event("ADDED", child("q", 3))]])
    cache, failures = await followed(script, lambda cache: known(cache) == {"p": "2", "q": "3"})
    assert not failures
    assert len(json.dumps(dict(cache.seen(Key("ns", "fleet")).pods))) < 2000  # type: ignore[union-attr]


async def test_an_event_that_comes_in_pieces_is_one_event() -> None:
    text = event("ADDED", child("p", 2)) + event("MODIFIED", child("p", 3))
    script = Script([listing()], [[text[:10], text[10:200], text[200:-1], text[-1:]]])
    _, failures = await followed(script, lambda cache: known(cache) == {"p": "3"})
    assert not failures


async def test_an_event_over_the_bound_makes_a_new_list_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    events = wire.events
    monkeypatch.setattr(wire, "events", lambda content: events(content, 100_000))
    large = event("ADDED", child("p", 2, annotations={"theirs": "x" * 200_000}))
    script = Script([listing(), listing(child("p", 2), version=2)], [[large], [event("ADDED", child("q", 3))]])
    _, failures = await followed(script, lambda cache: known(cache) == {"p": "2", "q": "3"})
    assert failures == {("pods", "Oversized"): 1}
    assert script.watched() == ["1", "2"]


@pytest.mark.parametrize(
    "line",
    [
        b"no json at all\n",
        b'{"type": "ADDED", "object": {"metada\n',
        b"[]\n",
        b"null\n",
        b'{"type": "ADDED"}\n',
        b'{"type": 3, "object": {}}\n',
        b'{"object": {"metadata": {"resourceVersion": "9"}}}\n',
        b'{"type": "ADDED", "object": {"metadata": null}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"name": "p"}}}\n',
        b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b"\xff\xfe\n",
        event("ERROR", {"kind": "Status", "code": "what"}),
        event("ERROR", {}),
        event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}),
        event("ERROR", {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}),
        event("ERROR", {"kind": "Status", "code": 500, "message": "etcd event received with PrevKv=nil"}),
        event("ERROR", {"kind": "Status", "code": 200, "message": "all is well"}),
    ],
)
async def test_what_is_no_event_ends_the_watch_alone_and_it_begins_anew(line: bytes) -> None:
    script = Script(
        [listing(), listing(child("p", 2), version=2)],
        [[line], [event("ADDED", child("p", 2)), event("ADDED", child("q", 3))]],
    )
    await followed(script, lambda cache: known(cache) == {"p": "2", "q": "3"})


@pytest.mark.parametrize(
    "passed_over",
    [
        event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "9"}}),
        event("SOMETHING_NEW", child("r", 9)),
        event("ADDED", {"kind": "Pod", "metadata": {"resourceVersion": "9"}}),
        event("ADDED", {"kind": "Pod", "metadata": {"resourceVersion": "9", "name": 3, "namespace": [], "uid": {}}}),
        b"\n\n",
    ],
)
async def test_what_says_nothing_to_us_is_passed_over(passed_over: bytes) -> None:
    script = Script([listing()], [[passed_over, event("ADDED", child("p", 10))]])
    cache, failures = await followed(script, lambda cache: "p" in known(cache))
    assert known(cache) == {"p": "10"}
    assert not failures


async def test_a_stream_that_is_cut_within_an_event_goes_on_where_it_was() -> None:
    whole = event("ADDED", child("p", 2))
    script = Script(
        [listing()], [[whole, event("ADDED", child("q", 3))[:40]], [event("ADDED", child("q", 3))]], cut=True
    )
    _, failures = await followed(script, lambda cache: known(cache) == {"p": "2", "q": "3"})
    assert failures.total() == failures["pods", "Unreachable"] >= 1


async def test_a_server_that_always_says_too_old_is_not_asked_without_a_pause() -> None:
    gone = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
    script = Script([listing()], [[gone]] * 4 + [[event("ADDED", child("p", 2))]])
    _, failures = await followed(script, lambda cache: known(cache) == {"p": "2"})
    assert failures == {("pods", "Gone"): 3}


async def test_an_object_that_breaks_what_handles_it_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    put = Cache.put

    def picky(self: Cache, kind: Any, object: Any) -> Any:
        if object["metadata"]["name"] == "bad" and object["metadata"]["resourceVersion"] == "2":
            raise KeyError("what nobody thought of")
        return put(self, kind, object)

    monkeypatch.setattr(Cache, "put", picky)
    script = Script(
        [listing(), listing(child("bad", 3), version=3)],
        [[event("ADDED", child("bad", 2))], [event("ADDED", child("q", 4))]],
    )
    _, failures = await followed(script, lambda cache: known(cache) == {"bad": "3", "q": "4"})
    assert failures == {("pods", "KeyError"): 1}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"items": []}', (500, {}), (429, {}), (403, {"message": "no"})])
async def test_a_list_that_cannot_be_understood_is_asked_for_again(body: Any) -> None:
    script = Script([body, listing(child("p", 2))], [[]])
    _, failures = await followed(script, lambda cache: known(cache) == {"p": "2"})
    assert failures.total() == 1


async def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    document = wire.document
    monkeypatch.setattr(wire, "document", lambda content: document(content, 100_000))
    there = [child(f"p{n}", n + 2, annotations={"theirs": "x" * 20_000}) for n in range(20)]

    def page(query: Json) -> Json:
        begin, limit = int(query.get("continue", "0")), int(query["limit"])
        end = begin + limit
        return listing(*there[begin:end], more=str(end) if end < len(there) else "")

    script = Script(page=page, watches=[[]])
    cache, failures = await followed(script, lambda cache: bool(known(cache)))
    assert set(known(cache)) == {f"p{n}" for n in range(20)}
    assert not failures


async def test_a_single_answer_that_is_too_large_is_an_error_of_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    document = wire.document
    monkeypatch.setattr(wire, "document", lambda content: document(content, 100_000))
    async with served(Script([{"metadata": {"name": "x" * 200_000}}])) as api:
        with pytest.raises(Oversized, match="more than 100000 bytes"):
            await api.get(POD, "ns", "p")


async def test_the_server_is_told_to_answer_before_a_call_is_given_up_so_that_it_says_what_it_waited_for() -> None:
    words = 'failed calling webhook "hangs.example.com": context deadline exceeded'

    def waits(query: Json) -> Answer:
        patient = float(query["timeout"].removesuffix("s")) < CALL_TIMEOUT_S
        return (504, {"reason": "Timeout", "message": words}) if patient else listing()

    async with served(Script(page=waits)) as api:
        with pytest.raises(ServerFault, match=words):
            await api.list(POD, "ns")
