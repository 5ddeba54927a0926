"""The kind MultiSLOServing on a real API server: what it refuses and with which words, what it fills in, what `kubectl` shows of it. What
it refuses, `multislo check` refuses too, and the other way round; the exceptions are named here."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from cluster.api import Api, Object, Refused
from cluster.kwok import KwokCluster
from cluster.scene import KubectlFailed, Scene, wait_for
from multislo_api.manifest import ManifestInvalid, manifest_from, manifest_from_object, parse_manifest
from multislo_api.status import AcceleratorsStatus, Condition, Status, TierStatus, status_document, status_from

ROOT = Path(__file__).parents[1]
CRD = ROOT / "crds" / "multisloservings.yaml"
KIND = "multisloservings.multislo.dev"
FLEETS = "/apis/multislo.dev/v1alpha1/namespaces/{}/multisloservings"
EXAMPLES = {
    path.name: text
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if "\nkind: MultiSLOServing\n" in (text := path.read_text())
}
Changes = dict[str, Any]


class Deleted:
    """In place of a value: the field is left out."""

    def __repr__(self) -> str:
        return "DELETE"


DELETE = Deleted()


@pytest_asyncio.fixture(scope="module", autouse=True, loop_scope="session")
async def kind(cluster: KwokCluster, api: Api) -> None:
    """The CRD as it is committed."""
    crd = yaml.safe_load(CRD.read_text())
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await api.patch(
        f"{path}/{KIND}",
        crd,
        "application/apply-patch+yaml",
        fieldManager="e2e",
        force="true",
        fieldValidation="Strict",
    )

    async def established() -> None:
        found = await api.get(f"{path}/{KIND}")
        conditions = {c["type"]: c for c in found["status"].get("conditions") or []}
        assert conditions["Established"]["status"] == "True", conditions
        # Structural problems are a condition, not an error.
        assert "NonStructuralSchema" not in conditions, conditions

    await wait_for("the CRD is established", established)
    await wait_for("its path is served", lambda: api.get(FLEETS.format("default")))


@pytest.fixture(scope="module")
def legal() -> Object:
    """With every optional part."""
    document: Object = yaml.safe_load((ROOT / "examples" / "llama-h200.yaml").read_text())
    return document


def changed(document: Object, changes: Changes) -> Object:
    """A copy with `spec.tiers.0.name` and such set; DELETE takes a field out."""
    result: Any = copy.deepcopy(document)
    for path, value in changes.items():
        target: Any = result
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            target = target[part]
        if value is DELETE:
            del target[last]
        else:
            target[last] = value
    return result


async def dry_run(api: Api, document: Object, namespace: str = "default") -> Object:
    """As `kubectl apply` would create it; what the server would have stored. Raises Refused."""
    there = {**document, "metadata": {**document["metadata"], "namespace": namespace}}
    query: dict[str, object] = {"dryRun": "All", "fieldValidation": "Strict"}
    return await api.request("POST", FLEETS.format(namespace), there, query=query)


WRONG: list[tuple[Changes, str, str]] = [
    # (what is changed, the place that the server names, its words)
    ({"spec.tiers.2.slo.tpot": "0ms"}, "spec.tiers[2].slo.tpot", '"0ms" must be greater than 0 and at most 1m'),
    ({"spec.tiers.0.slo.ttft": "2h"}, "spec.tiers[0].slo.ttft", '"2h" must be greater than 0 and at most 1h'),
    (
        {"spec.tiers.0.slo.ttft": "soon"},
        "spec.tiers[0].slo.ttft",
        '"soon" must be a duration such as "300ms", "1s" or "1m30s", greater than 0 and at most 1h',
    ),
    ({"spec.tiers.0.slo.ttft": 0.3}, "spec.tiers[0].slo.ttft", "must be of type string"),
    ({"spec.tiers.0.slo.ttft": DELETE}, "spec.tiers[0].slo.ttft", "Required value"),
    (
        {"spec.scaling.scaleDown.stabilization": "25h"},
        "scaleDown.stabilization",
        '"25h" must be a duration from 0s to 24h',
    ),
    ({"spec.scaling.schedule.0.duration": "30s"}, "schedule[0].duration", '"30s" must be a duration from 1m to 168h'),
    ({"spec.router.port": 0}, "spec.router.port", "greater than or equal to 1"),
    ({"spec.router.port": "8000"}, "spec.router.port", "must be of type integer"),
    ({"spec.scaling.attainment": 99}, "spec.scaling.attainment", "less than or equal to 1"),
    ({"spec.engine.type": "vllm"}, "spec.engine.type", 'supported values: "VLLM", "Emulated"'),
    (
        {"spec.tiers.1.overload": "besteffort"},
        "spec.tiers[1].overload",
        'supported values: "Queue", "BestEffort", "Reject"',
    ),
    ({"metadata.name": "l" * 41}, "metadata.name", "may not be more than 40"),
    ({"metadata.name": "a.b"}, "metadata.name", "should match"),
    (
        {"spec.tiers.0.name": "Real_Time"},
        "spec.tiers[0].name",
        '"Real_Time" must be a DNS-1123 label: 1 to 22 of a-z, 0-9 and "-"',
    ),
    (
        {"spec.tiers.0.name": "router"},
        "spec.tiers[0].name",
        '"router" is reserved; must be another name than router and warm',
    ),
    ({"spec.tiers.0.name": "warm"}, "spec.tiers[0].name", '"warm" is reserved'),
    ({"spec.tiers": []}, "spec.tiers", "at least 1 items"),
    ({"spec.tiers.1": None}, "spec.tiers[1]", "must be of type object"),
    (
        {"spec.model.name": "two words"},
        "spec.model.name",
        '"two words" must be text of 1 to 253 characters without spaces',
    ),
    (
        {"spec.serviceTiers": {"flex": "slow"}},
        "spec.serviceTiers.flex",
        '"slow" must name a tier: one of ["realtime", "interactive", "batch"]',
    ),
    (
        {"spec.engine.adapters": [{"name": "llama-3.1-8b", "path": "/a"}]},
        "spec.engine.adapters",
        """["llama-3.1-8b"] must differ from the model's own name and its servedNames""",
    ),
    (
        {"spec.engine.adapters": [{"name": "a=b", "path": "/a"}]},
        "spec.engine.adapters[0].name",
        '"a=b" must be text of 1 to 253 characters without spaces, "," and "="',
    ),
    ({"spec.engine.adapters": [{"name": "a", "path": "/a"}] * 2}, "spec.engine.adapters[1]", "Duplicate value"),
    (
        {"spec.router.paths": [{"path": "/v1/models/x"}]},
        "spec.router.paths[0].path",
        '"/v1/models/x" is answered by the router itself',
    ),
    ({"spec.router.paths": [{"path": "/a/../b"}]}, "spec.router.paths[0].path", '"/a/../b" must be a path such as'),
    (
        {"spec.router.paths": [{"path": "/a", "methods": ["get"]}]},
        "spec.router.paths[0].methods[0]",
        "supported values",
    ),
    ({"spec.router.bodyMaxMib": 2048}, "spec.router.bodyMaxMib", "less than or equal to 1024"),
    (
        {"spec.router.cors": {"origins": ["https://a/"]}},
        "spec.router.cors.origins[0]",
        '"https://a/" must be an origin such as https://app.example.com',
    ),
    ({"spec.profile": "profiles/mine.yaml"}, "spec.profile", "should match"),
    ({"spec.profile": {"file": "a", "configMap": "b"}}, "spec.profile", "must have at most 1 item"),
    ({"spec.profile": {}}, "spec.profile", "at least one schema"),
    ({"spec.profile": {"name": "llama"}}, "spec.profile", "at least one schema"),
    ({"spec.profile": {"file": 3}}, "spec.profile.file", "must be of type string"),
    ({"spec.profile": {"configMap": ""}}, "spec.profile.configMap", "at least 1 chars"),
    ({"spec.profile": 3}, "spec.profile", ""),
    ({"spec.profile": -1.5}, "spec.profile", ""),
    ({"spec.profile": True}, "spec.profile", ""),
    ({"spec.profile": False}, "spec.profile", ""),
    ({"spec.profile": []}, "spec.profile", ""),
    ({"spec.profile": ["llama"]}, "spec.profile", ""),
    ({"spec.profile": DELETE}, "spec.profile", "Required value"),
    ({"spec.engine.args": ["a", 1]}, "spec.engine.args[1]", "must be of type string"),
    ({"spec.engine.podTemplate": []}, "spec.engine.podTemplate", "must be of type object"),
    ({"spec.engine.podTemplate": {"nodeSelector": {}}}, "spec.engine.podTemplate.nodeSelector", "unknown field"),
    ({"spec.engine.podTemplate": {"spec": "x"}}, "spec.engine.podTemplate.spec", "must be of type object"),
    (
        {"spec.scaling.schedule.0.cron": "0 25 * * *"},
        "schedule[0].cron",
        '"0 25 * * *" must be a cron expression of five fields',
    ),
    ({"spec.scaling.schedule.0.cron": "* * * * * *"}, "schedule[0].cron", "must be a cron expression of five fields"),
    (
        {"spec.scaling.schedule.0.timezone": "Europe"},
        "schedule[0].timezone",
        "must be a time zone of the IANA database",
    ),
    (
        {"spec.scaling.schedule.0.timezone": "Mars/Base"},
        "schedule[0].timezone",
        "must be a time zone of the IANA database",
    ),
    ({"spec.scaling.schedule.0.timezone": "Local"}, "schedule[0].timezone", "must be a time zone of the IANA database"),
    ({"spec.tiers.0.slo.tpt": 5}, "spec.tiers[0].slo.tpt", "unknown field"),
    ({"spec.scaling.accelerators_max": 5}, "spec.scaling.accelerators_max", "unknown field"),
    (
        {"spec.tiers.1.name": "realtime", "spec.defaultTier": "batch", "spec.scaling.schedule": []},
        "spec.tiers[1]",
        "Duplicate value",
    ),
    (
        {"spec.tiers.1.slo.tpot": "0.02s"},
        "spec.tiers",
        'a tier is its slo.tpot, so each must have its own: tiers ["realtime", "interactive", "batch"] have ["20ms", "0.02s", "100ms"]',
    ),
    ({"spec.model.servedNames": ["a", "a"]}, "spec.model.servedNames[1]", 'Duplicate value: "a"'),
    ({"spec.tiers.0.instances": {"min": 3, "max": 2}}, "spec.tiers[0].instances.min", "3 must be at most max (2)"),
    ({"spec.tiers.0.instances": {"min": 0, "max": 0}}, "spec.tiers[0].instances.max", "greater than or equal to 1"),
    ({"spec.scaling.warmPool": {"min": 3}}, "spec.scaling.warmPool.min", "3 must be at most max (2)"),
    (
        {"spec.defaultTier": "slow"},
        "spec.defaultTier",
        '"slow" must name a tier: one of ["realtime", "interactive", "batch"]',
    ),
    ({"spec.scaling.schedule.0.tier": "slow"}, "spec.scaling.schedule", '["slow"] must name a tier: one of'),
    (
        {"spec.scaling.schedule.0.min": 13},
        "spec.scaling.schedule",
        'min [13] of ["interactive"] must be at most instances.max',
    ),
    (
        {"spec.scaling.acceleratorsMax": 5, "spec.engine.accelerator.perInstance": 2, "spec.scaling.warmPool.min": 1},
        "spec.scaling.acceleratorsMax",
        "5 must be at least 6, what the minima need: (tiers [1, 1, 0], warm pool 1) instances of 2 each",
    ),
    ({"spec.router": {"port": 9090}}, "spec.router.adminPort", "9090 must differ from port (9090)"),
    (
        {"spec.router.apiKeys": {}},
        "spec.router.apiKeys",
        "must be exactly one of {secret: NAME}, {file: PATH} and {env: NAME}",
    ),
    ({"spec.router.apiKeys": {"file": "keys", "env": "KEYS"}}, "spec.router.apiKeys", "must be exactly one of"),
]


