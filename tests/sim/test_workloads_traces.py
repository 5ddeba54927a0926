"""The two trace formats, and what is said of a file that is neither."""

import os
import re
from pathlib import Path

import pytest

from multislo_sim.workloads.request import Request
from multislo_sim.workloads.traces import TraceInvalid, read_trace

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_azure_trace_keeps_the_seventh_decimal_of_its_stamps(tmp_path):
    path = written(
        tmp_path,
        AZURE_HEADER + "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000001,396,109\n",
    )

    first, second = read_trace(path)

    assert first == Request(0.0, 374, 44)
    assert second.at_s == pytest.approx(2e-7, abs=1e-9)
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)


def test_a_mooncake_trace_counts_milliseconds_and_ignores_other_fields(tmp_path):
    path = written(
        tmp_path,
        '{"timestamp": 500, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n\n'
        '{"timestamp": 1750, "input_length": 12, "output_length": 3}\n',
    )

    assert read_trace(path) == [Request(0.0, 6758, 500), Request(1.25, 12, 3)]


def test_only_as_many_requests_are_read_as_are_asked_for(tmp_path):
    path = written(tmp_path, '{"timestamp": 0, "input_length": 1, "output_length": 1}\n' * 9)

    assert len(read_trace(path, requests_max=4)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: header ''"),
        ("a,b\n1,2\n", ":1: header 'a,b' is neither"),
        (AZURE_HEADER, "holds no request"),
        (AZURE_HEADER + "2023-11-16 18:15:46.1,1,1\n2023-11-16 18:15:47,12\n", ":3: 2 fields, must be 3"),
        (AZURE_HEADER + "yesterday,1,1\n", ":2: TIMESTAMP: 'yesterday' must look like"),
        (AZURE_HEADER + "2023-11-16 18:15:46.x1,1,1\n", ":2: TIMESTAMP: '2023-11-16 18:15:46.x1'"),
        (AZURE_HEADER + "2023-11-16 18:15:46.1,-5,1\n", ":2: ContextTokens: '-5' must be a whole number from 1"),
        (AZURE_HEADER + "2023-11-16 18:15:46.1,5,0\n", ":2: GeneratedTokens: 0 must be a whole number from 1"),
        ('{"timestamp": 0, "input_length": 1}\n', ":1: output_length: missing"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 1}\n', ":1: input_length: 1.5 must be a whole"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}\n', ":1: input_length: True must be"),
        ('{"timestamp": "x", "input_length": 1, "output_length": 1}\n', ":1: timestamp: 'x' must be a number"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', ":1: timestamp: nan must be a number"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{oops\n', ":2: not JSON"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n[1]\n', ":2: must be a JSON object"),
    ],
)
def test_a_broken_trace_is_refused_with_line_field_and_value(tmp_path, text, message):
    path = written(tmp_path, text)

    with pytest.raises(TraceInvalid, match=re.escape(message)):
        read_trace(path)


def test_a_file_that_is_absent_or_no_text_is_said_to_be(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")

    with pytest.raises(TraceInvalid, match="cannot be read: No such file"):
        read_trace(tmp_path / "absent")
    with pytest.raises(TraceInvalid, match="not UTF-8 text"):
        read_trace(tmp_path / "binary")


@pytest.mark.parametrize(
    ("name", "count", "last_s"),
    [("azure-2023-conversation.csv", 19_366, 3_501.72), ("mooncake-conversation.jsonl", 12_031, 3_536.999)],
)
def test_the_public_traces_are_read_whole(name, count, last_s):
    path = Path(os.environ.get("MULTISLO_TRACES", ".")) / name
    if not path.exists():
        pytest.skip(f"{name} is not here: name its folder by MULTISLO_TRACES")

    requests = read_trace(path)

    assert len(requests) == count
    assert requests[-1].at_s == pytest.approx(last_s, abs=0.01)
