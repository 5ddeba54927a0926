"""Engines whose server answers while nothing behind it computes."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

SAYS = b"""vllm:num_requests_running{engine="0"} 0.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="512"} 1.0
"""


async def stands_still(line: Any, asked: Any) -> None:
    await line.gone()


async def test_a_request_on_an_engine_that_stands_still_goes_elsewhere_until_it_computes_again(
    kit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(kit.SETTINGS, poll_interval_s=0.2)
    stage = await kit.stage(stands_still, kit.complete, settings=settings)
    broken, well = stage.engines
    broken.metrics = well.metrics = SAYS
    stage.set_fleet(broken)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(broken.asked))
    stage.set_fleet(broken, well)

    answer = await client.answer()

    assert answer.status == 200
    assert answer.headers["x-multislo-instance"] == "i1"
    assert answer.events[-1] == "[DONE]"
    assert "instance i0: no token for" in caplog.text
    assert "its KV cache holds 8192 tokens, and 400000 by the profile" in caplog.text
    probes = [asked.json for asked in broken.asked[1:]]
    assert probes
    assert all(probe == {"model": "llama", "prompt": "1", "max_tokens": 1} for probe in probes)

    broken.script = kit.complete
    stage.set_fleet(broken)
    async with asyncio.timeout(kit.PATIENCE_S):
        while (await client.ask(kit.STREAM)).headers["x-multislo-instance"] != "i0":
            pass
