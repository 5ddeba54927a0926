"""What the operator reads from an object of the API server, and what it writes back."""

import copy
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from multislo_api.manifest import ManifestInvalid, load_manifest, manifest_from_object
from multislo_api.status import (
    MESSAGE_MAX,
    AcceleratorsStatus,
    Status,
    TierStatus,
    condition,
    condition_in,
    cut,
    instant,
    status_document,
    status_from,
)

MINIMAL = Path(__file__).parents[2] / "examples" / "minimal.yaml"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def from_the_server() -> dict[str, Any]:
    """As a watch shows it: with all that the server, kubectl and the operator have added."""
    document: dict[str, Any] = yaml.safe_load(MINIMAL.read_text())
    document["metadata"] |= {
        "namespace": "serving",
        "uid": "ee6ce8f5",
        "resourceVersion": "224",
        "generation": 3,
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "somethingNew": True,
        "labels": {"team": "a"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    document["status"] = {"observedGeneration": 2, "conditions": []}
    return document


def test_an_object_of_the_server_is_the_manifest_that_was_applied() -> None:
    manifest = manifest_from_object(from_the_server())

    assert manifest.spec == load_manifest(MINIMAL).spec
    assert (manifest.metadata.namespace, manifest.metadata.name) == ("serving", "llama")


def test_what_is_written_on_an_object_does_not_change_its_manifest() -> None:
    written_on = from_the_server()
    written_on["metadata"]["annotations"] = {"new": "note"}
    written_on["metadata"]["labels"] = {}

    assert manifest_from_object(written_on) == manifest_from_object(from_the_server())


def test_an_object_that_the_server_took_and_the_loader_does_not_names_its_problems() -> None:
    odd = from_the_server()
    odd["spec"]["router"] = {"apiKeys": None}

    with pytest.raises(ManifestInvalid) as caught:
        manifest_from_object(odd)

    assert caught.value.source == "serving/llama"
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["spec.router.apiKeys"]


def status(**changes: Any) -> Status:
    tier = TierStatus(name="batch", instances=3, ready=2, starting=1, draining=0, failed=0, desired=3, load=0.74)
    whole = Status(observed_generation=3, tiers=[tier], accelerators=AcceleratorsStatus(used=3, max=4))
    return whole.model_copy(update=changes)


def test_a_status_reads_as_it_was_written() -> None:
    written = status_document(status(url="http://llama.serving.svc:8000"))

    assert written["observedGeneration"] == 3
    assert written["tiers"][0]["load"] == 0.74
    assert "attainment" not in written["tiers"][0]
    assert status_from({"status": written}) == status(url="http://llama.serving.svc:8000")


def test_a_status_of_a_newer_operator_is_read_as_far_as_it_is_known() -> None:
    newer = status_document(status())
    newer["tiers"][0]["mood"] = "good"
    newer["phase"] = "Serving"

    assert status_from({"status": newer}) == status()


@pytest.mark.parametrize(
    "damaged", [None, {}, {"observedGeneration": "three"}, {"observedGeneration": 1, "tiers": [{}]}]
)
def test_a_status_that_cannot_be_read_is_none(damaged: object) -> None:
    assert status_from({"status": damaged}) is None
    assert status_from({}) is None


def test_a_condition_keeps_its_time_until_its_answer_changes() -> None:
    def judged(holds: bool | None, before: Status | None, minutes: int) -> Status:
        now = NOON + timedelta(minutes=minutes)
        made = condition("Ready", holds, "Because", "of this", before=before, generation=1, now=now)
        return status(conditions=[made])

    first = judged(False, None, 0)
    second = judged(False, first, 1)
    third = judged(True, second, 2)

    times = [found.last_transition_time for each in (first, second, third) if (found := condition_in(each, "Ready"))]
    assert times == ["2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z", "2026-01-01T12:02:00Z"]


def test_a_condition_that_nobody_can_tell_is_unknown() -> None:
    made = condition("ScalingReady", None, "RouterSilent", "", before=None, generation=1, now=NOON)

    assert made.status == "Unknown"
    assert condition_in(status(conditions=[made]), "Ready") is None


def test_a_long_message_is_cut_to_what_the_schema_takes() -> None:
    made = condition("Ready", False, "Long", "x" * 5000, before=None, generation=1, now=NOON)

    assert len(made.message) == MESSAGE_MAX
    assert cut("short") == "short"


def test_times_are_written_in_utc_by_the_second() -> None:
    berlin = datetime(2026, 1, 1, 13, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))

    assert instant(berlin) == "2026-01-01T12:00:00Z"


def test_a_reading_does_not_change_the_object() -> None:
    document = from_the_server()
    before = copy.deepcopy(document)

    manifest_from_object(document)
    status_from(document)

    assert document == before
