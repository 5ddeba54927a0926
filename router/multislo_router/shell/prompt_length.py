"""How long a prompt is in tokens before an engine has said so: estimated from its bytes with a correction from `usage`, or counted
with the model's tokenizer. `PromptLengths` is what the gateway asks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

from multislo_router.shell.body_scan import BodyScan, prompt_texts
from multislo_router.shell.routes import Route
from multislo_router.shell.settings import ShellSettings

TOKENS_PER_BYTE = 0.25
"""English text, before anything was measured."""
TOKENS_PER_BYTE_MIN = 0.02
"""Below: long runs of one character. A few odd prompts must not make every prompt look free ..."""
TOKENS_PER_BYTE_MAX = 1.5
"""... or endless; byte-level tokenizers stay at or below one token a byte, and chat templates add some."""
MEMORY_BYTES = 200_000.0
"""Of measured prompts that the ratio remembers: some hundred ordinary ones."""
CHAT_OVERHEAD_TOKENS = 4
"""What a chat template adds to each message, counted with a tokenizer that does not apply the template."""


class LengthEstimate:
    """Tokens per byte, a moving average weighted by bytes: short prompts, where the template dominates, weigh little."""

    __slots__ = ("_bytes", "_tokens")

    def __init__(self) -> None:
        self._bytes = 2000.0
        self._tokens = self._bytes * TOKENS_PER_BYTE

    @property
    def tokens_per_byte(self) -> float:
        return self._tokens / self._bytes

    def tokens(self, text_bytes: int) -> int:
        return max(1, round(text_bytes * self._tokens / self._bytes))

    def correct(self, text_bytes: int, tokens: int) -> None:
        """`usage` said that a prompt of `text_bytes` had `tokens`. One prompt moves the ratio by at most a fifth of the memory."""
        if text_bytes <= 0 or tokens <= 0:
            return
        ratio = min(max(tokens / text_bytes, TOKENS_PER_BYTE_MIN), TOKENS_PER_BYTE_MAX)
        weight = min(float(text_bytes), MEMORY_BYTES / 5)
        keep = min(1.0, (MEMORY_BYTES - weight) / self._bytes)
        self._bytes = self._bytes * keep + weight
        self._tokens = self._tokens * keep + weight * ratio


def spread(tokens: int, prompts: tuple[int, ...]) -> tuple[int, ...]:
    """`tokens` of several prompts in all, by the size of each."""
    if not prompts:
        return (tokens,)
    each = tokens / max(1, sum(prompts))
    return tuple([max(1, round(size * each)) for size in prompts])


class _Encoding(Protocol):
    def __len__(self) -> int: ...


class _Tokenizer(Protocol):
    def encode_batch_fast(self, input: list[str], add_special_tokens: bool = True) -> list[_Encoding]: ...


class TokenizerCount:
    """Counts with a tokenizer.json (package `tokenizers`); may be called from a thread, where it lets other threads run."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError, with what is wrong in the manifest's words."""
        named = f'spec.model.tokenizer: "{path}"'
        try:
            from tokenizers import Tokenizer  # an extra: only who names a tokenizer needs it
        except ImportError:
            raise ValueError(f"{named} needs the package tokenizers: pip install 'multislo[tokenizers]'") from None
        try:
            self._tokenizer = cast(_Tokenizer, Tokenizer.from_file(str(path)))
        except Exception as error:  # whatever its Rust says, as an Exception of no further type
            raise ValueError(f"{named} must be a tokenizer.json: {error}") from None

    def tokens(self, prompt: bytes, *, chat: bool) -> list[int]:
        """Of each text in the JSON of a prompt or of messages."""
        texts = prompt_texts(prompt)
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of its Rust is no Exception
            raise RuntimeError(f"the tokenizer failed: {error}") from error
        overhead = CHAT_OVERHEAD_TOKENS if chat else 0
        return [len(encoding) + overhead for encoding in encodings]


class PromptLengths:
    """The tokens of each prompt of a request: given as ids, counted, or estimated. One estimator for chats and one for plain prompts."""

    def __init__(self, settings: ShellSettings) -> None:
        """Raises ValueError as `TokenizerCount` does."""
        self._settings = settings
        self._estimates = {True: LengthEstimate(), False: LengthEstimate()}
        self._tokenizer = None if settings.tokenizer is None else TokenizerCount(settings.tokenizer)
        self._threads = ThreadPoolExecutor(settings.tokenize_threads, "tokenizer")
        """None of them starts before there is something to count."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def known(self, scan: BodyScan, route: Route) -> tuple[int, ...] | None:
        """What can be told at once; None: counting takes a thread (`in_thread`). Raises a `Fault` where the texts cannot be read."""
        if scan.prompt_tokens is not None:
            return scan.prompts or (scan.prompt_tokens,)
        if not self._counts(scan):
            tokens = self._estimates[_is_chat(route)].tokens(scan.text_bytes) + scan.image_tokens
            return spread(tokens, scan.prompts)
        return self._counted(scan, route) if len(scan.prompt) <= self._settings.tokenize_inline_max_bytes else None

    def in_thread(
        self, scan: BodyScan, route: Route, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[tuple[int, ...]]:
        return loop.run_in_executor(self._threads, self._counted, scan, route)

    def is_exact(self, scan: BodyScan, route: Route) -> bool:
        """Whether the prompts surely have the tokens that are told, or more. Of a chat even a tokenizer does not tell: templates leave out
        parts, such as earlier reasoning."""
        if scan.prompt_tokens is None and (_is_chat(route) or not self._counts(scan)):
            return False
        return not scan.truncates

    def measured(self, scan: BodyScan, route: Route, prompt_tokens: int) -> None:
        """The engine has said how many tokens they were in all."""
        if scan.prompt_tokens is None:
            self._estimates[_is_chat(route)].correct(scan.text_bytes, prompt_tokens - scan.image_tokens)

    def _counts(self, scan: BodyScan) -> bool:
        return self._tokenizer is not None and scan.text_bytes <= self._settings.tokenize_max_bytes

    def _counted(self, scan: BodyScan, route: Route) -> tuple[int, ...]:
        assert self._tokenizer is not None
        texts = self._tokenizer.tokens(scan.prompt, chat=_is_chat(route))
        if len(scan.prompts) == len(texts):
            return tuple(texts)
        return spread(max(1, sum(texts) + scan.image_tokens), scan.prompts)


def _is_chat(route: Route) -> bool:
    """Whether the engine puts the texts into a template."""
    return route is not Route.COMPLETIONS
