"""One look at a resource: from all that is seen of it to the changes that bring it nearer to what its manifest asks for. Pure; called by
`reconciler` at every wake-up and once a second.

The order of the house: read the manifest (`wanted`), see the instances (`workloads`, `answers`), let `decide` plan, turn the plan into
changes of replicas, labels and gates (`actions`, `rollout`), say what happens (`conditions`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from multislo_api.fleet import InstanceList
from multislo_api.manifest import MultiSLOServing
from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceState
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.plan import Plan
from multislo_operator.decide.scale import decide
from multislo_operator.kubernetes import names, rollout
from multislo_operator.kubernetes.actions import carry_out, give_up_lost, let_go, remove_unwanted, serve
from multislo_operator.kubernetes.answers import Answers, together
from multislo_operator.kubernetes.causes import Cause, Causes, asked_again_at, causes, refused_at
from multislo_operator.kubernetes.changes import Apply, AskAgain, Change, CreateSecret, Note, Object
from multislo_operator.kubernetes.conditions import Picture, another_operator, status, troubles_of, unknown_fields
from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.ledger import Ledger, as_planned, kept, move
from multislo_operator.kubernetes.listed import instance_lists
from multislo_operator.kubernetes.objects.children import Context, Unbuildable, children, fleet_secret
from multislo_operator.kubernetes.obstacles import Obstacles
from multislo_operator.kubernetes.pods import EnginePod, as_of, engine_pods, is_lost, router_pods
from multislo_operator.kubernetes.seen import RouterSeen, Seen
from multislo_operator.kubernetes.wanted import Unusable, Wanted, read
from multislo_operator.kubernetes.workloads import Workload, workloads
from multislo_operator.observe import fleet_observed, fleet_spec

LOOK_S = 1.0
"""Between two looks where nothing has changed."""
LOOK_PENDING_S = 0.25
"""While requests wait in a router: the sooner an instance is asked for, the shorter they wait."""
TROUBLE_KEPT_S = 900.0
"""A trouble that is back within this time is the same one. The kubelet tries a crashing container again after five minutes at most."""
ASK_AGAIN_S = 30.0
"""Between two times that refused pods are asked for again."""
UNPLACED_AFTER_S = 30.0
"""A pod that no node has room for, or no place in the budget, counts as starting for this long. It may take the place of a pod that is
going."""
LOOK_BUSY_S, BUSY = 0.5, 0.5
"""While an instance is loaded more than this, or there is none: requests may wait soon."""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What the operator's command line says."""

    key: bytes
    """From which the tokens of the routers are derived."""
    image: str
    """Of the routers and the emulated engines: the operator's own."""
    namespace: str
    """The operator's own."""
    version: str
    """The operator's own."""
    monitors: bool = False
    """This cluster has PodMonitors."""
    monitoring_namespace: str | None = None
    """Where Prometheus runs, for the NetworkPolicies."""
    monitor_labels: tuple[tuple[str, str], ...] = ()
    """Of the PodMonitors, for a Prometheus that looks for them."""
    image_pull_policy: str = "IfNotPresent"
    users_assigned: bool = False
    """The cluster gives pods their user and group."""


@dataclass(frozen=True, slots=True)
class ResourceMemory:
    """What is remembered of a resource between two looks. All of it may be lost: then the fleet does not shrink for a while."""

    decide: Memory = field(default_factory=Memory)
    failed_since: Mapping[str, float] = field(default_factory=dict)
    to_come_since: Mapping[str, float] = field(default_factory=dict)
    """By the id of an instance that the replicas ask for and that has no pod, or a gated one."""
    ledger: Ledger = field(default_factory=Ledger)
    wanted_of: tuple[object, ...] = ()
    wanted: Wanted | Unusable | None = None
    children: tuple[Change, ...] = ()
    obstacles: Obstacles = field(default_factory=Obstacles)
    """What kept the last look's changes from being carried out."""
    told: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """When a Deployment was last seen to have a trouble, by its name and the trouble's reason: each is one event, however long it lasts."""
    other_operator: str = ""
    """Another installation that stood aside."""
    token: str = ""
    """Derived from what the resource says; kept because deriving it costs more than the rest of a look."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a look comes to."""

    changes: tuple[Change, ...]
    instances: Mapping[str, InstanceList]
    """What each router is told, by its pod."""
    routers: Mapping[str, str]
    """The admin listeners, by pod."""
    token: str
    status: Mapping[str, Any]
    notes: tuple[Note, ...]
    spec: FleetSpec | None
    plan: Plan | None
    observed: FleetObserved | None
    memory: ResourceMemory
    wake_in_s: float = LOOK_S
    instances_lost: int = 0
    """On nodes that have not been heard of."""


