"""How often a router is asked what it sees."""

import aiohttp
from aiohttp import web

from multislo_operator.kubernetes.routers import Routers


async def test_a_round_that_comes_early_because_requests_wait_asks_the_router_anew() -> None:
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
