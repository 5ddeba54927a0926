"""The gateway before emulated engines, asked by the real OpenAI client: nobody here wrote both ends."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from aiohttp import web

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_engine.emulator.app import EmulatorApp
from multislo_engine.emulator.config import EmulatorConfig
from multislo_router.core.events import Scheduler
from multislo_router.shell.watch import read_metrics


@pytest.fixture
async def emulators(kit: Any) -> AsyncIterator[list[InstanceEntry]]:
    entries: list[InstanceEntry] = []
    runners: list[web.AppRunner] = []
    for number in range(2):
        latency = kit.CORE.latency
        config = EmulatorConfig(
            latency, latency, "llama", kv_tokens_max=400_000, max_model_len=131_072, scheduler="slo-aware"
        )
        runner = web.AppRunner(EmulatorApp(config).application(), access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        host, port = runner.addresses[0][:2]
        entries.append(InstanceEntry(id=f"e{number}", url=f"http://{host}:{port}", tier="interactive"))
    yield entries
    for runner in runners:
        await runner.cleanup()


async def test_the_openai_client_is_served_by_emulated_engines(kit: Any, emulators: list[InstanceEntry]) -> None:
    core = replace(kit.CORE, engine=replace(kit.CORE.engine, scheduler=Scheduler.SLO_AWARE))
    stage = await kit.stage(core=core, poll_interval_s=0.05)
    stage.gateway.set_fleet(InstanceList(instances=emulators))
    url = f"http://127.0.0.1:{stage.gateway.port}/v1"
    messages: Any = [{"role": "user", "content": "Hello there"}]
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def whole() -> int:
            answer = await client.chat.completions.create(model="llama", messages=messages, max_tokens=7)
            assert answer.usage is not None
            return answer.usage.completion_tokens

        async def streamed() -> int:
            count = 0
            extra = {"stream_options": {"include_usage": True}, "ignore_eos": True}
            async for part in await client.chat.completions.create(
                model="llama", messages=messages, max_tokens=7, stream=True, extra_body=extra
            ):
                count += bool(part.choices and part.choices[0].delta.content)
            return count

        counts = await asyncio.gather(*(whole() for _ in range(8)), *(streamed() for _ in range(8)))
        models = [model.id async for model in client.models.list()]
        with pytest.raises(openai.BadRequestError, match="x-slo-ttft-ms: 'soon' must be a number"):
            await client.chat.completions.create(
                model="llama", messages=messages, extra_headers={"x-slo-ttft-ms": "soon"}
            )

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert models == ["llama"]
    assert tier.tokens_met + tier.tokens_missed == sum(counts)
    assert stage.outcomes() == {"completed": 16}


async def test_a_client_that_leaves_frees_an_emulated_engine(kit: Any, emulators: list[InstanceEntry]) -> None:
    stage = await kit.stage(poll_interval_s=0.05)
    stage.gateway.set_fleet(InstanceList(instances=emulators[:1]))
    client = await stage.client()
    await client.send(kit.post(kit.STREAM | {"max_tokens": 50_000, "ignore_eos": True}))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(b"data: ")
    client.close()
    await stage.until(lambda: not stage.in_flight())

    async def running() -> float:
        reader, writer = await asyncio.open_connection(*emulators[0].url.removeprefix("http://").split(":"))
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\r\n")
        values = read_metrics(await reader.read())
        writer.close()
        assert values is not None
        return values.running

    async with asyncio.timeout(kit.PATIENCE_S):
        while await running():  # noqa: ASYNC110  another server's state
            await asyncio.sleep(0.05)
