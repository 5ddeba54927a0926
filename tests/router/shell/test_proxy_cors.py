"""Browsers: preflights, and who may read which answer."""

from typing import Any

import pytest

APP = "https://app.example.com"


def preflight(path: str = "/v1/chat/completions", origin: str = APP) -> bytes:
    wanted = "access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-slo-tier\r\n"
    return f"OPTIONS {path} HTTP/1.1\r\nhost: r\r\norigin: {origin}\r\n{wanted}\r\n".encode()


async def test_a_preflight_is_answered_without_a_key(kit: Any) -> None:
    stage = await kit.stage(api_keys=(b"key",), cors_origins=(APP,))
    stage.set_fleet()
    client = await stage.client()

    await client.send(preflight())
    answer = await client.answer()

    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, APP)
    assert answer.headers["access-control-allow-methods"] == "OPTIONS, POST"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-slo-tier"
    assert (answer.headers["access-control-max-age"], answer.headers["vary"]) == ("600", "origin")
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_page_of_another_origin_is_not_allowed_in(kit: Any) -> None:
    stage = await kit.stage(cors_origins=(APP,))
    client = await stage.client()

    for origin in ("https://evil.example.com", "http://app.example.com", APP + ":8443", APP + ".evil.com", "null"):
        await client.send(preflight(origin=origin))
        refused = await client.answer()
        answer = await client.ask(kit.CHAT, headers=f"origin: {origin}\r\n")
        assert not any(name.startswith("access-control") for name in {**refused.headers, **answer.headers})
        assert (refused.headers["vary"], answer.headers["vary"]) == ("origin", "origin")


async def test_any_origin_is_allowed_by_a_star_and_never_with_credentials(kit: Any) -> None:
    stage = await kit.stage(cors_origins=("*",))
    client = await stage.client()

    await client.send(preflight(origin="null"))
    answers = [await client.answer(), await client.ask(kit.STREAM, headers="origin: http://x\r\ncookie: a=b\r\n")]

    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


async def test_every_answer_can_be_read_by_the_page(kit: Any) -> None:
    """Errors of each place that makes one, streams, and what the router answers itself."""
    stage = await kit.stage(api_keys=(b"key",), cors_origins=(APP,), body_max_bytes=1000)
    key = f"origin: {APP}\r\nauthorization: Bearer key\r\n"
    answers = []

    for request in (
        kit.post(kit.CHAT, headers=key),
        kit.post(kit.STREAM, headers=key),
        kit.post({"prompt": "a"}, "/tokenize", key),
        kit.post(kit.CHAT, headers=f"origin: {APP}\r\n"),  # 401
        kit.post(kit.CHAT, "/v1/nothing", key),
        kit.post(b"{", headers=key),
        kit.post(b"x" * 2000, headers=key),
        kit.post(kit.CHAT, headers=key + "x-slo-tier: none\r\n"),
        f"GET /v1/models HTTP/1.1\r\nhost: r\r\n{key}\r\n".encode(),
        f"GET /health HTTP/1.1\r\nhost: r\r\n{key}\r\n".encode(),
    ):
        client = await stage.client()
        await client.send(request)
        answers.append(await client.answer())

    assert [answer.status for answer in answers] == [200, 200, 200, 401, 404, 400, 413, 400, 200, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == APP
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"retry-after", "x-multislo-reason", "x-multislo-tier", "x-request-id"} <= set(exposed)


async def test_a_refusal_of_the_core_can_be_read_by_the_page(kit: Any) -> None:
    stage = await kit.stage(cors_origins=(APP,))
    await stage.engines[0].stop()
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers=f"origin: {APP}\r\nx-slo-tier: realtime\r\n")

    assert answer.status >= 429
    assert answer.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("origins", [(), (APP,)])
async def test_an_engine_s_own_cors_headers_end_at_the_router(kit: Any, origins: tuple[str, ...]) -> None:
    async def script(line: Any, asked: Any) -> None:
        extra = "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nx-more: 1\r\n"
        await line.send(kit.sized(kit.COMPLETION, extra=extra))

    stage = await kit.stage(script, cors_origins=origins)
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers="origin: http://else\r\n")

    assert answer.headers["x-more"] == "1"
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_without_cors_no_answer_speaks_of_it(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(preflight())
    answers = [await client.answer(), await client.ask(kit.CHAT, headers=f"origin: {APP}\r\n")]

    assert [answer.status for answer in answers] == [204, 200]
    for answer in answers:
        assert not any(name.startswith("access-control") or name == "vary" for name in answer.headers)


async def test_a_preflight_of_no_path_is_a_404(kit: Any) -> None:
    stage = await kit.stage(cors_origins=("*",))
    client = await stage.client()

    await client.send(preflight("/sleep"))

    assert (await client.answer()).status == 404
    assert not stage.engines[0].asked