@pytest.mark.parametrize(("changes", "where", "words"), WRONG, ids=[repr(changes)[1:50] for changes, _, _ in WRONG])
async def test_what_is_wrong_is_refused_with_its_place_and_its_legal_range_by_server_and_check_alike(
    api: Api, legal: Object, changes: Changes, where: str, words: str
) -> None:
    wrong = changed(legal, changes)

    with pytest.raises(ManifestInvalid):
        manifest_from(wrong)
    with pytest.raises(Refused) as refused:
        await dry_run(api, wrong)
    assert where in refused.value.message
    assert words in refused.value.message


RIGHT: list[Changes] = [
    {
        "spec.defaultTier": DELETE,
        "spec.model.servedNames": DELETE,
        "spec.model.maxLength": DELETE,
        "spec.placement": DELETE,
    },
    {"spec.engine": DELETE, "spec.router": DELETE},
    {"spec.profile": {"configMap": "my-profile"}},
    {"spec.profile": {"file": "profiles/mine.yaml"}},
    {"spec.tiers.0.slo": {"ttft": "1m30s", "tpot": "0.5ms"}},
    {"spec.tiers.0.name": "x" * 22, "metadata.name": "y" * 40},
    {"spec.tiers.0.instances": DELETE, "spec.tiers.0.overload": DELETE},
    {"spec.engine.emulation": {"slowDown": 2, "jitter": 0.5, "startup": "0s"}, "spec.engine.type": "Emulated"},
    {
        "spec.engine.podTemplate": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"priorityClassName": None, "volumes": []},
        }
    },
    {
        "spec.scaling.schedule.0.cron": "*/15 0-6,22 L * SUN#2",
        "spec.scaling.schedule.0.timezone": "America/Argentina/Ushuaia",
    },
    {"spec.scaling": {"acceleratorsMax": 2}},
    {"spec.router.apiKeys": {"env": "KEYS"}},
]


