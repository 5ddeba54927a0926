"""`multislo bench chaos`: repeatedly kills a random engine of a real fleet (SIGKILL) under load. Every request must end in a complete
answer or in one clear error, and the router must hold nothing afterwards."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import aiohttp
import httptools

from multislo_api.fleet import FleetSnapshot
from multislo_api.tolerant import read_json
from multislo_bench.processes import CannotMeasure, free_ports, multislo, running, tail, wait_for
from multislo_bench.prompts import WORDS

KILL_EVERY_S = 1.0
TIERS = (
    ("realtime", "500ms", "30ms", "Reject"),
    ("standard", "1s", "50ms", "Queue"),
    ("batch", "2s", "100ms", "BestEffort"),
)
"""One of each way to meet overload."""
MODEL = "chaos"
PROMPT_TOKENS = (20, 600)
OUTPUT_TOKENS = (10, 100)
STREAMING_SHARE = 0.7
LEAVING_SHARE = 0.05
"""Clients that close their connection in the middle, for the router's places to be freed on that way too."""
ANSWERED_WITHIN_S = 90.0
"""After the last kill: an engine that has died often is started again after 30 s, and an answer takes 10 s. A request may wait in the
router's queue as long as no engine lives; what has no end by then hangs."""
EMPTY_WITHIN_S = 10.0
READY_WITHIN_S = 90.0
UP_PATIENCE_S = 30.0


class Verdict(StrEnum):
    """How a request ended for its client."""

    COMPLETE = "complete"
    REFUSED = "refused"
    """A whole error response in OpenAI's form."""
    ERROR_EVENT = "error_event"
    """A stream that had begun ended with exactly one error event."""
    LEFT = "left"
    """The client's own doing."""
    UNCLEAR = "unclear"
    """Anything else: cut short without a word, reset, silent, or more than one end."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the load."""

    at_s: float
    tier: str
    chat: bool
    streaming: bool
    prompt_tokens: int
    output_tokens: int
    leaves_after_s: float | None


@dataclass(slots=True)
class Answer:
    """A response, as parsed by httptools."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    lost: str | None = None
    """What happened to the connection before the answer was whole."""

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole = True


@dataclass(slots=True)
class Chaos:
    """The result of a run."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    kills_missed: int = 0
    """Seconds in which no engine was there to be killed."""
    left_over: list[str] = field(default_factory=list)
    """Counters of the router that are not zero although nothing runs."""
    router_errors: int = 0
    """Tracebacks in its log."""
    restarts: int = 0
    all_ready_after_s: float | None = None
    """From the end of the last request until every engine was ready."""

    @property
    def good(self) -> bool:
        broken = self.verdicts[Verdict.UNCLEAR] or self.left_over or self.router_errors
        return not broken and self.all_ready_after_s is not None

    def document(self) -> dict[str, Any]:
        ready_s = self.all_ready_after_s
        return {
            "requests": self.verdicts.total(),
            **{verdict.value: self.verdicts[verdict] for verdict in Verdict},
            "causes": dict(self.causes.most_common()),
            "kills": self.kills,
            "kills_missed": self.kills_missed,
            "restarts": self.restarts,
            "left_over": self.left_over,
            "router_errors": self.router_errors,
            "all_ready_after_s": None if ready_s is None else round(ready_s, 1),
        }


def verdict_of(answer: Answer, ask: Ask) -> tuple[Verdict, str]:
    """The verdict on an answer, and its cause in a word or a few."""
    if answer.status == 0:
        return Verdict.UNCLEAR, f"no answer: {answer.lost}"
    if answer.status != 200:
        code = _error_code(bytes(answer.body))
        if answer.whole and code is not None:
            return Verdict.REFUSED, f"{answer.status} {code}"
        return Verdict.UNCLEAR, f"{answer.status} without an error in OpenAI's form: {bytes(answer.body[:80])!r}"
    if ask.streaming:
        return _stream_verdict(answer, ask)
    with suppress(ValueError, KeyError, TypeError):
        if answer.whole and json.loads(answer.body)["usage"]["completion_tokens"] == ask.output_tokens:
            return Verdict.COMPLETE, "complete"
    return Verdict.UNCLEAR, f"an answer that is not whole: {answer.lost or bytes(answer.body[:80])!r}"


def _stream_verdict(answer: Answer, ask: Ask) -> tuple[Verdict, str]:
    tokens = 0
    done = False
    errors: list[str] = []
    broken = ""
    for event in bytes(answer.body).split(b"\n\n"):
        # What waits gets comments; they stand before an event.
        lines = [line for line in event.split(b"\n") if not line.startswith(b":")]
        data = b"\n".join(lines).strip().removeprefix(b"data:").strip()
        if not data:
            continue
        if errors or done:
            return Verdict.UNCLEAR, f"{data[:60]!r} after the end of the stream"
        if data == b"[DONE]":
            done = True
            continue
        code = _error_code(data)
        if code is not None:
            errors.append(code)
            continue
        try:
            choices = json.loads(data).get("choices") or []
        except ValueError:
            # The engine may have died in the middle of an event: then the error event must follow.
            broken = f"half an event {data[:60]!r}"
            continue
        tokens += sum(bool(choice.get("text") or (choice.get("delta") or {}).get("content")) for choice in choices)
    if errors:
        return Verdict.ERROR_EVENT, f"error event: {errors[0]}"
    if done and answer.whole and tokens == ask.output_tokens and not broken:
        return Verdict.COMPLETE, "complete"
    end = "[DONE]" if done else broken or answer.lost or "no [DONE]"
    return Verdict.UNCLEAR, f"stream of {tokens} of {ask.output_tokens} tokens, then {end}"


