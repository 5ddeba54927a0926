"""The MultiSLOServing kind (multislo.dev/v1alpha1): the fields of a manifest, their bounds and their defaults. `multislo_api.manifest`
reads it and adds the rules that concern several fields. The reference and the Kubernetes CRD are generated from here.

Every field's description ends with its unit and its default, where it has them. `Legal` says what is legal in the words of a problem.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from multislo_api.duration import Duration
from multislo_api.router import Router
from multislo_api.scalars import (
    Argument,
    Count,
    Cron,
    FilePath,
    Legal,
    ModelName,
    Name,
    Namespace,
    ObjectName,
    Part,
    PodTemplate,
    TierName,
    TimeZone,
)

API_VERSION = "multislo.dev/v1alpha1"
KIND = "MultiSLOServing"


class Metadata(Part):
    """Identity of the fleet."""

    name: Name = Field(description="Name of the fleet. The names of all its objects begin with it.")
    namespace: Namespace = Field(
        default="default", description="Kubernetes namespace; not used on one machine. Default: default."
    )
    labels: dict[str, str] = Field(
        default={}, max_length=64, description="Kubernetes labels; kept, not read. Default: none."
    )
    annotations: dict[str, str] = Field(
        default={}, max_length=256, description="Kubernetes annotations; kept, not read. Default: none."
    )


class Model(Part):
    """The LLM that the fleet serves."""

    name: ModelName = Field(
        description="Model that the engine loads: its name on a hub, or a folder. Cannot be changed after creation."
    )
    served_names: list[ModelName] = Field(
        default_factory=lambda valid: [valid["name"]],
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description='Names that clients may give as "model". Default: the model\'s own name.',
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Longest request, prompt and output together, in tokens. Default: as much as the engine's KV cache holds.",
    )
    tokenizer: FilePath | None = Field(
        default=None,
        description="Path of a tokenizer.json, so that the router counts prompt tokens exactly. Default: none, it estimates them.",
    )
    token_secret: ObjectName | None = Field(
        default=None,
        description="Kubernetes Secret in the manifest's namespace. Its key token holds the Hugging Face token with which engines load the "
        "model. On one machine, HF_TOKEN of the environment is used instead. Default: none.",
    )


class ProfileFile(Part):
    """A profile on this machine."""

    file: FilePath = Field(description="Path of the profile, relative to the manifest's folder.")


class ProfileConfigMap(Part):
    """A profile in the cluster."""

    config_map: ObjectName = Field(description="ConfigMap in the manifest's namespace that holds the profile.")


def _profile_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "name"
    if isinstance(value, ProfileFile) or (isinstance(value, dict) and "file" in value and "configMap" not in value):
        return "file"
    if isinstance(value, ProfileConfigMap) or (
        isinstance(value, dict) and "configMap" in value and "file" not in value
    ):
        return "configMap"
    return None


Profile = Annotated[
    Annotated[ObjectName, Tag("name")]
    | Annotated[ProfileFile, Tag("file")]
    | Annotated[ProfileConfigMap, Tag("configMap")],
    Discriminator(_profile_tag),
    Legal('the name of a shipped profile (a-z, 0-9, "-" and "."), or {file: PATH}, or {configMap: NAME}'),
]


class Accelerator(Part):
    """The accelerators of one instance."""

    resource: Annotated[
        str,
        Field(
            min_length=1,
            max_length=317,
            pattern=r"^([-a-z0-9.]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        ),
        Legal("a Kubernetes resource name such as nvidia.com/gpu, of 1 to 317 characters"),
    ] = Field(
        default="nvidia.com/gpu", description="Kubernetes resource name of the accelerator. Default: nvidia.com/gpu."
    )
    per_instance: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Accelerators of one instance: its tensor-parallel size, the same as in the profile. Default: 1.",
    )


class Emulation(Part):
    """How emulated engines differ from the profile. No effect with type VLLM."""

    slow_down: float = Field(
        default=1.0,
        ge=0.01,
        le=100.0,
        allow_inf_nan=False,
        description="Factor on the time of every iteration. Default: 1.",
    )
    startup_s: Annotated[float, Duration(most_s=3600)] | None = Field(
        default=None,
        alias="startup",
        description="Time from the start of a process until it is ready, a duration. Default: the profile's startupS.",
    )
    jitter: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Random variation of an iteration's time, as a share of it. Default: 0.",
    )


class Cache(Part):
    """Where engines keep downloaded weights. Not used on one machine or with type Emulated."""

    claim: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim in the manifest's namespace that keeps the model's weights between starts. It must be "
        "ReadWriteMany if engines run on several nodes. Default: none, each pod downloads the weights.",
    )


class Adapter(Part):
    """A LoRA adapter of the model: for clients a model of its own."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=253, pattern=r"^[^\s,=]+$"),
        Legal('text of 1 to 253 characters without spaces, "," and "="'),
    ] = Field(description='Name that clients give as "model"; no served name, and no other adapter\'s.')
    path: Annotated[
        str,
        Field(min_length=1, max_length=4096, pattern=r"^[^\x00,]+$"),
        Legal('a path or a name on a hub, of 1 to 4096 characters without ","'),
    ] = Field(description="Where the engine finds it: a folder as the engine sees it, or a name on a hub.")
    rank: int = Field(
        default=16,
        ge=1,
        le=512,
        description="Its rank, or more: engines reserve memory for the largest one. Default: 16.",
    )