@pytest.mark.parametrize("changes", RIGHT, ids=[repr(changes)[1:50] for changes in RIGHT])
async def test_what_is_legal_is_taken_and_means_the_same_when_it_comes_back(
    api: Api, legal: Object, changes: Changes
) -> None:
    right = changed(legal, changes)

    stored = await dry_run(api, right)

    assert manifest_from_object(stored).spec == manifest_from(right).spec


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES.keys())
async def test_each_example_is_taken_and_means_the_same_when_it_comes_back(api: Api, text: str) -> None:
    stored = await dry_run(api, yaml.safe_load(text))

    # The server has filled in the defaults that the loader fills in.
    assert manifest_from_object(stored).spec == parse_manifest(text).spec


async def test_a_manifest_at_all_its_limits_stays_within_what_the_server_spends_on_rules(
    api: Api, legal: Object
) -> None:
    names = [f"{index:02}{'t' * 20}" for index in range(16)]
    slos = [{"ttft": "00000.001h" * 4, "tpot": f"00000.0{index + 10}s" * 4} for index in range(16)]
    tiers = [{"name": name, "slo": slo} for name, slo in zip(names, slos, strict=True)]
    entry = {"cron": "0 0 1 1 " + ",".join(["MON"] * 23), "duration": "1h", "tier": names[-1], "min": 1024}
    largest = changed(
        legal,
        {
            "metadata.name": "n" * 40,
            "spec.tiers": tiers,
            "spec.defaultTier": names[-1],
            "spec.scaling": {"acceleratorsMax": 65536, "schedule": [entry] * 32},
            "spec.engine.args": ["x" * 4096] * 128,
            "spec.engine.command": ["y" * 4096] * 64,
            "spec.model.servedNames": [f"{index:03}{'m' * 250}" for index in range(16)],
            "spec.engine.adapters": [{"name": f"{index:03}{'m' * 247}-lo", "path": "p" * 4096} for index in range(32)],
            "spec.serviceTiers": dict.fromkeys(("auto", "default", "flex", "priority"), names[-1]),
            "spec.router": {
                "paths": [{"path": f"/{index:03}" + "/p" * 124, "methods": ["GET", "POST"]} for index in range(64)],
                "cors": {"origins": [f"https://{index:03}{'o' * 242}" for index in range(64)]},
            },
        },
    )

    stored = await dry_run(api, largest)

    assert manifest_from_object(stored).spec == manifest_from(largest).spec


