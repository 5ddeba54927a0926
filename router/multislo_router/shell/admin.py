"""The admin listener: /metrics, /fleet, probes, the last decisions, the journal, the live page, and the door through which the operator
hands over the fleet. A separate port, loopback by default, on the gateway's own event loop; served by `multislo router`.
"""

import asyncio
import hmac
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import CollectorRegistry
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from multislo_api.fleet import TOKEN_HEADER, FleetSnapshot, InstanceList
from multislo_api.problems import path_text, shown
from multislo_api.tolerant import read_json, warning
from multislo_router.core.status import Histogram
from multislo_router.shell.exposition import exposition
from multislo_router.shell.gateway import Gateway
from multislo_router.shell.internal_errors import Seam
from multislo_router.shell.metrics import LAG_EDGES
from multislo_router.shell.recording import Recording
from multislo_router.shell.scrape import Scrape
from multislo_router.shell.snapshot import fleet_snapshot

LOG = logging.getLogger(__name__)
BODY_BYTES_MAX = 16 * 2**20
"""Of PUT /instances: a fleet of 10,000 is about 2 MB."""
DECISIONS_SHOWN = 100
"""Decisions in an answer of /debug/decisions that names no number."""
JOURNAL_S = 60
"""Of a journal that names no time."""
JOURNAL_S_MAX = 600
JOURNAL_REST_S = 30.0
"""Beyond its time, for a reader to fetch what is left: the next one is refused until then."""
PROBLEMS_SHOWN = 20
"""Mistakes named in a 400: more help nobody, and the answer to a large bad body stays small."""
_WHOLE = re.compile(r"[0-9]{1,9}")
LAG_SAMPLE_S = 0.1
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
"""The live page loads nothing from anywhere and talks to its own router only."""


