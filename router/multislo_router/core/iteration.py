"""What one iteration of an engine computes of a row of prompts: the law that `engine_queue` and `forecast` share."""

from multislo_perf.latency import LatencyModel
from multislo_router.core.request import Request


class Chunks:
    """What one iteration computes of the prompts."""

    __slots__ = ("attention_s", "computed", "done", "tokens")

    def __init__(self, tokens: int, attention_s: float, done: int, computed: int) -> None:
        self.tokens = tokens
        self.attention_s = attention_s
        self.done = done
        """How many prompts are through with it."""
        self.computed = computed
        """How much of the next one is computed after it."""


def chunks_of(
    row: list[Request],
    head: int,
    computed: int,
    free: int,
    at: float,
    latency: LatencyModel,
    asked: int = -1,
    asked_joins_at: float = 0.0,
) -> Chunks:
    """What an iteration that begins at `at` computes of the row from `head` on, whose first `computed` tokens are done: at most `free`
    tokens, of the prompts that have joined before. The prompt at `asked` joins at `asked_joins_at`."""
    tokens = done = 0
    attention_s = 0.0
    for index in range(head, len(row)):
        request = row[index]
        if (asked_joins_at if index == asked else request.joins_at) >= at:
            break
        take = request.prompt_tokens - computed
        if take > free:
            take = free
        attention_s += latency.attention_s(take, computed)
        tokens += take
        free -= take
        computed += take
        if computed < request.prompt_tokens:
            break
        done += 1
        computed = 0
        if not free:
            break
    return Chunks(tokens, attention_s, done, computed)