ONLY_THE_LOADER: list[Changes] = [
    {"spec.scaling.schedule.0.cron": "0 0 30 2 *"},  # There is no 30th of February; CEL has no calendar.
    {"spec.scaling.schedule.0.cron": "5-1 * * * *"},
    {
        "spec.router.apiKeys": None
    },  # Stored as it is, so that the operator sees it and does not open the router to everybody.
]


@pytest.mark.parametrize("changes", ONLY_THE_LOADER, ids=[repr(changes)[1:60] for changes in ONLY_THE_LOADER])
async def test_what_only_the_loader_can_tell_reaches_the_operator_which_refuses_it(
    api: Api, legal: Object, changes: Changes
) -> None:
    stored = await dry_run(api, changed(legal, changes))

    with pytest.raises(ManifestInvalid):
        manifest_from_object(stored)


async def test_the_model_of_a_fleet_cannot_be_changed_and_everything_else_can(scene: Scene, legal: Object) -> None:
    mine = changed(legal, {"metadata.namespace": scene.namespace})
    scene.apply(mine)

    with pytest.raises(KubectlFailed) as refused:
        scene.apply(changed(mine, {"spec.model.name": "other/model"}))
    scene.apply(changed(mine, {"spec.tiers.0.slo.tpot": "25ms", "spec.model.maxLength": 8192}))

    assert (
        'spec.model.name: Invalid value: "other/model": cannot be changed once created: it is '
        '"meta-llama/Llama-3.1-8B-Instruct"; make another MultiSLOServing for another model'
    ) in str(refused.value)
    assert scene.get("mslo", "llama")["metadata"]["generation"] == 2


