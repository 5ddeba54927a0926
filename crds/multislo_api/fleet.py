"""`GET /fleet` of the router's admin listener, and `PUT /instances`: the documents that router, operator, `multislo top` and the live
page exchange.

The two sides may be of two versions. A reader passes over fields that it does not know (`tolerant.read_json`), and a field that came
after the first version has a default for documents without it. What an older reader would misunderstand needs another `version`, which
it refuses: a new state of an `InstanceEntry` above all, since a router must know whether an instance takes requests."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from multislo_api.tolerant import Otherwise

TOKEN_HEADER = "x-multislo-fleet-token"
"""Whoever started a router shows by it, with PUT /instances, that it is this one's fleet."""
TOKEN_VARIABLE = "MULTISLO_FLEET_TOKEN"
"""Where the router gets it from: the environment, which other users of the machine cannot read, as they can a command line."""
SHUTDOWN_DELAY_VARIABLE = "MULTISLO_SHUTDOWN_DELAY"
"""How many seconds a router that is told to stop serves on. No option of the command line: a router of an older version passes over it."""


class Document(BaseModel):
    """Common settings: unknown fields are mistakes, so that `tolerant` finds and names them."""

    model_config = ConfigDict(extra="forbid")


_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?")
_ID_LEGAL = '1 to 253 of A-Z, a-z, 0-9, "-", "_", "." and ":", beginning and ending with a letter or digit'
_URL = re.compile(
    r"http://([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:([1-9][0-9]{0,4}))?"
)
_URL_LEGAL = "http://HOST or http://HOST:PORT, with a port from 1 to 65535 and nothing behind it"
INSTANCES_MAX = 65_536
"""As many as a manifest may have accelerators."""


def _id(text: str) -> str:
    """It becomes a header of answers and a label of metrics."""
    if _ID.fullmatch(text) is None:
        raise PydanticCustomError("illegal", "must be {legal}", {"legal": _ID_LEGAL})
    return text


def _url(text: str) -> str:
    parts = _URL.fullmatch(text)
    if parts is None or not 1 <= int(parts[4] or 80) <= 65535:
        raise PydanticCustomError("illegal", "must be {legal}", {"legal": _URL_LEGAL})
    return text


class InstanceEntry(Document):
    """One engine server that the fleet hands to the router."""

    model_config = ConfigDict(strict=True)

    id: Annotated[str, AfterValidator(_id)]
    url: Annotated[str, AfterValidator(_url)] = Field(description="Base URL, without a path.")
    tier: str | None = Field(default=None, description="Home tier; null for the warm pool.")
    state: Literal["starting", "ready", "draining"] = "ready"
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        le=(1 << 31) - 1,
        description="max_num_batched_tokens that the server was started with; null: its tier's.",
    )
    epoch: int = Field(
        default=0, ge=0, le=(1 << 63) - 1, description="Raised each time the server restarts under this id."
    )


class InstanceList(Document):
    """Body of `PUT /instances`: the whole fleet (what is absent is gone)."""

    model_config = ConfigDict(strict=True)

    version: Literal[1] = 1
    instances: list[InstanceEntry] = Field(max_length=INSTANCES_MAX)


class LatencyView(Document):
    """Quantiles over the last minute, seconds; null where nothing finished."""

    p50_s: float | None = None
    p99_s: float | None = None


class TierView(Document):
    """One tier as the router sees it. Counters count since the router's start."""

    name: str
    ttft_s: float
    tpot_s: float
    pending: int = Field(description="Requests held in the router.")
    pending_oldest_s: float = Field(description="Age of the oldest of them; 0 where none is held.")
    pending_in_time: int = Field(
        default_factory=lambda valid: valid["pending"],
        description="Those of them whose deadline can still be met.",
    )
    pending_in_time_oldest_s: float = Field(
        default_factory=lambda valid: valid["pending_oldest_s"],
        description="Age of the oldest of those; 0 where none is held.",
    )
    in_flight: int = Field(description="Requests placed and not yet ended.")
    arrival_rate: float = Field(description="Requests a second, moving average over ~10 s.")
    work_rate: float = Field(
        description="Instance-seconds of work arriving a second, moving average over ~10 s: the instances that this tier's traffic fills."
    )
    work_rate_trend: float = Field(description="Change of work_rate a second, moving average over ~30 s.")
    requests_met: int
    requests_missed: int = Field(
        description="Late, refused and failed ones; a client's own disconnects are in neither."
    )
    tokens_met: int
    tokens_missed: int
    given_up: int = Field(
        default=0,
        description="Requests held until no instance could meet their deadline any more, and not refused: served late.",
    )
    out_of_reach: int = Field(
        default=0,
        description="Requests whose deadline, by the profile, not even an idle instance could have met when they came.",
    )
    refused: int
    attainment: float | None = Field(
        description="Share met of the requests that finished in the last minute; null where none did."
    )
    ttft: LatencyView
    tpot: LatencyView


class InstanceView(Document):
    """One instance as the router believes it to be."""

    id: str
    url: str
    tier: str | None
    # "starting" for what is unknown: it counts neither as drained nor as failed, so nothing is stopped because of it.
    state: Annotated[Literal["starting", "ready", "draining", "failed"], Otherwise("starting")]
    load: float = Field(
        description="Share of its time that its admitted work needs to stay on its deadlines; above 1: it will miss some."
    )
    load_mean: float = Field(description="The load, averaged over ~10 s.")
    requests: int = Field(
        description="Requests placed on it and not yet ended. A draining instance with 0 may be stopped."
    )
    prefills: int
    decodes: int
    kv_tokens: int = Field(description="Believed.")
    kv_tokens_reported: int | None = Field(description="As the engine last said.")
    kv_tokens_max: int = Field(ge=1)
    iteration_predicted_s: float
    calibration: float = Field(description="Measured over predicted iteration time; 1 where the profile is right.")
    empty_s: float = Field(description="How long it has held no request; 0 while it holds one.")


class FleetSnapshot(Document):
    """`GET /fleet`."""

    version: Literal[1] = 1
    at: float = Field(description="Unix time of the snapshot, seconds.")
    uptime_s: float
    model: str
    placement: str
    tiers: list[TierView]
    instances: list[InstanceView]
    generation: int = Field(
        description="How many times the fleet has been set by PUT /instances since the router's start."
    )
