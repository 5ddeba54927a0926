"""One request on its way: from a complete body, through the core's decisions and an engine's answer, to the last byte for the client.

    waiting --Place--> sent --first byte of the answer--> answering --last byte--> over
       ^                 |                                   |
       `-----------------'                                   `-- an engine that dies here ends the client's answer too
        EngineFull: its engine answered 503 or 429
        SendFailed: its connection broke, or it answered what may pass

A client of a stream that would wait too long without a byte gets comments (`keep_alive`): the answer is open then, and errors are events.

An engine's error that may be another one's success is withheld (`MAY_PASS`). If the request is not served after all, the last engine's own
answer is what the client gets.

Made by the gateway; driven by the gateway's decisions, by its engine connection and by its client's connection.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from multislo_router.core.decisions import Place
from multislo_router.core.events import (
    EngineFull,
    Outcome,
    PromptMeasured,
    RequestEnded,
    SendFailed,
    SequenceEnded,
    TokensReceived,
)
from multislo_router.core.request import Stage
from multislo_router.shell.body_scan import BodyScan, with_fields
from multislo_router.shell.engine import NO_ANSWER
from multislo_router.shell.errors import Fault, Reason, error_event, error_response
from multislo_router.shell.open_stream import COMMENT, LAST_CHUNK, as_events, chunk, stream_head
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.response_head import ChunkedBody, EngineSpokeNonsense, ResponseBody, ResponseHead
from multislo_router.shell.routes import Route
from multislo_router.shell.served_tier import ServedTier, served_tier
from multislo_router.shell.sse import EventCount, WholeAnswer

if TYPE_CHECKING:
    from multislo_router.shell.client import ClientConnection
    from multislo_router.shell.engine import EngineConnection, EngineInstance
    from multislo_router.shell.gateway import Gateway

FULL: Final = frozenset((429, 503))
"""The engine has no room right now: vLLM's --max-num-queued-reqs answers 503."""
DEAD_OR_DETERMINISTIC: Final = 500
"""The engine broke on this request, or under all of them. Which, its /health tells."""
MAY_PASS: Final = FULL | {DEAD_OR_DETERMINISTIC, 502, 504}
"""Answers that another engine, or this one later, may not give; 502 and 504 are a proxy's before it."""
OPENAI_SERVICE_TIERS: Final = frozenset((None, "auto", "default", "flex", "scale", "priority"))
"""What an engine may be told in `service_tier` of the Responses API; None: nothing."""
ASIDE_MAX_BYTES: Final = 16 * 1024 * 1024
"""Of a whole answer in the place of a stream, which is collected."""
WITHHELD_MAX_BYTES: Final = 64 * 1024
"""Of an answer with such a status: it is an error object. A longer one is relayed."""


