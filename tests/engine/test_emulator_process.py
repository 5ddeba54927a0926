"""`multislo emulate` as a process: its start, SIGTERM with and without a timeout, the end of its parent, its command line."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from click.testing import CliRunner

from multislo_engine.cli import emulate

COMMAND = (sys.executable, "-c", "from multislo.command import main; main()", "emulate")
PROFILE = ("--profile", "llama-3.1-8b-h200-tp1", "--model", "llama")


@asynccontextmanager
async def emulator(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A started emulator and its URL; none is left behind."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *PROFILE, "--port", "0", *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            line = (await process.stderr.readline()).decode()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield process, found[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def stream(session: aiohttp.ClientSession, url: str, tokens: int) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream whose first token has come."""
    body = {"model": "llama", "prompt": "tok", "max_tokens": tokens, "stream": True}
    async with session.post(url + "/v1/completions", json=body) as response:
        await response.content.readline()
        yield response


async def rest(response: aiohttp.ClientResponse) -> list[dict]:
    lines = (await response.text()).splitlines()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line[6:])["choices"][0] for line in lines[:-2] if line]


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(30):
        return await process.wait()


async def test_sigterm_aborts_what_is_in_flight_by_default() -> None:
    async with emulator() as (process, url), aiohttp.ClientSession() as session:
        async with stream(session, url, tokens=100_000) as response:
            process.send_signal(signal.SIGTERM)
            choices = await rest(response)
        assert choices[-1]["finish_reason"] == "abort"
        assert await ended(process) == 0


async def test_sigterm_with_a_timeout_lets_streams_finish_and_aborts_new_requests() -> None:
    async with emulator("--shutdown-timeout", "60") as (process, url), aiohttp.ClientSession() as session:
        async with stream(session, url, tokens=300) as response:
            assert process.stderr is not None
            process.send_signal(signal.SIGTERM)
            await process.stderr.readline()  # it says that it drains
            async with stream(session, url, tokens=300) as new:
                await new.text()
            choices = await rest(response)
        assert choices[-1]["finish_reason"] == "length"
        assert len(choices) == 299
        assert await ended(process) == 0


async def test_a_timeout_that_is_over_aborts_the_rest() -> None:
    async with emulator("--shutdown-timeout", "0.3") as (process, url), aiohttp.ClientSession() as session:
        async with stream(session, url, tokens=100_000) as response:
            process.send_signal(signal.SIGTERM)
            choices = await rest(response)
        assert choices[-1]["finish_reason"] == "abort"
        assert await ended(process) == 0


async def test_nobody_listens_before_the_start_up_is_over() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(*COMMAND, *PROFILE, "--port", str(port), "--startup", "3600")
    try:
        for _ in range(10):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.1)
    finally:
        process.kill()
        await process.wait()


async def test_it_ends_when_its_parent_dies_however_that_died() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    try:
        async with emulator("--parent-pid", str(parent.pid)) as (process, _):
            parent.kill()
            assert await ended(process) == 1
    finally:
        await parent.communicate()


async def test_it_does_not_start_for_a_parent_that_is_gone() -> None:
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await gone.wait()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *PROFILE, "--port", "0", "--parent-pid", str(gone.pid), stderr=asyncio.subprocess.DEVNULL
    )
    assert await ended(process) == 1


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *PROFILE, "--port", port, stderr=asyncio.subprocess.PIPE, env=os.environ
        )
        _, said = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said.decode()
    assert "Traceback" not in said.decode()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--profile", "no-such", "--model", "m"), "llama-3.1-8b-h200-tp1"),
        ((*PROFILE, "--max-model-len", "20000", "--kv-tokens", "16000"), "--max-model-len"),
        ((*PROFILE, "--slow-down", "0"), "--slow-down"),
        ((*PROFILE, "--scheduler", "best"), "slo-aware"),
    ],
)
def test_wrong_use_names_the_flag(flags: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(emulate, flags)
    assert result.exit_code == 2
    assert says in result.output
