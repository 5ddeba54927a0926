"""Traces: the public formats, the unit of their stamps, the part that is read, and what is skipped, counted or refused.

The lines are made up; only the columns and the shapes of the stamps are those of the public files.
"""

import gzip
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from multislo_sim.workloads.build import from_trace
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import TierShare, with_tiers
from multislo_sim.workloads.traces import PEEKED, WHOLE, Part, TimeUnit, TraceInvalid, read_trace

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MILLISECONDS = Part(unit=TimeUnit.MILLISECONDS)


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def json_lines(stamps: list[float], **more: Any) -> str:
    return "".join(
        json.dumps({"timestamp": stamp, "input_length": 100, "output_length": 10, **more}) + "\n" for stamp in stamps
    )


# The formats


def test_an_azure_trace_of_2023_is_read_to_the_microsecond(tmp_path: Path) -> None:
    text = AZURE_HEADER + "2023-11-16 23:59:59.9999990,374,44\n2023-11-17 00:00:00.0000010,396,109\n"

    assert read_trace(written(tmp_path, text)).requests == [Request(0.0, 374, 44), Request(2e-6, 396, 109)]


def test_an_azure_trace_of_2024_has_stamps_with_a_zone_and_some_without_a_fraction(tmp_path: Path) -> None:
    text = AZURE_HEADER + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"

    trace = read_trace(written(tmp_path, text))

    assert trace.requests == [Request(0.0, 2162, 5), Request(0.99007, 2399, 6)]
    assert trace.notes == []


def test_a_multimodal_azure_trace_has_a_column_more_and_says_that_images_are_not_counted(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        + "2024-10-15 00:00:00.1,2,900,20\n2024-10-15 00:00:02.1,0,80,9\n"
    )

    trace = read_trace(written(tmp_path, text))

    assert trace.requests == [Request(0.0, 900, 20), Request(2.0, 80, 9)]
    assert trace.notes == ["trace: 1 requests have images; only their context tokens are counted"]


@pytest.mark.parametrize(
    ("header", "middle"),
    [
        (BURSTGPT_HEADER, "ChatGPT"),
        (BURSTGPT_HEADER.replace("Model", "Session ID,Elapsed time,Model"), "a-1,7,GPT-4"),
    ],
)
def test_a_burstgpt_trace_counts_seconds_and_its_failed_requests_are_skipped(
    tmp_path: Path, header: str, middle: str
) -> None:
    lines = [
        f"5,{middle},472,18,490,Conversation log",
        f"45.0,{middle},1087,0,1087,API log",
        f"118,{middle},417,276,693,API log",
    ]

    trace = read_trace(written(tmp_path, header + "\n".join(lines)))

    assert trace.requests == [Request(0.0, 472, 18), Request(113.0, 417, 276)]
    assert trace.notes == [
        "trace: its stamps are seconds (BurstGPT's columns)",
        "trace: 1 of 3 lines skipped: 1 with 0 output tokens (first: line 3)",
    ]


def test_a_mooncake_trace_counts_milliseconds_and_ignores_other_fields(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([500, 1750, 8000], hash_ids=[0, 1]))

    trace = read_trace(path)

    assert [request.at_s for request in trace.requests] == [0.0, 1.25, 7.5]
    assert trace.notes == [
        "trace: its stamps are taken as milliseconds (0.267 requests/s as milliseconds, 0.000267 as seconds); --time-unit says otherwise"
    ]


def test_a_bailian_trace_counts_seconds_in_the_same_fields(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([61.114, 61.5, 90.0], chat_id=159, parent_chat_id=-1, turn=1))

    trace = read_trace(path)

    assert trace.requests[-1].at_s == pytest.approx(28.886)
    assert trace.notes == ["trace: its stamps are seconds (its lines have chat_id, as Bailian's)"]


def test_a_csv_with_the_fields_of_the_json_lines_and_json_lines_with_dates_are_read_too(tmp_path: Path) -> None:
    rows = written(tmp_path, "timestamp,input_length,output_length,tier\n0,5,1,gold\n2000,6,2,\n", "rows")
    dates = written(tmp_path, json_lines(["2024-05-10 00:00:00", "2024-05-10T00:00:02Z"]), "dates")  # type: ignore[list-item]

    assert read_trace(rows, MILLISECONDS).requests == [Request(0.0, 5, 1, "gold"), Request(2.0, 6, 2)]
    assert [request.at_s for request in read_trace(dates).requests] == [0.0, 2.0]


