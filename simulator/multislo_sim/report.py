"""What `multislo simulate goodput` prints: runs the contenders, in processes where asked to, and puts their goodputs beside each other."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from rich.table import Table

from multislo_sim.contenders import CONTENDERS
from multislo_sim.goodput import LEVELS, Arena, Goodput, bounds, goodput
from multislo_sim.trial import classed

KEYS = {0.90: "p90", 0.99: "p99"}
OURS, OURS_STOCK = "multislo", "multislo_stock"


def run_all(arena: Arena, policies: Sequence[str], jobs: int, done: Callable[[str, float], None]) -> dict[str, Goodput]:
    """Each policy's goodput, in the order asked for; `done(name, seconds)` as they come."""
    started = time.monotonic()
    found: dict[str, Goodput] = {}
    if jobs == 1:
        for name in policies:
            found[name] = goodput(arena, name)
            done(name, time.monotonic() - started)
        return found
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(goodput, arena, name): name for name in policies}
        for future in as_completed(running):
            found[running[future]] = future.result()
            done(running[future], time.monotonic() - started)
    return {name: found[name] for name in policies}


def goodput_report(arena: Arena, found: Mapping[str, Goodput]) -> dict[str, Any]:
    """The machine-readable answer. A ratio to nothing (a rival that attains 0, or was not run) is null."""
    ceilings = bounds(arena)
    kept, left_out = classed(arena.lengths, arena.profile, arena.seeds[0])
    report: dict[str, Any] = {
        "instances": arena.instances,
        "profile": arena.profile.name,
        "seeds": list(arena.seeds),
        "warmup_s": arena.window.warmup_s,
        "measured_s": arena.window.measured_s,
        "requests": len(kept),
        "requests_left_out": left_out,
        "bound_rps": {KEYS[level]: round(ceilings[level], 3) for level in LEVELS},
        "policies": {
            name: {f"{KEYS[level]}_rps": round(of.rates[level], 3) for level in LEVELS} for name, of in found.items()
        },
    }
    for key, ours in (("", OURS), ("stock_", OURS_STOCK)):
        if ours in found:
            report[f"{key}ratio"] = {KEYS[level]: _ratios(found, found[ours].rates[level], level) for level in LEVELS}
            report[f"{key}share_of_bound"] = {
                KEYS[level]: round(found[ours].rates[level] / ceilings[level], 4) for level in LEVELS
            }
    return report


def _ratios(found: Mapping[str, Goodput], ours: float, level: float) -> dict[str, float | None]:
    def best(*groups: str) -> float | None:
        rates = [found[c.name].rates[level] for c in CONTENDERS if c.group in groups and c.name in found]
        return round(ours / max(rates), 4) if rates and max(rates) > 0.0 else None

    return {"best_naive": best("naive"), "polyserve": best("polyserve"), "best_rival": best("rival", "polyserve")}


def goodput_tables(report: Mapping[str, Any]) -> list[Table]:
    bound = report["bound_rps"]
    table = Table("policy", "90 %", "99 %", "of bound", "", title=f"req/s in time, {report['instances']} instances")
    for name, rates in report["policies"].items():
        shares = [f"{rates[f'{key}_rps'] / bound[key]:.3f}" for key in ("p90", "p99")]
        table.add_row(name, f"{rates['p90_rps']:.1f}", f"{rates['p99_rps']:.1f}", *shares)
    table.add_row("fluid bound", f"{bound['p90']:.1f}", f"{bound['p99']:.1f}", "1", "1")
    tables = [table]
    for key, title in (("", "multislo, SLO-aware engines"), ("stock_", "multislo, stock engines")):
        if f"{key}ratio" in report:
            ratios = Table("against", "90 %", "99 %", title=title)
            for against in ("best_naive", "polyserve", "best_rival"):
                cells = [report[f"{key}ratio"][level][against] for level in ("p90", "p99")]
                ratios.add_row(against, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
            tables.append(ratios)
    return tables
