"""Watches one instance from the side: probes it while it has failed, and reads its own metrics now and then while it has not. One task
an instance, owned by the fleet."""

import asyncio
import re
import time
from typing import TYPE_CHECKING

import aiohttp

from multislo_router.core.events import InstanceReported
from multislo_router.shell.internal_errors import Seam

if TYPE_CHECKING:
    from multislo_router.shell.engine import EngineInstance
    from multislo_router.shell.fleet import Fleet

METRICS_MAX_BYTES = 8 * 1024 * 1024
"""vLLM's are 100 KB; anything endless is not read to its end."""
SAMPLE_MAX = 1e9
"""No engine has so many requests. A larger sample, or an infinite one, says nothing."""
_NAMES = (b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"vllm:kv_cache_usage_perc")
_SAMPLES = tuple(re.compile(rb"^" + name + rb"(?:\{[^\n]*\})? ([0-9.eE+-]+)", re.MULTILINE) for name in _NAMES)


async def watch(fleet: "Fleet", instance: "EngineInstance", session: aiohttp.ClientSession) -> None:
    """Until cancelled: the instance has left the fleet, or the router stops."""
    while True:
        try:
            if instance.failed.is_set():
                await _until_healthy(fleet, instance, session)
            try:
                async with asyncio.timeout(fleet.settings.poll_interval_s):
                    await instance.failed.wait()
            except TimeoutError:
                if instance.entry.state != "starting":
                    await _poll(fleet, instance, session)
        except Exception as error:
            # Without its watch a failed instance would never come back.
            fleet.errors.failed(Seam.WATCH, error, None, instance.entry.id)
            await asyncio.sleep(fleet.settings.probe_max_s)


async def _until_healthy(fleet: "Fleet", instance: "EngineInstance", session: aiohttp.ClientSession) -> None:
    pause_s = fleet.settings.probe_first_s
    while True:
        await asyncio.sleep(pause_s)
        if await healthy(instance, session, fleet.settings.probe_max_s):
            break
        pause_s = min(2 * pause_s, fleet.settings.probe_max_s)
    fleet.revived(instance)


async def healthy(instance: "EngineInstance", session: aiohttp.ClientSession, within_s: float) -> bool:
    """Whether the engine says that it can serve; vLLM's /health is 503 when its core has died."""
    try:
        timeout = aiohttp.ClientTimeout(total=within_s)
        async with session.get(f"{instance.entry.url}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _poll(fleet: "Fleet", instance: "EngineInstance", session: aiohttp.ClientSession) -> None:
    try:
        async with session.get(f"{instance.entry.url}/metrics") as answer:
            if answer.status != 200:
                return
            text = await answer.content.read(METRICS_MAX_BYTES)
            while len(text) < METRICS_MAX_BYTES and not answer.content.at_eof():
                text += await answer.content.read(METRICS_MAX_BYTES - len(text))
    except aiohttp.ClientConnectorError:
        fleet.failed(instance)
        return
    except (aiohttp.ClientError, OSError, TimeoutError):
        return  # a busy engine may be slow to answer; only its data connections tell that it is gone
    values = read_metrics(text)
    if values is not None and not instance.retired:
        running, waiting, usage = values
        kv_tokens = round(usage * fleet.kv_tokens_max)
        now = time.monotonic()
        fleet.tell(InstanceReported(now, instance.entry.id, round(running), round(waiting), kv_tokens))


def read_metrics(text: bytes) -> tuple[float, float, float] | None:
    """Running and waiting requests and the used share of the KV cache, from vLLM's metrics; summed (the share averaged) over the
    engines of one server. None where one of them is missing: absent is unknown, not zero."""
    sums: list[float] = []
    for sample in _SAMPLES:
        try:
            found = [float(value) for value in sample.findall(text)]
        except ValueError:
            return None
        if not found or not all(0.0 <= value <= SAMPLE_MAX for value in found):
            return None
        sums.append(sum(found) if len(sums) < 2 else sum(found) / len(found))
    return sums[0], sums[1], sums[2]
