"""Documents of another version of multislo: what is unknown is passed over and named, at every depth; what is missing has its default.
What a person wrote is refused as before."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_api.cli import check
from multislo_api.document import write_document
from multislo_api.fleet import FleetSnapshot, InstanceList
from multislo_api.manifest import ManifestInvalid, load_manifest, manifest_from, manifest_from_object, parse_manifest
from multislo_api.problems import path_text
from multislo_api.status import Status, status_from
from multislo_api.tolerant import read_json, warning
from multislo_perf.profile import ProfileInvalid, parse_document

FIRST = Path(__file__).parent / "version_1"
"""Every document as the first version wrote it. Never changed: a later version has to read them."""
Reader = Callable[[Any], tuple[object, list[str]]]


def manifest(document: Any) -> tuple[object, list[str]]:
    ignored: list[str] = []
    return manifest_from_object(document, ignored), ignored


def router_manifest(document: Any) -> tuple[object, list[str]]:
    ignored: list[str] = []
    return parse_manifest(write_document(document), ignored=ignored), ignored


def profile(document: Any) -> tuple[object, list[str]]:
    ignored: list[str] = []
    return parse_document(yaml.safe_dump(document, sort_keys=False), "profile", ignored), ignored


def status(document: Any) -> tuple[object, list[str]]:
    return status_from({"status": document}), []


READERS: dict[str, Reader] = {
    "manifest": manifest,
    "router-manifest": router_manifest,
    "profile": profile,
    "instances": lambda document: read_json(InstanceList, json.dumps(document)),
    "fleet": lambda document: read_json(FleetSnapshot, json.dumps(document)),
    "status": status,
}
DOCUMENTS: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FIRST.iterdir())}
OPEN = {"labels", "annotations", "podTemplate", "groups", "metadata"}
"""Mappings whose keys are not ours, and an object's own metadata, of which the name alone is read."""


