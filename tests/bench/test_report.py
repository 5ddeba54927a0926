"""The report's arithmetic, exactly, on records made by hand; and its faces: table, JSON, picture."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from multislo_bench.plots import save_plot
from multislo_bench.record import Outcome, Record
from multislo_bench.replay import Timing
from multislo_bench.report import Quantiles, Window, report
from multislo_bench.tables import print_report


def record(at_s: float, tier: str = "gold", tpot_s: float = 0.1, tokens: tuple[float, ...] = ()) -> Record:
    """A completed request with its tokens at these times; its SLO is 1 s and `tpot_s`."""
    made = Record(at_s, 10, len(tokens), tier, 1.0, tpot_s)
    for moment in tokens:
        made.received(moment, 1)
    made.outcome = Outcome.COMPLETED
    return made


def test_a_token_is_due_at_ttft_and_its_number_of_tpots() -> None:
    on_time = record(0.0, tokens=(1.0, 1.1, 1.2))
    late = record(0.0, tokens=(0.1, 1.11, 1.15))

    assert on_time.late_max_s == pytest.approx(0.0, abs=1e-12)
    assert late.late_max_s == pytest.approx(0.01)
    assert (late.tokens_met, late.met) == (2, False)


def test_an_early_token_pays_for_no_later_one_beyond_its_deadline() -> None:
    made = record(0.0, tokens=(0.2, 1.05, 1.15))

    assert made.met is True


def test_tokens_that_come_together_are_each_held_against_their_own_deadline() -> None:
    made = Record(0.0, 10, 4, "gold", 1.0, 0.1)

    made.received(1.15, 4)

    # Due at 1.0, 1.1, 1.2 and 1.3: two are late.
    assert (made.tokens, made.tokens_met) == (4, 2)
    assert made.late_max_s == pytest.approx(0.15)


def test_the_figures_of_a_tier_are_exact() -> None:
    refused = Record(3.0, 10, 2, "gold", 1.0, 0.1, outcome=Outcome.REFUSED, cause="429 deadline")
    records = [
        record(0.0, tokens=(9.0, 9.1)),  # in the warm-up: not counted
        record(1.0, tokens=(0.5, 0.6)),
        record(2.0, tokens=(0.5, 1.3, 1.35)),
        refused,
        record(4.0, tier="bulk", tpot_s=1.0, tokens=(0.1,)),
    ]

    result = report(records, Timing([0.0, 0.001], [0.002], cpu_s=0.001), Window(1.0, 5.0))

    gold = result.tiers["gold"]
    assert list(result.tiers) == ["gold", "bulk"]
    assert gold.requests == 3
    assert gold.attainment == pytest.approx(1 / 3)
    assert gold.ttft_attainment == pytest.approx(2 / 3)
    assert gold.token_attainment == pytest.approx((2 + 1 + 0) / 7)
    assert gold.ttft_s == Quantiles(0.5, 0.5, 0.5, 0.5)
    assert gold.tpot_s.mean == pytest.approx((0.1 + 0.425) / 2)
    assert gold.goodput_requests_per_s == pytest.approx(0.25)
    assert gold.goodput_tokens_per_s == pytest.approx(0.5)
    assert gold.causes == {"429 deadline": 1}
    assert result.total.attainment == pytest.approx(2 / 4)
    assert result.client.tokens == 8
    assert result.client.cpu_us_per_token == pytest.approx(125.0)
    assert result.notes == ["1 requests arrived outside the measured window and are not counted."]


def test_without_an_slo_there_is_goodput_and_no_attainment() -> None:
    made = Record(0.0, 10, 1, None, None, None)
    made.received(0.5, 1)
    made.outcome = Outcome.COMPLETED

    result = report([made], Timing(), Window(0.0, 1.0))

    assert result.tiers["all"].attainment is None
    assert result.tiers["all"].goodput_requests_per_s == 1.0


def test_a_late_client_says_that_its_tail_is_not_to_be_trusted() -> None:
    result = report([record(0.0, tokens=(0.5,))], Timing([0.02], [0.0]), Window(0.0, 1.0))

    assert not result.client.kept_schedule
    assert any("too busy to trust the tail" in note for note in result.notes)


def test_a_report_is_json_a_table_and_a_picture(tmp_path: Path) -> None:
    records = [record(index / 10, tier, tokens=(0.5, 0.6)) for index in range(40) for tier in ("gold", "bulk")]
    result = report(records, Timing([0.0], [0.0], 1.0, 4.0), Window(0.0, 4.0))
    console = Console(record=True, width=160, file=StringIO())

    print_report(console, result, "a replay")
    save_plot(tmp_path / "plot.png", records, Window(0.0, 4.0), "a replay")

    assert json.loads(json.dumps(result.document()))["tiers"]["gold"]["attainment"] == 1.0
    text = console.export_text()
    assert "1000/100" in text
    assert "100.0 %" in text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
