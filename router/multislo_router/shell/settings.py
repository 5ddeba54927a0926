"""What the data path is told once: names, key and limits. Made by the command from the manifest; every limit has a unit and a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """Sizes in bytes, times in seconds."""

    served_names: tuple[str, ...] = ()
    """Model names that clients may ask for, the first one being the model's own. Empty: any name is relayed."""
    adapters: tuple[tuple[str, str], ...] = ()
    """LoRA adapters, each with its path: models of their own for clients, the fleet's one model for all else."""
    service_tiers: Mapping[str, str] = field(default_factory=dict)
    """Which tier a `service_tier` means that is no tier's name, or means another one."""
    api_keys: tuple[bytes, ...] = ()
    """Any of them opens the data port. Without one no key is asked for."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read the answers, or `*`. Without one CORS is off."""
    tokenizer: Path | None = None
    """A tokenizer.json to count prompts with; None: their length is estimated from bytes."""
    extra_paths: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Paths that are relayed to engines beside those of `routes`, each with its methods."""

    body_max_bytes: int = 32 * 1024 * 1024
    """A request's body is held until an engine answers it: a million tokens of text are 4 MB, an image of 20 MiB is 27 MiB in base64."""
    held_max_bytes: int = 512 * 1024 * 1024
    """Of all requests together that are in the router: bodies under way and bodies that no engine has answered. 10,000 held prompts of
    50 KB, or 16 of the largest bodies."""
    header_max_bytes: int = 64 * 1024
    """Request line and headers together; engines commonly take no more."""
    connections_max: int = 20_000
    """Client connections: each costs a descriptor, and an answer in progress a second one to its engine."""
    write_buffer_max_bytes: int = 256 * 1024
    """What a slow reader may leave in the router before its engine's socket is no longer read."""
    response_head_max_bytes: int = 64 * 1024
    """An engine whose answer's head is longer is broken."""

    head_timeout_s: float = 10.0
    """From the first byte of a request to the end of its headers: ends slowloris."""
    body_gap_timeout_s: float = 20.0
    """Without a byte of a body that is under way: the client's network is gone."""
    body_timeout_s: float = 300.0
    """For a whole body: 32 MiB at one Mbit/s."""
    idle_timeout_s: float = 620.0
    """A kept-alive connection without a request: longer than the 60 to 600 s after which load balancers close theirs, else they send a
    request just when it closes."""
    stream_keep_alive_s: float = 15.0
    """A streaming answer that has been silent for so long gets a comment: proxies give up after 60 s, some after 30. 0: never."""
    reader_stall_timeout_s: float = 60.0
    """A client that reads nothing although its buffer is full holds a place on an engine: it is given up."""
    linger_timeout_s: float = 2.0
    """How long a connection that is to be closed after an error is still read, so that the answer is not lost to a reset."""

    connect_timeout_s: float = 2.0
    """Engines are in the same network: a connection takes a millisecond, or one lost SYN more."""
    engine_silence_timeout_s: float = 900.0
    """Without a byte of an answer: longer than any answer that does not stream takes, so that a hung engine frees its clients."""
    engine_idle_max: int = 512
    """Connections to one instance kept for later: as many as it has sequences, and a bound on descriptors."""
    engine_idle_timeout_s: float = 4.0
    """Engines close idle connections after 5 s: ours go first, so that a request seldom meets a dead one."""
    engine_abort_bytes: int = 64 * 1024
    """An incomplete chunk of a stream is held back up to this size, so that an error event can follow a whole one."""

    health_timeout_s: float = 5.0
    """For the answer of /health of an engine that answered 500: its client waits meanwhile."""
    probe_first_s: float = 0.2
    """A failed instance is asked for its health after this time, then after twice as long each time ..."""
    probe_max_s: float = 5.0
    """... but at least this often: a restarted one gets work again soon, a dead one costs little."""
    poll_interval_s: float = 1.5
    """Between two readings of an engine's own /metrics: they correct slow drift only, and cost the engine 1 ms each."""
    sweep_interval_s: float = 0.5
    """Between two looks at all connections for spent timeouts: one timer in all instead of one a request."""

    ttft_min_ms: float = 1.0
    ttft_max_ms: float = 3_600_000.0
    """An hour: beyond it there is no deadline, only a queue."""
    tpot_min_ms: float = 1.0
    tpot_max_ms: float = 60_000.0
    """A minute a token, likewise."""
    tokenize_inline_max_bytes: int = 4096
    """A longer prompt is tokenized in a thread (1 MB takes about 0.3 s); up to this size that would cost more than it saves."""
    tokenize_max_bytes: int = 4 * 1024 * 1024
    """A longer text is estimated: counting it takes a hundred times its bytes, and no model of today takes a million tokens and more."""
    tokenize_threads: int = 2
    """Prompts counted at the same time: a router has one core, and each takes the memory that is said above."""