def test_a_gzip_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress((AZURE_HEADER + "2024-05-10 00:00:00+00:00,374,44\n").encode()))

    assert read_trace(path).requests == [Request(0.0, 374, 44)]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, (AZURE_HEADER + "2024-05-10 00:00:00+00:00,374,44\n").encode())
    os.close(write_end)

    assert read_trace(Path(f"/dev/fd/{read_end}")).requests == [Request(0.0, 374, 44)]
    os.close(read_end)


@pytest.mark.parametrize(
    ("name", "count", "last_s"),
    [("azure-2023-conversation.csv", 19_366, 3_501.72), ("mooncake-conversation.jsonl", 12_031, 3_536.999)],
)
def test_the_public_traces_are_read_whole(name: str, count: int, last_s: float) -> None:
    path = Path(os.environ.get("MULTISLO_TRACES", ".")) / name
    if not path.exists():
        pytest.skip(f"{name} is not here: name its folder by MULTISLO_TRACES")

    requests = read_trace(path).requests

    assert len(requests) == count
    assert requests[-1].at_s == pytest.approx(last_s, abs=0.01)


# The unit of the stamps


@pytest.mark.parametrize("rate", [0.06, 0.5, 1.0, 3.0])
def test_json_lines_whose_stamps_may_be_seconds_are_refused_without_a_unit(tmp_path: Path, rate: float) -> None:
    path = written(tmp_path, json_lines([index / rate for index in range(300)]))

    with pytest.raises(TraceInvalid, match=re.escape("milliseconds or seconds?")):
        read_trace(path)
    in_seconds = read_trace(path, Part(unit=TimeUnit.SECONDS))
    assert in_seconds.requests[-1].at_s == pytest.approx(299 / rate)
    assert in_seconds.notes == []


def test_dense_seconds_are_taken_as_seconds_and_it_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([index / 8.0 for index in range(300)]))

    trace = read_trace(path)

    assert trace.requests[-1].at_s == pytest.approx(299 / 8.0)
    assert "taken as seconds (8e+03 requests/s as milliseconds, 8 as seconds)" in trace.notes[0]


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)]
)  # whatever the rate is
def test_stamps_that_count_from_1970_tell_their_unit(tmp_path: Path, unit: str, per_second: float) -> None:
    path = written(tmp_path, json_lines([round((1.7e9 + index) * per_second) for index in range(3)]))

    trace = read_trace(path)

    assert [round(request.at_s, 5) for request in trace.requests] == [0.0, 1.0, 2.0]
    assert f"taken as {TimeUnit(unit).name.lower()} (they count from 1970)" in trace.notes[0]


def test_a_unit_is_not_asked_for_where_nobody_looks_at_the_times(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines(list(range(300))))

    assert len(read_trace(path, lengths_only=True).requests) == 300
    assert read_trace(path, lengths_only=True).notes == []
    with pytest.raises(TraceInvalid, match="milliseconds or seconds"):
        read_trace(path, Part(from_s=10.0), lengths_only=True)


def test_many_requests_at_one_moment_do_not_tell_the_unit_of_those_behind_them(tmp_path: Path) -> None:
    burst = written(tmp_path, json_lines([0] * 20), "burst")
    longer = written(tmp_path, json_lines([0] * PEEKED + [40]), "longer")

    assert len(read_trace(burst).requests) == 20
    with pytest.raises(TraceInvalid, match="milliseconds or seconds"):
        read_trace(longer)


def test_dates_have_no_unit(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE_HEADER + "2024-05-10 00:00:00+00:00,374,44\n")

    with pytest.raises(TraceInvalid, match=re.escape("its stamps are dates, which have no time unit (--time-unit s)")):
        read_trace(path, Part(unit=TimeUnit.SECONDS))


# What is wrong with a line


