"""`multislo router` as a process, before an emulated engine."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from multislo.command import main
from multislo_api.fleet import SHUTDOWN_DELAY_VARIABLE, TOKEN_HEADER, TOKEN_VARIABLE

WAIT_S = 60.0
MANIFEST = """
apiVersion: multislo.dev/v1alpha1
kind: MultiSLOServing
metadata: {name: llama}
spec:
  model: {name: llama}
  profile: llama-3.1-8b-h200-tp1
  tiers:
    - {name: realtime, slo: {ttft: 1s, tpot: 50ms}}
    - {name: batch, slo: {ttft: 2s, tpot: 100ms}}
  scaling: {acceleratorsMax: 4}
"""


@dataclass
class Router:
    process: asyncio.subprocess.Process
    api: str
    admin: str

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()


async def started(*args: str) -> asyncio.subprocess.Process:
    code = "import sys; from multislo.command import main; main(prog_name='multislo')"
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *args, stderr=pipe, stdout=pipe)


async def failed(*args: str) -> tuple[int, str]:
    process = await started(*args)
    async with asyncio.timeout(WAIT_S):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "manifest.yaml"
    path.write_text(MANIFEST)
    return str(path)


@asynccontextmanager
async def routing(manifest: str, *args: str) -> AsyncIterator[Router]:
    process = await started("router", "-f", manifest, "--port", "0", "--admin-port", "0", *args)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            said = [(await process.stderr.readline()).decode() for _ in range(2)]
        api, admin = (re.search(r"http://[0-9.:]+", line) for line in said)
        assert api is not None, said
        assert admin is not None, said
        yield Router(process, api.group(), admin.group())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def engine() -> AsyncIterator[str]:
    """URL of an emulated engine."""
    options = ("--profile", "llama-3.1-8b-h200-tp1", "--model", "llama", "--port", "0", "--startup", "0")
    process = await started("emulate", *options)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while (found := re.search(r"http://[0-9.:]+", (await process.stderr.readline()).decode())) is None:
                assert process.returncode is None
        yield found.group()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("token", "shown", "status", "says"),
    [
        (None, None, 200, "instances"),
        (None, "mine", 403, "started without a token"),
        ("mine", "mine", 200, "instances"),
        ("mine", None, 401, "missing"),
        ("mine", "yours", 401, "another fleet"),
        ("mine", "mein\u00e9", 401, "another fleet"),
    ],
)
async def test_a_fleet_is_taken_from_whoever_shows_the_routers_token(
    manifest: str, monkeypatch: pytest.MonkeyPatch, token: str | None, shown: str | None, status: int, says: str
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    headers = {} if shown is None else {TOKEN_HEADER: shown}
    async with routing(manifest) as router, aiohttp.ClientSession() as session:
        async with session.put(f"{router.admin}/instances", json={"instances": []}, headers=headers) as answer:
            assert answer.status == status
            assert says in await answer.text()
        async with session.get(f"{router.admin}/fleet") as answer:
            assert answer.status == 200


@pytest.fixture
def newer_manifest(tmp_path: Path) -> str:
    path = tmp_path / "newer.yaml"
    path.write_text(MANIFEST.replace("slo: {ttft: 1s,", "later: 1, slo: {ttft: 1s, later: {a: b},"))
    return str(path)


async def test_a_manifest_of_a_newer_operator_is_read_with_a_warning_and_a_persons_is_not(
    newer_manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = await failed("router", "-f", newer_manifest)
    assert code == 2
    assert "spec.tiers[0].slo.later: unknown field" in said

    monkeypatch.setenv("MULTISLO_UNKNOWN_FIELDS", "ignore")
    process = await started("router", "-f", newer_manifest, "--port", "0", "--admin-port", "0")
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            said = "".join([(await process.stderr.readline()).decode() for _ in range(3)])
    finally:
        process.kill()
        await process.communicate()
    assert "warning: " in said
    assert "spec.tiers[0].slo.later, spec.tiers[0].later" in said
    assert "live page" in said


async def put(session: aiohttp.ClientSession, router: Router, url: str) -> None:
    body = {"instances": [{"id": "realtime-0", "url": url, "tier": "realtime"}]}
    async with session.put(f"{router.admin}/instances", json=body) as answer:
        assert answer.status == 200, await answer.text()


def asking(tokens: int) -> dict[str, Any]:
    prompt = {"model": "llama", "prompt": "one two three", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return {"json": prompt, "headers": {"x-slo-tier": "realtime"}}


async def test_requests_go_through_and_the_admin_listener_tells_of_them(manifest: str) -> None:
    async with engine() as url, routing(manifest) as router, aiohttp.ClientSession() as session:
        await put(session, router, url)
        async with session.post(f"{router.api}/v1/completions", **asking(20)) as answer:
            assert answer.status == 200
            assert (await answer.text()).rstrip().endswith("[DONE]")
        async with session.get(f"{router.admin}/fleet") as answer:
            tier = (await answer.json())["tiers"][0]
        assert (tier["name"], tier["requests_met"] + tier["requests_missed"]) == ("realtime", 1)
        async with session.get(f"{router.admin}/metrics") as answer:
            text = await answer.text()
        assert 'multislo_requests_total{outcome="completed",tier="realtime"} 1.0' in text
        assert "multislo_decision_seconds_count 1.0" in text
        async with session.get(f"{router.admin}/debug/decisions") as answer:
            assert (await answer.json())["decisions"][-1]["instance"] == "realtime-0"
        async with session.get(f"{router.admin}/readyz") as answer:
            assert answer.status == 200


async def test_a_journal_of_its_whole_life_plays_again_with_every_decision_the_same(manifest: str) -> None:
    async with engine() as url, routing(manifest) as router, aiohttp.ClientSession() as session:
        async with session.get(f"{router.admin}/debug/journal?seconds=600") as answer:
            await put(session, router, url)
            for _ in range(3):
                async with session.post(f"{router.api}/v1/completions", **asking(20)) as served:
                    assert (await served.text()).rstrip().endswith("[DONE]")
            router.process.send_signal(signal.SIGTERM)
            journal = await answer.read()
        assert await router.ended() == 0

    assert b'"end":"router_closing"' in journal.splitlines()[-1]
    result = CliRunner().invoke(main, ["replay-journal", "-"], input=journal)
    assert result.exit_code == 0, result.output
    assert "3 of 3 decisions are the same" in result.output


async def test_told_to_stop_it_finishes_the_answer_that_is_under_way(manifest: str) -> None:
    async with engine() as url, routing(manifest) as router, aiohttp.ClientSession() as session:
        await put(session, router, url)
        async with session.post(f"{router.api}/v1/completions", **asking(200)) as answer:
            await answer.content.readline()
            router.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(WAIT_S):
                assert (await answer.text()).rstrip().endswith("[DONE]")
        assert await router.ended() == 0


async def test_told_to_stop_it_serves_on_for_the_shutdown_delay_while_its_health_checks_fail(
    manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHUTDOWN_DELAY_VARIABLE, "600")
    async with engine() as url, routing(manifest) as router, aiohttp.ClientSession() as session:
        await put(session, router, url)
        router.process.send_signal(signal.SIGTERM)
        assert router.process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            assert b"stopping in 600 s" in await router.process.stderr.readline()
        for probe in (f"{router.admin}/readyz?instances=0", f"{router.api}/health"):
            async with session.get(probe) as answer:
                assert answer.status == 503
        async with session.get(f"{router.admin}/healthz") as answer:
            assert answer.status == 200
        async with session.post(f"{router.api}/v1/completions", **asking(3)) as answer:
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert (await answer.text()).rstrip().endswith("[DONE]")
        router.process.send_signal(signal.SIGTERM)
        assert await router.ended() == 0


async def test_told_twice_it_stops_at_once(manifest: str) -> None:
    async with engine() as url, routing(manifest) as router, aiohttp.ClientSession() as session:
        await put(session, router, url)
        async with session.post(f"{router.api}/v1/completions", **asking(100_000)) as answer:
            await answer.content.readline()
            router.process.send_signal(signal.SIGINT)
            assert router.process.stderr is not None
            async with asyncio.timeout(WAIT_S):
                assert b"1 answers are under way" in await router.process.stderr.readline()
            router.process.send_signal(signal.SIGINT)
            assert await router.ended() == 1
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


async def test_it_goes_with_its_parent(manifest: str) -> None:
    parent = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        async with routing(manifest, "--parent-pid", str(parent.pid)) as router:
            parent.kill()
            await router.ended()
    finally:
        if parent.returncode is None:
            parent.kill()
        await parent.wait()


async def test_a_port_that_is_taken_is_told_without_a_traceback(manifest: str) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        taken = str(server.sockets[0].getsockname()[1])
        for port, admin_port in ((taken, "0"), ("0", taken)):
            code, said = await failed("router", "-f", manifest, "--port", port, "--admin-port", admin_port)
            assert code == 1
            assert f"cannot listen on 127.0.0.1:{taken}: Address already in use; choose another by --" in said
            assert "Traceback" not in said


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("-f", "/no/such/file"), "the file cannot be read: No such file or directory"),
        (("--api-key-file", "/no/such/keys"), '--api-key-file: "/no/such/keys" cannot be read'),
        (("--profile", "slow"), '"slow" must be the path of a YAML file or one of the shipped profiles'),
    ],
)
async def test_what_cannot_be_read_is_named(manifest: str, option: tuple[str, str], says: str) -> None:
    code, said = await failed("router", "-f", manifest, *option)
    assert code == 2
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("token", ["", " ", "two tokens", "t\u00f6ken"])
async def test_a_fleet_token_that_is_none_does_not_open_the_admin_port(
    manifest: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    code, said = await failed("router", "-f", manifest, "--port", "0", "--admin-port", "0")
    assert (code, "MULTISLO_FLEET_TOKEN must be one token" in said) == (2, True)
