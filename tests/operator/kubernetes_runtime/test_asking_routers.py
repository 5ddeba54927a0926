"""How often a router is asked what it sees, and what of the answer of a newer one is understood."""

import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from multislo_operator.admin_client import AdminClient, RouterUnreachable
from multislo_operator.kubernetes.routers import Routers

FLEET = json.loads((Path(__file__).parents[2] / "api" / "version_1" / "fleet.json").read_text())


async def test_a_newer_routers_answer_is_understood_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    newer = FLEET | {"later": 1, "tiers": [{**tier, "later": [{}]} for tier in FLEET["tiers"]]}
    answers = [newer, newer, FLEET, newer, FLEET | {"version": 2}]

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(answers.pop(0))

    app = web.Application()
    app.router.add_get("/fleet", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            client = AdminClient(session, f"http://{host}:{port}")
            seen = [await client.fleet() for _ in range(4)]
            with pytest.raises(RouterUnreachable, match="version 1"):
                await client.fleet()
    finally:
        await runner.cleanup()

    assert all(snapshot == seen[0] for snapshot in seen)
    warnings = [record.message for record in caplog.records if "does not know" in record.message]
    assert len(warnings) == 2  # The third answer was of this version.
    assert "tiers[0].later" in warnings[0]


async def test_a_round_that_comes_early_because_requests_wait_asks_the_router_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multislo_operator.kubernetes.routers.PATIENCE_S", 60.0)  # However slow this machine is.
    asked: list[str] = []
    now = 100.0

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/fleet", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            routers = Routers(session, lambda: now)
            routers.set({"router": f"http://{host}:{port}"}, "token")
            counts = []
            for at, every_s in ((100.0, 1.0), (100.25, 1.0), (100.25, 0.25), (100.26, 0.25), (100.49, 0.25)):
                now = at
                await routers.look(every_s)
                counts.append(len(asked))
            await routers.close()
    finally:
        await runner.cleanup()
    assert counts == [1, 1, 2, 2, 3]