def mappings(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of a document where a later version may have one more field."""
    if isinstance(document, dict):
        yield path
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, inner in pairs:
        if key not in OPEN:
            yield from mappings(inner, (*path, key))


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        document = document[part]
    return document


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("name", READERS)
def test_a_document_of_the_first_version_is_read_with_nothing_passed_over(name: str) -> None:
    read, passed = READERS[name](DOCUMENTS[name])

    assert read is not None
    assert passed == []


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fields_of_a_later_version_are_passed_over_and_named_at_every_depth(name: str, data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENTS[name])
    places = list(mappings(document))
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6))
    added = [(*place, f"later{number}") for number, place in enumerate(chosen)]
    for path in added:
        at(document, path[:-1])[path[-1]] = data.draw(ANYTHING)

    read, passed = READERS[name](document)

    assert read == READERS[name](DOCUMENTS[name])[0]
    if name != "status":  # A report that nobody acts on: nobody has to be warned.
        ours = [path for path in added if name != "manifest" or len(path) > 1]
        assert set(passed) == {path_text(path) for path in ours}


@pytest.mark.parametrize("name", READERS)
def test_one_more_field_everywhere_at_once_is_passed_over(name: str) -> None:
    document = copy.deepcopy(DOCUMENTS[name])
    for path in list(mappings(document)):
        at(document, path)["later"] = {"deep": [1, {"deeper": True}]}

    assert READERS[name](document)[0] == READERS[name](DOCUMENTS[name])[0]


EVERY_UNION = {"spec.profile": {"configMap": "mine", "later": 1}, "spec.router.apiKeys": {"secret": "keys", "later": 1}}


@pytest.mark.parametrize("path", EVERY_UNION)
def test_a_choice_with_one_more_field_is_still_that_choice(path: str) -> None:
    document = copy.deepcopy(DOCUMENTS["manifest"])
    *parents, last = path.split(".")
    at(document, tuple(parents))[last] = EVERY_UNION[path]

    assert manifest(document)[1] == [f"{path}.later"]


def test_a_new_key_of_a_pod_template_is_passed_over() -> None:
    document = copy.deepcopy(DOCUMENTS["manifest"])
    document["spec"].setdefault("router", {})["podTemplate"] = {"spec": {"anything": 1}, "later": {}}
    before = copy.deepcopy(document)

    read = manifest_from_object(document, ignored := [])

    assert ignored == ["spec.router.podTemplate.later"]
    assert read.spec.router.pod_template == {"spec": {"anything": 1}}
    assert document == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "placement"), "Later"),
        (("spec", "engine", "scheduler"), "Later"),
        (("spec", "tiers", 0, "overload"), "Later"),
        (("spec", "router", "apiKeys"), {"later": "x"}),
        (("spec", "router", "apiKeys"), None),
        (("spec", "profile"), {"later": "x"}),
    ],
)
def test_a_mode_that_only_a_later_version_knows_is_never_guessed(path: tuple[str | int, ...], value: object) -> None:
    document = copy.deepcopy(DOCUMENTS["manifest"])
    at(document, path[:-1])[path[-1]] = value

    with pytest.raises(ManifestInvalid) as caught:
        manifest(document)

    assert path_text(path) in str(caught.value)


def test_a_state_that_only_a_later_router_knows_is_neither_drained_nor_failed() -> None:
    document = copy.deepcopy(DOCUMENTS["fleet"])
    document["instances"][0]["state"] = "asleep"

    read, passed = read_json(FleetSnapshot, json.dumps(document))

    assert read.instances[0].state == "starting"
    assert passed == ['instances[0].state "asleep" (taken for starting)']


def test_a_fleet_without_the_fields_that_came_later_has_their_defaults() -> None:
    document = copy.deepcopy(DOCUMENTS["fleet"])
    for tier in document["tiers"]:
        for field in ("pending_in_time", "pending_in_time_oldest_s", "given_up", "out_of_reach"):
            del tier[field]
    document["tiers"][0] |= {"pending": 3, "pending_oldest_s": 0.5}

    tier = read_json(FleetSnapshot, json.dumps(document))[0].tiers[0]

    assert (tier.pending_in_time, tier.pending_in_time_oldest_s, tier.given_up, tier.out_of_reach) == (3, 0.5, 0, 0)


def test_a_person_s_unknown_field_is_refused_wherever_a_file_is_read(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENTS["manifest"])
    document["spec"]["tiers"][0]["slo"]["later"] = 1
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump(document))

    for read in (lambda: load_manifest(file), lambda: manifest_from(document)):
        with pytest.raises(ManifestInvalid, match=r"spec\.tiers\[0\]\.slo\.later: unknown field"):
            read()
    done = CliRunner().invoke(check, [str(file)])
    assert done.exit_code == 1
    assert "spec.tiers[0].slo.later: unknown field" in done.output


def test_a_person_s_profile_with_an_unknown_field_is_refused() -> None:
    document = copy.deepcopy(DOCUMENTS["profile"])
    document["latency"]["later"] = 1

    with pytest.raises(ProfileInvalid, match=r"latency\.later: is not a field of a profile"):
        parse_document(yaml.safe_dump(document), "mine")
    document["latency"]["fixedMs"] = "fast"
    with pytest.raises(ProfileInvalid) as caught:
        parse_document(yaml.safe_dump(document), "mine", [])
    assert len(caught.value.problems) == 1


def test_a_condition_of_a_later_operator_does_not_hide_the_status() -> None:
    document = copy.deepcopy(DOCUMENTS["status"])
    document["conditions"].append({**document["conditions"][0], "type": "LaterReady"})

    read = status_from({"status": document})

    assert isinstance(read, Status)
    assert [condition.type for condition in read.conditions][-1] == "LaterReady"


def test_a_warning_stays_one_line_however_many_fields_are_new() -> None:
    assert warning("x.yaml", ["a", "b"]) == "x.yaml: ignored, since this version of multislo does not know it: a, b"
    assert warning("x", [f"instances[{n}].zone" for n in range(1000)]).endswith("instances[19].zone and 980 more")