def _error_code(body: bytes) -> str | None:
    """The code in an OpenAI error object with a message; None where it is something else."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]) if error["message"] and error["type"] else None
    except (ValueError, KeyError, TypeError):
        return None


def asks(seconds: float, rate: float, dice: Random) -> list[Ask]:
    """Poisson arrivals."""
    made: list[Ask] = []
    at_s = dice.expovariate(rate)
    while at_s < seconds:
        leaves = dice.uniform(0.0, 2.0) if dice.random() < LEAVING_SHARE else None
        tier = dice.choice(TIERS)[0]
        streaming = dice.random() < STREAMING_SHARE
        lengths = dice.randint(*PROMPT_TOKENS), dice.randint(*OUTPUT_TOKENS)
        made.append(Ask(at_s, tier, dice.random() < 0.5, streaming, *lengths, leaves))
        at_s += dice.expovariate(rate)
    return made


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Load:
    """Clients that reuse each connection as long as the router keeps it open."""

    port: int
    dice: Random
    until: float
    """Monotonic time at which every request must have ended."""
    idle: list[Connection] = field(default_factory=list)

    async def ask(self, ask: Ask) -> tuple[Verdict, str]:
        """One request, from sending to its end."""
        answer = Answer()
        began = monotonic()
        patience_s = self.until - began if ask.leaves_after_s is None else ask.leaves_after_s
        try:
            async with asyncio.timeout(patience_s):
                await self._exchange(ask, answer)
        except TimeoutError:
            if ask.leaves_after_s is not None:
                return Verdict.LEFT, "left"
            answer.lost = f"no end within {monotonic() - began:.0f} s"
        except (OSError, httptools.HttpParserError) as error:
            answer.lost = repr(error)
        return verdict_of(answer, ask)

    async def _exchange(self, ask: Ask, answer: Answer) -> None:
        while self.idle and self.idle[-1][0].at_eof():
            self.idle.pop()[1].close()
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        kept = False
        try:
            writer.write(self._message(ask))
            parser = httptools.HttpResponseParser(answer)
            while not answer.whole:
                data = await reader.read(1 << 16)
                if not data:
                    answer.lost = "connection closed"
                    return
                parser.feed_data(data)
                answer.status = parser.get_status_code()
            kept = bool(parser.should_keep_alive())
        finally:
            if kept:
                self.idle.append((reader, writer))
            else:
                writer.close()

    def _message(self, ask: Ask) -> bytes:
        prompt = " ".join(word.decode() for word in self.dice.choices(WORDS, k=ask.prompt_tokens))
        body: dict[str, Any] = {"model": MODEL, "max_tokens": ask.output_tokens, "ignore_eos": True}
        body |= {"messages": [{"role": "user", "content": prompt}]} if ask.chat else {"prompt": prompt}
        if ask.streaming:
            body |= {"stream": True}
        path = "/v1/chat/completions" if ask.chat else "/v1/completions"
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
            f"x-slo-tier: {ask.tier}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


def manifest(engines: int, port: int, admin_port: int) -> dict[str, Any]:
    """A fleet of so many engines that start within a second, in tiers of as equal size as can be."""
    tiers = []
    for index, (name, ttft, tpot, overload) in enumerate(TIERS):
        count = engines // len(TIERS) + (index < engines % len(TIERS))
        bounds = {"min": count, "max": max(1, count)}
        tiers.append({"name": name, "slo": {"ttft": ttft, "tpot": tpot}, "instances": bounds, "overload": overload})
    return {
        "apiVersion": "multislo.dev/v1alpha1",
        "kind": "MultiSLOServing",
        "metadata": {"name": "chaos"},
        "spec": {
            "model": {"name": MODEL, "maxLength": 4096},
            "profile": "llama-3.1-8b-h100-third-tp1",
            "engine": {"type": "Emulated", "emulation": {"startup": "1s"}},
            "tiers": tiers,
            "defaultTier": TIERS[0][0],
            "scaling": {"acceleratorsMax": engines, "warmPool": {"min": 0, "max": 0}},
            "router": {"port": port, "adminPort": admin_port},
        },
    }


async def measure(
    seconds: float, engines: int, rate: float, seed: int, folder: Path, say: Callable[[str], None]
) -> Chaos:
    """One run from the start of the fleet to its end. Raises CannotMeasure where the fleet does not come up."""
    port, admin_port = free_ports(2)
    path, log = folder / "manifest.yaml", folder / "up.log"
    # JSON is YAML.
    path.write_text(json.dumps(manifest(engines, port, admin_port)), encoding="utf-8")
    admin = f"http://127.0.0.1:{admin_port}"
    command = multislo("up", "-f", str(path), "--fixed", "--log-dir", str(folder))
    chaos = Chaos()
    dice = Random(seed)
    with running("multislo up", command, log, patience_s=UP_PATIENCE_S) as process:
        wait_for(f"{admin}/healthz", process, log)
        async with aiohttp.ClientSession() as session:
            watch = _Fleet(session, admin, process.pid, engines)
            if await watch.all_ready_s(READY_WITHIN_S) is None:
                raise CannotMeasure(f"the fleet was not ready within {READY_WITHIN_S:.0f} s:\n{tail(log)}")
            say(f"{engines} engines are ready; {rate:g} requests a second for {seconds:g} s, a kill each second")
            load = Load(port, dice, monotonic() + seconds + ANSWERED_WITHIN_S)
            await _storm(chaos, watch, load, asks(seconds, rate, dice), seconds, dice, say)
            say("the load has ended; waiting until the router is empty and every engine is ready again")
            chaos.left_over = await watch.left_over()
            chaos.all_ready_after_s = await watch.all_ready_s(READY_WITHIN_S)
    chaos.router_errors = (folder / "router.log").read_text(encoding="utf-8", errors="replace").count("Traceback")
    events = [json.loads(line)["event"] for line in (folder / "decisions.jsonl").read_text("utf-8").splitlines()]
    chaos.restarts = max(0, events.count("ready") - engines)
    if "router_ended" in events:
        chaos.router_errors += 1
    return chaos


async def _storm(
    chaos: Chaos,
    watch: "_Fleet",
    load: Load,
    wanted: list[Ask],
    seconds: float,
    dice: Random,
    say: Callable[[str], None],
) -> None:
    began = monotonic()

    async def one(ask: Ask) -> None:
        await asyncio.sleep(began + ask.at_s - monotonic())
        verdict, cause = await load.ask(ask)
        chaos.verdicts[verdict] += 1
        chaos.causes[cause] += 1
        if verdict is Verdict.UNCLEAR:
            say(f"unclear after {monotonic() - began:.1f} s: {cause} ({ask})")

    async def kills() -> None:
        for turn in range(1, int(seconds / KILL_EVERY_S) + 1):
            await asyncio.sleep(began + turn * KILL_EVERY_S - monotonic())
            if await watch.kill_one(dice):
                chaos.kills += 1
            else:
                chaos.kills_missed += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kills())
        for ask in wanted:
            tasks.create_task(one(ask))
    load.close()


@dataclass(slots=True)
class _Fleet:
    """The fleet under test, seen from outside: the router's view of it, and its processes."""

    session: aiohttp.ClientSession
    admin: str
    up_pid: int
    engines: int

    async def look(self) -> FleetSnapshot:
        async with self.session.get(f"{self.admin}/fleet", timeout=aiohttp.ClientTimeout(total=5.0)) as response:
            return read_json(FleetSnapshot, await response.read())[0]

    async def all_ready_s(self, within_s: float) -> float | None:
        """Seconds until as many instances as wanted are ready; None where that takes too long."""
        began = monotonic()
        while (waited_s := monotonic() - began) < within_s:
            instances = (await self.look()).instances
            if [instance.state for instance in instances] == ["ready"] * self.engines:
                return waited_s
            await asyncio.sleep(0.1)
        return None

    async def left_over(self) -> list[str]:
        """What the router still counts when it has had its time to hear of every end."""
        until = monotonic() + EMPTY_WITHIN_S
        while True:
            found = _not_zero(await self.look())
            if not found or monotonic() > until:
                return found
            await asyncio.sleep(0.1)

    async def kill_one(self, dice: Random) -> bool:
        """A random engine of those that serve, else of those that start; False where there is none at all."""
        snapshot = await self.look()
        living = engine_pids(self.up_pid)
        ready = {int(instance.url.rpartition(":")[2]) for instance in snapshot.instances if instance.state == "ready"}
        serving = [pid for port, pid in living.items() if port in ready]
        if not living:
            return False
        with suppress(ProcessLookupError):
            os.kill(dice.choice(serving or list(living.values())), signal.SIGKILL)
        return True


def _not_zero(snapshot: FleetSnapshot) -> list[str]:
    found: list[str] = []
    for tier in snapshot.tiers:
        counts = {"pending": tier.pending, "in_flight": tier.in_flight}
        found += [f"tier {tier.name}: {name} {count}" for name, count in counts.items() if count]
    for instance in snapshot.instances:
        counts = {"requests": instance.requests, "prefills": instance.prefills, "decodes": instance.decodes}
        counts["kv_tokens"] = instance.kv_tokens
        found += [f"instance {instance.id}: {name} {count}" for name, count in counts.items() if count]
    return found


def engine_pids(up_pid: int) -> dict[int, int]:
    """Port -> process id of the engines that this `multislo up` has started and that live."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end between any two lines.
        with suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) != up_pid or state in "ZX":
                continue
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"emulate" in words:
                found[int(words[words.index(b"--port") + 1])] = int(entry.name)
    return found
