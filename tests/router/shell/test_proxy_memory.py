"""What a client can make the router hold, as the memory of a real router process."""

import asyncio
import contextlib
import gc
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 60.0
STALLED_S = 2.0
"""A router that takes nothing for so long takes nothing more."""
MIB = 1024 * 1024
HELD_MAX_BYTES = 64 * MIB
SLACK_BYTES = 24 * MIB
"""Connections and Python's own objects take some, and allocators keep some pages."""
MANIFEST = """
apiVersion: multislo.dev/v1alpha1
kind: MultiSLOServing
metadata: {name: llama}
spec:
  model: {name: llama}
  profile: llama-3.1-8b-h200-tp1
  tiers:
    - {name: batch, slo: {ttft: 2s, tpot: 100ms}}
  scaling: {acceleratorsMax: 4}
  router: {requestsMaxMib: 64}

"""
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: r\r\n"


class RouterProcess:
    """A router without instances: whatever is asked of it is held."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.clients: list[socket.socket] = []

    @property
    def memory_bytes(self) -> int:
        """Resident, as a container's limit counts it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]

    async def send(self, data: bytes) -> None:
        """From a new connection that reads nothing, as much as the router takes."""
        loop = asyncio.get_running_loop()
        client = socket.socket()
        client.setblocking(False)
        self.clients.append(client)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(STALLED_S):
                await loop.sock_connect(client, ("127.0.0.1", self.port))
                await loop.sock_sendall(client, data)

    async def settled(self) -> int:
        """Its memory, once that has stopped to grow."""
        last = self.memory_bytes
        while True:
            await asyncio.sleep(0.5)
            now = self.memory_bytes
            if now <= last + MIB // 4:
                return now
            last = now

    def vanish(self) -> None:
        for client in self.clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        self.clients.clear()

    async def shrunk(self, to: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.memory_bytes > to:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def serves(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            answer = await reader.read()
        writer.close()
        return answer.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterProcess]:
    path = tmp_path / "manifest.yaml"
    path.write_text(MANIFEST)
    code = "import sys; from multislo.command import main; main(prog_name='multislo')"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "router", "-f", str(path), "--port", "0", "--admin-port", "0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            said = (await process.stderr.readline()).decode()
        port = re.search(r"http://[0-9.]+:(\d+)", said)
        assert port is not None, said
        router = RouterProcess(process, int(port[1]))
        assert await router.serves()
        yield router
        assert await router.serves()
        router.vanish()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_half_sent_bodies_are_bounded_and_given_back_when_their_clients_vanish(router: RouterProcess) -> None:
    before = router.memory_bytes
    body = HEAD + b"content-length: 16000000\r\n\r\n" + b"x" * 15_000_000
    for _ in range(3):
        await asyncio.gather(*(router.send(body) for _ in range(8)))
        most = await router.settled()
        assert most - before <= HELD_MAX_BYTES + SLACK_BYTES
        router.vanish()
    await router.shrunk(before + SLACK_BYTES)


async def test_bodies_in_many_small_chunks_take_no_more_than_their_bytes(router: RouterProcess) -> None:
    before = router.memory_bytes
    chunks = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"2\r\nxx\r\n" * 1_500_000
    await router.send(chunks)
    most = await router.settled()
    assert most - before <= 16 * MIB


async def test_a_client_that_pipelines_and_reads_nothing_takes_little(router: RouterProcess) -> None:
    before = router.memory_bytes
    await router.send(b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n" * 200_000)
    most = await router.settled()
    assert most - before <= 4 * MIB


async def test_half_sent_heads_of_many_fields_take_little(router: RouterProcess) -> None:
    before = router.memory_bytes
    heads = HEAD + b"a:\r\n" * 15_000
    await asyncio.gather(*(router.send(heads) for _ in range(100)))
    most = await router.settled()
    assert most - before <= 20 * MIB


async def test_requests_that_are_held_are_bounded_by_their_bytes(router: RouterProcess) -> None:
    before = router.memory_bytes
    body = b'{"model": "llama", "prompt": [%b1]}' % (b"1," * 50_000)
    request = HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    await asyncio.gather(*(router.send(request * 2) for _ in range(900)))
    most = await router.settled()
    assert most - before <= HELD_MAX_BYTES + SLACK_BYTES
    router.vanish()
    await router.shrunk(before + SLACK_BYTES)


KINDS = ("ClientConnection", "RequestReader", "Exchange", "BodyScan", "Fault")


def alive() -> dict[str, int]:
    return dict(Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in KINDS))


def whole(kit: Any) -> bytes:
    return kit.post(kit.STREAM)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        HEAD,
        HEAD + b"content-length: 9\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n",
        HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 9\r\n\r\n{",
        HEAD + b"content-length: 99999999999\r\n\r\n",
        HEAD + b"content-length: 1\r\n\r\n{" * 2,
        b"NONSENSE\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n" * 100,
        whole,
    ],
)
@pytest.mark.parametrize("served", [True, False])
async def test_what_a_client_leaves_behind_is_freed_without_the_garbage_collector(
    kit: Any, sent: bytes | Callable[[Any], bytes], served: bool
) -> None:
    stage = await kit.stage()
    if not served:
        stage.set_fleet()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            client = await stage.client()
            await client.send(sent if isinstance(sent, bytes) else sent(kit))
            await asyncio.sleep(0.02)
            client.reset()
        await stage.until(lambda: not stage.gateway.clients and not stage.gateway.exchanges)
        await stage.until(lambda: not alive())
    finally:
        gc.enable()
