"""`multislo emulate`: the command line of the emulated engine. Its flags are vLLM's where vLLM has them."""

import sys

import click

from multislo_api.number import Number
from multislo_api.tolerant import VARIABLE, warning
from multislo_engine.emulator.config import BLOCK_TOKENS, EmulatorConfig
from multislo_engine.planners import PLANNERS
from multislo_perf.profile import ProfileInvalid, load_profile

MODEL_LEN_DEFAULT = 131_072
"""Tokens of prompt and output together where neither the flag nor the KV cache says less."""


def _adapters(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise click.BadParameter(f"{text!r} must be NAME=PATH")
        pairs.append((name, path))
    return tuple(pairs)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--profile", "profile_name", required=True, metavar="NAME|PATH", help="Latency profile of the engine.")
@click.option("--model", required=True, help="Name of the model.")
@click.option("--served-name", multiple=True, help="Name that clients use for the model instead; may be repeated.")
@click.option(
    "--lora-modules", multiple=True, metavar="NAME=PATH", callback=_adapters,
    help="A LoRA adapter: a model of its own; may be repeated.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--scheduler",
    type=click.Choice(PLANNERS),
    default="fcfs",
    help="Planner of the batches: vLLM's (fcfs, priority), multislo's (slo-aware) or one of a paper.",
)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), default=8192, help="Most tokens per iteration.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=1024, help="Most requests that run at once.")
@click.option(
    "--max-model-len", type=click.IntRange(2), help="Most tokens of a request.  [default: the KV cache, at most 131072]"
)
@click.option(
    "--kv-tokens", type=click.IntRange(BLOCK_TOKENS), help="Size of the KV cache in tokens.  [default: the profile's]"
)
@click.option(
    "--max-num-queued-reqs",
    type=click.IntRange(1),
    help="Most waiting requests; further ones get 503.  [default: no limit]",
)
@click.option("--slow-down", type=Number(0, min_open=True), default=1.0, help="Factor on the profile's times.")
@click.option(
    "--jitter", type=Number(0, 2), default=0.0, help="Random variation of iteration times (sigma of the log)."
)
@click.option("--seed", type=int, default=0, help="Seed of jitter and of output lengths that clients do not set.")
@click.option("--startup", type=Number(0), default=0.0, help="Seconds until it listens.")
@click.option(
    "--shutdown-timeout",
    type=Number(0),
    default=0.0,
    help="Seconds that running requests may take after SIGTERM; 0 aborts them.",
)
@click.option(
    "--unknown-fields", type=click.Choice(["refuse", "ignore"]), default="refuse", envvar=VARIABLE, show_envvar=True,
    help="Of the profile; ignore warns of each, for a file that a newer version wrote.",
)  # fmt: skip
@click.option("--parent-pid", type=click.IntRange(1), help="Exit when this process is gone.")
def emulate(
    profile_name: str,
    model: str,
    served_name: tuple[str, ...],
    lora_modules: tuple[tuple[str, str], ...],
    host: str,
    port: int,
    scheduler: str,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_tokens: int | None,
    max_num_queued_reqs: int | None,
    slow_down: float,
    jitter: float,
    seed: int,
    startup: float,
    shutdown_timeout: float,
    unknown_fields: str,
    parent_pid: int | None,
) -> None:
    """Serve an emulated vLLM engine: vLLM's HTTP interface with the timing of a latency profile. Needs no GPU and no model.

    \b
    Example:
      multislo emulate --profile llama-3.1-8b-h200-tp1 --model llama-3.1-8b --port 8001
      curl -N localhost:8001/v1/completions -d '{"model": "llama-3.1-8b", "prompt": "tok tok", "max_tokens": 9, "stream": true}'
    """
    ignored: list[str] | None = [] if unknown_fields == "ignore" else None
    try:
        profile = load_profile(profile_name, ignored)
    except ProfileInvalid as error:
        raise click.BadParameter(str(error), param_hint="--profile") from None
    if ignored:
        click.echo(f"warning: {warning(profile_name, ignored)}", err=True)
    kv_tokens_max = (kv_tokens or profile.kv_tokens_max) // BLOCK_TOKENS * BLOCK_TOKENS
    length = max_model_len or min(MODEL_LEN_DEFAULT, kv_tokens_max)
    if length > kv_tokens_max:
        raise click.BadParameter(
            f"{length} must be at most the KV cache, {kv_tokens_max} tokens: a request has to fit in it alone",
            param_hint="--max-model-len",
        )
    config = EmulatorConfig(
        latency=profile.latency.slower(slow_down),
        belief=profile.latency,
        model=model,
        kv_tokens_max=kv_tokens_max,
        max_model_len=length,
        served_names=served_name,
        adapters=lora_modules,
        batch_tokens=max_num_batched_tokens,
        seqs_max=max_num_seqs,
        scheduler=scheduler,
        queue_max=max_num_queued_reqs,
        jitter=jitter,
        seed=seed,
        host=host,
        port=port,
        startup_s=startup,
        shutdown_timeout_s=shutdown_timeout,
        parent_pid=parent_pid,
    )
    from multislo_engine.emulator.serve import run  # heavy: not for --help

    try:
        run(config)
    except OSError as error:
        click.echo(f"multislo emulate: cannot listen on {host}:{port}: {error.strerror or error}", err=True)
        sys.exit(1)
