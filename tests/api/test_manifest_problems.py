"""Wrong manifests: each kind of mistake gives one line that names the path, the value and what is legal, and never a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from multislo_api.fields import field_names
from multislo_api.manifest import (
    ManifestInvalid,
    ManifestUnreadable,
    Router,
    load_manifest,
    manifest_from,
    parse_manifest,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


def document() -> dict[str, Any]:
    """A legal manifest with every optional part, to be spoiled by a test."""
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "llama-h200.yaml").read_text())
    return loaded


def problems_of(spoiled: object) -> list[str]:
    with pytest.raises(ManifestInvalid) as caught:
        manifest_from(spoiled)
    return caught.value.problems


def problems_of_text(text: str) -> list[str]:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(text)
    return caught.value.problems


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set `spec.tiers.2.slo.tpot` of a document."""

    def change(target: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            target = target[part]
        target[last] = value

    return change


LABEL = "beginning and ending with a letter or digit"

FIELDS: list[tuple[str, object, str]] = [
    ("spec.tiers.2.slo.tpot", "0ms", 'spec.tiers[2].slo.tpot: "0ms" must be greater than 0 and at most 1m'),
    ("spec.tiers.0.slo.ttft", "2h", 'spec.tiers[0].slo.ttft: "2h" must be greater than 0 and at most 1h'),
    (
        "spec.tiers.0.slo.ttft",
        0.3,
        'spec.tiers[0].slo.ttft: 0.3 must be a duration such as "300ms", "1s" or "1m30s", greater than 0 and at most 1h',
    ),
    (
        "spec.scaling.scaleDown.stabilization",
        "25h",
        'spec.scaling.scaleDown.stabilization: "25h" must be a duration from 0s to 24h',
    ),
    ("spec.router.port", 0, "spec.router.port: 0 must be an integer from 1 to 65535"),
    ("spec.router.port", "8000", 'spec.router.port: "8000" must be an integer from 1 to 65535'),
    ("spec.router.port", True, "spec.router.port: true must be an integer from 1 to 65535"),
    ("spec.router.port", 8000.0, "spec.router.port: 8000.0 must be an integer from 1 to 65535"),
    ("spec.scaling.attainment", 99, "spec.scaling.attainment: 99 must be a number from 0.5 to 1"),
    ("spec.engine.type", "vllm", 'spec.engine.type: "vllm" must be one of VLLM, Emulated; did you mean "VLLM"?'),
    (
        "spec.tiers.1.overload",
        "besteffort",
        'spec.tiers[1].overload: "besteffort" must be one of Queue, BestEffort, Reject; did you mean "BestEffort"?',
    ),
    ("spec.placement", ["Pack"], 'spec.placement: ["Pack"] must be one of Pack, Spread'),
    (
        "metadata.name",
        "Llama_1",
        f'metadata.name: "Llama_1" must be a DNS-1123 label: 1 to 40 of a-z, 0-9 and "-", {LABEL}',
    ),
    (
        "spec.tiers.0.name",
        False,
        f'spec.tiers[0].name: false must be a DNS-1123 label: 1 to 22 of a-z, 0-9 and "-", {LABEL}; write it in quotes',
    ),
    (
        "spec.tiers.0.name",
        "fast\n",
        f'spec.tiers[0].name: "fast\\n" must be a DNS-1123 label: 1 to 22 of a-z, 0-9 and "-", {LABEL}; it begins or ends with a space',
    ),
    ("spec.tiers", [], "spec.tiers: [] must be a list of 1 to 16 items, each a mapping"),
    ("spec.tiers.1", None, "spec.tiers[1]: null must be a mapping with name, slo, instances, overload and latest"),
    ("spec.tiers.1.slo", "50ms", 'spec.tiers[1].slo: "50ms" must be a mapping with ttft and tpot'),
    (
        "spec.profile",
        "profiles/mine.yaml",
        'spec.profile: "profiles/mine.yaml" must be the name of a shipped profile (a-z, 0-9, "-" and "."), or {file: PATH}, '
        'or {configMap: NAME}; did you mean {file: "profiles/mine.yaml"}?',
    ),
    (
        "spec.profile",
        {"file": "a", "configMap": "b"},
        'spec.profile: {"file": "a", "configMap": "b"} must be the name of a shipped profile (a-z, 0-9, "-" and "."), or '
        "{file: PATH}, or {configMap: NAME}",
    ),
    ("spec.profile", {"file": 3}, "spec.profile.file: 3 must be a path of 1 to 4096 characters; write it in quotes"),
    (
        "spec.engine.args",
        ["a", 1],
        "spec.engine.args[1]: 1 must be text of at most 4096 characters; write it in quotes",
    ),
    ("spec.engine.podTemplate", [], "spec.engine.podTemplate: [] must be a mapping"),
    (
        "spec.scaling.schedule.0.cron",
        "0 25 * * *",
        'spec.scaling.schedule[0].cron: "0 25 * * *" must be a cron expression of five fields: minute, hour, day of month, month, '
        "day of week (bad hour)",
    ),
    (
        "spec.scaling.schedule.0.cron",
        "* * * * * *",
        'spec.scaling.schedule[0].cron: "* * * * * *" must be a cron expression of five fields: minute, hour, day of month, month, '
        "day of week (it has 6 fields)",
    ),
    (
        "spec.scaling.schedule.0.timezone",
        "Europe",
        'spec.scaling.schedule[0].timezone: "Europe" must be a time zone of the IANA database such as Europe/Berlin',
    ),
    (
        "spec.router.apiKeys",
        None,
        "spec.router.apiKeys: null (nothing) must be a mapping with secret, file and env, or the field left "
        "out for its default",
    ),
    ("spec.router.bodyMaxMib", 0, "spec.router.bodyMaxMib: 0 must be an integer from 1 to 1024"),
    (
        "spec.router.cors",
        {"origins": ["https://app.example.com/"]},
        'spec.router.cors.origins[0]: "https://app.example.com/" must be an origin such as https://app.example.com or '
        "http://localhost:3000, without a path, or * for any",
    ),
    (
        "spec.engine.adapters",
        [{"name": "a=b", "path": "/a"}],
        'spec.engine.adapters[0].name: "a=b" must be text of 1 to 253 characters without spaces, "," and "="',
    ),
    ("spec.model.name", None, "spec.model.name: null (nothing) must be text of 1 to 253 characters without spaces"),
    ("metadata.labels", {"a": 1}, "metadata.labels.a: 1 must be text; write it in quotes"),
    ("apiVersion", "multislo.dev/v1", 'apiVersion: "multislo.dev/v1" must be "multislo.dev/v1alpha1"'),
]


@pytest.mark.parametrize(
    ("path", "value", "problem"), FIELDS, ids=[f"{path}={value!r:.20}" for path, value, _ in FIELDS]
)
def test_a_wrong_value_is_named_with_its_path_and_what_is_legal(path: str, value: object, problem: str) -> None:
    spoiled = document()
    put(path, value)(spoiled)

    assert problems_of(spoiled) == [problem]


UNKNOWN: list[tuple[str, str, str]] = [
    ("spec.tiers.0.slo.tpt", "ttft, tpot", "tpot"),
    ("spec.scaling.accelerators_max", "acceleratorsMax, attainment, warmPool, scaleDown, schedule", "acceleratorsMax"),
    ("spec.router.adminport", ", ".join(field_names(Router)), "adminPort"),
    ("spec.tiers.0.ttft", "name, slo, instances, overload, latest", "slo.ttft"),
    ("spec.router.acceleratorsMax", ", ".join(field_names(Router)), "spec.scaling.acceleratorsMax"),
]


@pytest.mark.parametrize(("path", "names", "meant"), UNKNOWN, ids=[path for path, _, _ in UNKNOWN])
def test_a_misspelt_or_misplaced_field_is_refused_with_the_one_that_was_meant(
    path: str, names: str, meant: str
) -> None:
    spoiled = document()
    put(path, 5)(spoiled)

    [problem] = problems_of(spoiled)

    assert problem.endswith(f': unknown field (with 5); must be one of {names}; did you mean "{meant}"?')


def test_a_field_that_resembles_nothing_gets_no_guess() -> None:
    spoiled = document()
    put("spec.xyzzy", 5)(spoiled)

    [problem] = problems_of(spoiled)

    assert problem.startswith("spec.xyzzy: unknown field (with 5); must be one of model, profile, ")
    assert "did you mean" not in problem


def test_python_names_are_not_names_of_the_document() -> None:
    spoiled = document()
    spoiled["spec"]["tiers"][0]["slo"] = {"ttft_s": 0.3, "tpot_s": 0.02}

    assert len(problems_of(spoiled)) == 4  # Two missing, two unknown.


RULES: list[tuple[dict[str, object], str]] = [
    (
        {"spec.tiers.1.name": "realtime", "spec.defaultTier": "batch", "spec.scaling.schedule": []},
        'spec.tiers[1].name: "realtime" must differ from spec.tiers[0].name ("realtime"): a tier\'s name must be unique',
    ),
    (
        {"spec.tiers.0.name": "router"},
        'spec.tiers[0].name: "router" is reserved; must be another name than router and warm',
    ),
    (
        {"spec.tiers.1.slo.tpot": "0.02s"},
        'spec.tiers[1].slo.tpot: "0.02s" must differ from spec.tiers[0].slo.tpot ("20ms"): a tier is its tpot, so each must have its own',
    ),
    (
        {"spec.model.servedNames": ["a", "a"]},
        'spec.model.servedNames[1]: "a" must differ from spec.model.servedNames[0] ("a"): '
        "a served name must be given once",
    ),
    (
        {"spec.engine.adapters": [{"name": "llama-3.1-8b", "path": "/a"}, {"name": "sql", "path": "/b"}]},
        'spec.engine.adapters[0].name: "llama-3.1-8b" must differ from spec.model.servedNames[0] ("llama-3.1-8b"): '
        "an adapter is a model of its own",
    ),
    (
        {"spec.engine.adapters": [{"name": "meta-llama/Llama-3.1-8B-Instruct", "path": "/a"}]},
        'spec.engine.adapters[0].name: "meta-llama/Llama-3.1-8B-Instruct" must differ from spec.model.name '
        '("meta-llama/Llama-3.1-8B-Instruct"): an adapter is a model of its own',
    ),
    (
        {"spec.engine.adapters": [{"name": "sql", "path": "/a"}, {"name": "sql", "path": "/b"}]},
        'spec.engine.adapters[1].name: "sql" must differ from spec.engine.adapters[0].name ("sql"): an adapter\'s name must be unique',
    ),
    (
        {"spec.tiers.0.instances": {"min": 3, "max": 2}},
        "spec.tiers[0].instances.min: 3 must be at most spec.tiers[0].instances.max (2)",
    ),
    (
        {"spec.scaling.warmPool": {"min": 3}},
        "spec.scaling.warmPool.min: 3 must be at most spec.scaling.warmPool.max (2, the default)",
    ),
    ({"spec.defaultTier": "slow"}, 'spec.defaultTier: "slow" must name a tier: one of realtime, interactive, batch'),
    (
        {"spec.serviceTiers": {"flex": "slow", "priority": "realtime"}},
        'spec.serviceTiers.flex: "slow" must name a tier: one of realtime, interactive, batch',
    ),
    (
        {"spec.scaling.schedule.0.tier": "slow"},
        'spec.scaling.schedule[0].tier: "slow" must name a tier: one of realtime, interactive, batch',
    ),
    (
        {"spec.scaling.schedule.0.min": 13},
        "spec.scaling.schedule[0].min: 13 must be at most spec.tiers[1].instances.max (12)",
    ),
    (
        {"spec.scaling.acceleratorsMax": 5, "spec.engine.accelerator.perInstance": 2, "spec.scaling.warmPool.min": 1},
        "spec.scaling.acceleratorsMax: 5 must be at least 6, what the minima need: (tiers 1 + 1 + 0, warm pool 1) instances of 2 each",
    ),
    ({"spec.router.port": 9090}, "spec.router.adminPort: 9090 must differ from spec.router.port (9090)"),
    ({"spec.router": {"port": 9090}}, "spec.router.adminPort: 9090 must differ from spec.router.port (9090)"),
    (
        {"spec.router": {"adminPort": 8000}},
        "spec.router.adminPort: 8000 must differ from spec.router.port (8000, the default)",
    ),
    (
        {"spec.router.apiKeys": {}},
        "spec.router.apiKeys: {} must be exactly one of {secret: NAME}, {file: PATH} and {env: NAME}",
    ),
    (
        {"spec.router.apiKeys": {"file": "keys", "env": "KEYS"}},
        'spec.router.apiKeys: {"file": "keys", "env": "KEYS"} must be exactly one of {secret: NAME}, {file: PATH} and {env: NAME}',
    ),
    (
        {"spec.router.paths": [{"path": "/v1/models/x"}]},
        'spec.router.paths[0].path: "/v1/models/x" is answered by the router itself; must be another path than '
        "/v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/models, /health",
    ),
    (
        {"spec.router.paths": [{"path": "/sleep"}, {"path": "/sleep", "methods": ["GET"]}]},
        'spec.router.paths[1].path: "/sleep" must differ from spec.router.paths[0].path ("/sleep"): '
        "a path must be given once, with all of its methods",
    ),
    (
        {"spec.engine.podTemplate": {"nodeSelector": {}}},
        'spec.engine.podTemplate.nodeSelector: unknown field (with {}); must be one of metadata, spec; did you mean "spec.nodeSelector"?',
    ),
    ({"spec.engine.podTemplate": {"spec": None}}, "spec.engine.podTemplate.spec: null must be a mapping"),
    ({"spec.router.podTemplate": {"spec": 5}}, "spec.router.podTemplate.spec: 5 must be a mapping"),
]


@pytest.mark.parametrize(("changes", "problem"), RULES, ids=[",".join(changes) for changes, _ in RULES])
def test_fields_that_contradict_each_other_are_named_together(changes: dict[str, object], problem: str) -> None:
    spoiled = document()
    for path, value in changes.items():
        put(path, value)(spoiled)

    assert problems_of(spoiled) == [problem]


def test_all_problems_are_told_at_once_the_joint_ones_too() -> None:
    spoiled = document()
    put("spec.engine.type", "TGI")(spoiled)
    put("spec.tiers.2.slo.tpot", "0ms")(spoiled)
    put("spec.tiers.1.slo.tpot", "20ms")(spoiled)
    put("spec.router.adminPort", 8000)(spoiled)
    del spoiled["spec"]["model"]

    assert [problem.split(": ")[0] for problem in problems_of(spoiled)] == [
        "spec.model",
        "spec.engine.type",
        "spec.tiers[2].slo.tpot",
        "spec.tiers[1].slo.tpot",
        "spec.router.adminPort",
    ]


def test_a_wrong_value_does_not_also_break_the_rules_it_is_part_of() -> None:
    spoiled = document()
    put("spec.tiers.1.name", "Interactive")(spoiled)

    # Neither defaultTier nor the schedule is blamed: the unreadable name may be the one that they mean.
    assert [problem.split(": ")[0] for problem in problems_of(spoiled)] == ["spec.tiers[1].name"]


def test_another_kind_of_object_is_named_and_its_fields_are_left_alone() -> None:
    assert problems_of({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}}) == [
        'apiVersion: "apps/v1" must be "multislo.dev/v1alpha1"',
        'kind: "Deployment" must be "MultiSLOServing"',
    ]


