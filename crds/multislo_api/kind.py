"""The MultiSLOServing kind (multislo.dev/v1alpha1): what may be written in a manifest, its bounds and its defaults. Read through
`multislo_api.manifest`, which adds what no single field can tell; the reference and the Kubernetes CRD are generated from here.

Every field's description ends with its unit where it has one and its default where it has one. `Legal` is the same in the
words that a problem uses.
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
    """Which fleet this is."""

    name: Name = Field(description="Name of the fleet, and of everything that is made for it.")
    namespace: Namespace = Field(
        default="default", description="Kubernetes namespace; without meaning on one machine. Default: default."
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
        description="What the engine loads: a model's name on a hub, or a folder. Not changeable once created."
    )
    served_names: list[ModelName] = Field(
        default_factory=lambda valid: [valid["name"]],
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description='Names that clients may give as "model", each once. Default: the model\'s own name alone.',
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Longest request, prompt and output together, in tokens. Default: what fits the engine's KV cache.",
    )
    tokenizer: FilePath | None = Field(
        default=None,
        description="A tokenizer.json with which the router counts prompt tokens exactly. Default: none, lengths are estimated from bytes.",
    )
    token_secret: ObjectName | None = Field(
        default=None,
        description="Kubernetes Secret in the manifest's namespace whose key token holds the Hugging Face token that the engines load the "
        "model with; on one machine the environment's HF_TOKEN is used. Default: none.",
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
    """What one engine instance occupies."""

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
        description="Accelerators of one instance (its tensor-parallel size), as the profile was measured. Default: 1.",
    )


class Emulation(Part):
    """How emulated engines differ from the profile. Without effect on engines of type VLLM."""

    slow_down: float = Field(
        default=1.0, ge=0.01, le=100.0, allow_inf_nan=False, description="Factor on every iteration's time. Default: 1."
    )
    startup_s: Annotated[float, Duration(most_s=3600)] | None = Field(
        default=None,
        alias="startup",
        description="Time from the start of a process to its readiness, a duration. Default: the profile's.",
    )
    jitter: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Random spread of an iteration's time, as a share of it. Default: 0.",
    )


class Cache(Part):
    """Where an engine keeps what it has downloaded. Without meaning on one machine, and for Emulated."""

    claim: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim in the manifest's namespace (ReadWriteMany, where engines run on several nodes) that keeps the "
        "model's weights between starts. Default: none, each pod downloads them.",
    )


class Engine(Part):
    """The inference engine that every instance runs."""

    type: Literal["VLLM", "Emulated"] = Field(
        default="VLLM",
        description="VLLM, or Emulated: an engine without a GPU that keeps the profile's timing. Default: VLLM.",
    )
    scheduler: Literal["Stock", "Priority", "SLOAware"] = Field(
        default="Stock",
        description="Inside the engine: Stock (first come, first served), Priority (deadlines as vLLM's priority) or SLOAware (our "
        "planner as a plug-in). Default: Stock.",
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
        description="More flags for the engine; they win over the ones that a tier needs. Default: none.",
    )
    accelerator: Accelerator = Field(
        default=Accelerator(), description="What one instance occupies. Default: one nvidia.com/gpu."
    )
    pod_template: PodTemplate = Field(
        default={},
        description="What to lay over the pods' template, as a strategic merge: a mapping with metadata and spec (node selector, "
        "tolerations, volumes, environment, resources). Default: nothing.",
    )
    cache: Cache = Field(
        default=Cache(), description="Where an engine keeps what it has downloaded. Default: in its pod, and no longer."
    )
    emulation: Emulation = Field(
        default=Emulation(), description="How emulated engines differ from the profile. Default: not at all."
    )
    command: list[Argument] | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Program and first arguments that start a VLLM engine on one machine. Default: none, `vllm serve` as found on PATH.",
    )


class Slo(Part):
    """When tokens are due: token i of a request at ttft + i * tpot after its arrival."""

    ttft_s: Annotated[float, Duration(most_s=3600, above=True)] = Field(
        alias="ttft",
        description="Time to the first token, a duration; what a request of this tier gets that names none of its own.",
    )
    tpot_s: Annotated[float, Duration(most_s=60, above=True)] = Field(
        alias="tpot", description="Time per output token after the first, a duration; no other tier may have the same."
    )


class Instances(Part):
    """How many engines call a tier their home."""

    min: Count = Field(
        default=1, description="Least instances; 0 lets an unused tier give up all of its own. Default: 1."
    )
    max: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1024, description="Most instances, not under min. Default: 1024, so scaling.acceleratorsMax decides."
    )


class Tier(Part):
    """An SLO class. A tier is its TPOT; its TTFT is the default of its requests."""

    name: TierName = Field(description="Name of the tier, unique in the manifest; what clients give as service_tier.")
    slo: Slo = Field(description="When its tokens are due.")
    instances: Instances = Field(
        default=Instances(), description="How many engines call it their home. Default: 1 to 1024."
    )
    overload: Literal["Queue", "BestEffort", "Reject"] = Field(
        default="Queue",
        description="What becomes of a request that can no longer be in time: Queue (late, in its turn), BestEffort (late, behind all "
        "that is in time) or Reject (429 with Retry-After). Default: Queue.",
    )


class WarmPool(Part):
    """Started instances without a tier: a tier that needs one gets it without waiting for a start."""

    min: Count = Field(default=0, description="Least instances kept warm. Default: 0.")
    max: Count = Field(
        default=2, description="Most instances kept warm, not under min; 0 for no warm pool. Default: 2."
    )


class ScaleDown(Part):
    """How instances leave."""

    stabilization_s: Annotated[float, Duration(most_s=86_400)] = Field(
        default=120.0,
        alias="stabilization",
        description="How long an instance must have been unneeded before it goes, a duration. Default: 2m.",
    )
    drain_timeout_s: Annotated[float, Duration(most_s=86_400)] = Field(
        default=900.0,
        alias="drainTimeout",
        description="How long a leaving instance may finish its requests before it is stopped, a duration. Default: 15m.",
    )


class ScheduleEntry(Part):
    """A floor under a tier's instances at set times: up before the known rush, not after it."""

    cron: Cron = Field(
        description="When the floor begins: five fields (minute, hour, day of month, month, day of week)."
    )
    duration_s: Annotated[float, Duration(most_s=7 * 86_400, least_s=60)] = Field(
        alias="duration", description="How long the floor holds after each beginning, a duration."
    )
    timezone: TimeZone = Field(default="UTC", description="IANA time zone in which cron is read. Default: UTC.")
    tier: TierName = Field(description="The tier whose instances have the floor.")
    min: Count = Field(description="Least instances while it holds, not over the tier's own max.")