class Exchange:
    """`id` is the core's number of the request; None for one that is passed through without the core."""

    __slots__ = (
        "_answer",
        "_answer_body",
        "_answer_head",
        "_aside",
        "_client",
        "_close_after",
        "_events",
        "_gateway",
        "_model",
        "_opened",
        "_scan",
        "_served",
        "_told_at",
        "_whole",
        "_withheld",
        "awaits",
        "body",
        "connection",
        "head",
        "heard_at",
        "id",
        "instance",
        "over",
        "place",
        "request_id",
        "started",
    )

    def __init__(
        self,
        gateway: "Gateway",
        client: "ClientConnection",
        head: RequestHead,
        body: bytes,
        request_id: bytes,
        id: int | None,
        scan: BodyScan | None,
        model: str | None = None,
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._scan = scan
        self._model = model
        """Whose tokens are counted."""
        self._served: ServedTier | None = None
        self._events: EventCount | None = None
        self._whole: WholeAnswer | None = None
        self._answer: ResponseHead | None = None
        self._answer_body: ResponseBody | None = None
        self._answer_head = b""
        self._withheld: bytes | None = None
        """The last engine's answer as the client would get it, while another engine may give a better one."""
        self._aside = b""
        """The content of an answer that is withheld, or that no stream can relay as it is."""
        self._opened = False
        """The router has begun the answer itself, as a stream that has nothing but comments in it yet."""
        self._told_at = 0.0
        """When the client got the last comment; first, when it was seen to wait."""
        self._close_after = False
        self.head = head
        self.body = body
        self.request_id = request_id
        self.id = id
        self.place: Place | None = None
        self.instance: EngineInstance | None = None
        self.connection: EngineConnection | None = None
        self.awaits: asyncio.Future[None] | asyncio.Future[tuple[int, ...]] | None = None
        """What will continue it: the count of its prompt's tokens, or a connection being made."""
        self.heard_at = 0.0
        """When the request was sent, or the last byte of its answer came."""
        self.started = False
        """A byte of the answer went to the client: from here on nothing can be tried again."""
        self.over = False

    # -- towards the engine --------------------------------------------------------------------------------------------

    def send_to(self, instance: "EngineInstance", place: Place | None) -> None:
        self._detach()  # an engine that gives no sign of life has it still
        self.instance = instance
        self.place = place
        self.heard_at = time.monotonic()
        self._answer = self._answer_body = self._withheld = None
        if place is None:
            instance.passing += 1
        instance.send(self)

    def wait(self) -> None:
        """No instance has room for it yet. The one that it came back from may be one that gives no sign of life."""
        self._detach()

    def wire(self) -> tuple[bytes, bytes]:
        """The request as it goes to the engine: its head and its body, which no copy is made of."""
        head = self.head
        body = self.body
        assert self.instance is not None
        if self.place is not None:
            fields = self._own_fields(self.place)
            if fields:
                body = with_fields(body, fields)
        length = b"content-length: %d\r\n" % len(body) if body or head.has_body or head.method == b"POST" else b""
        lines = b"%b %b HTTP/1.1\r\n%b%bx-request-id: %b\r\n%b\r\n" % (
            head.method,
            head.target.wire,
            self.instance.host_line,
            head.relayed,
            self.request_id,
            length,
        )
        return lines, body

    def _own_fields(self, place: Place) -> bytes:
        """What the engine's scheduler is told, unless the client told it something itself."""
        scan = self._scan
        assert scan is not None
        fields: list[bytes] = []
        if place.priority is not None and not scan.has_priority:
            # On the clock that all routers share: an engine compares what several of them send.
            fields.append(b'"priority":%d' % (place.priority + round(1000 * (time.time() - time.monotonic()))))
        if self._gateway.slo_aware and not scan.has_xargs:
            # The engine has a clock of its own: it is told what is left, not when; below 0, how long it is overdue.
            now = time.monotonic()
            slo = b'"slo_ttft_ms":%.3f,"slo_tpot_ms":%.3f' % (1000 * (place.ttft_due - now), 1000 * place.tpot_s)
            if place.second_due > place.ttft_due:
                slo += b',"slo_late_ttft_ms":%.3f' % (1000 * (place.second_due - now))
            fields.append(b'"vllm_xargs":{%b}' % slo)
        if self.head.target.route is Route.RESPONSES and scan.service_tier not in OPENAI_SERVICE_TIERS:
            # vLLM refuses a tier's name, in this API only. Of two fields of one name the later counts.
            fields.append(b'"service_tier":"auto"')
        return b",".join(fields)

    @property
    def _extra(self) -> bytes:
        """Header lines of its answer, whoever gives it."""
        head = self.head
        return b"request-id: %b\r\n%b" % (self.request_id, head.cors) if head.target.is_anthropic else head.cors

    # -- the engine's answer -------------------------------------------------------------------------------------------

    def head_received(self, answer: ResponseHead, body: ResponseBody) -> None:
        """Takes the head of an answer; it goes out with the first bytes of its body, so that an engine that dies between the two can
        still be replaced."""
        self.heard_at = time.monotonic()
        assert self.instance is not None
        self.instance.answers[answer.status] += 1
        self._answer = answer
        self._answer_body = body
        place = self.place
        head = self.head
        if place is not None:
            assert self._scan is not None
            sequences = max(1, len(self._scan.prompts)) * self._scan.choices
            self._events = EventCount(sequences) if answer.event_stream else None
            self._whole = None if answer.event_stream else WholeAnswer()
            tier = b"x-multislo-tier: %b\r\n" % place.tier.encode()
            asked = self._scan.service_tier is not None
            self._served = served_tier(place.tier, head.target.route, answer, body) if asked else None
        else:
            tier = b""
        self._aside = b""
        self._close_after = (
            not head.keep_alive or self._gateway.closing or (body.ends_with_connection and not self._opened)
        )
        lines = answer.lines
        if head.http_1_0 and answer.chunked:
            lines = b"".join(
                line for line in lines.splitlines(keepends=True) if not line.lower().startswith(b"transfer-encoding:")
            )
        self._answer_head = b"%bx-request-id: %b\r\nx-multislo-instance: %b\r\n%b%b%b%b\r\n" % (
            answer.status_line,
            self.request_id,
            self.instance.id_bytes,
            tier,
            self._extra,
            b"connection: close\r\n" if self._close_after else b"",
            lines,
        )
        if self.id is not None and answer.status in MAY_PASS:
            self._withheld = self._answer_head

    def body_received(self, relayed: bytes, body: ResponseBody) -> None:
        """The next bytes of the answer, as they are relayed; `body` holds the content in them, and whether they are the last."""
        now = self.heard_at = time.monotonic()
        tokens = 0
        events = self._events
        if events is not None:
            for piece in body.pieces:
                tokens += events.feed(piece)
                if events.several:
                    tokens -= self._tell_sequences(now, events)
        elif self._whole is not None:
            for piece in body.pieces:
                self._whole.feed(piece)
        relayed = self._framed(relayed, body)
        if self._opened and not self._relays:
            self._keep_aside(body, now)
            return
        if self._withheld is not None:
            self._withheld += relayed
            self._aside += b"".join(body.pieces)
            if body.done:
                self._failed_by_answer(now)
                return
            if len(self._withheld) <= WITHHELD_MAX_BYTES:
                return
            relayed, self._answer_head, self._withheld = self._withheld, b"", None
        if not self.started and (relayed or body.done):
            self.started = True
            self.body = b""
            self._client.count_held()
            if self._served is not None:
                self._answer_head = self._served.head(self._answer_head, relayed)
            if not self._opened:
                relayed = self._answer_head + relayed
        if relayed:
            self._client.write(relayed)
        if self.id is not None and tokens and not self.over:
            self._gateway.tell(TokensReceived(now, self.id, tokens))
        if body.done and not self.over:
            self._complete(now)

    def _tell_sequences(self, now: float, events: EventCount) -> int:
        """What the last piece brought each of several sequences; how many tokens that were."""
        id = self.id
        if id is None or self.over:
            return 0
        for sequence, tokens in events.tokens_of.items():
            self._gateway.tell(TokensReceived(now, id, tokens, sequence))
        for sequence in events.ended:
            self._gateway.tell(SequenceEnded(now, id, sequence))
        return sum(events.tokens_of.values())

    @property
    def _relays(self) -> bool:
        """Whether the engine's answer can go on with a stream that is open already."""
        return self._answer is not None and self._answer.event_stream and self._answer.status == 200

    def _framed(self, relayed: bytes, body: ResponseBody) -> bytes:
        """The last pieces of the answer as this client gets them: in chunks if the engine sends them so, or if the router has said so."""
        chunked = not self.head.http_1_0 and (self._opened or isinstance(body, ChunkedBody))
        if self._served is not None:
            return self._served.relay(body, chunked=chunked)
        if chunked == isinstance(body, ChunkedBody):
            return relayed
        if not chunked:
            return b"".join(body.pieces)
        return b"".join([chunk(piece) for piece in body.pieces if piece]) + (LAST_CHUNK if body.done else b"")

    def _keep_aside(self, body: ResponseBody, now: float) -> None:
        """The stream is open, and the engine's answer is none: once it is whole, it becomes its last event."""
        assert self._answer is not None
        self._aside += b"".join(body.pieces)
        if len(self._aside) > ASIDE_MAX_BYTES:
            raise EngineSpokeNonsense("endless answer that is no stream of events")
        if not body.done:
            return
        if self._withheld is not None:
            self._failed_by_answer(now)
            return
        self.started = True
        self._client.write(self._ending(self._as_events(self._answer)))
        self._complete(now)

    def _as_events(self, answer: ResponseHead) -> bytes:
        return as_events(answer.status, self._aside, self.head.target.dialect, self.request_id)

    def _ending(self, events: bytes) -> bytes:
        """The end of a stream that is open."""
        return events if self.head.http_1_0 else chunk(events) + LAST_CHUNK

    def keep_alive(self, now: float, silent_max_s: float) -> None:
        """Sends a comment if the client of a stream has got nothing for too long, and opens the answer with it if need be."""
        if not self._told_at:
            self._told_at = now
        if now - max(self._told_at, self.heard_at) < silent_max_s or self._client.unread:
            return
        if self._scan is None or not self._scan.streaming:
            return
        if self.started:
            if not self._between_events:
                return
        elif not self._opened:
            if self._answer is not None and self._withheld is None and not self._relays:
                return  # an answer that is no stream is on its way
            self._open()
        self._told_at = now
        self._client.write(COMMENT if self.head.http_1_0 else chunk(COMMENT))

    def _open(self) -> None:
        self._opened = True
        head = self.head
        self._close_after = not head.keep_alive or self._gateway.closing
        tier = self._gateway.core.tier_of(self.id) if self.id is not None else None
        line = b"" if tier is None else b"x-multislo-tier: %b\r\n" % tier.encode()
        self._client.write(
            stream_head(self.request_id, line, self._extra, chunked=not head.http_1_0, close=self._close_after)
        )

    @property
    def _between_events(self) -> bool:
        """What the client got last ends an event, and a chunk."""
        body = self._answer_body
        if body is None or self._events is None or not (self._opened or isinstance(body, ChunkedBody)):
            return False
        return (not isinstance(body, ChunkedBody) or body.whole) and self._events.between

    def _release(self) -> None:
        if self.connection is not None:
            self.connection.release()
            self.connection = None

    def _complete(self, now: float) -> None:
        self._release()  # first, so that a held request can be sent on this very connection
        self._leave()
        if self.id is not None:
            self._tell_completion(now, self.id)
        self._client.finished(close=self._close_after)

    def _leave(self, outcome: Outcome | None = None) -> None:
        """It is over; `outcome` is for the core, if it does not know."""
        self.over = True
        self._gateway.ended(self)
        if outcome is not None and self.id is not None:
            self._gateway.tell(RequestEnded(time.monotonic(), self.id, outcome))

    def _tell_completion(self, now: float, id: int) -> None:
        prompt: int | None = None
        tokens = unseen = 0
        assert self._answer is not None
        outcome = _outcome_of(self._answer.status)
        if self._events is not None:
            prompt = self._events.usage.prompt_tokens
            told = self._events.usage.completion_tokens or 0
            unseen = told - self._events.tokens
            if self._events.several:
                tokens = told
            if self._events.failed:
                outcome = Outcome.ENGINE_FAILED
        elif self._whole is not None:
            self._whole.end()
            prompt = self._whole.usage.prompt_tokens
            tokens = self._whole.usage.completion_tokens or 0
        if prompt is not None:
            self._gateway.tell(PromptMeasured(now, id, prompt))
            assert self._scan is not None
            self._gateway.lengths.measured(self._scan, self.head.target.route, prompt)
        if unseen > 0 and not tokens:
            # The engine packs several tokens into one event, and said in the end how many there were.
            self._gateway.tell(TokensReceived(now, id, unseen))
        if self._model is not None:
            produced = tokens if self._events is None else max(unseen, 0) + self._events.tokens
            self._gateway.models.output_tokens[self._model] += produced
        self._gateway.tell(RequestEnded(now, id, outcome, tokens))

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def _failed_by_answer(self, now: float) -> None:
        """The engine's whole answer is withheld: it has no room, or failed in a way that may pass."""
        assert self._answer is not None
        assert self.id is not None
        self._release()
        status = self._answer.status
        if status == DEAD_OR_DETERMINISTIC:
            assert self.instance is not None
            self.awaits = self._gateway.fleet.ask_health(self.instance, self._health_told, self)
        elif status in FULL:
            self._gateway.tell(EngineFull(now, self.id, self._answer.retry_after_s))
        else:
            self._gateway.tell(SendFailed(now, self.id))

    def _health_told(self, well: bool) -> None:
        """Of the engine that answered 500. One that is well would answer the same again, and so would any other."""
        if self.over:
            return
        if well:
            self._refuse_as_engine(Outcome.ENGINE_FAILED)
        else:
            assert self.instance is not None
            self._gateway.fleet.failed(self.instance)
            self._tell_failure("the engine has died")

    def _refuse_as_engine(self, outcome: Outcome | None = None) -> None:
        """Answers as the last engine did."""
        assert self._withheld is not None
        self._leave(outcome)
        answer = self._withheld
        if self._opened:
            assert self._answer is not None
            answer = self._ending(self._as_events(self._answer))
        self._client.answer(answer, close=self._close_after)

    def engine_lost(self, why: str) -> None:
        """The connection broke, or could not be made. Tried elsewhere if the client has seen nothing yet and the core knows a place."""
        if self.over:
            return
        assert self.instance is not None
        self._detach()
        self.instance.answers[NO_ANSWER] += 1
        self._gateway.fleet.failed(self.instance)
        if not self.started:
            self._tell_failure(why)
            return
        self._engine_failed(why)

    def _engine_failed(self, why: str) -> None:
        fault = Fault(Reason.ENGINE_FAILED, f"the engine failed during the answer: {why}")
        self._end_failed(fault, Outcome.ENGINE_FAILED)

    def _tell_failure(self, why: str) -> None:
        """The request failed with nothing sent to the client."""
        if self.id is None:
            self.refuse(Fault(Reason.ENGINE_FAILED, f"the engine failed: {why}"))
        else:
            self._gateway.tell(SendFailed(time.monotonic(), self.id))

    def _end_failed(self, fault: Fault, outcome: Outcome) -> None:
        """The answer has begun and cannot go on. A stream ends with an error event; anything else is cut off, so that the client
        does not take it for whole."""
        self._leave(outcome)
        self._gateway.counters.answers_cut += 1
        body = self._answer_body
        if self._events is not None and (body.whole if isinstance(body, ChunkedBody) else self._opened):
            # The empty line ends an event that the engine has left incomplete.
            event = b"" if self._events.between else b"\n\n"
            event += error_event(fault, self.head.target.dialect, self.request_id)
            # No last chunk: with one, a client would take its connection for free and lose its next request to the close.
            self._client.write(event if self.head.http_1_0 else chunk(event))
            self._client.finished(close=True)
        else:
            self._client.cut()

    def silent(self) -> None:
        """The engine has said nothing for too long."""
        self._detach()
        if self.started:
            self._engine_failed("it fell silent")
            return
        self.refuse(Fault(Reason.ENGINE_SILENT, "the engine did not answer in time"), Outcome.ENGINE_FAILED)

    def refuse(self, fault: Fault, outcome: Outcome | None = None) -> None:
        """Answers with an error, or with that of the engine that has spoken last; `outcome` is for the core, if it does not know."""
        if self._withheld is not None:
            self._refuse_as_engine(outcome)
            return
        self._leave(outcome)
        dialect = self.head.target.dialect
        if self._opened:
            self._client.answer(self._ending(error_event(fault, dialect, self.request_id)), close=self._close_after)
            return
        head = self.head
        close = not head.keep_alive or self._gateway.closing
        head_only = head.method == b"HEAD"
        answer = error_response(fault, self.request_id, dialect, close=close, extra=head.cors, head_only=head_only)
        self._client.answer(answer, close=close)

    def client_gone(self) -> None:
        """The client closed its connection: the engine stops generating, and the place is free."""
        if self.over:
            return
        self._detach()
        self._gateway.counters.clients_gone += 1
        self._leave(Outcome.CLIENT_GONE)

    def crashed(self) -> None:
        """The router itself failed on it."""
        self._detach()
        if self.over:
            # It was being finished: the client has its answer, or sees by the end of the connection that it has none.
            self._gateway.ended(self)
            if self._client.exchange is self:
                whole = self._answer_body is not None and self._answer_body.done
                if (self.started or self._opened) and not whole:
                    self._client.cut()
                else:
                    self._client.close()
            return
        fault = Fault(Reason.INTERNAL, "the router failed on this request")
        if self.started:
            self._end_failed(fault, Outcome.ROUTER_FAILED)
        else:
            self.refuse(fault, Outcome.ROUTER_FAILED)

    def drop(self) -> None:
        """Even its error could not be told."""
        self._gateway.ended(self)
        self._client.transport.abort()
        self._detach()

    @property
    def name(self) -> str:
        """For a log."""
        return self.request_id.decode("latin-1")

    @property
    def stuck(self) -> bool:
        """Nothing would ever continue it. Asked between two turns of the event loop."""
        if self.over:
            return True
        if self.connection is not None:
            return self.connection.exchange is not self
        if self.awaits is not None and not self.awaits.done():
            return False
        return self.id is None or self._gateway.core.stage_of(self.id) is not Stage.HELD

    def _detach(self) -> None:
        if self.connection is not None:
            self.connection.abort()
            self.connection = None

    # -- back-pressure -------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        if self.connection is not None and not self.connection.transport.is_closing():
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        if self.connection is not None and not self.connection.transport.is_closing():
            self.connection.transport.resume_reading()


def _outcome_of(status: int) -> Outcome:
    """What an engine's answer makes of a request."""
    if status < 300:
        return Outcome.COMPLETED
    return Outcome.CLIENT_ERROR if status < 500 else Outcome.ENGINE_FAILED