@pytest.mark.parametrize(
    "head",
    [
        {"apiVersion": "multislo.dev/v1alpha1", "kind": "MultiSLOServer"},
        {"apiVersion": "multislo.dev/v2", "kind": "MultiSLO"},
        {"apiVersion": "v1", "kind": "MultiSLOserving"},
    ],
)
def test_a_slip_in_the_kind_or_the_version_hides_no_other_mistake(head: dict[str, Any]) -> None:
    spoiled = document() | head
    put("spec.model.maxLength", "long")(spoiled)
    paths = [problem.split(":")[0] for problem in problems_of(spoiled)]
    assert "kind" in paths
    assert "spec.model.maxLength" in paths


TEXTS: list[tuple[str, str, str]] = [
    ("empty", "", "the file is empty; it must hold one MultiSLOServing (multislo.dev/v1alpha1)"),
    ("comments", "# nothing\n---\n", "the file is empty; it must hold one MultiSLOServing (multislo.dev/v1alpha1)"),
    ("list", "- a\n", 'the document is ["a"]; it must be a mapping with apiVersion, kind, metadata and spec'),
    ("text", "llama", 'the document is "llama"; it must be a mapping with apiVersion, kind, metadata and spec'),
    ("syntax", "a: [1\nb: 2\n", "line 2, column 2: the file must be YAML: expected ',' or ']', but got ':'"),
    (
        "tab",
        "a:\n\tb: 1\n",
        "line 2, column 1: the file must be YAML: found character '\\t' that cannot start any token",
    ),
    (
        "control",
        "a: \x07",
        "the file must be YAML: unacceptable character #x0007: special characters are not allowed in "
        '"<unicode string>", position 3',
    ),
    (
        "two",
        "kind: MultiSLOServing\n---\nkind: MultiSLOServing\n",
        "the file holds 2 documents, 2 of kind MultiSLOServing; it must hold exactly one of that kind",
    ),
    (
        "none of two",
        "kind: Secret\n---\nkind: MultiSLOserving\n",
        "the file holds 2 documents, 0 of kind MultiSLOServing; it must hold exactly one of that kind",
    ),
    (
        "deep",
        "a: " + "[" * 5000,
        "the file nests values deeper than 64 levels (or an alias holds itself); a manifest has about ten levels",
    ),
    (
        "cycle",
        "a: &a [*a]\n",
        "the file nests values deeper than 64 levels (or an alias holds itself); a manifest has about ten levels",
    ),
    (
        "bomb",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        "the file holds more than 10000 values once its aliases are written out; a manifest has some hundred",
    ),
]


