"""What the router exports to Prometheus: one table of metrics, each with the function that reads it from `CoreStatus`.
`exposition` renders it on a scrape; nothing here is touched while requests flow. `docs/metrics.md` holds the same
table, made by `python -m multislo_router.shell.metrics`.
"""

from collections.abc import Callable, Iterator

from multislo_router.core.decisions import Cause, Kind
from multislo_router.core.events import Outcome
from multislo_router.core.status import InstanceStatus, TierStatus
from multislo_router.shell.errors import Reason
from multislo_router.shell.internal_errors import Seam
from multislo_router.shell.scrape import (
    WARM_POOL,
    Metric,
    Row,
    Scrape,
    of_instance,
    of_router,
    of_tier,
    of_tier_by,
)

STATES = ("starting", "ready", "draining", "failed")
REFUSED = "refused"
"""The outcome of a request that had no place, beside the core's."""

_MICROSECONDS = (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000)
DECISION_EDGES = tuple(us / 1e6 for us in _MICROSECONDS)
LAG_EDGES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def _outcomes(tier: TierStatus) -> dict[str, int]:
    counts: dict[str, int] = {outcome: tier.outcomes.get(outcome, 0) for outcome in Outcome}
    counts[REFUSED] = sum(tier.refusals.values())
    return counts


def _instances(scrape: Scrape) -> Iterator[Row]:
    for tier, instances in scrape.by_tier.items():
        for state in STATES:
            yield (tier, state), sum(1 for instance in instances if instance.state == state)


def _states(scrape: Scrape) -> Iterator[Row]:
    for instance in scrape.status.instances:
        for state in STATES:
            yield (instance.tier or WARM_POOL, instance.id, state), float(instance.state == state)


def _answers(scrape: Scrape) -> Iterator[Row]:
    for instance in scrape.status.instances:
        for status, count in sorted({200: 0, **scrape.answers.get(instance.id, {})}.items()):
            yield (instance.tier or WARM_POOL, instance.id, str(status or "none")), count


def _gradient(read: Callable[[list[InstanceStatus]], float | None]) -> Callable[[Scrape], Iterator[Row]]:
    def rows(scrape: Scrape) -> Iterator[Row]:
        for tier in scrape.status.tiers:
            value = read([instance for instance in scrape.by_tier[tier.name] if instance.state == "ready"])
            if value is not None:
                yield (tier.name,), value

    return rows


def _fullest(ready: list[InstanceStatus]) -> float | None:
    return max((instance.load for instance in ready), default=None)


def _last(ready: list[InstanceStatus]) -> float | None:
    if not ready:
        return None
    return min((instance.load for instance in ready if instance.requests), default=0.0)


def _emptied(ready: list[InstanceStatus]) -> float:
    return sum(1 for instance in ready if not instance.requests)


