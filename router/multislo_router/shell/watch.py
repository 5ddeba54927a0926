"""Watches one instance from the side: probes it while it has failed or is suspect, and reads its own metrics now and then while it is
neither. One task an instance, owned by the fleet."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from multislo_router.core.events import InstanceReported, InstanceUnreported
from multislo_router.shell.internal_errors import Seam

if TYPE_CHECKING:
    from multislo_router.shell.engine import EngineInstance
    from multislo_router.shell.fleet import Fleet

METRICS_MAX_BYTES = 8 * 1024 * 1024
"""vLLM's are 100 KB; anything endless is not read to its end."""
SAMPLE_MAX = 1e15
"""No engine has computed so many tokens. A larger sample, or an infinite one, says nothing."""


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
        within_s = fleet.settings.probe_max_s
        if await healthy(instance, session, within_s) and (
            not instance.suspect or await computes(instance, session, within_s, fleet.settings.served_names)
        ):
            break
        if instance.suspect:
            fleet.stalled(instance)
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


async def computes(
    instance: "EngineInstance", session: aiohttp.ClientSession, within_s: float, served_names: Sequence[str]
) -> bool:
    """Whether the engine computes a token: its server may answer while nothing behind it does. Whoever refuses to is not judged."""
    asked: dict[str, object] = {"prompt": "1", "max_tokens": 1}
    if served_names:
        asked["model"] = served_names[0]
    try:
        timeout = aiohttp.ClientTimeout(total=within_s)
        async with session.post(f"{instance.entry.url}/v1/completions", json=asked, timeout=timeout) as answer:
            return answer.status < 500
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _poll(fleet: "Fleet", instance: "EngineInstance", session: aiohttp.ClientSession) -> None:
    text = b""
    try:
        async with session.get(f"{instance.entry.url}/metrics") as answer:
            while answer.status == 200 and len(text) < METRICS_MAX_BYTES and not answer.content.at_eof():
                text += await answer.content.read(METRICS_MAX_BYTES - len(text))
    except aiohttp.ClientConnectorError:
        fleet.failed(instance)
        return
    except (aiohttp.ClientError, OSError, TimeoutError):
        text = b""  # a busy engine may be slow to answer
    if instance.retired:
        return
    said = read_metrics(text)
    now, id = time.monotonic(), instance.entry.id
    if said is None:
        fleet.tell(InstanceUnreported(now, id))
        return
    fleet.check_size(instance, said.kv_tokens_max)
    kv_tokens = round(said.kv_usage * (said.kv_tokens_max or fleet.kv_tokens_max))
    fleet.tell(InstanceReported(now, id, said.running, said.waiting, kv_tokens, said.kv_tokens_max, said.tokens_total))


@dataclass(frozen=True, slots=True)
class EngineSaid:
    """What vLLM's metrics say; sums over the engines of one server, but for `kv_usage`, their mean. None: it is not there."""

    running: int
    waiting: int
    kv_usage: float
    kv_tokens_max: int | None
    tokens_total: int | None


def read_metrics(text: bytes) -> EngineSaid | None:
    """None where one of the first three is missing: absent is unknown, not zero."""
    running, waiting, usage = (
        _samples(b"num_requests_running", text),
        _samples(b"num_requests_waiting", text),
        _samples(b"kv_cache_usage_perc", text),
    )
    if not running or not waiting or not usage:
        return None
    prompt, generated = _samples(b"prompt_tokens_total", text), _samples(b"generation_tokens_total", text)
    return EngineSaid(
        running=round(sum(running)),
        waiting=round(sum(waiting)),
        kv_usage=sum(usage) / len(usage),
        kv_tokens_max=_kv_tokens_max(text),
        tokens_total=round(sum(prompt) + sum(generated)) if prompt and generated else None,
    )


def _samples(name: bytes, text: bytes) -> list[float]:
    """Of a metric, by its labels. Empty where one of them means nothing."""
    pattern = rb"^vllm:" + name + rb"(?:\{[^\n]*\})? ([0-9.eE+-]+)"
    try:
        found = [float(value) for value in re.findall(pattern, text, re.MULTILINE)]
    except ValueError:
        return []
    return found if all(0.0 <= value <= SAMPLE_MAX for value in found) else []


def _kv_tokens_max(text: bytes) -> int | None:
    """Blocks times their size, which vLLM tells as labels."""
    total = 0
    for labels in re.findall(rb"^vllm:cache_config_info\{([^\n]*)\}", text, re.MULTILINE):
        sizes = [re.search(rb"\b" + name + rb'="(\d{1,12})"', labels) for name in (b"num_gpu_blocks", b"block_size")]
        if not all(sizes):
            return None
        blocks, size = [int(found[1]) for found in sizes if found]
        total += blocks * size
    return total or None
