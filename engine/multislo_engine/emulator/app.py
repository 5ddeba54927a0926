"""The emulator's HTTP: the endpoints of a vLLM server, as handlers over one `LiveEngine`."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import HttpVersion11, web

from multislo_engine.emulator.body import (
    Ask,
    CountTokensBody,
    DetokenizeBody,
    Refusal,
    TokenizeBody,
    bad_request,
    chat_ask,
    chat_tokens,
    completion_ask,
    messages_ask,
    messages_tokens,
    parse,
    responses_ask,
)
from multislo_engine.emulator.config import EmulatorConfig
from multislo_engine.emulator.live import LiveEngine, Output
from multislo_engine.emulator.messages import MessagesReply, error_body
from multislo_engine.emulator.metrics import EngineCollector, EngineStats
from multislo_engine.emulator.responses import ResponsesReply
from multislo_engine.emulator.streams import StreamSink, WholeSink
from multislo_engine.emulator.text import text_of, tokens_of
from multislo_engine.emulator.wire import CompletionReply, Reply
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
                web.post("/v1/responses", self._guarded(self.responses)),
                web.post("/v1/messages", self._guarded(self.messages, error_body)),
                web.post("/v1/messages/count_tokens", self._guarded(self.count_tokens, error_body)),
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

    def _guarded(self, handler: Handler, body_of: Callable[[str, str], dict[str, Any]] | None = None) -> Handler:
        """`body_of` makes an error's body of its type and message, where the API is not OpenAI's."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except Refusal as refusal:
                body = refusal.body() if body_of is None else body_of(refusal.kind, str(refusal))
                return web.json_response(body, status=refusal.status, headers=_headers(request))

        return guarded

    async def chat(self, request: web.Request) -> web.StreamResponse:
        ask = chat_ask(await request.read())
        return await self._generate(request, ask, partial(_completion_reply, ask, True))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        ask = completion_ask(await request.read())
        return await self._generate(request, ask, partial(_completion_reply, ask, False))

    async def responses(self, request: web.Request) -> web.StreamResponse:
        ask = responses_ask(await request.read())
        return await self._generate(
            request, ask, lambda id, model: ResponsesReply(f"resp_{id}", int(time.time()), model, sum(ask.prompts))
        )

    async def messages(self, request: web.Request) -> web.StreamResponse:
        ask = messages_ask(await request.read())
        return await self._generate(
            request, ask, lambda id, model: MessagesReply(f"chatcmpl-{id}", model, sum(ask.prompts))
        )

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        body = parse(CountTokensBody, await request.read())
        self._known(body.model)
        return web.json_response({"input_tokens": messages_tokens(body)}, headers=_headers(request))

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

    async def _generate(
        self, request: web.Request, ask: Ask, reply_of: Callable[[str, str], Reply]
    ) -> web.StreamResponse:
        """`reply_of` makes the reply from the request's id and the model's name."""
        name = self._known(ask.model)
        if ask.priority and self.config.scheduler != "priority":
            raise bad_request(f"priority: {ask.priority} needs a server with --scheduler priority", "priority")
        lengths = [self._length(ask, prompt) for prompt in ask.prompts for _ in range(ask.choices)]
        # The client's id is the reply's, as in vLLM; inside, requests are numbered.
        headers = _headers(request)
        reply = reply_of(headers["x-request-id"], name)
        load = self._load(request)
        if load is not None:
            headers["endpoint-load-metrics"] = load
        if ask.stream:
            return await self._stream(request, ask, reply, lengths, headers)
        sinks = [WholeSink("length" if limited else "stop") for _, limited in lengths]
        numbers = self._submit(sinks, ask, lengths)
        try:
            for sink in sinks:
                await sink.over.wait()
        finally:
            self._leave(numbers)
        body = reply.whole([(sink.tokens, sink.finish_reason) for sink in sinks])
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self, request: web.Request, ask: Ask, reply: Reply, lengths: list[tuple[int, bool]], headers: dict[str, str]
    ) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        chunked = request.version >= HttpVersion11
        sinks = [
            StreamSink(reply, index, transport, "length" if limited else "stop", chunked)
            for index, (_, limited) in enumerate(lengths)
        ]
        # Submitted before the headers are sent: a full queue is a status, not a broken stream.
        numbers = self._submit(sinks, ask, lengths)
        try:
            response = web.StreamResponse(headers=headers)
            response.content_type = "text/event-stream"
            response.charset = "utf-8"
            if chunked:
                response.enable_chunked_encoding()
            await response.prepare(request)
            for sink in sinks:
                sink.begun = True

            async def last_piece(sink: StreamSink) -> None:
                await sink.over.wait()
                await response.write(sink.unsent())

            await asyncio.gather(*map(last_piece, sinks))
            await response.write(reply.closing([(sink.tokens, sink.finish_reason) for sink in sinks]))
            await response.write_eof()
            return response
        finally:
            self._leave(numbers)

    def _known(self, name: str | None) -> str:
        if name is None:
            return self.config.names[0]
        if name not in self.config.names and name not in dict(self.config.adapters):
            raise Refusal(404, "NotFoundError", f"model: {name!r} is not served here", "model")
        return name

    def _length(self, ask: Ask, prompt_tokens: int) -> tuple[int, bool]:
        """Output tokens of a sequence, and whether a limit (not the model's own end) sets them."""
        room = self.config.max_model_len - prompt_tokens
        wanted = ask.output_tokens_max if ask.output_tokens_max is not None else max(1, ask.output_tokens_min)
        if wanted > room:
            raise bad_request(
                f"the model holds {self.config.max_model_len} tokens, and this request asks for "
                f"{prompt_tokens + wanted}: {prompt_tokens} of the prompt and {wanted} of output",
                "max_tokens" if room > 0 and ask.output_tokens_max is not None else "prompt",
            )
        if ask.output_tokens_max is not None:
            return ask.output_tokens_max, True
        if ask.ignore_eos:
            return room, True
        drawn = round(self._lengths.lognormvariate(0.0, OUTPUT_TOKENS_SPREAD) * OUTPUT_TOKENS_MEDIAN)
        drawn = max(1, drawn, ask.output_tokens_min)
        return (drawn, False) if drawn < room else (room, True)

    def _submit(self, sinks: Sequence[StreamSink | WholeSink], ask: Ask, lengths: list[tuple[int, bool]]) -> list[int]:
        """Each prompt with its choices."""
        numbers: list[int] = []
        if self.draining:
            for sink in sinks:
                sink.abort()
            return numbers
        outputs = [Output(sink, tokens, limited) for sink, (tokens, limited) in zip(sinks, lengths, strict=True)]
        for at, prompt in enumerate(ask.prompts):
            choices = outputs[at * ask.choices : (at + 1) * ask.choices]
            taken = self.engine.submit(choices, prompt, ask.priority, ask.slo)
            if taken is None:
                self._leave(numbers)
                waiting = self.config.queue_max
                raise Refusal(503, "ServiceUnavailableError", f"the queue is full: {waiting} requests wait already")
            numbers += taken
        return numbers

    def _leave(self, numbers: list[int]) -> None:
        """Whatever ends a request, its client's leaving above all, takes it out of the engine."""
        for number in numbers:
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


def _completion_reply(ask: Ask, chat: bool, id: str, model: str) -> Reply:
    kind = "chatcmpl" if chat else "cmpl"
    prompt_tokens = sum(ask.prompts)
    return CompletionReply(
        f"{kind}-{id}", int(time.time()), model, chat, prompt_tokens, ask.include_usage, ask.continuous_usage
    )