class Engine(Part):
    """The inference engine that every instance runs."""

    type: Literal["VLLM", "Emulated"] = Field(
        default="VLLM",
        description="VLLM, or Emulated (needs no GPU; its timing follows the profile). Default: VLLM.",
    )
    scheduler: Literal["Stock", "Priority", "SLOAware"] = Field(
        default="Stock",
        description="How the engine orders requests: Stock (first come, first served), Priority (deadlines as vLLM's priority) or SLOAware "
        "(multislo's own planner; with type VLLM, multislo must be installed beside vLLM 0.32: docs/vllm-plugin.md). Default: Stock.",
    )
    image: Annotated[
        str,
        Field(min_length=1, max_length=512, pattern=r"^\S+$"),
        Legal("a container image of 1 to 512 characters without spaces"),
    ] = Field(
        default="vllm/vllm-openai:v0.33.0",
        description="Container image of the engine. Default: vllm/vllm-openai:v0.33.0.",
    )
    args: list[Argument] = Field(
        default=[],
        max_length=128,
        description="More flags for the engine. They override the flags that multislo sets. Default: none.",
    )
    adapters: list[Adapter] = Field(
        default=[],
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="LoRA adapters, each loaded by every engine. The profile should be of an engine with them. Default: none.",
    )
    accelerator: Accelerator = Field(
        default=Accelerator(), description="Accelerators of one instance. Default: one nvidia.com/gpu."
    )
    pod_template: PodTemplate = Field(
        default={},
        description="Changes to the engines' pod template, applied as a strategic merge: a mapping with metadata and spec (node selector, "
        "tolerations, volumes, environment, resources). Default: none.",
    )
    cache: Cache = Field(
        default=Cache(),
        description="Where engines keep downloaded weights. Default: in the pod, so they are lost with it.",
    )
    emulation: Emulation = Field(
        default=Emulation(), description="How emulated engines differ from the profile. Default: they do not."
    )
    command: list[Argument] | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Program and first arguments that start a VLLM engine on one machine. Default: `vllm serve`, found on PATH.",
    )


class Slo(Part):
    """Deadlines of a tier: token i of a request (from 0) is due at its arrival + ttft + i * tpot."""

    ttft_s: Annotated[float, Duration(most_s=3600, above=True)] = Field(
        alias="ttft",
        description="Time to the first token, a duration. Applies to requests of this tier that bring no TTFT of their own.",
    )
    tpot_s: Annotated[float, Duration(most_s=60, above=True)] = Field(
        alias="tpot", description="Time per output token after the first, a duration. Each tier needs a different one."
    )


class Instances(Part):
    """Bounds on the number of a tier's instances."""

    min: Count = Field(default=1, description="Fewest instances; with 0, an unused tier keeps none. Default: 1.")
    max: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1024,
        description="Most instances, at least min. Default: 1024, so that scaling.acceleratorsMax is the limit.",
    )


class Tier(Part):
    """An SLO class. Its TPOT identifies it; its TTFT is the default for its requests."""

    name: TierName = Field(description="Name of the tier, unique in the manifest. Clients may give it as service_tier.")
    slo: Slo = Field(description="Deadlines of the tier's tokens.")
    instances: Instances = Field(
        default=Instances(), description="Bounds on the number of the tier's instances. Default: 1 to 1024."
    )
    overload: Literal["Queue", "BestEffort", "Reject"] = Field(
        default="Queue",
        description="What happens to a request that can no longer meet its deadline: Queue (served late, in turn), BestEffort (served "
        "late, after all requests that can be in time) or Reject (429 with Retry-After). Default: Queue.",
    )
    latest: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=5.0,
        description="How long the router holds a request at most where overload is Queue, as a multiple of its TTFT (1 to 1000). After "
        "that it goes to an engine even if others are late for it. Default: 5.",
    )


