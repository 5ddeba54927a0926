"""The emulator's HTTP: the endpoints of a vLLM server, as handlers over one `LiveEngine`."""

import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, web

from multislo_engine.emulator.body import (
    Ask,
    DetokenizeBody,
    Refusal,
    TokenizeBody,
    bad_request,
    chat_ask,
    chat_tokens,
    completion_ask,
    parse,
)
from multislo_engine.emulator.config import EmulatorConfig
from multislo_engine.emulator.live import LiveEngine
from multislo_engine.emulator.metrics import EngineCollector, EngineStats
from multislo_engine.emulator.streams import StreamSink, WholeSink
from multislo_engine.emulator.text import text_of, tokens_of
from multislo_engine.emulator.wire import Reply
from multislo_engine.model import EngineModel
from multislo_engine.planners import planner_named
from multislo_engine.terms import EngineConfig

VERSION = "0.33.0"
"""The vLLM that is imitated."""
BODY_BYTES_MAX = 256 * 1024 * 1024
"""A prompt of a million token ids is 7 MB; beyond this a body is a mistake."""
OUTPUT_TOKENS_MEDIAN = 180
OUTPUT_TOKENS_SPREAD = 0.8
"""Lengths that a client leaves to the model: log-normal, median and sigma about as in public chat traces."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EmulatorApp:
    """One emulated engine and its endpoints. Make it inside the running loop."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        jitter: Callable[[], float] | None = None
        if config.jitter > 0.0:
            dice = random.Random(f"{config.seed} jitter")
            sigma = config.jitter

            def jitter() -> float:
                return dice.lognormvariate(-0.5 * sigma * sigma, sigma)  # its mean is 1

        self.model = EngineModel(
            config.latency,
            EngineConfig(config.kv_tokens_max, config.batch_tokens, config.seqs_max, queue_max=config.queue_max),
            planner_named(config.scheduler, config.belief),
            jitter,
        )
        self.stats = EngineStats()
        self.engine = LiveEngine(self.model, self.stats)
        self.draining = False
        """New requests are answered at once with `finish_reason: abort`."""
        self._collector = EngineCollector(config, self.model, self.stats)
        self._lengths = random.Random(f"{config.seed} lengths")
        self._started = int(time.time())

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._guarded(self.chat)),
                web.post("/v1/completions", self._guarded(self.completions)),
                web.get("/v1/models", self._guarded(self.models)),
                web.get("/health", self.healthy),
                web.get("/ping", self.healthy),
                web.post("/ping", self.healthy),
                web.get("/version", self.version),
                web.get("/metrics", self.metrics),
                web.post("/tokenize", self._guarded(self.tokenize)),
                web.post("/detokenize", self._guarded(self.detokenize)),
            ]
        )
        return app

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except Refusal as refusal:
                return web.json_response(refusal.body(), status=refusal.status, headers=_headers(request))

        return guarded

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat_ask(await request.read()), chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, completion_ask(await request.read()), chat=False)

    async def models(self, request: web.Request) -> web.StreamResponse:
        cards: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "vllm",
                "root": root,
                "parent": parent,
                "max_model_len": self.config.max_model_len,
                "permission": [],
            }
            for name, root, parent in (
                *((name, self.config.model, None) for name in self.config.names),
                *((name, path, self.config.names[0]) for name, path in self.config.adapters),
            )
        ]
        return web.json_response({"object": "list", "data": cards}, headers=_headers(request))

    async def healthy(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": VERSION})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        page = self._collector.render(time.monotonic())
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        body = parse(TokenizeBody, await request.read())
        self._known(body.model)
        if body.messages:
            # The template's own tokens have no text; they stand in front as zeros.
            text = "".join([message.content for message in body.messages if isinstance(message.content, str)])
            tokens = tokens_of(text)
            tokens = [0] * max(0, chat_tokens(body.messages) - len(tokens)) + tokens
        else:
            tokens = tokens_of(body.prompt or "")
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": self.config.max_model_len,
            "tokens": tokens,
            "token_strs": [text_of([token]) for token in tokens] if body.return_token_strs else None,
        }
        return web.json_response(answer)

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        body = parse(DetokenizeBody, await request.read())
        self._known(body.model)
        return web.json_response({"prompt": text_of(body.tokens)})

    async def _generate(self, request: web.Request, ask: Ask, chat: bool) -> web.StreamResponse:
        name = self._known(ask.model)
        if ask.priority and self.config.scheduler != "priority":
            raise bad_request(f"priority: {ask.priority} needs a server with --scheduler priority", "priority")
        output_tokens, limited = self._length(ask)
        # The client's id is the reply's, as in vLLM; inside, requests are numbered.
        headers = _headers(request)
        id = f"{'chatcmpl' if chat else 'cmpl'}-{headers['x-request-id']}"
        reply = Reply(id, int(time.time()), name, chat, ask.prompt_tokens)
        load = self._load(request)
        if load is not None:
            headers["endpoint-load-metrics"] = load
        if ask.stream:
            return await self._stream(request, ask, reply, output_tokens, limited, headers)
        sink = WholeSink("length" if limited else "stop")
        number = self._submit(sink, ask, output_tokens, limited)
        try:
            await sink.over.wait()
        finally:
            self._leave(number)
        body = reply.whole(sink.tokens, sink.finish_reason)
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self,
        request: web.Request,
        ask: Ask,
        reply: Reply,
        output_tokens: int,
        limited: bool,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        chunked = request.version >= HttpVersion11
        reason = "length" if limited else "stop"
        sink = StreamSink(reply, transport, reason, ask.include_usage, ask.continuous_usage, chunked)
        # Submitted before the headers are sent: a full queue is a status, not a broken stream. No token comes before the
        # headers: prepare() writes them in this very turn of the event loop.
        number = self._submit(sink, ask, output_tokens, limited)
        try:
            response = web.StreamResponse(headers=headers)
            response.content_type = "text/event-stream"
            response.charset = "utf-8"
            if chunked:
                response.enable_chunked_encoding()
            await response.prepare(request)
            await sink.over.wait()
            await response.write(sink.unsent())
            await response.write_eof()
            return response
        finally:
            self._leave(number)

    def _known(self, name: str | None) -> str:
        if name is None:
            return self.config.names[0]
        if name not in self.config.names and name not in dict(self.config.adapters):
            raise Refusal(404, "NotFoundError", f"model: {name!r} is not served here", "model")
        return name

    def _length(self, ask: Ask) -> tuple[int, bool]:
        """Output tokens of a request, and whether a limit (not the model's own end) sets them."""
        room = self.config.max_model_len - ask.prompt_tokens
        wanted = ask.output_tokens_max if ask.output_tokens_max is not None else max(1, ask.output_tokens_min)
        if wanted > room:
            raise bad_request(
                f"the model holds {self.config.max_model_len} tokens, and this request asks for "
                f"{ask.prompt_tokens + wanted}: {ask.prompt_tokens} of the prompt and {wanted} of output",
                "max_tokens" if room > 0 and ask.output_tokens_max is not None else "prompt",
            )
        if ask.output_tokens_max is not None:
            return ask.output_tokens_max, True
        if ask.ignore_eos:
            return room, True
        drawn = round(self._lengths.lognormvariate(0.0, OUTPUT_TOKENS_SPREAD) * OUTPUT_TOKENS_MEDIAN)
        drawn = max(1, drawn, ask.output_tokens_min)
        return (drawn, False) if drawn < room else (room, True)

    def _submit(self, sink: StreamSink | WholeSink, ask: Ask, output_tokens: int, limited: bool) -> int | None:
        if self.draining:
            sink.abort()
            return None
        number = self.engine.submit(
            sink, ask.prompt_tokens, output_tokens, limited, ask.priority, ask.slo_ttft_s, ask.slo_tpot_s
        )
        if number is None:
            waiting = self.config.queue_max
            raise Refusal(503, "ServiceUnavailableError", f"the queue is full: {waiting} requests wait already")
        return number

    def _leave(self, number: int | None) -> None:
        """Whatever ends a request, its client's leaving above all, takes it out of the engine."""
        if number is not None:
            self.engine.abort(number)

    def _load(self, request: web.Request) -> str | None:
        """The load report that gateways ask for (ORCA), by request header."""
        kind = request.headers.get("endpoint-load-metrics-format", "").upper()
        metrics = {
            "kv_cache_usage_perc": self.model.kv_tokens / self.config.kv_tokens_max,
            "num_requests_waiting": self.model.waiting,
        }
        if kind == "JSON":
            return "JSON " + json.dumps({"named_metrics": metrics})
        if kind == "TEXT":
            return "TEXT " + ", ".join([f"named_metrics.{name}={value}" for name, value in metrics.items()])
        return None


def _headers(request: web.Request) -> dict[str, str]:
    return {"x-request-id": request.headers.get("x-request-id") or uuid.uuid4().hex}
