"""What an engine says with a status other than 200: which of it reaches the client, what is tried again, and what the core learns."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from multislo_router.core.config import Overload

ERROR = b'{"error": {"message": "no such grammar", "type": "BadRequestError", "param": null, "code": 400}}'
FULL = b'{"error": {"message": "the queue is full", "type": "ServiceUnavailableError", "code": 503}}'


def answering(kit: Any, status: str, body: bytes = ERROR, extra: str = "") -> Callable[[Any, Any], Awaitable[None]]:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(body, status, extra))

    return script


def asked(stage: Any) -> list[int]:
    return [len(engine.asked) for engine in stage.engines]


def tier_of(stage: Any) -> Any:
    return stage.gateway.core.status(0.0).tiers[1]


def answers(stage: Any) -> dict[int, int]:
    """Answers of all engines by status."""
    return dict(
        sum(
            (instance.answers for instance in stage.gateway.fleet.instances.values()),
            start=type(stage.gateway.fleet.instances["i0"].answers)(),
        )
    )


# -- the engine is full ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_a_full_engine_is_replaced_by_one_that_has_room_and_stays_in_the_fleet(kit: Any, status: str) -> None:
    async def full_at_first(line: Any, request: Any) -> None:
        if sum(asked(stage)) > 1:
            await kit.complete(line, request)
        else:
            await line.send(kit.sized(FULL, status))

    stage = await kit.stage(full_at_first, full_at_first)
    client = await stage.client()

    answer = await client.ask(kit.CHAT)

    assert (answer.status, answer.body) == (200, kit.COMPLETION)
    assert sorted(asked(stage)) == [1, 1]
    assert not any(instance.failed.is_set() for instance in stage.gateway.fleet.instances.values())


async def test_where_every_engine_is_full_the_last_ones_own_answer_reaches_the_client(kit: Any) -> None:
    full = answering(kit, "503 Service Unavailable", FULL, "retry-after: 3\r\nx-engine: yes\r\n")
    stage = await kit.stage(full, full)
    client = await stage.client()

    for document in (kit.CHAT, kit.STREAM):
        stage.set_fleet(*stage.engines, epoch=sum(asked(stage)))
        answer = await client.ask(document)

        assert (answer.status, answer.body) == (503, FULL)
        assert (answer.headers["retry-after"], answer.headers["x-engine"]) == ("3", "yes")
        assert answer.headers["content-type"] == "application/json"
        assert "x-multislo-reason" not in answer.headers

    assert sum(asked(stage)) == 4  # each request twice, never more


async def test_a_request_is_held_while_the_only_engine_is_full_and_sent_when_something_ends_there(kit: Any) -> None:
    released = asyncio.Event()

    async def one_at_a_time(line: Any, request: Any) -> None:
        if len(stage.engines[0].asked) == 1:
            await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
            await released.wait()
            await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")
        elif not released.is_set():
            await line.send(kit.sized(FULL, "503 Service Unavailable", "retry-after: 3600\r\n"))
        else:
            await kit.complete(line, request)

    stage = await kit.stage(one_at_a_time)
    first, second = await stage.client(), await stage.client()
    await first.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(asked(stage)[0]))
    await second.send(kit.post(kit.CHAT))
    await stage.until(lambda: answers(stage).get(503, 0) == 1 and tier_of(stage).pending == 1)
    released.set()

    assert (await second.answer()).status == 200
    assert asked(stage) == [3]


async def test_a_burst_at_a_full_engine_is_served_as_places_come_free(kit: Any) -> None:
    room = asyncio.Semaphore(2)
    all_refused = asyncio.Event()

    async def two_at_a_time(line: Any, request: Any) -> None:
        if room.locked():
            await line.send(kit.sized(FULL, "503 Service Unavailable", "retry-after: 60\r\n"))
            return
        async with room:
            await all_refused.wait()
        await line.send(kit.sized(kit.COMPLETION))

    stage = await kit.stage(two_at_a_time)
    clients = [await stage.client() for _ in range(12)]
    for client in clients:
        await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: answers(stage).get(503) == 10 and tier_of(stage).pending == 10)
    all_refused.set()

    assert [(await client.answer()).status for client in clients] == [200] * 12
    assert asked(stage) == [22]  # nobody was refused twice


async def test_a_tier_that_rejects_answers_with_the_full_engines_own_words(kit: Any) -> None:
    core = replace(
        kit.CORE, tiers=tuple(replace(tier, overload=Overload.REJECT, ttft_s=0.3) for tier in kit.CORE.tiers)
    )
    stage = await kit.stage(answering(kit, "503 Service Unavailable", FULL, "retry-after: 30\r\n"), core=core)
    client = await stage.client()

    answer = await client.ask(kit.CHAT)

    assert (answer.status, answer.body, answer.headers["retry-after"]) == (503, FULL, "30")
    assert asked(stage) == [1]


# -- the engine's own failure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_500_of_an_engine_that_is_well_runs_once_and_its_message_reaches_the_client(
    kit: Any, stream: bool
) -> None:
    broken = answering(kit, "500 Internal Server Error")
    stage = await kit.stage(broken, broken)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"stream": stream})

    assert (answer.status, answer.body) == (500, ERROR)
    assert answer.headers["content-type"] == "application/json"
    assert sum(asked(stage)) == 1
    assert stage.outcomes() == {"engine_failed": 1}
    assert not any(instance.failed.is_set() for instance in stage.gateway.fleet.instances.values())


async def test_a_500_of_an_engine_that_has_died_is_served_elsewhere(kit: Any) -> None:
    async def dying(line: Any, request: Any) -> None:
        if sum(asked(stage)) > 1:
            await kit.complete(line, request)
            return
        for engine in stage.engines:
            engine.healthy = bool(not engine.asked)
        await line.send(kit.sized(b"", "500 Internal Server Error"))

    stage = await kit.stage(dying, dying)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert (answer.status, answer.events[-1]) == (200, "[DONE]")
    assert sorted(asked(stage)) == [1, 1]
    assert sum(instance.failed.is_set() for instance in stage.gateway.fleet.instances.values()) == 1


@pytest.mark.parametrize("status", ["502 Bad Gateway", "504 Gateway Timeout"])
async def test_a_proxys_error_before_an_engine_is_tried_once_more_and_then_told(kit: Any, status: str) -> None:
    broken = answering(kit, status, b"<html>upstream</html>", "x-envoy: 1\r\n")
    stage = await kit.stage(broken, broken, broken)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert (answer.status, answer.body, answer.headers["x-envoy"]) == (int(status[:3]), b"<html>upstream</html>", "1")
    assert sorted(asked(stage)) == [0, 1, 1]


@pytest.mark.parametrize(
    "status",
    ["400 Bad Request", "401 Unauthorized", "404 Not Found", "413 Too Large", "422 Unprocessable", "501 No", "507 No"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_other_errors_are_relayed_at_once(kit: Any, status: str, stream: bool) -> None:
    stage = await kit.stage(*[answering(kit, status, ERROR, "www-authenticate: Bearer\r\n")] * 2)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"stream": stream})

    assert (answer.status, answer.body, answer.headers["www-authenticate"]) == (int(status[:3]), ERROR, "Bearer")
    assert sum(asked(stage)) == 1
    tier = tier_of(stage)
    if status[0] == "4":
        assert (stage.outcomes(), tier.requests_met, tier.requests_missed) == ({"client_error": 1}, 0, 0)
    else:
        assert (stage.outcomes(), tier.requests_met, tier.requests_missed) == ({"engine_failed": 1}, 0, 1)


async def test_an_engines_error_that_is_no_object_but_megabytes_is_relayed_whole(kit: Any) -> None:
    body = b"x" * 300_000
    stage = await kit.stage(*[answering(kit, "503 Service Unavailable", body)] * 2)
    client = await stage.client()

    answer = await client.ask(kit.CHAT)

    assert (answer.status, answer.body) == (503, body)
    assert sum(asked(stage)) == 1


async def test_a_client_that_leaves_while_an_engine_is_asked_for_its_health_leaves_nothing(kit: Any) -> None:
    async def failing(line: Any, request: Any) -> None:
        stage.engines[0].says_its_health.clear()
        await line.send(kit.sized(ERROR, "500 Internal Server Error"))

    stage = await kit.stage(failing)
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: bool(stage.gateway.fleet._asking))
    client.reset()
    stage.engines[0].says_its_health.set()
    await stage.until(lambda: not stage.in_flight() and not stage.gateway.fleet._asking)

    assert stage.outcomes() in ({"client_gone": 1}, {"engine_failed": 1})


async def test_a_passed_through_request_gets_an_engines_error_as_it_is(kit: Any) -> None:
    stage = await kit.stage(answering(kit, "503 Service Unavailable", FULL, "retry-after: 3\r\n"))
    client = await stage.client()

    answer = await client.ask({}, "/tokenize")

    assert (answer.status, answer.body, answer.headers["retry-after"]) == (503, FULL, "3")


# -- interim answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
async def test_interim_answers_are_passed_over(kit: Any, cut: bool) -> None:
    interim = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    )

    async def script(line: Any, request: Any) -> None:
        wire = interim + kit.sized(kit.COMPLETION)
        for at in range(0, len(wire), 7 if cut else len(wire)):
            await line.send(wire[at : at + (7 if cut else len(wire))])
            await asyncio.sleep(0)

    stage = await kit.stage(script)
    client = await stage.client()

    for _ in range(2):
        answer = await client.ask(kit.CHAT)
        assert (answer.status, answer.body) == (200, kit.COMPLETION)
        assert "link" not in answer.headers
    assert stage.engines[0].connections == 1
    assert answers(stage) == {200: 2}