def reconcile(
    seen: Seen,
    routers: Mapping[str, RouterSeen],
    memory: ResourceMemory,
    settings: OperatorSettings,
    at: datetime,
    now: float,
) -> Outcome:
    """`at` is the time of day, `now` a clock that does not jump."""
    engines = as_of(engine_pods(seen.pods.values()), at)
    # A router that went with its node relays no stream that a drain would have to wait for.
    doors = [door for door in router_pods(seen.pods.values()) if not is_lost(door.silent_at, at)]
    answers = together(doors, routers, now)
    found, moving = as_planned(workloads(seen.deployments, seen.replica_sets, engines), memory.ledger, at)
    draft = Draft(found, at, moving=moving)
    give_up_lost(draft)
    before, memory = memory, _read(seen, memory, settings)
    spec = plan = observed = None
    rolled = rollout.Rollout()
    if isinstance(memory.wanted, Wanted):
        spec, plan, observed, rolled, memory = _plan(draft, engines, memory, answers, at, now)
        move(draft, engines)
        memory = replace(memory, ledger=kept(draft))
    elif memory.wanted is not None and memory.wanted.manifest is not None:
        _put_back(draft, engines, memory.wanted.manifest)
    if memory.wanted is not before.wanted and isinstance(memory.wanted, Wanted) and memory.wanted.ignored:
        draft.notes.append(Note("UnknownFields", unknown_fields(memory.wanted), warning=True))
    found_causes = causes(seen.pods, seen.deployments, seen.warnings, at)
    _ask_again(draft, seen.deployments, found_causes)
    troubles = troubles_of(found_causes, draft.workloads, doors, seen.resource["metadata"]["name"])
    memory = replace(memory, told=_tell(draft, troubles, memory.told, now))
    if seen.other_operator and seen.other_operator != memory.other_operator:
        draft.note("AnotherOperator", another_operator(seen.other_operator), warning=True)
    memory = replace(memory, other_operator=seen.other_operator)
    picture = Picture(
        seen.resource,
        memory.wanted,
        draft.workloads,
        engines,
        doors,
        answers,
        plan,
        rolled,
        at,
        memory.obstacles,
        troubles,
        seen.other_operator,
    )
    return Outcome(
        # Gates and counts first: they are what a fleet cannot wait for.
        changes=(*draft.changes(), *memory.children),
        instances=instance_lists(engines, draft, routers, doors),
        routers={door.name: door.admin_url for door in doors if door.admin_url is not None},
        token=memory.token,
        status=status(picture),
        notes=tuple(draft.notes),
        spec=spec,
        plan=plan,
        observed=observed,
        memory=memory,
        wake_in_s=_look_again_in_s(answers),
        instances_lost=sum(pod.silent_at is not None for pod in engines),
    )


def _tell(
    draft: Draft, troubles: Mapping[str, Cause], told: Mapping[tuple[str, str], float], now: float
) -> dict[tuple[str, str], float]:
    """An event for each trouble that is new, or has been away for a while: a crash loop comes and goes."""
    kept = {what: at for what, at in told.items() if now - at < TROUBLE_KEPT_S}
    for deployment, cause in troubles.items():
        if (deployment, cause.reason) not in kept:
            draft.note(cause.reason, f"{deployment}: {cause.message}", warning=True)
        kept[deployment, cause.reason] = now
    return kept


