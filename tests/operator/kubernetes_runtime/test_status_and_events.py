"""When a status is worth a write, and which events are said."""

from datetime import UTC, datetime, timedelta
from typing import Any

from multislo_operator.kubernetes.changes import Note
from multislo_operator.kubernetes.events import BURST, REPEAT_S, Allowance
from multislo_operator.kubernetes.names import Key
from multislo_operator.kubernetes.status import FIGURES_S, StatusWriter, merge_patch

AT = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("ns", "fleet")


def status(ready: str = "True", load: float = 0.5, instances: int = 1, reason: str = "InService") -> dict[str, Any]:
    return {
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": ready, "reason": reason}],
        "tiers": [{"name": "chat", "instances": instances, "load": load, "attainment": None}],
    }


def written(writer: StatusWriter, live: dict[str, Any], wanted: dict[str, Any], now: float) -> dict[str, Any]:
    """The resource after what the writer writes."""
    at = AT + timedelta(seconds=now)
    patch = writer.patch(live, wanted, at, now)
    answer = {"status": {**(live.get("status") or {}), **patch}}
    writer.wrote(wanted, answer, at, now)
    return answer


def test_a_status_that_is_there_is_not_written_again() -> None:
    writer = StatusWriter()
    live = written(writer, {}, status(), 0.0)
    assert writer.patch(live, status(), AT + timedelta(hours=1), 3600.0) == {}


def test_figures_alone_wait_but_come_along_with_anything_else() -> None:
    writer = StatusWriter()
    live = written(writer, {}, status(), 0.0)
    assert writer.patch(live, status(load=0.6), AT, FIGURES_S - 0.1) == {}
    assert writer.patch(live, status(load=0.6), AT, FIGURES_S)["tiers"][0]["load"] == 0.6
    assert writer.patch(live, status(load=0.6, instances=2), AT, 1.0)["tiers"][0] == {
        "name": "chat", "instances": 2, "load": 0.6, "attainment": None,
    }  # fmt: skip


def test_a_conditions_time_is_that_of_its_last_change_of_status() -> None:
    writer = StatusWriter()
    live = written(writer, {}, status("False", reason="Starting"), 0.0)
    live = written(writer, live, status("False", reason="StillStarting"), 10.0)
    (condition,) = live["status"]["conditions"]
    assert (condition["reason"], condition["lastTransitionTime"]) == ("StillStarting", "2026-01-01T00:00:00Z")
    live = written(writer, live, status("True"), 20.0)
    assert live["status"]["conditions"][0]["lastTransitionTime"] == "2026-01-01T00:00:20Z"


def test_a_field_that_the_api_server_drops_is_not_written_for_ever() -> None:
    writer = StatusWriter()
    wanted = {**status(), "unknown": "x"}
    patch = writer.patch({}, wanted, AT, 0.0)
    answer = {"status": {key: value for key, value in patch.items() if key != "unknown"}}
    writer.wrote(wanted, answer, AT, 0.0)
    assert writer.patch(answer, wanted, AT, 100.0) == {}


def stored(status: dict[str, Any]) -> dict[str, Any]:
    """As under a CRD that knows no `starting` of a tier, and has a field `later` with a default in status, condition and tier."""
    kept = {
        **status,
        "conditions": [{**condition, "later": 0} for condition in status["conditions"]],
        "tiers": [{"later": 0} | {k: v for k, v in tier.items() if k != "starting"} for tier in status["tiers"]],
    }
    return {"later": {"on": True}, **kept}


def test_under_a_crd_that_drops_fields_and_fills_others_in_the_figures_still_wait() -> None:
    writer, live, writes = StatusWriter(), dict[str, Any](), 0
    for now in range(60):
        wanted = status(load=now / 60)
        wanted["tiers"][0]["starting"] = now % 3
        at = AT + timedelta(seconds=now)
        if writer.patch(live, wanted, at, float(now)):
            writes += 1
            asked = {
                **wanted,
                "conditions": [{**wanted["conditions"][0], "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }
            live = {"status": stored(asked)}
            writer.wrote(wanted, live, at, float(now))
    assert writes == 60 / FIGURES_S


def test_what_an_upgraded_crd_no_longer_drops_is_there_with_the_next_write() -> None:
    writer, wanted = StatusWriter(), {**status(), "new": "x"}
    patch = writer.patch({}, wanted, AT, 0.0)
    writer.wrote(wanted, {"status": {key: value for key, value in patch.items() if key != "new"}}, AT, 0.0)
    live = {"status": {key: value for key, value in patch.items() if key != "new"}}
    wanted = {**status(instances=2), "new": "x"}
    assert writer.patch(live, wanted, AT, 1.0)["new"] == "x"


def test_a_merge_patch_says_what_is_gone_and_only_what_differs() -> None:
    before = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1, 2], "f": 0}
    after = {"b": {"c": 1, "d": 3}, "e": [1], "f": 0, "g": {"h": 1}}
    assert merge_patch(before, after) == {"a": None, "b": {"d": 3}, "e": [1], "g": {"h": 1}}


def test_the_same_words_are_said_once_in_five_minutes() -> None:
    allowance = Allowance()
    note = Note("ScaledUp", "one more")
    assert allowance.take("uid", note, 0.0)
    assert not allowance.take("uid", note, REPEAT_S - 1.0)
    assert allowance.take("another", note, 1.0)
    assert allowance.take("uid", note, REPEAT_S)


def test_a_flood_of_events_is_cut_off_and_ebbs() -> None:
    allowance = Allowance()
    said = [allowance.take("uid", Note("R", str(number)), 0.0) for number in range(100)]
    assert sum(said) == BURST
    assert allowance.take("uid", Note("R", "later"), 60.0)


def test_an_older_schema_gets_the_conditions_that_it_knows() -> None:
    writer = StatusWriter()
    wanted = status()
    wanted["conditions"].append({"type": "ChangeRefused", "status": "False", "reason": "NothingRefused"})
    assert len(writer.patch({}, wanted, AT, 0.0)["conditions"]) == 2
    writer.failed(is_invalid=True, now=0.0)
    assert [condition["type"] for condition in writer.patch({}, wanted, AT, 0.1)["conditions"]] == ["Ready"]
    live = written(writer, {}, wanted, 0.1)
    assert writer.patch(live, wanted, AT, 60.0) == {}
    assert len(writer.patch(live, wanted, AT, 601.0)["conditions"]) == 2


def test_a_status_that_is_not_taken_is_tried_at_growing_intervals() -> None:
    writer = StatusWriter()
    tries = 0
    for now in range(600):
        if writer.patch({}, status(), AT, float(now)):
            tries += 1
            writer.failed(is_invalid=False, now=float(now))
    assert 10 < tries < 20