class ServiceTiers(Part):
    """Which tier each of OpenAI's own values of service_tier means. A tier's name needs no entry."""

    auto: TierName | None = Field(default=None, description="For clients that leave the choice. Default: defaultTier.")
    default: TierName | None = Field(default=None, description="For standard processing. Default: defaultTier.")
    flex: TierName | None = Field(
        default=None, description="For cheap and slow processing. Default: the loosest tier, with the longest tpot."
    )
    priority: TierName | None = Field(
        default=None, description="For fast processing. Default: the tightest tier, with the shortest tpot."
    )


class WarmPool(Part):
    """Running instances that belong to no tier. A tier that needs one gets it without waiting for a start."""

    min: Count = Field(default=0, description="Fewest instances in the pool. Default: 0.")
    max: Count = Field(
        default=2, description="Most instances in the pool, at least min; 0 turns the warm pool off. Default: 2."
    )


class ScaleDown(Part):
    """How instances are removed."""

    stabilization_s: Annotated[float, Duration(most_s=86_400)] = Field(
        default=120.0,
        alias="stabilization",
        description="How long an instance must be unneeded before it is removed, a duration. Default: 2m.",
    )
    drain_timeout_s: Annotated[float, Duration(most_s=86_400)] = Field(
        default=900.0,
        alias="drainTimeout",
        description="How long a draining instance may take to finish its requests before it is stopped, a duration. Default: 15m.",
    )


class ScheduleEntry(Part):
    """A minimum of a tier's instances at set times, to have them ready before a known peak."""

    cron: Cron = Field(
        description="When the minimum begins to apply: five fields (minute, hour, day of month, month, day of week)."
    )
    duration_s: Annotated[float, Duration(most_s=7 * 86_400, least_s=60)] = Field(
        alias="duration", description="How long the minimum applies after each beginning, a duration."
    )
    timezone: TimeZone = Field(default="UTC", description="IANA time zone in which cron is read. Default: UTC.")
    tier: TierName = Field(description="Tier that the minimum is for.")
    min: Count = Field(description="Fewest instances meanwhile, at most the tier's own max.")


class Scaling(Part):
    """How the fleet's size follows the load."""

    accelerators_max: int = Field(
        ge=1,
        le=65_536,
        description="Most accelerators of the whole fleet, warm pool included. If they do not suffice, the first tiers get theirs first.",
    )
    attainment: float = Field(
        default=0.99,
        ge=0.5,
        le=1.0,
        allow_inf_nan=False,
        description="Goal of scaling: the share of requests whose every token is in time. Default: 0.99.",
    )
    warm_pool: WarmPool = Field(
        default=WarmPool(), description="Running instances that belong to no tier. Default: 0 to 2."
    )
    scale_down: ScaleDown = Field(
        default=ScaleDown(), description="How instances are removed. Default: after 2m, with up to 15m to drain."
    )
    schedule: list[ScheduleEntry] = Field(
        default=[], max_length=32, description="Minima of tiers' instances at set times. Default: none."
    )


class Spec(Part):
    """The desired fleet."""

    model: Model = Field(description="The LLM that the fleet serves.")
    profile: Profile = Field(
        description="Measured latency of this model on this accelerator: the name of a shipped profile, {file: PATH} or {configMap: NAME}."
    )
    engine: Engine = Field(
        default=Engine(), description="The inference engine that every instance runs. Default: stock vLLM."
    )
    tiers: list[Tier] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="The SLO classes, with unique names and unique tpot. Their order is their priority when accelerators are short.",
    )
    default_tier: TierName = Field(
        default_factory=lambda valid: max(valid["tiers"], key=lambda tier: tier.slo.tpot_s).name,
        description="Tier of requests that name neither a tier nor an SLO. Default: the one with the longest tpot.",
    )
    service_tiers: ServiceTiers = Field(
        default=ServiceTiers(),
        description="Which tier each of OpenAI's own values of service_tier means. Default: priority the tightest, flex the loosest, the "
        "others defaultTier.",
    )
    placement: Literal["Pack", "Spread"] = Field(
        default="Pack",
        description="Which instance gets a request, among those where every deadline still holds: Pack (the fullest, so that others become "
        "empty) or Spread (the least loaded). Default: Pack.",
    )
    scaling: Scaling = Field(description="How the fleet's size follows the load.")
    router: Router = Field(
        default=Router(), description="The router, where clients connect. Default: one process on ports 8000 and 9090."
    )


class MultiSLOServing(Part):
    """One LLM, served to users with different latency needs by one fleet."""

    api_version: Literal["multislo.dev/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["MultiSLOServing"] = Field(description="The kind of object.")
    metadata: Metadata = Field(description="Identity of the fleet.")
    spec: Spec = Field(description="The desired fleet.")
