"""Batch planners: each iteration of an engine asks one of them what to compute next. Pure. A new planner is a class
with the three methods of `Planner` and a line in `planner_named` (and, if it plans by a latency model, with `calibrated`, so that an engine
can tell it how fast it is); the engine model, the emulator and the simulator know nothing else of it."""

from multislo_engine.planners.planner import Planner
from multislo_engine.planners.published import DynamicChunk, QoServe
from multislo_engine.planners.slo_aware import SloAware
from multislo_engine.planners.stock import Edf, Fcfs, Priority
from multislo_engine.planners.view import Decodes, EngineView, Job, Plan
from multislo_perf.latency import LatencyModel

__all__ = [
    "PLANNERS",
    "Decodes",
    "DynamicChunk",
    "Edf",
    "EngineView",
    "Fcfs",
    "Job",
    "Plan",
    "Planner",
    "Priority",
    "QoServe",
    "SloAware",
    "planner_named",
]

PLANNERS = ("fcfs", "priority", "edf", "dynamic-chunk", "qoserve", "slo-aware")


def planner_named(name: str, belief: LatencyModel) -> Planner:
    """The planner of one of `PLANNERS`; `belief` is the latency model that it plans with, if it has use for one."""
    if name == "fcfs":
        return Fcfs()
    if name == "priority":
        return Priority()
    if name == "edf":
        return Edf()
    if name == "dynamic-chunk":
        return DynamicChunk(belief)
    if name == "qoserve":
        return QoServe(belief)
    if name == "slo-aware":
        return SloAware(belief)
    raise ValueError(f"planner: {name!r} is none of {', '.join(PLANNERS)}")
