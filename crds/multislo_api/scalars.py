"""Single values of a manifest: names, paths, counts, cron expressions, each with its bounds and with `Legal`, the same in the words of
a problem. Used by `kind`, whose parts are made of them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError

LEGAL = "x-legal"
"""Under this a field's JSON Schema carries the words of its `Legal`, for those who make something of it."""

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


@dataclass(frozen=True, slots=True)
class Legal:
    """What a field takes, in words that follow "must be"."""

    text: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), LEGAL: self.text}


def _label(length_max: int) -> Legal:
    return Legal(
        f'a DNS-1123 label: 1 to {length_max} of a-z, 0-9 and "-", beginning and ending with a letter or digit'
    )


def _cron(text: str) -> str:
    if len(text.split()) != 5:  # cronsim also takes six, with seconds, which Kubernetes does not.
        raise PydanticCustomError("cron", "it has {count} fields", {"count": len(text.split())})
    try:
        CronSim(text, datetime(2026, 1, 1, tzinfo=UTC))  # Any start will do: only the expression is asked about.
    except (CronSimError, ValueError) as error:
        raise PydanticCustomError("cron", "{reason}", {"reason": str(error)[:80].lower()}) from None
    return text


def _timezone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder of the database.
        raise PydanticCustomError("timezone", "no such time zone") from None
    return text


Name = Annotated[str, Field(min_length=1, max_length=40, pattern=_LABEL), _label(40)]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=_LABEL), _label(63)]
# 40 + "-" + 22 is 63: NAME-TIER is a label value and a pod name's beginning.
TierName = Annotated[str, Field(min_length=1, max_length=22, pattern=_LABEL), _label(22)]
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=_SUBDOMAIN),
    Legal('a DNS-1123 name: 1 to 253 of a-z, 0-9, "-" and ".", each part beginning and ending with a letter or digit'),
]
ModelName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^\S+$"), Legal("text of 1 to 253 characters without spaces")
]
FilePath = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$"), Legal("a path of 1 to 4096 characters")
]
Argument = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$"), Legal("text of at most 4096 characters")]
Count = Annotated[int, Field(ge=0, le=1024)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Part(BaseModel):
    """Common settings: nothing unknown, nothing converted, nothing changed after loading. Python may build a part by its
    attributes' names; a document may not (`multislo_api.manifest` validates by alias alone)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


PodTemplate = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "additionalProperties": False,
            "properties": {
                key: {
                    "type": "object",
                    "description": f"The pods' {key}.",
                    "x-kubernetes-preserve-unknown-fields": True,
                }
                for key in ("metadata", "spec")
            },
        }
    ),
]


Cron = Annotated[
    str,
    Field(min_length=1, max_length=100),
    AfterValidator(_cron),
    Legal("a cron expression of five fields: minute, hour, day of month, month, day of week"),
]
TimeZone = Annotated[
    str,
    Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"),
    AfterValidator(_timezone),
    Legal("a time zone of the IANA database such as Europe/Berlin"),
]
