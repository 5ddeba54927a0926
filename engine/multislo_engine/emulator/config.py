"""How an emulated engine was started. Made by the command line, read by every part of the emulator."""

from dataclasses import dataclass

from multislo_perf.latency import LatencyModel

BLOCK_TOKENS = 16
"""Tokens of a KV block: vLLM's default."""


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    latency: LatencyModel
    """The engine's true timing, its slow-down included."""
    belief: LatencyModel
    """What an SLO-aware planner takes it for: the profile, without the slow-down."""
    model: str
    kv_tokens_max: int
    max_model_len: int
    served_names: tuple[str, ...] = ()
    """What clients may call the model; none: its own name."""
    adapters: tuple[tuple[str, str], ...] = ()
    """LoRA adapters, each with its path. They cost nothing here."""
    batch_tokens: int = 2048
    seqs_max: int = 1024
    scheduler: str = "fcfs"
    queue_max: int | None = None
    jitter: float = 0.0
    """Standard deviation of the logarithm of an iteration's time."""
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    startup_s: float = 0.0
    shutdown_timeout_s: float = 0.0
    parent_pid: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.served_names or (self.model,)