@pytest.mark.parametrize(
    ("text", "problem"), [(text, problem) for _, text, problem in TEXTS], ids=[name for name, _, _ in TEXTS]
)
def test_a_file_that_holds_no_manifest_is_one_problem(text: str, problem: str) -> None:
    assert problems_of_text(text) == [problem]


IN_TEXT: list[tuple[str, str, str]] = [
    (
        "  placement: Spread",
        "  placement: Spread\n  placement: Pack",
        "spec.placement: given twice, again on line 35; a key may be given once",
    ),
    (
        "    port: 8000",
        "    port: !!python/name:os.system 8000",
        "spec.router.port: the tag !!python/name:os.system has no place in a manifest; leave it out",
    ),
    (
        "    port: 8000",
        "    port: 99999999999999999999",
        "spec.router.port: 99999999999999999999 must be an integer of at most 64 bits",
    ),
    (
        "    port: 8000",
        "    port: 0x" + "f" * 9000,
        "spec.router.port: 0x" + "f" * 35 + "... must be an integer of at most 64 bits",
    ),
    ("    attainment: 0.99", "    attainment: .nan", "spec.scaling.attainment: .nan must be a finite number"),
    ("    attainment: 0.99", "    attainment: 1e999", "spec.scaling.attainment: 1e999 must be a finite number"),
    ("    port: 8000", '    port: !!int "eight"', 'spec.router.port: "eight" must be what its tag !!int says'),
    ("    port: 8000", "    8000: port", 'spec.router: line 44: the key "8000" must be text; write it in quotes'),
    (
        "    port: 8000",
        "    [a]: port",
        "spec.router: line 44: the key a list or mapping must be text; write it in quotes",
    ),
    ("    port: 8000", "    <<: 3", 'spec.router: "<<": 3 must be a mapping, or a list of mappings, to merge'),
    ("  name: llama\n", '  name: "\\ud800"\n', 'metadata.name: "\\ud800" must be valid Unicode text'),
]


