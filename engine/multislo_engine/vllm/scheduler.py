"""The scheduler that vLLM loads: stock vLLM, told before each iteration in which order to go, with what budget, and whom to leave out.

Nothing of vLLM's is imported: the stock class is the one that vLLM itself would take. Whatever goes wrong here, the iteration is stock."""

import copy
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from multislo_engine.planners.learning import Batch, LawLearner
from multislo_engine.planners.slo_aware import SloAware
from multislo_engine.vllm import guards
from multislo_engine.vllm.metrics import Counts
from multislo_engine.vllm.mirror import Mirror, Orders
from multislo_engine.vllm.settings import Settings, settings_from, slo_of

# vLLM's own logger shows what lies below it; of others' only warnings would appear.
_log = logging.getLogger("vllm.multislo")
STOCK = "multislo does not plan this engine, vLLM's own scheduler does: %s"
ERRORS_MAX = 100
"""Exceptions after which planning ends for good."""
WORK_LEAST = 2.0
"""Of the planner. vLLM on a busy machine is noisy, and much of its iteration is fixed cost."""
PUBLISH_S = 0.5
IN_FLIGHT_MAX = 16
"""Iterations that were scheduled and not yet heard of. vLLM has one or two; more were forgotten by it."""


def SLOScheduler(*args: Any, **kwargs: Any) -> Any:
    """A scheduler for the engine of this `vllm_config`: ours, or stock with a warning that says why."""
    config: Any = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    scheduling = copy.copy(config.scheduler_config)
    scheduling.scheduler_cls = None
    stock: type = scheduling.get_scheduler_cls()
    try:
        settings = settings_from(config.additional_config)
        reasons = [*guards.why_not(config, settings), *guards.changed(stock)]
    except Exception as error:  # a profile that is missing, a configuration of another shape
        reasons = [f"{type(error).__name__}: {error}"]
    if reasons:
        _log.warning(STOCK, "; ".join(reasons))
        return stock(*args, **kwargs)
    planned = type("SLOScheduler", (Planned, stock), {})
    scheduler = planned(*args, **kwargs)
    if lacking := guards.missing(scheduler):
        _log.warning(STOCK, f"vLLM's scheduler has no {', '.join(lacking)}")
    else:
        scheduler.slo_begin(settings)
    return scheduler