STAMP = "2023-11-16 18:15:47,"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (STAMP + "12", "with more or fewer fields than the header's 3"),
        (STAMP + "12,", "without output tokens"),
        (STAMP + ",12", "without prompt tokens"),
        (STAMP + "5,0", "with 0 output tokens"),
        (STAMP + "-5,1", "with prompt tokens that are no whole number from 1 to 10000000"),
        (STAMP + "nan,1", "with prompt tokens that are no whole number from 1 to 10000000"),
        (STAMP + "374.5,1", "with prompt tokens that are no whole number from 1 to 10000000"),
        (STAMP + "5," + "9" * 5000, "with output tokens that are no whole number from 1 to 10000000"),
        (STAMP + '"1,234",5', "with prompt tokens that are no whole number from 1 to 10000000"),
        (STAMP + "1,234,5", "with more or fewer fields than the header's 3"),
        (STAMP + '"12,5', "with a quote that is not closed"),
        ("yesterday,1,1", "with a stamp that is neither a date nor a number"),
        ("2023-13-16 18:15:46,1,1", "with a stamp that is no date"),
        ("17,1,1", "with a stamp of another kind (date or number) than the first one's"),
        (",1,1", "without a stamp"),
        (STAMP + "1\ufffd,1", "with prompt tokens that are no whole number from 1 to 10000000"),
    ],
)
def test_a_csv_line_that_is_no_request_is_skipped_and_counted_by_reason(tmp_path: Path, line: str, reason: str) -> None:
    good = "2023-11-16 18:15:46.5,374,44\n"

    trace = read_trace(written(tmp_path, AZURE_HEADER + good + line + "\n" + good))

    assert len(trace.requests) == 2
    assert trace.notes == [f"trace: 1 of 3 lines skipped: 1 {reason} (first: line 3)"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"timestamp": 0, "input_length": 1}', "without output tokens"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 1}', "with prompt tokens that are no whole number"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}', "with prompt tokens that are no whole number"),
        ('{"timestamp": 0, "input_length": {}, "output_length": 1}', "with prompt tokens that are no whole number"),
        (
            '{"timestamp": "x", "input_length": 1, "output_length": 1}',
            "with a stamp that is neither a date nor a number",
        ),
        ('{"timestamp": null, "input_length": 1, "output_length": 1}', "without a stamp"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "with a stamp that is negative or not finite"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "with a stamp that is negative or not finite"),
        ('{"timestamp": ' + "9" * 5000 + ', "input_length": 1, "output_length": 1}', "not JSON"),
        ("{oops", "not JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_a_json_line_that_is_no_request_is_skipped_and_counted_by_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    trace = read_trace(written(tmp_path, json_lines([0]) + line + "\n" + json_lines([500])), MILLISECONDS)

    assert [request.at_s for request in trace.requests] == [0.0, 0.5]
    assert f"1 of 3 lines skipped: 1 {reason}" in trace.notes[0]
    assert "(first: line 2)" in trace.notes[0]


def test_blank_lines_a_byte_order_mark_crlf_quotes_and_whole_floats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(
        b'\xef\xbb\xbf\r\n"TIMESTAMP","ContextTokens", GeneratedTokens \r\n\r\n"2024-05-10 00:00:00+00:00","374.0", 44 \r\n\r\n'
    )

    assert read_trace(path).requests == [Request(0.0, 374, 44)]
    assert read_trace(path).notes == []


def test_lines_out_of_order_come_in_order_of_arrival(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([9000, 2000, 500, 3000]))

    assert [request.at_s for request in read_trace(path, MILLISECONDS).requests] == [0.0, 1.5, 2.5, 8.5]


# What is wrong with a file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace: is empty"),
        ("\n \r\n", "trace: is empty"),
        (AZURE_HEADER, "trace: holds no request; at least 1 is needed"),
        (AZURE_HEADER + "yesterday,1,1\n", "trace: holds no request; 1 of 1 lines skipped: 1 with a stamp that is"),
        (AZURE_HEADER + STAMP + "1,0\n", "its stamps come to 0 s; 1 of 1 lines skipped: 1 with 0 output tokens"),
        ("a,b\n1,2\n", "trace:1: header 'a,b' is none that is known: Azure's TIMESTAMP,ContextTokens"),
        (STAMP + "1,2\n", "trace:1: header '2023-11-16 18:15:47,1,2' is none that is known"),
        ('"a\n1,2\n', "trace:1: header '\"a' is none that is known"),
        ('[{"timestamp": 0}]\n', "trace:1: begins with '['; a JSON trace has one object a line"),
        (json_lines([0]) + '{"a":' * 100_000 + "\n", "trace:2: nested too deeply"),
        (json_lines([0]) + "[" * 100_000 + "\n", "trace:2: nested too deeply"),
        (json_lines([0]) + "x" * (1 << 21), "trace:2: more than 1048576 characters in one line"),
        (json_lines([0], tier="a\r\nx-evil: 1"), "trace:1: tier: 'a\\r\\nx-evil: 1' is no name of a tier"),
        (json_lines([0], tier=["a"]), "trace:1: tier: \"['a']\" is no name of a tier"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceInvalid, match=re.escape(message)):
        read_trace(written(tmp_path, text), MILLISECONDS if text.startswith("{") else WHOLE)


def test_a_file_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    whole = gzip.compress((AZURE_HEADER + STAMP + "374,44\n").encode() * 50)
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    (tmp_path / "spoilt.gz").write_bytes(whole[:-8] + bytes(8))

    for name, message in (
        ("absent", "absent: cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("binary", "binary:1: not UTF-8 text"),
        ("cut.gz", "the gzip data is broken or cut off"),
        ("spoilt.gz", "the gzip data is broken or cut off"),
    ):
        with pytest.raises(TraceInvalid, match=re.escape(message)):
            read_trace(tmp_path / name)


# A part of a trace


def test_a_part_is_read_from_its_beginning_for_its_duration(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([1000 * second for second in range(500)]))

    trace = read_trace(path, Part(100.0, 20.0, TimeUnit.MILLISECONDS))

    assert [request.at_s for request in trace.requests] == [float(second) for second in range(20)]
    assert trace.notes == ["trace: read up to line 181, 60 s behind the end of the part"]


def test_a_part_keeps_its_first_gap(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([0, 15_000, 30_000]))

    assert [r.at_s for r in read_trace(path, Part(10.0, 10.0, TimeUnit.MILLISECONDS)).requests] == [5.0]


def test_a_part_of_a_file_that_is_not_in_order_is_read_to_the_end(tmp_path: Path) -> None:
    there_and_back = [*range(0, 400_000, 1000), *range(0, 400_000, 1000)]
    path = written(tmp_path, json_lines(there_and_back))
    middle = Part(100.0, 20.0, TimeUnit.MILLISECONDS)
    turned = written(tmp_path, json_lines(there_and_back[::-1]), "turned")

    assert len(read_trace(path, middle).requests) == 40
    assert len(read_trace(turned, middle).requests) == 40


def test_a_part_behind_the_end_says_how_far_the_trace_goes(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([0, 15_000, 30_000]))

    with pytest.raises(TraceInvalid, match=re.escape("holds no request from 3600 to 3660 s; its stamps come to 30 s")):
        read_trace(path, Part(3600.0, 60.0, TimeUnit.MILLISECONDS))


def test_a_part_of_a_large_file_is_all_that_is_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as out:
        out.write(AZURE_HEADER)
        for second in range(0, 60_000, 60):
            stamp = f"2024-05-10 {second // 3600:02}:{second // 60 % 60:02}:"
            out.writelines(f"{stamp}{index / 5:06.3f}000+00:00,374,44\n" for index in range(300))
    kept = 300 * 10

    tracemalloc.start()
    trace = read_trace(path, Part(50_400.0, 600.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(trace.requests) == kept
    assert "read up to line" in trace.notes[0]
    # 300,000 requests would be 50 MB.
    assert peak < 10_000_000


def test_a_replay_reads_no_further_than_it_needs(tmp_path: Path) -> None:
    lines = json_lines([1000 * second for second in range(500 + PEEKED)])
    path = written(tmp_path, lines + '{"a":' * 100_000)

    twice_as_dense = from_trace(path, MILLISECONDS, 50.0, 1, rate_factor=2.0)

    assert len(twice_as_dense.requests) == 100
    assert twice_as_dense.requests[-1].at_s == 49.5
    with pytest.raises(TraceInvalid, match=":10501: nested"):
        from_trace(path, MILLISECONDS, 10_000.0, 1, rate_factor=2.0)


# Tiers that a trace names


def test_a_request_keeps_the_tier_that_its_line_names(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines([0], tier="gold") + json_lines([1000]))
    tiers = [TierShare("gold", 0.0, 0.3, 0.02), TierShare("bulk", 1.0, 1.0, 0.1)]

    read = read_trace(path, MILLISECONDS, tiers=["gold", "bulk"])

    assert [request.tier for request in read.requests] == ["gold", None]
    assert [(r.tier, r.tpot_s) for r in with_tiers(read.requests, tiers, seed=1)] == [("gold", 0.02), ("bulk", 0.1)]
    with pytest.raises(TraceInvalid, match=re.escape(":1: tier: 'gold' must be a tier of the manifest: bulk")):
        read_trace(path, MILLISECONDS, tiers=["bulk"])
