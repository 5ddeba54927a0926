"""A scheduler for vLLM that knows when each token is due: `vllm serve MODEL --scheduler-cls multislo_engine.vllm.SLOScheduler`.
The planner is the one that the emulator and the simulator run; `scheduler.py` is the shell around it. Manual: docs/vllm-plugin.md."""

from multislo_engine.vllm.scheduler import SLOScheduler

__all__ = ["SLOScheduler"]
