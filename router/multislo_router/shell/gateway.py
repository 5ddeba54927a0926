"""`Gateway`: the router's data path. It owns the core, turns HTTP into the core's events and carries out its decisions. Started by
`multislo router`; the admin listener reads from it and hands it the fleet."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from multislo_api.fleet import InstanceList
from multislo_router.core.config import CoreConfig
from multislo_router.core.decisions import Decision, Hold, Place, Suspect
from multislo_router.core.events import Event, Outcome, RequestArrived, RequestEnded, Scheduler, Tick, Unanswered
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import PlaceBy
from multislo_router.core.status import CoreStatus, Histogram
from multislo_router.journal import End
from multislo_router.shell.body_scan import BodyScan, scan_body
from multislo_router.shell.client import ClientConnection, Dropped
from multislo_router.shell.cors import Cors
from multislo_router.shell.engine import EngineInstance
from multislo_router.shell.errors import Fault, Reason, error_response, fault_of, response
from multislo_router.shell.exchange import Exchange
from multislo_router.shell.fleet import Fleet
from multislo_router.shell.head_memory import HeadMemory
from multislo_router.shell.internal_errors import InternalErrors, Seam
from multislo_router.shell.metrics import DECISION_EDGES
from multislo_router.shell.models import Models
from multislo_router.shell.prompt_length import PromptLengths
from multislo_router.shell.recording import Recording
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.request_reader import HeldBytes, Rules
from multislo_router.shell.routes import Route, Routes, unknown
from multislo_router.shell.settings import ShellSettings
from multislo_router.shell.slo import RequestSlo, slo_of

RECENT_DECISIONS = 1000
"""Kept for /debug/decisions: about a minute of a busy router, and a few hundred KB."""
IDLE_SHARE_CLOSED = 100
"""Of `connections_max`, the part of idle connections that is closed at once where there are too many: looking for them costs a sort."""
BACKLOG = 4096
"""Connections that the kernel may keep until they are accepted: a burst of clients that all connect at once."""


@dataclass(slots=True)
class Counters:
    """Since the start. What the core counts is not counted here again."""

    connections: int = 0
    requests: int = 0
    passed_through: int = 0
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
        self.recording: Recording | None = None
        """While somebody reads /debug/journal."""
        self.decision_seconds = Histogram(DECISION_EDGES)
        """What the core took for each arriving request."""
        self.counters = Counters()
        self.errors = InternalErrors()
        self.closing = False
        """Health checks are refused, and every answer closes its connection."""
        self.port = 0
        """Where it listens, once started."""
        self.fleet = Fleet(core_config, settings, self.errors, self.tell, self.stalled)
        self.exchanges: dict[int, Exchange] = {}
        """Requests that the core knows or is about to be told of, by its numbers."""
        self.passing: set[Exchange] = set()
        """Requests that it does not know: other paths than completions."""
        self.rules = Rules(
            settings,
            Routes(settings.extra_paths),
            Cors(settings.cors_origins),
            HeldBytes(settings.held_max_bytes),
            self.errors,
        )
        self._suspects: set[Exchange] = set()
        """What nothing seemed to continue at the last sweep."""
        self.models = Models(settings, core_config.length_max, int(time.time()))
        self.heads = HeadMemory(settings.body_max_bytes)
        self.clients: set[ClientConnection] = set()
        self._tiers = frozenset(tier.name for tier in core_config.tiers)
        self._numbers = count(1)
        self._request_id_prefix = os.urandom(6).hex().encode() + b"-"
        self._request_ids = count(1)
        self.lengths = PromptLengths(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._emptied = asyncio.Event()
        """The last client has left a gateway that accepts no more."""
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._wake_armed_for = float("inf")

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> None:
        """Binds (port 0: any free one, see `port`) and begins to serve."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._loop_failed)
        self._server = await self._loop.create_server(self._accept, host, port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        self.fleet.start()
        self._sweep()
        self._arm()

    def _accept(self) -> asyncio.Protocol:
        """For a new connection. One for which nothing can be made would wait in the kernel for ever; it is dropped."""
        try:
            return ClientConnection(self)
        except Exception as error:
            self.errors.failed(Seam.CLIENT, error, None)
            return Dropped()

    def leave(self) -> None:
        """Serves on, but tells clients and balancers to go elsewhere: by its health, and by closing connections behind their answers."""
        self.closing = True

    async def shutdown(self, timeout_s: float) -> None:
        """Accepts no more, lets what is under way finish for at most `timeout_s`, then cuts it off."""
        self.closing = True
        self._emptied.clear()
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
        self.lengths.close()
        await self.fleet.close()
        if self.recording is not None:
            self.recording.end(End.ROUTER_CLOSING)

    # -- the core ------------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> bool:
        """One event for the core, and what it decides. Never raises; False: the core could not take it in."""
        decisions = self._decide(event)
        if decisions is None:
            return False
        self._follow(decisions)
        return True

    def _decide(self, event: Event) -> Sequence[Decision] | None:
        try:
            decisions = self.core.handle(event)
        except Exception as error:
            self._core_failed(event, error)
            return None
        if self.recording is not None:
            self.recording.handled(event, decisions)
        return decisions

    def _follow(self, decisions: Sequence[Decision]) -> None:
        if decisions:
            self._carry_out(decisions)
        wake_at = self.core.wake_at
        if wake_at is not None and wake_at < self._wake_armed_for:
            self._arm()

    def _core_failed(self, event: Event, error: Exception) -> None:
        """The core could not take in an event. Its books are put in order, and the request that the event was about ends; what was
        decided and lost with the event is found by the sweep."""
        exchange = self.exchanges.get(getattr(event, "request", 0))
        about = type(event).__name__ if exchange is None else f"{type(event).__name__} {exchange.name}"
        self.errors.report(Seam.CORE, error, about)
        now = time.monotonic()
        try:
            self.core.recover(now)
        except Exception as second:
            self.errors.report(Seam.CORE, second, "recovery")
        if self.recording is not None:
            self.recording.failed(event, error, now)
        if exchange is not None:
            self.errors.end(Seam.CORE, exchange)

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        at = time.time()
        for decision in decisions:
            self.recent_decisions.append((at, decision))
            if isinstance(decision, Suspect):
                self.fleet.suspect(decision)
                continue
            exchange = self.exchanges.get(decision.request)
            if exchange is None:
                continue
            try:
                if isinstance(decision, Place):
                    exchange.send_to(self.fleet.instances[decision.instance], decision)
                elif isinstance(decision, Hold):
                    exchange.wait()
                else:
                    exchange.refuse(fault_of(decision))
            except Exception as error:
                # One exchange's failure is none of the others'.
                self.errors.failed(Seam.DECISION, error, exchange, exchange.name)

    def stalled(self, instance: EngineInstance) -> None:
        """A suspect engine computes nothing: what can still be moved is."""
        for id, exchange in list(self.exchanges.items()):
            if exchange.instance is instance and exchange.connection is not None and not exchange.started:
                self.tell(Unanswered(time.monotonic(), id))

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
        try:
            now = time.monotonic()
            if self.core.wake_at is not None and self.core.wake_at <= now:
                self.tell(Tick(now))
        except Exception as error:
            self.errors.failed(Seam.TIMER, error, None)
        finally:
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
        status = self.core.status(now)
        if self.recording is not None:
            self.recording.status(now)
        return self.fleet.with_passing(status)

    # -- clients -------------------------------------------------------------------------------------------------------

    def admit(self, client: ClientConnection) -> bool:
        """Whether there is room for one more. Where there is not, those that have been idle longest make it."""
        self.clients.add(client)
        self.counters.connections += 1
        most = self.settings.connections_max
        if len(self.clients) <= most:
            return True
        idle = sorted((other for other in self.clients if other.idle and other is not client), key=lambda c: c.deadline)
        for other in idle[: 1 + most // IDLE_SHARE_CLOSED]:
            other.close()
        return bool(idle)

    def left(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        if self.closing and not self.clients:
            self._emptied.set()

    def new_request_id(self) -> bytes:
        return b"%b%x" % (self._request_id_prefix, next(self._request_ids))

    def begin(self, client: ClientConnection, head: RequestHead, body: bytes) -> None:
        """A complete request: answers it now, or sets `client.exchange` and answers it later."""
        request_id = b""
        try:
            self.counters.requests += 1
            request_id = head.request_id or self.new_request_id()
            match head.target.route:
                case Route.CHAT | Route.COMPLETIONS | Route.RESPONSES | Route.MESSAGES:
                    self._schedule(client, head, body, request_id)
                case Route.PASSED:
                    self._pass_through(client, head, body, request_id)
                case Route.MODELS:
                    document = json.dumps(self.models.answer(head.target.model)).encode()
                    self._answer(client, head, request_id, 200, document)
                case Route.HEALTH:
                    self._answer_health(client, head, request_id)
                case Route.OPTIONS:
                    self._answer(client, head, request_id, 204, b"", b"allow: %b\r\n" % head.target.allow)
                case Route.NOT_FOUND | Route.WRONG_METHOD:
                    raise unknown(head.method, head.target)
        except Fault as fault:
            if client.exchange is None:
                self._answer_fault(client, head, request_id, fault)
            else:
                self._refuse(client.exchange, fault)
        except Exception as error:
            self.errors.failed(Seam.CLIENT, error, client, request_id.decode("latin-1"))

    def _answer_fault(self, client: ClientConnection, head: RequestHead, request_id: bytes, fault: Fault) -> None:
        self.counters.faults[fault.reason] += 1
        close = not head.keep_alive or self.closing
        client.answer(
            error_response(
                fault, request_id, head.target.dialect, close=close, extra=head.cors, head_only=head.method == b"HEAD"
            ),
            close=close,
        )

    def _refuse(self, exchange: Exchange, fault: Fault) -> None:
        """The core has not heard of it."""
        self.counters.faults[fault.reason] += 1
        exchange.refuse(fault)

    def _schedule(self, client: ClientConnection, head: RequestHead, body: bytes, request_id: bytes) -> None:
        scan = scan_body(body, head.target.route)
        slo = slo_of(head, scan.service_tier, self._tiers, self.settings)
        model = self.models.asked_for(scan.model)
        id = next(self._numbers)
        exchange = Exchange(self, client, head, body, request_id, id, scan, model)
        client.exchange = self.exchanges[id] = exchange
        prompts = self.lengths.known(scan, head.target.route)
        if prompts is not None:
            self._arrive(exchange, scan, slo, prompts)
        else:
            self._count_in_thread(exchange, scan, slo)

    def _count_in_thread(self, exchange: Exchange, scan: BodyScan, slo: RequestSlo) -> None:
        def arrive(counted: asyncio.Future[tuple[int, ...]]) -> None:
            try:
                if not exchange.over and not counted.cancelled():
                    self._arrive(exchange, scan, slo, counted.result())
            except Fault as fault:
                self._refuse(exchange, fault)
            except Exception as error:
                self.errors.failed(Seam.TOKENIZER, error, exchange, exchange.name)

        assert self._loop is not None
        counting = self.lengths.in_thread(scan, exchange.head.target.route, self._loop)
        exchange.awaits = counting
        counting.add_done_callback(arrive)

    def _arrive(self, exchange: Exchange, scan: BodyScan, slo: RequestSlo, prompts: tuple[int, ...]) -> None:
        """`prompts`: the tokens of each."""
        id = exchange.id
        assert id is not None
        exchange.awaits = None
        scan.prompt = b""  # a copy of most of the body, which may be held for minutes
        if not self.lengths.is_exact(scan, exchange.head.target.route):
            # It may be less: then the engine serves it, or says itself that it is too long.
            most = self.core.length_max - (scan.output_tokens_max or 1)
            prompts = tuple([max(1, min(tokens, most)) for tokens in prompts])
        now = time.monotonic()
        event = RequestArrived(
            now,
            id,
            sum(prompts),
            scan.output_tokens_max,
            slo.tier,
            slo.ttft_s,
            slo.tpot_s,
            scan.streaming,
            prompts=prompts if len(prompts) > 1 else (),
            choices=scan.choices,
        )
        decisions = self._decide(event)
        self.decision_seconds.observe(time.monotonic() - now)
        if decisions is not None:
            self._follow(decisions)

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over, however it ended."""
        if exchange.id is not None:
            self.exchanges.pop(exchange.id, None)
        elif exchange in self.passing:
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
        whole = response(status, body, request_id, close=close, extra=extra, head_only=head.method == b"HEAD")
        client.answer(whole, close=close)

    # -- timeouts ------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Looks for spent timeouts, of clients, engines and idle connections, and for what nothing would continue."""
        try:
            self._swept(time.monotonic())
        except Exception as error:
            self.errors.failed(Seam.TIMER, error, None)
        finally:
            assert self._loop is not None
            self._sweep_timer = self._loop.call_later(self.settings.sweep_interval_s, self._sweep)

    def _swept(self, now: float) -> None:
        for client in list(self.clients):
            try:
                if client.overdue(now):
                    client.expired()
            except Exception as error:
                self.errors.failed(Seam.TIMER, error, client)
        silent_since = now - self.settings.engine_silence_timeout_s
        keep_alive_s = self.settings.stream_keep_alive_s
        suspects: set[Exchange] = set()
        for exchange in [*self.exchanges.values(), *self.passing]:
            try:
                if exchange.connection is not None and exchange.heard_at <= silent_since:
                    exchange.silent()
                elif exchange.stuck:
                    suspects.add(exchange)
                elif keep_alive_s:
                    exchange.keep_alive(now, keep_alive_s)
            except Exception as error:
                self.errors.failed(Seam.TIMER, error, exchange, exchange.name)
        self._end_lost(suspects)
        self.fleet.close_idle(now - self.settings.engine_idle_timeout_s)

    def _end_lost(self, suspects: set[Exchange]) -> None:
        """The net under everything: whatever went wrong, a request that nothing continues, at two sweeps in a row, is ended; and so is
        one that only the core still knows."""
        for exchange in suspects & self._suspects:
            self.errors.failed(Seam.LOST, RuntimeError("nothing continues it"), exchange, exchange.name)
        self._suspects = suspects
        for id in self.core.requests.keys() - self.exchanges.keys():
            self.errors.report(Seam.LOST, None, f"request {id} is over, and the core was not told")
            self.tell(RequestEnded(time.monotonic(), id, Outcome.ROUTER_FAILED))

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """An exception that nobody caught, on its way to the log."""
        error = context.get("exception")
        self.errors.report(Seam.LOOP, error if isinstance(error, BaseException) else None, str(context.get("message")))
