"""Every object that is made for a MultiSLOServing, in the order in which they are applied. Pure; called by the reconcile, which compares
and applies them."""

from typing import Any

from multislo_api.manifest import MultiSLOServing
from multislo_operator import engine_flags
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.objects import engine_pod, router_pod
from multislo_operator.kubernetes.objects.access import budget, engine_policy, monitor, router_policy
from multislo_operator.kubernetes.objects.context import Context, Unbuildable, instance_labels, made
from multislo_perf.profile import Profile

__all__ = ["Context", "Unbuildable", "children", "fighting_flags", "fleet_secret"]

SHUTTING_OUT = ("--api-key", "--uds", "--ssl-keyfile", "--ssl-certfile", "--root-path")
"""vLLM's flags that shut the routers out."""


def children(manifest: MultiSLOServing, profile: Profile, context: Context) -> tuple[Object, ...]:
    """Ready for server-side apply: no status, no nulls, no replicas of engines. Raises `Unbuildable`."""
    problems = _problems(manifest, profile)
    if problems:
        raise Unbuildable(problems)
    name = manifest.metadata.name
    found = [
        _service_account(manifest, context, names.router_of(name), names.ROUTER),
        _service_account(manifest, context, engine_pod.engine_service_account(name), names.ENGINE),
        _config_map(manifest, context, names.router_of(name), "manifest.yaml", router_pod.router_config(manifest)),
        _config_map(manifest, context, engine_pod.profile_config(name), "profile.yaml", context.profile_text),
        router_policy(manifest, context),
        engine_policy(manifest, context),
        budget(manifest, context, names.router_of(name), instance_labels(name, names.ROUTER), names.ROUTER),
    ]
    for tier in tiers_of(manifest):
        selected = engine_pod.selected(manifest, tier)
        found.append(budget(manifest, context, names.engines_of(name, tier), selected, names.ENGINE))
        found.append(engine_pod.engine_deployment(manifest, profile, context, tier))
    found += [router_pod.router_deployment(manifest, context), router_pod.service(manifest, context)]
    if context.monitors:
        found += [monitor(manifest, context, names.ROUTER, "admin"), monitor(manifest, context, names.ENGINE, "http")]
    return tuple(found)


def tiers_of(manifest: MultiSLOServing) -> tuple[str | None, ...]:
    """The tiers, and None for the warm pool where there may be one."""
    tiers: list[str | None] = [tier.name for tier in manifest.spec.tiers]
    return (*tiers, None) if manifest.spec.scaling.warm_pool.max > 0 else tuple(tiers)


def fleet_secret(manifest: MultiSLOServing, context: Context, token: str) -> Object:
    """What the routers know their operator by. Immutable: another token has another name."""
    secret = made(
        manifest, context, "v1", "Secret", context.token_secret, names.ROUTER,
        type="Opaque", immutable=True, stringData={router_pod.TOKEN: token},
    )  # fmt: skip
    return secret


def fighting_flags(manifest: MultiSLOServing, profile: Profile) -> tuple[str, ...]:
    """Which of `spec.engine.args` win over a flag that a tier or the routers need: a line for each, for the status."""
    return engine_flags.fighting_flags(manifest, profile, engine_pod.listening(manifest))


def _problems(manifest: MultiSLOServing, profile: Profile) -> tuple[str, ...]:
    """What is legal in a manifest and cannot be had in a cluster."""
    spec = manifest.spec
    problems = []
    if manifest.metadata.name[0].isdigit():
        problems.append(
            f'metadata.name: "{manifest.metadata.name}" must begin with a letter: it is the name of a Service'
        )
    given = engine_flags.given_flags(spec.engine.args)
    if spec.engine.type == "VLLM":
        problems += [
            f"spec.engine.args: {flag} would shut the routers and the probes out; keys belong to spec.router.apiKeys, "
            "and a NetworkPolicy lets nobody else in"
            for flag in SHUTTING_OUT
            if flag in given
        ]
        problems += _unstartable(manifest, profile)
    if spec.model.tokenizer is not None:
        problems.append(
            f'spec.model.tokenizer: "{spec.model.tokenizer}" is a file of one machine; in a cluster leave it out '
            "(lengths are estimated from bytes)"
        )
    keys = spec.router.api_keys
    if keys is not None and keys.secret is None:
        problems.append(
            "spec.router.apiKeys: a file or a variable is for one machine; in a cluster it must be {secret: NAME}"
        )
    return tuple(problems)


def _unstartable(manifest: MultiSLOServing, profile: Profile) -> list[str]:
    """vLLM wants at least as many tokens as sequences in an iteration, and ends at its start otherwise."""
    seqs = engine_flags.flag_value(manifest.spec.engine.args, engine_flags.SEQS) or 0
    budgets = {tier: engine_flags.batch_tokens_of(manifest, profile, tier) for tier in tiers_of(manifest)}
    return [
        f"spec.engine.args: {engine_flags.SEQS} {seqs} must be at most {budget}, the {engine_flags.BATCH_TOKENS} of "
        f"{engine_flags.Home(tier)}: vLLM does not start otherwise"
        for tier, budget in budgets.items()
        if seqs > budget
    ]


def _service_account(manifest: MultiSLOServing, context: Context, name: str, component: str) -> dict[str, Any]:
    """An identity without rights: neither router nor engine talks to the API server."""
    return made(manifest, context, "v1", "ServiceAccount", name, component, automountServiceAccountToken=False)


def _config_map(manifest: MultiSLOServing, context: Context, name: str, key: str, text: str) -> dict[str, Any]:
    return made(manifest, context, "v1", "ConfigMap", name, names.ROUTER, data={key: text})