def _ask_again(draft: Draft, deployments: Mapping[str, Object], found: Causes) -> None:
    """Whoever raises a quota is not to wait until the ReplicaSet's controller tries again by itself."""
    for name in found.deployments:
        times = [refused_at(deployments[name]), asked_again_at(deployments[name])]
        if draft.at.timestamp() - max(times) >= ASK_AGAIN_S:
            draft.after.append(AskAgain(name, draft.time))


def _look_again_in_s(answers: Answers) -> float:
    if answers.snapshot is None:
        return LOOK_S
    if any(tier.pending for tier in answers.snapshot.tiers):
        return LOOK_PENDING_S
    loads = [instance.load for instance in answers.snapshot.instances if instance.state == "ready"]
    return LOOK_BUSY_S if max(loads, default=1.0) > BUSY else LOOK_S


def _read(seen: Seen, memory: ResourceMemory, settings: OperatorSettings) -> ResourceMemory:
    """The manifest, and the objects that it asks for: read again only when something of it has changed."""
    metadata = seen.resource["metadata"]
    source = (
        metadata["uid"],
        # Not its generation: what a new CRD fills in raises none.
        seen.resource.get("spec"),
        tuple(sorted((metadata.get("annotations") or {}).items())),
        seen.profile_text,
        settings,
    )
    if memory.wanted_of == source:
        return memory
    key = names.Key(metadata["namespace"], metadata["name"])
    token = names.fleet_token(settings.key, key, metadata["uid"])
    found = read(seen)
    # What cannot be used changes nothing that runs.
    changes: tuple[Change, ...] = ()
    if isinstance(found, Wanted):
        try:
            changes = _children(found, settings, metadata["uid"], token)
        except Unbuildable as error:
            problems = "; ".join(error.problems)
            found = Unusable("ManifestInvalid", problems, of_profile=False, manifest=found.manifest)
    # Whoever has changed the manifest may have mended what did not come up: it is tried at once.
    fresh = replace(memory.decide, tries={})
    return replace(memory, decide=fresh, wanted_of=source, wanted=found, children=changes, token=token)


def _children(wanted: Wanted, settings: OperatorSettings, uid: str, token: str) -> tuple[Change, ...]:
    context = Context(
        uid=uid,
        image=settings.image,
        token_secret=names.token_secret(wanted.manifest.metadata.name, token),
        monitors=settings.monitors,
        profile_text=wanted.profile_text,
        operator_namespace=settings.namespace,
        version=settings.version,
        monitoring_namespace=settings.monitoring_namespace,
        monitor_labels=settings.monitor_labels,
        image_pull_policy=settings.image_pull_policy,
        users_assigned=settings.users_assigned,
    )
    return (
        CreateSecret(fleet_secret(wanted.manifest, context, token)),
        *(
            Apply(child, optional=child["kind"] == "PodMonitor")
            for child in children(wanted.manifest, wanted.profile, context)
        ),
    )


def _plan(
    draft: Draft, engines: list[EnginePod], memory: ResourceMemory, answers: Answers, at: datetime, now: float
) -> tuple[FleetSpec, Plan, FleetObserved, rollout.Rollout, ResourceMemory]:
    wanted = memory.wanted
    assert isinstance(wanted, Wanted)
    manifest = wanted.manifest
    failed_since = dict(memory.failed_since)
    to_come_since = dict(memory.to_come_since)
    present = [
        instance for workload in draft.workloads.values() for instance in _present(workload, at, now, to_come_since)
    ]
    there = {instance.id for instance in present}
    observed = fleet_observed(
        present, answers.snapshot, answers.age_s, now, failed_since, manifest.spec.engine.scheduler == "SLOAware"
    )
    if not answers.complete:
        # Some router may still relay a stream of it.
        observed = replace(
            observed,
            instances=[
                replace(i, requests=None) if i.state is InstanceState.DRAINING else i for i in observed.instances
            ],
        )
    spec = _spec(wanted, draft, at)
    plan, remembered = decide(spec, observed, memory.decide, now)
    carry_out(draft, plan, wanted)
    remove_unwanted(draft, wanted, observed, spec.drain_timeout_s)
    spare = _spare(spec.instances_max, engines)
    loads = {instance.id: instance.load for instance in observed.instances}
    rolled = rollout.step(draft, loads, _empty(draft, answers), spare, spec.drain_timeout_s)
    let_go(draft, manifest, spare, rolled)
    serve(draft)
    memory = replace(
        memory,
        decide=remembered,
        failed_since=failed_since,
        to_come_since={id: since for id, since in to_come_since.items() if id in there},
    )
    return spec, plan, observed, rolled, memory


