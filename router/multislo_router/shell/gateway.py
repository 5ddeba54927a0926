"""`Gateway`: the router's data path. It owns the core, turns HTTP into the core's events and carries out its decisions. Started by
`multislo router`; the admin listener reads from it and hands it the fleet."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from multislo_api.fleet import InstanceList
from multislo_router.core.config import CoreConfig
from multislo_router.core.decisions import Decision, Hold, Place
from multislo_router.core.events import (
    Event,
    RequestArrived,
    Scheduler,
    Tick,
)
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import PlaceBy
from multislo_router.core.status import CoreStatus, Histogram
from multislo_router.shell.body_scan import BodyScan, scan_body
from multislo_router.shell.client import ClientConnection
from multislo_router.shell.cors import Cors
from multislo_router.shell.errors import Fault, Reason, error_response, fault_of, response
from multislo_router.shell.exchange import Exchange
from multislo_router.shell.fleet import Fleet
from multislo_router.shell.head_memory import HeadMemory
from multislo_router.shell.metrics import DECISION_EDGES
from multislo_router.shell.prompt_length import LengthEstimate, TokenizerCount
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.routes import Route, Routes, normalised, unknown
from multislo_router.shell.settings import ShellSettings
from multislo_router.shell.slo import RequestSlo, slo_of

log = logging.getLogger("multislo.router")

RECENT_DECISIONS = 1000
"""Kept for /debug/decisions: about a minute of a busy router, and a few hundred KB."""
BACKLOG = 4096
"""Connections that the kernel may keep until they are accepted: a burst of clients that all connect at once."""


@dataclass(slots=True)
class Counters:
    """Since the start. What the core counts is not counted here again."""

    connections: int = 0
    requests: int = 0
    passed_through: int = 0
    engine_failures: int = 0
    """Of requests that had shown nothing to their clients."""
    answers_cut: int = 0
    """Engines that failed during an answer."""
    clients_gone: int = 0
    faults: Counter[Reason] = field(default_factory=Counter)
    """Requests refused before the core heard of them."""


class Gateway:
    """All methods run on one event loop; nothing here blocks it."""

    def __init__(self, core_config: CoreConfig, settings: ShellSettings, place_by: PlaceBy | None = None) -> None:
        """`place_by` replaces the manifest's placement, for rivals to compare with."""
        self.core = RouterCore(core_config, place_by)
        self.core_config = core_config
        self.settings = settings
        self.slo_aware = core_config.engine.scheduler is Scheduler.SLO_AWARE
        self.recent_decisions: deque[tuple[float, Decision]] = deque(maxlen=RECENT_DECISIONS)
        """Unix time and decision, oldest first."""
        self.decision_seconds = Histogram(DECISION_EDGES)
        """What the core took for each arriving request."""
        self.counters = Counters()
        self.closing = False
        self.port = 0
        """Where it listens, once started."""
        self.fleet = Fleet(core_config, settings, self.tell)
        self.exchanges: dict[int, Exchange] = {}
        """Requests that the core knows, by its numbers."""
        self.passing: set[Exchange] = set()
        """Requests that it does not know: other paths than completions."""
        self.routes = Routes(settings.extra_paths)
        self.cors = Cors(settings.cors_origins)
        self.heads = HeadMemory(settings.body_max_bytes)
        self.clients: set[ClientConnection] = set()
        self._tiers = frozenset(tier.name for tier in core_config.tiers)
        self._numbers = count(1)
        self._request_id_prefix = os.urandom(6).hex().encode() + b"-"
        self._request_ids = count(1)
        self._estimates = {True: LengthEstimate(), False: LengthEstimate()}
        """For chats and for plain prompts."""
        self._tokenizer = None if settings.tokenizer is None else TokenizerCount(settings.tokenizer)
        self._started_at = int(time.time())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._counting: set[asyncio.Future[int]] = set()
        self._emptied = asyncio.Event()
        """The last client has left a gateway that is closing."""
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._wake_armed_for = float("inf")

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> None:
        """Binds (port 0: any free one, see `port`) and begins to serve."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: ClientConnection(self), host, port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        self.fleet.start()
        self._sweep()
        self._arm()

    async def shutdown(self, timeout_s: float) -> None:
        """Accepts no more, lets what is under way finish for at most `timeout_s`, then cuts it off."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            if client.idle:
                client.close()
        if self.clients:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()
        for client in self.clients:
            client.transport.abort()
        if self.clients:
            await self._emptied.wait()
        for timer in (self._sweep_timer, self._wake_timer):
            if timer is not None:
                timer.cancel()
        await self.fleet.close()

    # -- the core ------------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """One event for the core, and what it decides."""
        decisions = self.core.handle(event)
        if decisions:
            self._carry_out(decisions)
        wake_at = self.core.wake_at
        if wake_at is not None and wake_at < self._wake_armed_for:
            self._arm()

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        at = time.time()
        for decision in decisions:
            self.recent_decisions.append((at, decision))
            if isinstance(decision, Hold):
                continue
            exchange = self.exchanges.get(decision.request)
            if exchange is None:
                continue
            if isinstance(decision, Place):
                exchange.send_to(self.fleet.instances[decision.instance], decision)
            else:
                exchange.refuse(fault_of(decision))

    def _arm(self) -> None:
        """One timer for the core's next wish. It is not moved when the wish moves to later: then it only looks again."""
        wake_at = self.core.wake_at
        if wake_at is None or self._loop is None:
            return
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_armed_for = wake_at
        self._wake_timer = self._loop.call_later(max(0.0, wake_at - time.monotonic()), self._wake)

    def _wake(self) -> None:
        self._wake_armed_for = float("inf")
        self._wake_timer = None
        now = time.monotonic()
        if self.core.wake_at is not None and self.core.wake_at <= now:
            self.tell(Tick(now))
        if self._wake_timer is None:
            self._arm()

    # -- the fleet -----------------------------------------------------------------------------------------------------

    def set_fleet(self, fleet: InstanceList) -> None:
        """The whole fleet as it is now. Raises ValueError for an unknown tier or a doubled id, and changes nothing then."""
        self.fleet.apply(fleet)

    def instance_url(self, id: str) -> str | None:
        instance = self.fleet.instances.get(id)
        return None if instance is None else instance.entry.url

    def status(self, now: float) -> CoreStatus:
        """The core's, with the requests that it does not know counted where they run."""
        return self.fleet.with_passing(self.core.status(now))

    # -- clients -------------------------------------------------------------------------------------------------------

    def admit(self, client: ClientConnection) -> bool:
        self.clients.add(client)
        self.counters.connections += 1
        return len(self.clients) <= self.settings.connections_max

    def left(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        if self.closing and not self.clients:
            self._emptied.set()

    def new_request_id(self) -> bytes:
        return b"%b%x" % (self._request_id_prefix, next(self._request_ids))

    def begin(self, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        """A complete request: answers it now, or sets `client.exchange` and answers it later."""
        self.counters.requests += 1
        request_id = head.request_id or self.new_request_id()
        try:
            match head.target.route:
                case Route.CHAT | Route.COMPLETIONS:
                    self._schedule(client, head, body, request_id)
                case Route.RESPONSES | Route.MESSAGES | Route.PASSED:
                    self._pass_through(client, head, body, request_id)
                case Route.MODELS:
                    self._answer_models(client, head, request_id)
                case Route.HEALTH:
                    self._answer_health(client, head, request_id)
                case Route.OPTIONS:
                    self._answer(client, head, request_id, 204, b"", b"allow: %b\r\n" % head.target.allow)
                case Route.NOT_FOUND | Route.WRONG_METHOD:
                    raise unknown(head.method, head.target)
        except Fault as fault:
            self._answer_fault(client, head, request_id, fault)
        except Exception:
            # A bug of ours must not leave its client waiting for ever, nor take the process and all other streams with it.
            log.exception("request %s", request_id.decode("latin-1"))
            exchange = client.exchange
            internal = Fault(Reason.INTERNAL, "the router failed on this request")
            if exchange is None:
                self._answer_fault(client, head, request_id, internal)
            elif not exchange.over:
                exchange.refuse(internal)

    def _answer_fault(self, client: ClientConnection, head: RequestHead, request_id: bytes, fault: Fault) -> None:
        self.counters.faults[fault.reason] += 1
        close = not head.keep_alive or self.closing
        client.write(error_response(fault, request_id, close=close, extra=head.cors, head_only=head.method == b"HEAD"))
        client.finished(close=close)

    def _schedule(self, client: ClientConnection, head: RequestHead, body: bytes, request_id: bytes) -> None:
        scan = scan_body(body)
        names = self.settings.served_names
        if scan.model is not None and names and scan.model not in names:
            message = f"model: {scan.model!r} is not served here; served are: {', '.join(names)}"
            raise Fault(Reason.UNKNOWN_MODEL, message, param="model")
        slo = slo_of(head, scan.service_tier, self._tiers, self.settings)
        id = next(self._numbers)
        exchange = Exchange(self, client, head, body, request_id, id, scan)
        client.exchange = exchange
        chat = head.target.route is Route.CHAT
        if scan.prompt_tokens is not None:
            self._arrive(exchange, scan, slo, scan.prompt_tokens)
        elif self._tokenizer is None:
            tokens = self._estimates[chat].tokens(scan.text_bytes) + scan.image_tokens
            self._arrive(exchange, scan, slo, tokens)
        elif len(scan.prompt) <= self.settings.tokenize_inline_max_bytes:
            tokens = self._tokenizer.tokens(scan.prompt, chat=chat) + scan.image_tokens
            self._arrive(exchange, scan, slo, tokens)
        else:
            self._count_in_thread(exchange, scan, slo, self._tokenizer)

    def _count_in_thread(self, exchange: Exchange, scan: BodyScan, slo: RequestSlo, tokenizer: TokenizerCount) -> None:
        chat = exchange.head.target.route is Route.CHAT

        def arrive(counted: asyncio.Future[int]) -> None:
            self._counting.discard(counted)
            if not exchange.over and not counted.cancelled():
                self._arrive(exchange, scan, slo, counted.result() + scan.image_tokens)

        assert self._loop is not None
        future = self._loop.run_in_executor(None, lambda: tokenizer.tokens(scan.prompt, chat=chat))
        self._counting.add(future)
        future.add_done_callback(arrive)

    def _arrive(self, exchange: Exchange, scan: BodyScan, slo: RequestSlo, prompt_tokens: int) -> None:
        id = exchange.id
        assert id is not None
        self.exchanges[id] = exchange
        now = time.monotonic()
        event = RequestArrived(
            now, id, prompt_tokens, scan.output_tokens_max, slo.tier, slo.ttft_s, slo.tpot_s, scan.streaming
        )
        decisions = self.core.handle(event)
        self.decision_seconds.observe(time.monotonic() - now)
        self._carry_out(decisions)
        wake_at = self.core.wake_at
        if wake_at is not None and wake_at < self._wake_armed_for:
            self._arm()

    def correct_estimate(self, chat: bool, scan: BodyScan, prompt_tokens: int) -> None:
        if scan.prompt_tokens is None:
            self._estimates[chat].correct(scan.text_bytes, prompt_tokens - scan.image_tokens)

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over, however it ended."""
        if exchange.id is not None:
            self.exchanges.pop(exchange.id, None)
        else:
            self.passing.discard(exchange)
            if exchange.instance is not None:
                exchange.instance.passing -= 1

    def _pass_through(self, client: ClientConnection, head: RequestHead, body: bytes, request_id: bytes) -> None:
        """To an instance of the default tier, or to any where that has none."""
        instance = self.fleet.for_passing()
        if instance is None:
            raise Fault(Reason.NO_INSTANCE, "no instance is ready", retry_after_s=1.0)
        self.counters.passed_through += 1
        exchange = Exchange(self, client, head, body, request_id, None, None)
        client.exchange = exchange
        self.passing.add(exchange)
        exchange.send_to(instance, None)

    def _answer_models(self, client: ClientConnection, head: RequestHead, request_id: bytes) -> None:
        names = self.settings.served_names
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._started_at,
                "owned_by": "multislo",
                "root": names[0],
                "parent": None,
                "max_model_len": self.core_config.length_max,
            }
            for name in names
        ]
        document: object = {"object": "list", "data": models}
        asked = head.target.model
        if asked:
            index = next((i for i, name in enumerate(names) if normalised(b"/" + name.encode())[1:] == asked), None)
            if index is None:
                shown = asked.decode("utf-8", "replace")
                message = f"model: {shown!r} is not served here; served are: {', '.join(names)}"
                raise Fault(Reason.UNKNOWN_MODEL, message, param="model")
            document = models[index]
        self._answer(client, head, request_id, 200, json.dumps(document).encode())

    def _answer_health(self, client: ClientConnection, head: RequestHead, request_id: bytes) -> None:
        """Of the router itself: without instances it still holds what comes, and wakes them."""
        if self.closing:
            raise Fault(Reason.SHUTTING_DOWN, "the router is shutting down")
        self._answer(client, head, request_id, 200, b'{"status": "ok"}')

    def _answer(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: bytes,
        status: int,
        body: bytes,
        extra: bytes = b"",
    ) -> None:
        """An answer of the router's own."""
        close = not head.keep_alive or self.closing
        extra += head.cors
        client.write(response(status, body, request_id, close=close, extra=extra, head_only=head.method == b"HEAD"))
        client.finished(close=close)

    # -- timeouts ------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Looks for spent timeouts, of clients, engines and idle connections."""
        now = time.monotonic()
        for client in [client for client in self.clients if client.deadline <= now]:
            client.expired()
        silent_since = now - self.settings.engine_silence_timeout_s
        for exchange in [*self.exchanges.values(), *self.passing]:
            if exchange.connection is not None and exchange.heard_at <= silent_since:
                exchange.silent()
        self.fleet.close_idle(now - self.settings.engine_idle_timeout_s)
        assert self._loop is not None
        self._sweep_timer = self._loop.call_later(self.settings.sweep_interval_s, self._sweep)