async def test_two_hands_may_each_hold_a_tier(scene: Scene, legal: Object) -> None:
    mine = changed(legal, {"metadata.namespace": scene.namespace})
    scene.apply(mine)
    spec = {"tiers": [{"name": "overnight", "slo": {"ttft": "1m", "tpot": "1s"}}]}
    theirs = {key: mine[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "llama"}, "spec": spec}

    await scene.api.patch(
        f"{FLEETS.format(scene.namespace)}/llama", theirs, "application/apply-patch+yaml", fieldManager="another"
    )

    names = [tier["name"] for tier in scene.get("mslo", "llama")["spec"]["tiers"]]
    assert names == ["realtime", "interactive", "batch", "overnight"]


async def test_a_status_is_kept_and_shown_by_kubectl_and_changes_no_generation(scene: Scene, legal: Object) -> None:
    scene.apply(changed(legal, {"metadata.namespace": scene.namespace}))
    written = Status(
        observed_generation=1,
        url=f"http://llama.{scene.namespace}.svc:8000",
        instances="2/3",
        conditions=[
            Condition(
                type="Ready",
                status="True",
                reason="Serving",
                message="All tiers serve.",
                last_transition_time="2026-01-01T12:00:00Z",
                observed_generation=1,
            ),
            Condition(
                type="ScalingReady",
                status="False",
                reason="CapacityShort",
                message="chat lacks a node.",
                last_transition_time="2026-01-01T12:00:00Z",
                observed_generation=1,
            ),
        ],
        tiers=[
            TierStatus(
                name="realtime",
                instances=3,
                ready=2,
                starting=1,
                draining=0,
                failed=0,
                desired=3,
                load=0.74,
                attainment=1.0,
            )
        ],
        accelerators=AcceleratorsStatus(used=3, max=20),
        notes=["--max-num-seqs of spec.engine.args wins over the tier's 64"],
    )

    await scene.api.patch(f"{FLEETS.format(scene.namespace)}/llama/status", {"status": status_document(written)})

    stored = scene.get("mslo", "llama")
    assert status_from(stored) == written
    assert stored["metadata"]["generation"] == 1
    heading, row = scene.kubectl("get", "all,mslo").strip().splitlines()[-2:]
    assert heading.split() == ["NAME", "READY", "REASON", "URL", "INSTANCES", "AGE"]
    assert row.split()[1:5] == ["True", "Serving", written.url, "2/3"]
    heading, row = scene.kubectl("get", "mslo", "--output=wide").strip().splitlines()
    assert heading.split()[6:] == ["MODEL", "ACCELERATORS", "MESSAGE", "SCALING"]
    assert " ".join(row.split()[6:]) == f"{legal['spec']['model']['name']} 3 All tiers serve. chat lacks a node."


async def test_a_status_that_breaks_its_schema_is_refused(scene: Scene, legal: Object) -> None:
    scene.apply(changed(legal, {"metadata.namespace": scene.namespace}))

    path = f"{FLEETS.format(scene.namespace)}/llama/status"
    with pytest.raises(Refused) as refused:
        await scene.api.patch(path, {"status": {"observedGeneration": 1, "tiers": [{"name": "realtime", "load": -1}]}})

    assert "status.tiers[0].load" in refused.value.message


EXPLAINED: list[tuple[str, list[str]]] = [
    ("mslo", ["One LLM, served to users with different latency needs by one fleet."]),
    (
        "mslo.spec.tiers",
        ["name\t<string> -required-", "Default: Queue.", "enum: Queue, BestEffort, Reject", "Default: 1 to 1024."],
    ),
    (
        "mslo.spec.tiers.slo",
        ["Time to the first token, a duration", "Time per output token after the first, a duration"],
    ),
    ("mslo.spec.scaling.scaleDown.drainTimeout", ["a duration. Default: 15m."]),
    ("mslo.spec.profile", ["Path of the profile", "ConfigMap in the manifest's namespace that holds the profile."]),
    ("mslo.status.tiers", ["Instances that finish their requests and then go."]),
]


@pytest.mark.parametrize(("path", "said"), EXPLAINED, ids=[path for path, _ in EXPLAINED])
async def test_kubectl_explains_every_field_with_its_unit_and_its_default(
    scene: Scene, path: str, said: list[str]
) -> None:
    text = " ".join(scene.kubectl("explain", path).split(" "))

    flat = " ".join(text.split())
    assert all(" ".join(words.split()) in flat for words in said), text
