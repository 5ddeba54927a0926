"""The latency profile: one YAML file with the speed of an engine, its KV capacity, its start-up time, and the source of these numbers.
Router, operator, emulator and simulator load one by name or path; `multislo profile` writes them.

A person's file is read strictly. With a list `ignored`, the profile may come from a newer version (through an API server, from a newer
operator): fields that this version does not know are left out, and their paths are added to the list."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from multislo_perf.latency import LatencyModel

PROFILE_BYTES_MAX = 1_000_000  # a profile is two kilobytes; what is larger is another file, given by mistake


class ProfileInvalid(Exception):
    """The profile cannot be used. `problems` names every mistake: its path, the value, what is legal."""

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{where}: {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Profile:
    """The part of a profile that programs use."""

    name: str
    model: str
    accelerator: str
    tensor_parallel: int
    latency: LatencyModel
    kv_tokens_max: int
    startup_s: float


KV_FACTOR_MAX = 2.0
"""Engines of one profile are given more or less memory, but not so many times more or less."""


def is_another_size(kv_tokens: int, kv_tokens_profile: int) -> bool:
    """Whether the KV cache of an engine, in tokens, is so far from the profile's that the profile is probably another engine's."""
    return max(kv_tokens, kv_tokens_profile) >= KV_FACTOR_MAX * min(kv_tokens, kv_tokens_profile)


def _between(low: float, high: float) -> AfterValidator:
    """Both ends of the legal range in one message."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1, max_length=2000)]
Coefficient = Annotated[float, _between(0, 100_000)]
# The inverses of the law divide by these: a token that costs nothing has no largest chunk, and far below a nanosecond rounding
# decides how many fit.
SLOPE_US_MIN = 0.001
Slope = Annotated[float, _between(SLOPE_US_MIN, 100_000)]
Count = Annotated[int, _between(0, 1_000_000_000)]
Percent = Annotated[float, _between(0, 1000)]


class _Part(BaseModel):
    """Strict: `yes` is no number and `0.24` no text; unknown fields are refused, so a misspelt one is found at once."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )


class Engine(_Part):
    """The engine whose speed this is."""

    name: Text
    version: Text


class LatencyCoefficients(_Part):
    """The coefficients of the latency model, in units that give each a few digits before its point."""

    fixed_ms: Coefficient
    weights_ms: Coefficient
    weights_us_per_token: Slope
    gemm_ms: Coefficient
    gemm_us_per_token: Slope
    decode_us_per_request: Coefficient
    kv_ns_per_token: Coefficient
    chunk_us_per_token: Coefficient
    attention_ps_per_pair: Coefficient

    @classmethod
    def of(cls, law: LatencyModel) -> "LatencyCoefficients":
        """Those of a law, to 9 digits."""
        units = {
            "fixed_ms": law.fixed_s * 1e3,
            "weights_ms": law.weights_s * 1e3,
            "weights_us_per_token": law.weights_per_token_s * 1e6,
            "gemm_ms": law.gemm_s * 1e3,
            "gemm_us_per_token": law.gemm_per_token_s * 1e6,
            "decode_us_per_request": law.per_decode_s * 1e6,
            "kv_ns_per_token": law.per_kv_token_s * 1e9,
            "chunk_us_per_token": law.per_chunk_token_s * 1e6,
            "attention_ps_per_pair": law.per_attention_pair_s * 1e12,
        }
        return cls(**{name: float(f"{value:.9g}") for name, value in units.items()})

    def model(self) -> LatencyModel:
        """The same in seconds."""
        return LatencyModel(
            fixed_s=self.fixed_ms / 1e3,
            weights_s=self.weights_ms / 1e3,
            weights_per_token_s=self.weights_us_per_token / 1e6,
            gemm_s=self.gemm_ms / 1e3,
            gemm_per_token_s=self.gemm_us_per_token / 1e6,
            per_decode_s=self.decode_us_per_request / 1e6,
            per_kv_token_s=self.kv_ns_per_token / 1e9,
            per_chunk_token_s=self.chunk_us_per_token / 1e6,
            per_attention_pair_s=self.attention_ps_per_pair / 1e12,
        )


class Range(_Part):
    """A closed range."""

    min: Count
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self


class ValidRanges(_Part):
    """The range of iterations that the model was fitted to; outside of it, it extrapolates."""

    tokens: Range = Field(description="Tokens in an iteration: its decodes and its chunks'.")
    decodes: Range = Field(description="Decodes in an iteration.")
    kv_tokens: Range = Field(description="Tokens in the cache of an iteration's decodes, together.")
    context_tokens: Range = Field(description="Tokens in the cache of one decode.")
    prompts: Range = Field(description="Prefill chunks in an iteration.")
    chunk_tokens: Range = Field(description="Tokens of one chunk.")
    prompt_tokens: Range = Field(description="A chunk's tokens and those of its prompt before it.")


class Source(_Part):
    """Where the numbers came from."""

    measured: Text = Field(description="What was measured, on what, by whom.")
    derived_from: Text | None = Field(default=None, description="The profile that this one was scaled from.")
    overhead_assumed_ms: Coefficient = Field(
        description="The part of `latency.fixedMs` that was assumed, not measured."
    )
    method: list[Text]
    lacks: list[Text] = Field(description="What the numbers do not contain.")


class GroupError(_Part):
    """Error over one kind of held-out iterations."""

    held_out: Count
    mape_percent: Percent
    max_percent: Percent


class Fit(_Part):
    """Error of the model on iterations held out of the fit."""

    rows: Count = Field(description="Whole iterations that the law was fitted to.")
    held_out: Count
    seed: int
    mape_percent: Percent = Field(description="Mean absolute error relative to the measured time.")
    max_percent: Percent
    r2: Annotated[float, _between(-1000, 1)]
    groups: dict[str, GroupError]


class ProfileDocument(_Part):
    """The YAML file."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=100)]
    model: Text
    accelerator: Text
    tensor_parallel: Annotated[int, _between(1, 1024)]
    engine: Engine
    latency: LatencyCoefficients
    valid: ValidRanges
    kv_tokens_max: Annotated[int, _between(1024, 1_000_000_000)]
    startup_s: Annotated[float, _between(0, 3600)]
    source: Source
    fit: Fit | None = None

    def profile(self) -> Profile:
        """What the programs need of it."""
        return Profile(
            name=self.name,
            model=self.model,
            accelerator=self.accelerator,
            tensor_parallel=self.tensor_parallel,
            latency=self.latency.model(),
            kv_tokens_max=self.kv_tokens_max,
            startup_s=float(self.startup_s),
        )

    def text(self) -> str:
        """The YAML file of it."""
        fields = self.model_dump(by_alias=True, exclude_none=True)
        text: str = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        return text


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path, ignored: list[str] | None = None) -> Profile:
    """The shipped profile of this name, or the one in this file. Raises ProfileInvalid."""
    return load_document(name_or_path, ignored).profile()