class Scaling(Part):
    """How the fleet follows the load."""

    accelerators_max: int = Field(
        ge=1,
        le=65_536,
        description="Accelerators of the whole fleet, warm pool included; where they are short, tiers come in the manifest's order.",
    )
    attainment: float = Field(
        default=0.99,
        ge=0.5,
        le=1.0,
        allow_inf_nan=False,
        description="Share of requests whose every token is in time, which scaling defends. Default: 0.99.",
    )
    warm_pool: WarmPool = Field(default=WarmPool(), description="Started instances without a tier. Default: 0 to 2.")
    scale_down: ScaleDown = Field(
        default=ScaleDown(), description="How instances leave. Default: after 2m, draining for up to 15m."
    )
    schedule: list[ScheduleEntry] = Field(
        default=[], max_length=32, description="Floors under tiers' instances at set times. Default: none."
    )


class Spec(Part):
    """What is wanted."""

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
        description="The SLO classes: unique names, unique tpot; their order is their priority.",
    )
    default_tier: TierName = Field(
        default_factory=lambda valid: max(valid["tiers"], key=lambda tier: tier.slo.tpot_s).name,
        description="Tier of a request that names neither a tier nor an SLO. Default: the loosest one, with the longest tpot.",
    )
    placement: Literal["Pack", "Spread"] = Field(
        default="Pack",
        description="Pack (fill the fullest instance that still keeps its deadlines, so that others empty) or Spread (the least loaded "
        "one). Default: Pack.",
    )
    scaling: Scaling = Field(description="How the fleet follows the load.")
    router: Router = Field(
        default=Router(), description="The one door to the fleet. Default: one process on ports 8000 and 9090."
    )


class MultiSLOServing(Part):
    """One LLM, served to users with different latency needs by one fleet."""

    api_version: Literal["multislo.dev/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["MultiSLOServing"] = Field(description="The kind of object.")
    metadata: Metadata = Field(description="Which fleet this is.")
    spec: Spec = Field(description="What is wanted.")