class Planned:
    """Mixed into vLLM's scheduler class. All names of its own begin with `slo_`."""

    slo_mirror: Mirror | None = None
    """None: vLLM schedules by itself."""

    def slo_begin(self: Any, settings: Settings) -> None:
        """Called once, when vLLM's part is complete."""
        limit = self.max_num_scheduled_tokens
        # The user's own budget is the cap, so that without pressure nothing is slower than stock.
        self.slo_planner = SloAware(
            settings.latency, chunk_tokens_max=limit, chunk_tokens_tight=limit, work_least=WORK_LEAST
        )
        self.slo_settings = settings
        self.slo_learner = LawLearner(self.slo_planner)
        self.slo_counts = Counts()
        self.slo_bearing: set[str] = set()  # ids of the requests with an SLO
        self.slo_published = Counts()
        self.slo_publish_at = self.slo_ended_at = self.slo_update_s = 0.0
        self.slo_in_flight: dict[
            int, tuple[float, Batch]
        ] = {}  # by id of vLLM's output: when it was scheduled, its batch
        self.slo_stuck = self.slo_broken = False
        self.slo_reflect()
        _log.info("multislo plans this engine, %d tokens an iteration at most: %s", limit, settings)

    def slo_reflect(self: Any) -> None:
        """The mirror made anew from vLLM's own state: at the start, and after an exception."""
        cap_least = 0 if self.adaptive_long_prefill_threshold else max(2, 1 + self.num_spec_tokens)
        limit = self.max_num_scheduled_tokens
        self.slo_mirror = Mirror(limit, self.max_num_active_reqs, self.block_size, self.slo_planner, cap_least)
        for request in (*self.running, *self.waiting):
            self.slo_come(request)
        self.slo_mirror.admitted([request.request_id for request in self.running])
        self.slo_broken = False

    def slo_come(self: Any, request: Any) -> None:
        slo = slo_of(getattr(request.sampling_params, "extra_args", None), self.slo_settings)
        # arrival_time is on the front end's wall clock.
        age_s = max(0.0, time.time() - request.arrival_time)
        self.slo_mirror.come(request, time.monotonic() - age_s, slo)
        if slo[0] < inf or slo[1] < inf:
            self.slo_bearing.add(request.request_id)

    # -- what happens to requests --------------------------------------------------------------------------------------

    def add_request(self: Any, request: Any) -> None:
        known = request.request_id in self.requests
        super().add_request(request)  # type: ignore[misc]  # vLLM's, as in all that follows
        if not known and self.slo_mirror is not None and not self.slo_broken:
            with self.slo_guarded("a request that came"):
                self.slo_come(request)

    def _preempt_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        if self.slo_mirror is not None:
            with self.slo_guarded("a preemption"):
                self.slo_mirror.preempted(request)
        return result

    def _free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self.slo_mirror is not None:
            with self.slo_guarded("a request that ended"):
                self.slo_bearing.discard(request.request_id)
                self.slo_mirror.gone(request.request_id)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    # -- an iteration --------------------------------------------------------------------------------------------------

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.slo_mirror is None:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        began = time.monotonic()
        orders = None
        budget, scheduling = self.max_num_scheduled_tokens, self.scheduler_config
        cap = scheduling.long_prefill_token_threshold
        # Data parallel ranks that hold prompts back together (`throttle_prefills`), and KV that is on its way, are vLLM's.
        if (
            self.slo_bearing
            and not self.slo_stuck
            and not self.kv_holding_waiting
            and not any((*args, *kwargs.values()))
        ):
            with self.slo_guarded("a plan"):
                orders = self.slo_orders(began)
                self.max_num_scheduled_tokens = min(orders.tokens, budget)
                if orders.chunk_tokens:
                    scheduling.long_prefill_token_threshold = min(orders.chunk_tokens, cap or orders.chunk_tokens)
        planned_at = time.monotonic()
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.max_num_scheduled_tokens = budget
            scheduling.long_prefill_token_threshold = cap
        after = time.monotonic()
        if self.slo_mirror is not None:
            with self.slo_guarded("an iteration"):
                self.slo_scheduled(began, orders, output)
        self.slo_counts.seconds += planned_at - began + time.monotonic() - after
        return output

    def slo_orders(self: Any, now: float) -> Orders:
        """The next iteration, planned; the queues are put in its order."""
        if self.slo_broken:
            self.slo_reflect()
        mirror, running, waiting = self.slo_mirror, self.running, self.waiting
        if mirror.running != len(running) or len(mirror.jobs) != len(running) + len(waiting):
            raise RuntimeError("the mirror has lost a request")
        view = mirror.read(self.kv_cache_manager.block_pool.get_num_free_blocks())
        orders: Orders = mirror.orders(self.slo_learner.planner.plan(now, view), running, self.num_spec_tokens > 0)
        first = orders.first
        # With --scheduling-policy priority the queue is a heap, and the client's order of admission stays.
        if isinstance(waiting, deque) and any(waiting[place] is not request for place, request in enumerate(first)):
            for request in reversed(first):
                waiting.remove(request)
                waiting.appendleft(request)
        for request in orders.skipped:
            request.next_decode_eligible_step = self.current_step + 2
        running[:] = orders.running
        return orders

    def slo_scheduled(self: Any, began: float, orders: Orders | None, output: Any) -> None:
        """What vLLM made of the orders; a prompt found in the prefix cache, say, is shorter than the plan believed."""
        self.slo_mirror.admitted([new.req_id for new in output.scheduled_new_reqs])
        self.slo_mirror.admitted(output.scheduled_cached_reqs.resumed_req_ids)
        total = output.total_num_scheduled_tokens
        # Nothing scheduled although there is work: the plan and vLLM do not agree, so the next iteration is vLLM's.
        self.slo_stuck = orders is not None and not total
        if orders is None:
            self.slo_counts.stock += 1
            return
        self.slo_counts.planned += 1
        self.slo_counts.left_out += orders.left_out
        law, attention_s = self.slo_learner.first, 0.0
        for request in orders.prompts:
            tokens = output.num_scheduled_tokens.get(request.request_id, 0)
            attention_s += law.attention_s(tokens, request.num_computed_tokens - tokens) if tokens else 0.0
        if total:
            self.slo_in_flight[id(output)] = (began, Batch(total, orders.decodes, orders.kv_tokens, attention_s))

    def update_from_output(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if self.slo_mirror is None:
            return super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        now = time.monotonic()
        with self.slo_guarded("a measured iteration"):
            self.slo_measured(now, scheduler_output)
        before = time.monotonic()
        result = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        self.slo_ended_at = time.monotonic()
        self.slo_update_s = self.slo_ended_at - before
        return result

    def slo_measured(self: Any, now: float, output: Any) -> None:
        if (scheduled := self.slo_in_flight.pop(id(output), None)) is not None:
            began, batch = scheduled
            # Tokens leave after vLLM's own work on them, which is as long as the last time. Iterations may overlap.
            self.slo_learner.observe(now - max(began, self.slo_ended_at) + self.slo_update_s, batch)
        elif len(self.slo_in_flight) > IN_FLIGHT_MAX:
            self.slo_in_flight.clear()
        if now >= self.slo_publish_at or len(self.running) < 2:
            self.slo_counts.publish(self.slo_published, self.slo_learner.factors, self.slo_learner.error)
            self.slo_published = dataclasses.replace(self.slo_counts)
            self.slo_publish_at = now + PUBLISH_S

    @contextmanager
    def slo_guarded(self: Any, what: str) -> Iterator[None]:
        """An exception here is ours and not the engine's: it is counted, logged the first time, and vLLM goes on by itself."""
        try:
            yield
        except Exception:
            counts = self.slo_counts
            counts.errors += 1
            self.slo_broken = True
            if counts.errors == 1:
                _log.exception(
                    "multislo: %s failed. vLLM schedules this iteration; later failures are only counted", what
                )
            if counts.errors >= ERRORS_MAX:
                _log.warning(STOCK, f"it failed {counts.errors} times")
                self.slo_mirror = None