def load_document(name_or_path: str | Path, ignored: list[str] | None = None) -> ProfileDocument:
    """As `load_profile`, with all that the file says."""
    name = str(name_or_path)
    if name in shipped_profiles():
        return parse_document(_shipped().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not ("/" in name and path.is_file()):
        legal = ", ".join(shipped_profiles())
        raise ProfileInvalid(
            "profile", [f'"{name}" must be the path of a YAML file or one of the shipped profiles: {legal}']
        )
    try:
        with path.open("rb") as file:
            content = file.read(PROFILE_BYTES_MAX + 1)
        if len(content) > PROFILE_BYTES_MAX:
            raise ProfileInvalid(name, [f"the file must have at most {PROFILE_BYTES_MAX} bytes"])
        text = content.decode("utf-8")
    except OSError as error:
        raise ProfileInvalid(name, [f"the file cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ProfileInvalid(name, [f"the file must be UTF-8 text; byte {error.start} is not"]) from None
    return parse_document(text, name, ignored)


def parse_document(text: str, where: str, ignored: list[str] | None = None) -> ProfileDocument:
    """The document in this YAML text; `where` opens each line of the error. Raises ProfileInvalid."""
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ProfileInvalid(where, [f"{place}not YAML: {error.problem or error}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ProfileInvalid(where, [f"not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise ProfileInvalid(where, ["the file must be a mapping that opens with `version: 1`"])
    return validate_document(content, where, ignored)


def validate_document(content: dict[str, Any], where: str, ignored: list[str] | None = None) -> ProfileDocument:
    """The document of these fields, named as in the file. Raises ProfileInvalid."""
    try:
        return ProfileDocument.model_validate(content)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    unknown = [] if ignored is None else [found for found in mistakes if found["type"] == "extra_forbidden"]
    if ignored is None or len(unknown) < len(mistakes):
        raise ProfileInvalid(where, [_problem(found) for found in mistakes if found not in unknown])
    ignored += [_path(found["loc"]) for found in unknown]
    return ProfileDocument.model_validate(content, extra="ignore")


def _shipped() -> Any:
    return files("multislo_perf").joinpath("shipped")


# What is legal, by pydantic's name of the mistake; the rest speaks for itself.
_LEGAL: dict[str, Callable[[dict[str, Any]], str]] = {
    "value_error": lambda context: str(context["error"]),
    "literal_error": lambda context: f"must be {context['expected']}",
    "float_type": lambda context: "must be a number",
    "finite_number": lambda context: "must be a finite number",
    "int_type": lambda context: "must be a whole number",
    "int_from_float": lambda context: "must be a whole number",
    "string_type": lambda context: "must be text (in quotes where it looks like a number)",
    "string_too_short": lambda context: "must not be empty",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "string_pattern_mismatch": lambda context: "must be lower-case letters, digits, dots and dashes",
    "list_type": lambda context: "must be a list",
    "dict_type": lambda context: "must be a mapping",
    "model_type": lambda context: "must be a mapping",
}


def _problem(found: Any) -> str:
    """One of pydantic's errors in the house's words: path, value, what is legal."""
    path = _path(found["loc"])
    kind: str = found["type"]
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "extra_forbidden":
        return f"{path}: is not a field of a profile"
    legal = _LEGAL[kind](found.get("ctx", {})) if kind in _LEGAL else found["msg"]
    value = found["input"]
    if isinstance(value, dict | list):
        return f"{path}: {legal}"
    return f"{path}: {_as_yaml(value)} {legal}"


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _as_yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value if len(value) <= 60 else value[:57] + "..."}"'
    return str(value)


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key; ranges and errors on one line each."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent(dumper: _Dumper, value: dict[str, Any]) -> yaml.Node:
    flow = bool(value) and set(value) in ({"min", "max"}, {"heldOut", "mapePercent", "maxPercent"}, {"name", "version"})
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=flow)


_Dumper.add_representer(dict, _represent)
