"""How fast an instance is, how far with its prompts, and how much of its time the work there needs: the load, by which placements rank.
Kept up to date by `instance` and `machine` as requests come and go; asked by the room tests and by the simulator's rivals."""

from math import exp
from typing import TYPE_CHECKING

from multislo_router.core.events import SLO_AWARE
from multislo_router.core.request import Request
from multislo_router.core.stock_reckoning import work_left_s

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance

CALIBRATION_MIN, CALIBRATION_MAX = 0.5, 4.0
"""Bounds of measured over predicted iteration time: beyond them the profile is wrong, not the instance slow."""
CALIBRATION_WEIGHT = 0.05
PREFILL_ITERATIONS_LEAST = 3.0
"""A prefill shorter than so many decode iterations says nothing of the speed: where in an iteration it came in weighs too much."""
LOAD_WINDOW_S = 10.0
DECAY_STEP_S = 0.01
"""Moving means decay in steps of at least this: an exponential at every event would be most of the event's cost."""
PREFILL_WINDOW_S = 2.0
"""The window of the moving mean of prefill work: a few prompts long, and short against a decode's life."""
LEAST_WINDOW_S = 0.02
"""A deadline nearer than this counts as this near in a load: a share of nothing says nothing."""


def calibrate(instance: "Instance", measured_s: float, predicted_s: float) -> None:
    """Take in one measurement of a span whose prediction (by the profile, uncalibrated) is known."""
    ratio = measured_s / predicted_s if predicted_s > 0.0 else 1.0
    ratio = min(max(ratio, CALIBRATION_MIN), CALIBRATION_MAX)
    instance.calibration += CALIBRATION_WEIGHT * (ratio - instance.calibration)


def calibrate_by_prefill(instance: "Instance", request: Request, now: float) -> None:
    """Its first token has come. If it was alone and took long enough to tell, its span says how fast the instance is; but an engine
    that plans by deadlines cuts its chunks by the slack of those who decode there, and seemed slower by up to a fifth where it was
    full."""
    if instance.scheduler is SLO_AWARE and instance.decodes:
        return
    if len(instance.prefills) == 1 and instance.head_since == request.joins_at:
        span = _head_span(instance)
        if span > PREFILL_ITERATIONS_LEAST * instance.iteration_s:
            calibrate(instance, now - request.joins_at - 0.5 * instance.iteration_s, span / instance.calibration)


def began_with_head(instance: "Instance", now: float) -> None:
    """Another prompt is the first of the prefills."""
    instance.head_since = now
    instance.head_span_s = 0.0


def _head_span(instance: "Instance") -> float:
    """How long the first of the prefills takes in all, as things were when it began; worked out when it is first asked for."""
    if instance.head_span_s <= 0.0:
        request = next(iter(instance.prefills.values()))
        decodes = min(len(instance.decodes), instance.batch_tokens - 1)
        span = instance.latency.prefill_s(
            request.prompt_tokens, 0, instance.batch_tokens, decodes, instance.kv_decode_tokens
        )
        instance.head_span_s = instance.calibration * span
    return instance.head_span_s


def head_progress(instance: "Instance", now: float) -> float:
    """Share of the first prefill that is done, believed; never quite all of it before its token has come."""
    elapsed = now - instance.head_since
    if elapsed <= 0.0 or not instance.prefills:
        return 0.0
    done = elapsed / _head_span(instance)
    return done if done < 0.95 else 0.95


def prefill_left_s(instance: "Instance", now: float) -> float:
    """Seconds of prefill that are still to do here."""
    work_s = 0.0
    if instance.lag_s:
        return instance.calibration * work_left_s(instance, now)
    undone = 1.0 - head_progress(instance, now)
    for request in instance.prefills.values():
        work_s += undone * request.prefill_work_s
        undone = 1.0
    return instance.calibration * work_s


def sent_prefill(instance: "Instance", request: Request, now: float) -> None:
    """A prompt was sent there: the moving means have it."""
    prefill_share_now(instance, now)
    share = request.prefill_work_s / PREFILL_WINDOW_S
    instance.prefill_share += share
    instance.prefill_variance += share * share
    if request.lost:
        instance.late_share += share


def prefill_share_now(instance: "Instance", now: float) -> float:
    """The moving mean of the prefills sent there, as a share of time; the others decay with it."""
    elapsed = now - instance.prefill_share_at
    if elapsed > DECAY_STEP_S:
        decay = exp(-elapsed / PREFILL_WINDOW_S)
        instance.prefill_share *= decay
        instance.prefill_variance *= decay * decay
        instance.late_share *= decay
        instance.prefill_share_at = now
    return instance.prefill_share


def late_share_now(instance: "Instance", now: float) -> float:
    prefill_share_now(instance, now)
    return instance.late_share


def measure_load(instance: "Instance", now: float) -> None:
    """Share of its time that the admitted work needs to stay on its deadlines: the decodes' share, and the steepest of the
    prefills' demands (work due by a deadline over the time until it), or what prefills have needed of late if that is more."""
    elapsed = now - instance.load_mean_at
    if elapsed > DECAY_STEP_S:
        instance.load_mean += (1.0 - exp(-elapsed / LOAD_WINDOW_S)) * (instance.load - instance.load_mean)
        instance.load_mean_at = now
    steepest = prefill_share_now(instance, now)
    prefills = instance.prefills
    if not prefills and not instance.decodes:
        instance.steady_s = instance.iteration_s
        instance.load = 0.0
        return
    kv_tokens = instance.kv_decode_tokens
    if prefills:
        demand = 0.0
        undone = 1.0 - head_progress(instance, now)
        for request in prefills.values():
            kv_tokens += request.prompt_tokens
            if request.lost and instance.scheduler is SLO_AWARE:
                continue  # it takes what the others leave, and they are behind nobody who is lost
            demand += request.prefill_work_s * undone
            undone = 1.0
            left = request.due + instance.grace_s - now
            steep = demand / (left if left > LEAST_WINDOW_S else LEAST_WINDOW_S)
            if steep > steepest:
                steepest = steep
    decodes = len(instance.decodes) + len(prefills)
    instance.steady_s = instance.calibration * instance.latency.iteration_s(0, 0, decodes, kv_tokens)
    instance.load = instance.steady_s / instance.tpot_tightest_s + instance.calibration * steepest
