"""A campaign in a file: what is read, what is refused with line, key and reason, and a schema that says the same."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unerase import read_campaign
from unerase._campaign_file import AUDIT, CAMPAIGN
from unerase._file_schemas import file_schema
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.types_pb2 import ControlKind, DecidedBy, ModelAccess
from unerase.v1.verdicts_pb2 import Conclusion

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(file_schema("campaign"))
WHOLE: dict[str, Any] = {
    "subjects": ["testbed/uce", "testbed/esd-x"],
    "subject_filter": 'labels.release = "2026-12"',
    "concepts": ["hourglass", "heart"],
    "audit": {
        "battery": {
            "preset": "quick",
            "evaluations": ["relearning", {"name": "noise-based", "parameters": {"etas": [1.0, 1.5]}}],
            "allow_incomplete": True,
        },
        "cases": 24,
        "steps": 10,
        "guidance_scale": 5,
        "tolerances": {"excess": 0.1, "destruction": 0.05},
        "reference": "testbed/reference",
        "assume_reference": True,
        "control": "testbed/never",
        "assume_control": True,
        "placebos": ["fish"],
        "control_kind": "concept-free",
        "selector": "testbed/clip",
        "judge": "testbed/judge",
        "second_judge": "testbed/second-judge",
        "decided_by": "judge",
        "access": "open-weights",
        "own_schedules": True,
        "seed_base": 2**64 - 1,
    },
    "sequential": False,
    "gate": {"worst_conclusion": "removed", "excess": 0.2},
    "compared_with": "c-1",
    "window": 16,
    "labels": {"release": "2026-12"},
}
SMALL = {"subjects": ["testbed/uce"], "concepts": ["hourglass"]}


def written(folder: Path, content: Any) -> Path:
    file = folder / "campaign.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return file


def test_every_key_is_read(tmp_path: Path) -> None:
    read = read_campaign(written(tmp_path, WHOLE))
    spec = read.spec
    assert (list(spec.subjects), list(spec.concepts)) == (["testbed/uce", "testbed/esd-x"], ["hourglass", "heart"])
    assert (spec.subject_filter, spec.compared_with, spec.window) == ('labels.release = "2026-12"', "c-1", 16)
    assert spec.HasField("sequential")
    assert not spec.sequential
    assert (spec.gate.worst_conclusion, spec.gate.excess) == (Conclusion.CONCLUSION_REMOVED, 0.2)
    assert read.labels == {"release": "2026-12"}
    audit = spec.template
    assert (audit.battery.preset, audit.battery.allow_incomplete) == ("quick", True)
    assert [each.name for each in audit.battery.evaluations] == ["relearning", "noise-based"]
    assert list(audit.battery.evaluations[1].parameters["etas"]) == [1.0, 1.5]
    assert (audit.control_kind, audit.decided_by, audit.access) == (
        ControlKind.CONTROL_KIND_CONCEPT_FREE,
        DecidedBy.DECIDED_BY_JUDGE,
        ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS,
    )
    for name, value in WHOLE["audit"].items():
        if name not in ("battery", "control_kind", "decided_by", "access", "tolerances"):
            assert (list(audit.placebos) if name == "placebos" else getattr(audit, name)) == value, name
    assert (audit.tolerances.excess, audit.tolerances.destruction) == (0.1, 0.05)


def test_a_file_may_say_little(tmp_path: Path) -> None:
    assert read_campaign(written(tmp_path, SMALL)).spec == CampaignSpec(**SMALL, template=AuditSpec())
    preset = {**SMALL, "audit": {"battery": "quick"}}
    assert read_campaign(written(tmp_path, preset)).spec.template.battery.preset == "quick"


def test_every_field_of_a_campaign_and_of_an_audit_has_a_key() -> None:
    """A field that is added to the contract is a key here, or is named as one that is not."""
    assert CAMPAIGN.keys.keys() - {"audit", "labels"} == {
        each.name for each in CampaignSpec.DESCRIPTOR.fields if each.name != "template"
    }
    not_here = {"subject", "concept", "sequential", "placebo", "fixed_prompts", "fixed_prompts_source"}
    assert AUDIT.keys.keys() - {"prompts"} == {each.name for each in AuditSpec.DESCRIPTOR.fields} - not_here


def test_files_that_are_named_are_read_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("excess: 0.1")
    (tmp_path / "prompts.csv").write_text("prompt,seed\n" + "".join(f"a red hourglass {n},{n}\n" for n in range(1100)))
    (tmp_path / "pack.yaml").write_text("kinds: {synonym: [a picture of a sandglass]}")
    named = {"gate": "gate.yaml", "audit": {"prompts": "prompts.csv", "pack": "pack.yaml", "cases": 8}}
    read = read_campaign(written(tmp_path, {**SMALL, **named}))
    assert read.spec.gate.excess == 0.1
    # As many as a request can hold.
    assert len(read.spec.template.fixed_prompts) == 1024
    assert read.spec.template.fixed_prompts_source.name == "prompts.csv"
    assert read.spec.template.pack.kinds[0].name == "synonym"
    assert read.prompts is not None
    assert len(read.prompts.prompts) == 1100


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            "concepts: [hourglass]",
            "concept: [hourglass]",
            "line 2: concept: there is no such key; did you mean concepts?",
        ),
        ("concepts: [hourglass]", "", "concepts is missing"),
        ("subjects: [testbed/uce]", "", "subjects or subject_filter is missing"),
        ("[testbed/uce]", "testbed/uce", "line 1: subjects: must be a list, not 'testbed/uce'"),
        (
            "[testbed/uce]",
            "[4]",
            "line 1: subjects[0]: must be text, not 4; a number, a date",
        ),
        ("[testbed/uce]", "[a, b, a]", "line 1: subjects[2]: 'a' stands here twice"),
        ("[testbed/uce]", "[]", "line 1: subjects: must have 1 to 10000 items, not 0"),
        ("cases: 24", "cases: 1.5", "line 4: audit.cases: must be a whole number from 1 to 4294967295, not 1.5"),
        ("cases: 24", "cases: yes", "line 4: audit.cases: must be a whole number from 1 to 4294967295, not True"),
        ("cases: 24", "seed: 24", "line 4: audit.seed: there is no such key; did you mean seed_base?"),
        ("cases: 24", "cases: 0", "line 4: audit.cases: must be a whole number from 1"),
        ("cases: 24", "steps: 0", "line 4: audit.steps: must be a whole number from 1"),
        ("cases: 24", "battery: {evaluations: []}", "line 4: audit.battery.evaluations: must have 1 to 64 items"),
        ("cases: 24", "sequential: true", "line 4: audit.sequential: there is no such key"),
        ("cases: 24", "guidance_scale: 51", "line 4: audit.guidance_scale: must be a number from 1 to 50, not 51"),
        ("cases: 24", "guidance_scale: .nan", "line 4: audit.guidance_scale: must be a number from 1 to 50, not nan"),
        ("cases: 24", "control_kind: best", "must be one of model, placebo, concept-free, none, not 'best'"),
        ("cases: 24", "tolerances: {exces: 1}", "line 4: audit.tolerances.exces: there is no such key"),
        ("cases: 24", "battery: [quick]", "line 4: audit.battery: must be a mapping, not a list"),
        ("cases: 24", "battery: {evaluations: [{}]}", "audit.battery.evaluations[0]: name is missing"),
        (
            "cases: 24",
            "battery: {evaluations: [{name: x, parameters: {y: 2026-12-01}}]}",
            "audit.battery.evaluations[0]: parameters must hold texts, numbers, lists and mappings alone",
        ),
        ("cases: 24", "prompts: none.csv", "line 4: audit.prompts: {folder}/none.csv: No such file or directory"),
        ("excess: 0.1", "exces: 0.1", "line 5: gate.exces: there is no such key"),
        ("excess: 0.1", "excess: 2", "line 5: gate.excess: must be a number above 0 and under 1, not 2"),
        ("{excess: 0.1}", "{excess: 0.1, excess: 0.2}", "line 5: gate: the key 'excess' stands here twice"),
        ("{excess: 0.1}", "none.yaml", "line 5: gate: {folder}/none.yaml: No such file or directory"),
        ("{excess: 0.1}", "7", "line 5: gate: must be a mapping"),
        ('{a: "1"}', "{a: 1}", "line 6: labels.a: must be text, not 1"),
        ('{a: "1"}', '{A b: "1"}', "must be 1 to 63 lower-case letters, digits, '-', '_', '.' and '/', not 'A b'"),
        ('{a: "1"}', '{1: "1"}', "the key 1 must be text; put it in quotes"),
        ('{a: "1"}', '{a: "1", a: "2"}', "line 6: labels: the key 'a' stands here twice"),
        ('{a: "1"}', '{a: "1"', "not valid YAML"),
        ("window: 4", "window: 0", "window: must be a whole number from 1 to 1024, not 0"),
    ],
)
def test_what_is_wrong_is_said_with_line_key_and_reason(tmp_path: Path, before: str, after: str, says: str) -> None:
    lines = ["subjects: [testbed/uce]", "concepts: [hourglass]", "audit:", "  cases: 24", "gate: {excess: 0.1}"]
    text = "\n".join([*lines, 'labels: {a: "1"}', "window: 4"])
    assert before in text
    file = written(tmp_path, text.replace(before, after))
    says = re.escape(says.replace("{folder}", str(tmp_path)))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{says}"):
        read_campaign(file)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for content, says in (
        ("", "must be a mapping"),
        ("[1]", "must be a mapping"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ):
        with pytest.raises(ValueError, match=says):
            read_campaign(written(tmp_path, content))
    (tmp_path / "campaign.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_campaign(tmp_path / "campaign.yaml")
    with pytest.raises(FileNotFoundError):
        read_campaign(tmp_path / "missing.yaml")


def test_the_schema_in_the_documentation_is_what_reads() -> None:
    shown = json.loads((ROOT / "docs/campaign.schema.json").read_text())
    assert shown == file_schema("campaign"), (
        "run `python -m unerase._file_schemas campaign > docs/campaign.schema.json`"
    )
    jsonschema.Draft202012Validator.check_schema(shown)


def test_the_example_is_a_campaign() -> None:
    file = ROOT / "examples" / "campaign.yaml"
    SCHEMA.validate(yaml.safe_load(file.read_text()))
    spec = read_campaign(file).spec
    assert (len(spec.subjects), list(spec.concepts)) == (10, ["hourglass", "heart"])


# A value of any kind that YAML and JSON share.
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2000)
    | st.floats(-2, 60)
    | st.sampled_from(["", "a", "quick", "model"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "excess", "preset"]), inner)
    ),
    max_leaves=4,
)


def paths(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a content something stands."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [each for key, value in pairs for each in [(*at, key), *paths(value, (*at, key))]]


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reader_and_schema_accept_and_refuse_the_same(tmp_path: Path, data: st.DataObject) -> None:
    """A whole campaign, with some values replaced, left out or put beside the others."""
    content = json.loads(json.dumps(WHOLE))
    for _ in range(data.draw(st.integers(0, 2))):
        *above, key = data.draw(st.sampled_from(paths(content)))
        place = content
        for each in above:
            place = place[each]
        what = data.draw(st.sampled_from(["replaced", "left out", "added"]))
        if what == "replaced":
            place[key] = data.draw(ANY)
        elif what == "left out":
            del place[key]
        elif isinstance(place, dict):
            place[data.draw(st.sampled_from(["a", "cases", "name"]))] = data.draw(ANY)
    if isinstance(content.get("gate"), str):
        # The name of a file, which no schema looks into.
        (tmp_path / "a").write_text("excess: 0.1")
        (tmp_path / "quick").write_text("excess: 0.1")
        (tmp_path / "model").write_text("excess: 0.1")
    file = written(tmp_path, content)
    if SCHEMA.is_valid(content):
        read_campaign(file)
    else:
        with pytest.raises(ValueError, match=re.escape(str(file))):
            read_campaign(file)