METRICS: tuple[Metric, ...] = (
    # What became of the requests.
    of_tier(
        "multislo_requests_arrived_total", "counter", "requests", "Requests that reached the tier.", lambda t: t.arrived
    ),
    of_tier_by(
        "multislo_requests_total",
        "requests",
        "outcome",
        "Requests that are over: completed, client_gone, client_error (its engine answered 4xx), engine_failed, router_failed (a bug), or "
        "refused by the router.",
        _outcomes,
    ),
    of_tier_by(
        "multislo_refusals_total",
        "requests",
        "cause",
        "Refused requests by cause: deadline, queue_full, no_instance, too_long, engine_failed, engine_full.",
        lambda t: {cause: t.refusals.get(cause, 0) for cause in Cause},
    ),
    of_tier_by(
        "multislo_placements_total",
        "requests",
        "kind",
        "Placed requests: own_tier, promoted (to a tighter tier's instance), demoted (to a looser tier's), warm_pool, "
        "late (its deadline was lost already), best_effort.",
        lambda t: {kind: t.placements.get(kind, 0) for kind in Kind},
    ),
    of_tier(
        "multislo_requests_held_total",
        "counter",
        "requests",
        "Requests that had to wait in the router before they were placed or refused.",
        lambda t: t.held,
    ),
    of_tier(
        "multislo_requests_given_up_total",
        "counter",
        "requests",
        "Held requests whose deadline no instance could meet any more: served late.",
        lambda t: t.given_up,
    ),
    of_tier(
        "multislo_requests_out_of_reach_total",
        "counter",
        "requests",
        "Held requests whose deadline, by the profile, not even an idle instance could have met when they came: no scaling helps them.",
        lambda t: t.out_of_reach,
    ),
    # Attainment.
    of_tier_by(
        "multislo_slo_requests_total",
        "requests",
        "result",
        "Requests whose every token was in time (met), and all others (missed: late, refused, failed). A client's own "
        "disconnects and mistakes (client_error) are in neither. Attainment = met / (met + missed).",
        lambda t: {"met": t.requests_met, "missed": t.requests_missed},
    ),
    of_tier_by(
        "multislo_slo_tokens_total",
        "tokens",
        "result",
        "Output tokens in time (met) and late (missed).",
        lambda t: {"met": t.tokens_met, "missed": t.tokens_missed},
    ),
    # Latencies; the edges hold the tier's own SLO.
    of_tier(
        "multislo_time_to_first_token_seconds",
        "histogram",
        "seconds",
        "From a request's arrival at the router to its first token.",
        lambda t: t.ttft,
    ),
    of_tier(
        "multislo_time_per_output_token_seconds",
        "histogram",
        "seconds",
        "Mean time between a request's output tokens after its first.",
        lambda t: t.tpot,
    ),
    of_tier(
        "multislo_queue_time_seconds",
        "histogram",
        "seconds",
        "Time that a request was held in the router before it was placed.",
        lambda t: t.queue,
    ),
    of_tier(
        "multislo_time_to_first_token_slo_ratio",
        "histogram",
        "ratio",
        "Time to first token over the request's own SLO: above 1 it was late, by so many times.",
        lambda t: t.ttft_ratio,
    ),
    of_tier(
        "multislo_request_lateness_seconds",
        "histogram",
        "seconds",
        "By how much the latest token of a request missed its deadline; 0 where all were in time.",
        lambda t: t.late_most,
    ),
    of_tier(
        "multislo_time_to_first_token_error_seconds",
        "histogram",
        "seconds",
        "Actual less predicted time to first token; negative where it came early, so the sum can fall.",
        lambda t: t.ttft_error,
    ),
    of_tier(
        "multislo_time_per_output_token_error_seconds",
        "histogram",
        "seconds",
        "Actual time per output token less the iteration time predicted at placement; negative where it was quicker.",
        lambda t: t.tpot_error,
    ),
    # Each tier now.
    of_tier(
        "multislo_slo_time_to_first_token_seconds",
        "gauge",
        "seconds",
        "The tier's SLO for the first token.",
        lambda t: t.ttft_s,
    ),
    of_tier(
        "multislo_slo_time_per_output_token_seconds",
        "gauge",
        "seconds",
        "The tier's SLO for each further token.",
        lambda t: t.tpot_s,
    ),
    of_tier("multislo_requests_pending", "gauge", "requests", "Requests held in the router now.", lambda t: t.pending),
    of_tier(
        "multislo_requests_pending_oldest_seconds",
        "gauge",
        "seconds",
        "Age of the oldest held request; 0 where none is held.",
        lambda t: t.pending_oldest_s,
    ),
    of_tier(
        "multislo_requests_pending_in_time",
        "gauge",
        "requests",
        "Held requests whose deadline can still be met.",
        lambda t: t.pending_in_time,
    ),
    of_tier(
        "multislo_requests_in_flight",
        "gauge",
        "requests",
        "Requests placed on an instance and not over.",
        lambda t: t.in_flight,
    ),
    of_tier(
        "multislo_arrival_rate",
        "gauge",
        "requests/second",
        "Requests arriving a second, moving average over about 10 s.",
        lambda t: t.arrival_rate,
    ),
    of_tier(
        "multislo_work_rate_instances",
        "gauge",
        "instances",
        "Instances that the arriving work would keep busy, moving average over about 10 s.",
        lambda t: t.work_rate,
    ),
    of_tier(
        "multislo_work_rate_trend",
        "gauge",
        "instances/second",
        "Change of the work rate a second, moving average over about 30 s.",
        lambda t: t.work_rate_trend,
    ),
    # The gradient's summary.
    Metric(
        "multislo_instances",
        "gauge",
        "instances",
        ("tier", "state"),
        "Instances by home tier (warm_pool: none) and state: starting, ready, draining, failed.",
        _instances,
    ),
    Metric(
        "multislo_gradient_fullest_ratio",
        "gauge",
        "ratio",
        ("tier",),
        "Load of the tier's fullest ready instance; absent where none is ready.",
        _gradient(_fullest),
    ),
    Metric(
        "multislo_gradient_last_ratio",
        "gauge",
        "ratio",
        ("tier",),
        "Load of its least loaded ready instance that holds a request; 0 where all are empty, absent where none is ready.",
        _gradient(_last),
    ),
    Metric(
        "multislo_gradient_emptied_instances",
        "gauge",
        "instances",
        ("tier",),
        "Ready instances of the tier that hold no request: what a scale-down can take.",
        _gradient(_emptied),
    ),
    # Each instance now.
    Metric(
        "multislo_instance_state",
        "gauge",
        "",
        ("tier", "instance_id", "state"),
        "1 for the state that the instance is in, 0 for the others.",
        _states,
    ),
    of_instance(
        "multislo_instance_load_ratio",
        "ratio",
        "Share of its time that its admitted work needs to stay on its deadlines; above 1 it will miss some.",
        lambda i: i.load,
    ),
    of_instance(
        "multislo_instance_load_mean_ratio", "ratio", "The load, averaged over about 10 s.", lambda i: i.load_mean
    ),
    of_instance(
        "multislo_instance_iteration_predicted_seconds",
        "seconds",
        "Predicted time of its next steady iteration.",
        lambda i: i.iteration_predicted_s,
    ),
    of_instance(
        "multislo_instance_requests",
        "requests",
        "Requests placed on it and not over. One with several sequences (n, lists of prompts) counts as so many.",
        lambda i: i.requests,
    ),
    of_instance(
        "multislo_instance_prefills", "requests", "Of these, the ones without a first token.", lambda i: i.prefills
    ),
    of_instance(
        "multislo_instance_decodes",
        "requests",
        "Of these, the ones past their first token (running).",
        lambda i: i.decodes,
    ),
    of_instance(
        "multislo_instance_kv_tokens",
        "tokens",
        "Tokens that the router believes in its KV cache.",
        lambda i: i.kv_tokens,
    ),
    of_instance(
        "multislo_instance_kv_tokens_reported",
        "tokens",
        "Tokens in its KV cache as the engine last said; absent until it did.",
        lambda i: i.kv_tokens_reported,
    ),
    of_instance(
        "multislo_instance_kv_tokens_max", "tokens", "Tokens that its KV cache can hold.", lambda i: i.kv_tokens_max
    ),
    of_instance(
        "multislo_instance_calibration_ratio",
        "ratio",
        "Measured over predicted iteration time, which corrects its predictions; 1 where the profile is right.",
        lambda i: i.calibration,
    ),
    of_instance(
        "multislo_instance_empty_seconds",
        "seconds",
        "How long it has held no request; 0 while it holds one.",
        lambda i: i.empty_s,
    ),
    Metric(
        "multislo_instance_answers_total",
        "counter",
        "answers",
        ("tier", "instance_id", "status"),
        "Answers of its engine by HTTP status, those that the router tried again among them; none: the connection broke, or could not "
        "be made.",
        _answers,
    ),
    # The router itself.
    of_router(
        "multislo_decision_seconds",
        "histogram",
        "seconds",
        "Time that the core took for an arriving request: the router's own decision.",
        lambda s: s.decision,
    ),
    of_router(
        "multislo_event_loop_lag_seconds",
        "histogram",
        "seconds",
        "How late the event loop woke a timer, sampled ten times a second.",
        lambda s: s.loop_lag,
    ),
    Metric(
        "multislo_faults_total",
        "counter",
        "requests",
        ("reason",),
        "Requests answered with an error before they had a tier, by the reason in their x-multislo-reason header.",
        lambda s: [((reason,), s.faults.get(reason, 0)) for reason in Reason],
    ),
    Metric(
        "multislo_internal_errors_total",
        "counter",
        "errors",
        ("seam",),
        "Errors of the router's own, by where they surfaced: client, engine, connect, tokenizer, core, decision, timer, watch, admin, "
        "lost (a request that nothing continued), loop. Each is a bug and in the log.",
        lambda s: [((seam,), s.internal_errors.get(seam, 0)) for seam in Seam],
    ),
    Metric(
        "multislo_model_requests_total",
        "counter",
        "requests",
        ("model",),
        "Scheduled requests by the model that they asked for: a served name or a LoRA adapter.",
        lambda s: [((model,), count) for model, count in s.model_requests.items()],
    ),
    Metric(
        "multislo_model_output_tokens_total",
        "counter",
        "tokens",
        ("model",),
        "Output tokens of completed requests by that model.",
        lambda s: [((model,), count) for model, count in s.model_output_tokens.items()],
    ),
    of_router(
        "multislo_passed_through_total",
        "counter",
        "requests",
        "Requests for paths that are not scheduled, passed to an instance without an SLO.",
        lambda s: s.passed_through,
    ),
    of_router(
        "multislo_connections_total",
        "counter",
        "connections",
        "Connections that clients made.",
        lambda s: s.connections,
    ),
    of_router(
        "multislo_connections_open", "gauge", "connections", "Of these, the open ones.", lambda s: s.connections_open
    ),
    of_router(
        "multislo_fleet_updates_total",
        "counter",
        "updates",
        "How many times the fleet has been set.",
        lambda s: s.status.fleet_generation,
    ),
    of_router("multislo_uptime_seconds", "gauge", "seconds", "Time since the router started.", lambda s: s.uptime_s),
    Metric(
        "multislo_build_info",
        "gauge",
        "",
        ("version",),
        "Always 1; the version is in the label.",
        lambda s: [((s.version,), 1.0)],
    ),
)


def table() -> str:
    """The rows of `docs/metrics.md`."""
    lines = ["| metric | type | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        lines.append(f"| `{metric.name}` | {metric.type} | {metric.unit or '-'} | {labels} | {metric.meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