@pytest.mark.parametrize(("old", "new", "problem"), IN_TEXT, ids=[new.strip()[:30] for _, new, _ in IN_TEXT])
def test_yaml_that_no_manifest_may_use_is_named_with_its_path(old: str, new: str, problem: str) -> None:
    text = (EXAMPLES / "llama-h200.yaml").read_text()
    assert text.count(old) == 1

    assert problems_of_text(text.replace(old, new)) == [problem]


def test_no_problem_is_longer_than_a_line_or_hides_in_control_characters() -> None:
    spoiled = document()
    put("spec.model.name", "\x1b[31m\u202e" + "x\n" * 5000)(spoiled)
    spoiled["spec"]["\x1b]0;owned\x07" * 50] = "\x00"
    spoiled["spec"]["engine"]["podTemplate"] = {"\x1f": None}

    problems = problems_of(spoiled)

    assert len(problems) == 3
    assert all(problem.isprintable() and len(problem) < 400 for problem in problems)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")]:
        with pytest.raises(ManifestUnreadable) as caught:
            load_manifest(path)
        assert caught.value.problems == [f"the file cannot be read: {reason}"]


def test_a_file_that_is_not_utf_8_says_where(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("# für uns\n".encode("latin-1"))

    with pytest.raises(ManifestInvalid) as caught:
        load_manifest(tmp_path / "latin.yaml")

    assert caught.value.problems == ["the file must be UTF-8 text: byte 3 (0xfc) is not UTF-8"]


def test_a_file_that_is_far_too_large_is_not_even_parsed(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"\n")

    with pytest.raises(ManifestInvalid, match="larger than 1048576 bytes"):
        load_manifest(tmp_path / "large.yaml")


def test_the_exception_reads_as_a_terminal_should_show_it() -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest("{apiVersion: v1, kind: Pod}", "pod.yaml")

    assert str(caught.value).splitlines() == [
        "pod.yaml: 2 problems",
        '  apiVersion: "v1" must be "multislo.dev/v1alpha1"',
        '  kind: "Pod" must be "MultiSLOServing"',
    ]