@dataclass(frozen=True, slots=True)
class _Present:
    """One instance as `observe` asks for it; `since` on the clock of `now`."""

    id: str
    tier: str | None
    state: InstanceState
    since: float
    ever_ready: bool
    batch_tokens: int
    unplaced: bool


def _present(workload: Workload, at: datetime, now: float, to_come_since: dict[str, float]) -> list[_Present]:
    """`to_come_since` is kept by the caller: since when an instance is to come that no node has been asked for."""
    tier = names.tier_of(workload.tier)
    wall = at.timestamp()
    found = []
    for pod in workload.instances:
        age_s = max(0.0, wall - pod.since)
        unplaced = pod.unschedulable is not None and age_s > UNPLACED_AFTER_S
        found.append(_Present(pod.name, tier, pod.state, now - age_s, pod.served, pod.batch_tokens, unplaced))
    budget = max((pod.batch_tokens for pod in workload.pods), default=0)
    gated = [pod.name for pod in workload.gated]
    for index in range(workload.to_come):
        id = gated[index] if index < len(gated) else f"{workload.name} ({index + 1} to come)"
        since = to_come_since.setdefault(id, now)
        unplaced = now - since > UNPLACED_AFTER_S
        found.append(_Present(id, tier, InstanceState.STARTING, since, False, budget, unplaced))
    return found


def _spec(wanted: Wanted, draft: Draft, at: datetime) -> FleetSpec:
    """The manifest's, with the counts that somebody else has set."""
    spec = fleet_spec(wanted.manifest, wanted.profile, at)
    tiers = []
    for tier in spec.tiers:
        workload = draft.workloads.get(tier.name)
        if workload is not None and wanted.external and workload.never_scaled:
            tier = replace(tier, instances_max=tier.instances_min, floor=0)
        elif workload is not None and workload.is_set_outside(wanted.external, at):
            tier = replace(tier, instances_min=workload.replicas, instances_max=workload.replicas, floor=0)
        tiers.append(tier)
    return replace(spec, tiers=tuple(tiers))


def _put_back(draft: Draft, engines: list[EnginePod], manifest: MultiSLOServing) -> None:
    """While the manifest cannot be used: what the fleet loses comes again, within the counts as they are."""
    spec = manifest.spec
    let_go(
        draft,
        manifest,
        _spare(spec.scaling.accelerators_max // spec.engine.accelerator.per_instance, engines),
        rollout.Rollout(),
    )
    serve(draft)


def _spare(instances_max: int | None, engines: list[EnginePod]) -> int:
    """Instances that the budget has room for; what is being deleted holds its accelerators until it is gone, even where its tier's
    Deployment has gone before."""
    if instances_max is None:
        return 1024
    return instances_max - sum(pod.holds_place for pod in engines)


def _empty(draft: Draft, answers: Answers) -> dict[str, bool]:
    """By pod: no router has a request on it, and all know that it drains."""
    views = {view.id: view for view in answers.snapshot.instances} if answers.snapshot else {}
    answer = {}
    for workload in draft.workloads.values():
        for pod in workload.running:
            view = views.get(pod.name)
            told = view is not None and view.state in ("draining", "failed") and view.requests == 0
            answer[pod.name] = not pod.served or (answers.complete and told)
    return answer
