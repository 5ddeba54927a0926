"""Kubernetes durations: what is read, what is refused, and that writing gives back what was read."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from multislo_api.cel import DURATION as PATTERN
from multislo_api.duration import format_duration, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("1s", 1.0),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("0s", 0.0),
        ("1.5s", 1.5),
        ("12.5ms", 0.0125),
        ("1h0m0s", 3600.0),
    ],
)
def test_a_duration_is_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "300",
        "0",
        "ms",
        "-1s",
        "+1s",
        "1 s",
        "1S",
        "1d",
        "1us",
        "1s\n",
        "1e3s",
        ".5s",
        "1.s",
        "1s1s1s1s1s",
        "\u0661s",
        "123456s",
    ],
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration_s(text)


@given(st.from_regex(PATTERN.removesuffix("$") + r"\Z"))
def test_a_written_duration_reads_as_the_same_seconds(text: str) -> None:
    seconds = parse_duration_s(text)
    assume(
        seconds < 99_999 * 3600
    )  # Beyond it, the hours have more digits than the pattern; every field ends far below.

    assert parse_duration_s(format_duration(seconds)) == pytest.approx(seconds, abs=0.5e-6)


@given(st.integers(min_value=0, max_value=86_400_000_000))
def test_every_microsecond_up_to_a_day_survives_writing(micros: int) -> None:
    assert parse_duration_s(format_duration(micros / 1e6)) == micros / 1e6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (0.02, "20ms"), (90.0, "1m30s"), (86_400.0, "24h"), (1.5, "1s500ms")]
)
def test_seconds_are_written_in_the_usual_way(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
