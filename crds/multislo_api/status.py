"""What the operator writes under `.status` of a MultiSLOServing, and what `kubectl get mslo` shows of it. Written by the operator; the
CRD's schema of the status is generated from here.

`status_document(status)` is the object to apply; `status_from(object)` reads back what an object holds, tolerant of a newer operator's
fields and of damage: a status is only a report, so one that cannot be read counts as absent.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

ConditionType = Literal[
    "Ready", "RouterReady", "WorkloadsReady", "ScalingReady", "ProfileReady", "ChangeRefused", "SoleOperator"
]
# Of what this version writes. What is read may be a later operator's.
CONDITION_TYPES: tuple[ConditionType, ...] = get_args(ConditionType)

MESSAGE_MAX = 1024
"""Characters of a condition's message or a tier's reason: some lines. Longer ones are cut, not refused by the API server."""
NOTES_MAX = 16
"""Notes of one object; they are remarks on a manifest, not a log."""

CAMEL_CASE = r"^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9_])?$"
"""Of a condition's type and reason, as Kubernetes has it."""

Count = Annotated[int, Field(ge=0)]


class StatusPart(BaseModel):
    """Common settings: what is unknown is passed over (a newer operator's), names are the document's camelCase."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Condition(StatusPart):
    """One question about the fleet and its answer, as Kubernetes' own conditions."""

    # No enumeration: a CRD of this version has to take the conditions of a later operator.
    type: str = Field(min_length=1, max_length=128, pattern=CAMEL_CASE, description="The question.")
    status: Literal["True", "False", "Unknown"] = Field(description="The answer.")
    reason: str = Field(
        min_length=1,
        max_length=128,
        pattern=CAMEL_CASE,
        description="The answer's cause in one CamelCase word, for programs.",
    )
    message: str = Field(
        default="", max_length=MESSAGE_MAX, description="The cause in words, for people. Default: none."
    )
    last_transition_time: str = Field(
        json_schema_extra={"format": "date-time"}, description="When the status last changed, RFC 3339 in UTC."
    )
    observed_generation: Count = Field(description="metadata.generation of the spec that was judged.")


class TierStatus(StatusPart):
    """One tier as the operator sees it."""

    name: str = Field(min_length=1, max_length=22, description="Name of the tier.")
    instances: Count = Field(description="All its instances: ready, starting, draining and failed ones.")
    ready: Count = Field(description="Instances that take requests.")
    starting: Count = Field(description="Instances that do not serve yet, waiting for an accelerator or loading.")
    draining: Count = Field(description="Instances that finish their requests and then go.")
    failed: Count = Field(description="Instances that cannot start or have crashed.")
    desired: Count = Field(description="Instances that the fleet should have now.")
    load: float | None = Field(
        default=None,
        ge=0,
        description="Mean load of the ready ones: the share of their time that admitted work needs; above 1 some deadlines will be "
        "missed. Default: absent while unknown.",
    )
    attainment: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the requests finished in the last minute whose every token was in time. Default: absent where none finished.",
    )
    reason: str = Field(default="", max_length=MESSAGE_MAX, description="Why `desired` is what it is. Default: none.")


class WarmStatus(StatusPart):
    """The warm pool: started instances without a tier."""

    instances: Count = Field(description="All its instances.")
    ready: Count = Field(description="Instances that a tier could take at once.")
    starting: Count = Field(description="Instances that do not serve yet.")
    draining: Count = Field(default=0, description="Instances that finish their requests and then go. Default: 0.")
    failed: Count = Field(default=0, description="Instances that cannot start or have crashed. Default: 0.")
    desired: Count = Field(description="Instances that the pool should have now.")


class AcceleratorsStatus(StatusPart):
    """The fleet's budget."""

    used: Count = Field(description="Accelerators that its pods hold, terminating ones included.")
    max: Count = Field(description="spec.scaling.acceleratorsMax.")


class Status(StatusPart):
    """What is."""

    observed_generation: Count = Field(description="metadata.generation of the spec that this status tells about.")
    url: str | None = Field(
        default=None,
        max_length=512,
        description="Base URL of the OpenAI API inside the cluster. Default: absent until there is one.",
    )
    instances: str | None = Field(
        default=None,
        max_length=32,
        description='Ready and all instances of the fleet as in "5/6", for people; programs read `tiers`. Default: absent.',
    )
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready (serving as wanted), RouterReady, WorkloadsReady, ScalingReady, ProfileReady, SoleOperator, and "
        "ChangeRefused (False while all is well). Default: none.",
    )
    tiers: list[TierStatus] = Field(
        default=[],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="A row for each tier. Default: none.",
    )
    warm: WarmStatus | None = Field(default=None, description="The warm pool. Default: absent until it is known.")
    accelerators: AcceleratorsStatus | None = Field(
        default=None, description="The fleet's budget. Default: absent until it is known."
    )
    notes: list[Annotated[str, Field(max_length=MESSAGE_MAX)]] = Field(
        default=[],
        max_length=NOTES_MAX,
        description="What the operator did otherwise than a tier would want it, and why: engine flags of the user's own that fight the "
        "tier's, replicas that somebody else holds. Default: none.",
    )


def condition_in(status: Status | None, type_: ConditionType) -> Condition | None:
    """The condition of a type, None where there is none yet."""
    return next((condition for condition in status.conditions if condition.type == type_), None) if status else None


def condition(
    type_: ConditionType,
    holds: bool | None,
    reason: str,
    message: str,
    *,
    before: Status | None,
    generation: int,
    now: datetime,
) -> Condition:
    """A condition as judged now (`holds` None: unknown). It keeps its transition time as long as its status stays."""
    answer: Literal["True", "False", "Unknown"] = "Unknown" if holds is None else "True" if holds else "False"
    old = condition_in(before, type_)
    return Condition(
        type=type_,
        status=answer,
        reason=reason,
        message=cut(message),
        last_transition_time=old.last_transition_time if old is not None and old.status == answer else instant(now),
        observed_generation=generation,
    )


def instant(at: datetime) -> str:
    """An aware time as Kubernetes writes it: RFC 3339 in UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cut(text: str, limit: int = MESSAGE_MAX) -> str:
    """Text that fits the schema: a report must not be refused because it has much to say."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def status_document(status: Status) -> dict[str, Any]:
    """The status as the object holds it; what is absent is left out."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def status_from(document: Mapping[str, Any]) -> Status | None:
    """The status in an object from the API server; None where there is none that can be read."""
    try:
        return Status.model_validate(document.get("status"))
    except ValidationError:
        return None
