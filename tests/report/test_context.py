"""Other models on the plane: what the command makes of reports, what is kept, and where it is shown."""

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from support.report_by_hand import made, observed, page
from tools import context as command
from unerase.v1.audits_pb2 import Report
from unerase.v1.models_pb2 import Model
from unerase.v1.verdicts_pb2 import Estimate
from unerase_backend import report
from unerase_backend.catalogue import Catalogue
from unerase_backend.report import context
from unerase_backend.report.plane import MAX_LABEL

KEPT = Path(context.__file__).with_name("context.json")
REFERENCE = "ab" * 32


def audited(subject: str, *, method: str = "", reference: str = REFERENCE, pull: float = 0.2) -> Report:
    """The report of one model, whose digest is its name's."""
    made_report = made(observed(pull=pull))
    content = made_report.content
    content.spec.subject = subject
    content.manifest.models.extend(
        [
            Model(name=subject, digest=subject * 8, method=method),
            Model(name="r", digest=reference),
            Model(name="c", digest="c" * 8),
        ]
    )
    return made_report


def as_read(*reports: Report) -> list[dict]:
    return [json.loads(report.render_json(each))["content"] for each in reports]


def test_the_command_keeps_the_figures_of_each_model() -> None:
    second, first = audited("zeta", method="ESD-x"), audited("alpha")
    second.content.verdict.likelihood.destruction.value = 0.5
    second.content.verdict.likelihood.general_damage.interval.upper = 0.75
    (group,) = command.grouped(as_read(second, first, audited("r")))
    assert (group["concept"], group["reference"]) == ("hourglass", REFERENCE)
    assert [(each["model"], each["method"]) for each in group["models"]] == [("alpha", ""), ("zeta", "ESD-x")]
    for each, told in zip(group["models"], (first, second), strict=True):
        for name in ("destruction", "lost_pull", "general_damage"):
            kept = json_format.ParseDict(each[name], Estimate())
            assert kept == getattr(told.content.verdict.likelihood, name)
    assert "6 pictures of the concept and 6 of others" in group["source"]
    assert f"seed base {first.content.spec.seed_base}" in group["source"]


def test_the_command_leaves_out_what_has_no_place() -> None:
    assert command.grouped(as_read(audited("alpha", pull=0.0))) == []
    unmeasured = audited("alpha")
    unmeasured.content.verdict.ClearField("likelihood")
    assert command.grouped(as_read(unmeasured)) == []


def test_the_command_groups_by_the_reference() -> None:
    groups = command.grouped(as_read(audited("a", reference="ef" * 32), audited("b")))
    assert [(group["reference"][:2], len(group["models"])) for group in groups] == [("ab", 1), ("ef", 1)]


def test_the_command_refuses_figures_that_cannot_be_compared() -> None:
    other = audited("beta")
    other.content.verdict.likelihood.concept_pictures = 3
    with pytest.raises(ValueError, match="cannot be compared"):
        command.grouped(as_read(audited("alpha"), other))


def test_the_command_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "a.json").write_text(report.render_json(audited("alpha")))
    monkeypatch.setattr("sys.argv", ["context", str(tmp_path)])
    command.main()
    assert json.loads(capsys.readouterr().out) == command.grouped(as_read(audited("alpha")))


def test_what_is_kept_is_of_every_model_of_the_testbed() -> None:
    """Whoever changes the testbed's models audits them again: docs/testbed.md says how."""
    catalogue = Catalogue.load()
    models = [catalogue.describe_model(name) for name in catalogue.models if name.startswith("testbed/")]
    reference = catalogue.describe_model("testbed/reference").digest
    expected: dict[str, set[tuple[str, str, str]]] = {}
    for model in models:
        for concept in (*model.erased, *model.never_learned):
            expected.setdefault(concept, set()).add((model.name, model.digest, model.method))
    kept_groups = json.loads(KEPT.read_text())
    assert {group["reference"] for group in kept_groups} == {reference}
    assert expected == {
        group["concept"]: {(each["model"], each["digest"], each["method"]) for each in group["models"]}
        for group in kept_groups
    }


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Three models as the command gives them, in the place of what is kept."""
    groups = command.grouped(as_read(audited("one", method="ESD-x"), audited("deep/two"), audited("c")))
    monkeypatch.setattr(context, "_groups", lambda: groups)
    return groups


def test_context_is_shown_beside_the_audits_own_models(kept: list[dict]) -> None:
    found = context.context_of(audited("subject").content)
    assert found is not None
    assert [point.name for point in found.points] == ["two", "ESD-x"]
    shown = page(audited("subject"))
    assert kept[0]["source"] in shown.text
    assert "are not findings of this audit" in shown.text
    assert sum(attributes.get("class") == "mark context" for attributes in shown.of("path")) == 1 + len(found.points)
    assert "ESD-x (context)" in shown.text
    labels = [attributes for attributes in shown.of("text") if "name" in attributes.get("class", "").split()]
    assert len(labels) == len(found.points) + 3


def test_an_audits_own_models_are_not_shown_twice(kept: list[dict]) -> None:
    found = context.context_of(audited("one").content)
    assert found is not None
    assert [point.model for point in found.points] == ["deep/two"]
    assert [entry["model"] for entry in kept[0]["models"]] == ["c", "deep/two", "one"]


def test_context_is_no_part_of_the_content(kept: list[dict]) -> None:
    assert "ESD-x" not in report.render_json(audited("subject"))


@pytest.mark.parametrize("changed", ["reference", "concept"])
def test_another_reference_or_concept_has_no_context(kept: list[dict], changed: str) -> None:
    other = audited("subject", reference="ef" * 32 if changed == "reference" else REFERENCE)
    if changed == "concept":
        other.content.concept.name = "moon"
    assert context.context_of(other.content) is None
    shown = page(other)
    assert "No other models are shown for context" in shown.text
    assert not any(attributes.get("class") == "mark context" for attributes in shown.of("path"))


def test_a_long_name_is_cut(kept: list[dict]) -> None:
    shown = page(audited("s" * 200))
    assert f"{'s' * (MAX_LABEL - 1)}\N{HORIZONTAL ELLIPSIS}" in shown.text