@dataclass(slots=True)
class Admin:
    """The listener's handlers and what they answer from."""

    gateway: Gateway
    model: str
    placement: str
    token: str | None = None
    """What PUT /instances must show; None: it is open to whoever reaches this listener and shows none."""
    clock: Callable[[], float] = time.monotonic
    """The clock of the core's events."""
    loop_lag: Histogram = field(default_factory=lambda: Histogram(LAG_EDGES))
    started: float = field(init=False)
    passed_over: list[str] = field(default_factory=list)
    """Of the last PUT /instances: what this version does not know."""
    process: CollectorRegistry = field(init=False)
    page: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.process = CollectorRegistry()
        ProcessCollector(registry=self.process)
        PlatformCollector(registry=self.process)
        GCCollector(registry=self.process)
        self.page = files("multislo_router.shell.page").joinpath("index.html").read_bytes()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._count_failures])
        app.add_routes(
            [
                web.get("/", self.get_page),
                web.get("/metrics", self.get_metrics),
                web.get("/fleet", self.get_fleet),
                web.get("/healthz", self.get_health),
                web.get("/readyz", self.get_readiness),
                web.get("/debug/decisions", self.get_decisions),
                web.get("/debug/journal", self.get_journal, allow_head=False),
                web.put("/instances", self.put_instances),
            ]
        )
        app.cleanup_ctx.append(self._watch_loop)
        return app

    @web.middleware
    async def _count_failures(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            self.gateway.errors.failed(Seam.ADMIN, error, None, request.path)
            return _error(500, "the router failed on this request", [])

    def snapshot(self) -> FleetSnapshot:
        now = self.clock()
        return fleet_snapshot(
            self.gateway.status(now),
            url_of=self.gateway.instance_url,
            at=time.time(),
            uptime_s=now - self.started,
            model=self.model,
            placement=self.placement,
        )

    async def get_page(self, request: web.Request) -> web.Response:
        headers = {
            "Content-Security-Policy": PAGE_POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(body=self.page, content_type="text/html", charset="utf-8", headers=headers)

    async def get_metrics(self, request: web.Request) -> web.StreamResponse:
        now = self.clock()
        scrape = Scrape(
            status=self.gateway.status(now),
            uptime_s=now - self.started,
            version=version("multislo"),
            decision=self.gateway.decision_seconds,
            faults=self.gateway.counters.faults,
            internal_errors=self.gateway.errors.counts,
            connections=self.gateway.counters.connections,
            connections_open=len(self.gateway.clients),
            passed_through=self.gateway.counters.passed_through,
            answers={id: instance.answers for id, instance in self.gateway.fleet.instances.items()},
            model_requests=self.gateway.models.requests,
            model_output_tokens=self.gateway.models.output_tokens,
            loop_lag=self.loop_lag,
        )
        text = b"".join([part async for part in exposition(scrape, self.process)])
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def get_fleet(self, request: web.Request) -> web.Response:
        body = self.snapshot().model_dump_json().encode()
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

    async def get_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def get_readiness(self, request: web.Request) -> web.Response:
        """`instances`: how many must be ready, 1 unless said. 0 asks whether the router knows its fleet, whatever is in it: what a Service
        goes by, since a router without instances still tells its clients why."""
        text = request.query.get("instances", "1")
        if _WHOLE.fullmatch(text) is None:
            return _bad([Problem("instances", text, "a whole number of at most nine digits")])
        if self.gateway.closing:
            return web.Response(status=503, text="shutting down\n")
        if not self.gateway.fleet.told:
            return web.Response(status=503, text="no instance is ready: the fleet has not been told yet\n")
        ready = sum(1 for i in self.gateway.status(self.clock()).instances if i.state == "ready")
        if ready < int(text):
            return web.Response(status=503, text=f"{ready or 'no'} instance{'s are' if ready > 1 else ' is'} ready\n")
        return web.Response(text=f"ok, {ready} ready\n")

    async def get_decisions(self, request: web.Request) -> web.Response:
        text = request.query.get("n", str(DECISIONS_SHOWN))
        if _WHOLE.fullmatch(text) is None or int(text) < 1:
            return _bad([Problem("n", text, "a whole number from 1 on, of at most nine digits")])
        recent = list(self.gateway.recent_decisions)[-int(text) :]
        return web.json_response(
            {"decisions": [{"at": at, "decision": type(made).__name__, **asdict(made)} for at, made in recent]}
        )

    async def get_journal(self, request: web.Request) -> web.StreamResponse:
        text = request.query.get("seconds", str(JOURNAL_S))
        if _WHOLE.fullmatch(text) is None or not 1 <= int(text) <= JOURNAL_S_MAX:
            return _bad([Problem("seconds", text, f"a whole number from 1 to {JOURNAL_S_MAX}")])
        if self.gateway.recording is not None:
            return _error(409, "a journal is being written already, and a router writes one at a time", [])
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        recording = Recording(self.gateway.core, self.gateway.errors, self.clock())
        self.gateway.recording = recording
        try:
            async with asyncio.timeout(int(text) + JOURNAL_REST_S):
                await answer.prepare(request)
                await recording.send(int(text), answer.write, lambda: _gone(request))
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.gateway.recording = None
        return answer

    async def put_instances(self, request: web.Request) -> web.Response:
        stranger = self._stranger(request.headers.get(TOKEN_HEADER))
        if stranger is not None:
            return stranger
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"the body is longer than {BODY_BYTES_MAX} bytes", [])
        except web.RequestPayloadError:
            return _error(400, "the body cannot be read: it is cut off, or not in its content-encoding", [])
        try:
            fleet, passed = read_json(InstanceList, body)
        except ValidationError as error:
            return _bad([_problem(detail) for detail in error.errors(include_url=False)])
        tiers = [tier.name for tier in self.gateway.status(self.clock()).tiers]
        problems = _fleet_problems(fleet, tiers)
        if problems:
            return _bad(problems)
        self.gateway.set_fleet(fleet)
        if passed and not self.passed_over:  # Told once: a newer operator says it every ten seconds.
            LOG.warning("%s", warning("PUT /instances", passed))
        self.passed_over = passed
        told: dict[str, object] = {"instances": len(fleet.instances)}
        return web.json_response(told | {"ignored": passed[:PROBLEMS_SHOWN]} if passed else told)

    def _stranger(self, shown: str | None) -> web.Response | None:
        """The refusal of somebody who is not this router's operator."""
        if self.token is None:
            if shown is None:
                return None
            return _error(403, f"{TOKEN_HEADER}: this router was started without a token, so it is another one", [])
        if shown is None:
            return _error(401, f"{TOKEN_HEADER}: missing; this router belongs to a fleet that is already managed", [])
        if not hmac.compare_digest(shown.encode(errors="surrogateescape"), self.token.encode()):
            return _error(401, f"{TOKEN_HEADER}: wrong; this router belongs to another fleet", [])
        return None

    async def _watch_loop(self, app: web.Application) -> AsyncIterator[None]:
        watcher = asyncio.create_task(_measure_lag(self.loop_lag))
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in what a client sent."""

    path: str
    value: object
    legal: str

    def __str__(self) -> str:
        return f"{self.path}: {shown(self.value)} must be {self.legal}"


def _gone(request: web.Request) -> bool:
    """Whether its client has disconnected."""
    return request.transport is None or request.transport.is_closing()


async def _measure_lag(lag: Histogram) -> None:
    while True:
        due = time.monotonic() + LAG_SAMPLE_S
        await asyncio.sleep(LAG_SAMPLE_S)
        lag.observe(max(0.0, time.monotonic() - due))


def _fleet_problems(fleet: InstanceList, tiers: list[str]) -> list[Problem]:
    legal = f"one of {', '.join(tiers)}, or null for the warm pool"
    problems = [
        Problem(f"instances[{index}].tier", entry.tier, legal)
        for index, entry in enumerate(fleet.instances)
        if entry.tier is not None and entry.tier not in tiers
    ]
    for name in ("id", "url"):
        times = Counter(getattr(entry, name) for entry in fleet.instances)
        problems += [
            Problem(f"instances[{index}].{name}", value, f"unique, and stands {times[value]} times in the list")
            for index, entry in enumerate(fleet.instances)
            if times[value := getattr(entry, name)] > 1
        ]
    return problems


# What pydantic's errors mean in the words that the rest of the router uses; others keep pydantic's own.
_LEGAL = {
    "missing": "given",
    "json_invalid": "JSON: {error}",
    "string_type": "a string",
    "illegal": "{legal}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_long": "a list of at most {max_length} items",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _problem(detail: ErrorDetails) -> Problem:
    legal = _LEGAL.get(detail["type"])
    value = None if detail["type"] == "missing" else detail["input"]
    return Problem(
        path_text(detail["loc"]) or "body", value, legal.format(**detail.get("ctx", {})) if legal else detail["msg"]
    )


def _bad(problems: list[Problem]) -> web.Response:
    shown = problems[:PROBLEMS_SHOWN]
    message = "; ".join(map(str, shown))
    if len(problems) > len(shown):
        message += f"; and {len(problems) - len(shown)} more"
    return _error(400, message, shown)


def _error(status: int, message: str, problems: list[Problem]) -> web.Response:
    listed = [{"path": p.path, "value": shown(p.value), "legal": p.legal} for p in problems]
    return web.json_response({"error": {"message": message, "problems": listed}}, status=status)
