"""Audits without a model that never learned the concept: each evaluation has the control that it can have."""

from collections.abc import Iterator

import pytest

from unerase import AuditSpec, Battery, Client, Concept, ConceptKind, ControlKind, EvaluationRequest, JudgeLabels
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED
from unerase_backend.catalogue import EMBEDDED

TINY = {
    "standard-prompt": {},
    "noise-based": {"etas": [1.0], "variance_scales": [1.0]},
    "textual-inversion": {"steps": 2},
}
SUBJECT = "testbed/uce"
# Shapes of the testbed under other names: to the backend they are what their creator says.
PLACEBOS = {"mine/selene": "moon", "mine/dart": "arrow"}


@pytest.fixture
def placebos(client: Client) -> Iterator[list[str]]:
    for name, shape in PLACEBOS.items():
        word = name.removeprefix("mine/")
        concept = Concept(
            name=name,
            kind=ConceptKind.CONCEPT_KIND_OBJECT,
            names=[word],
            prompts=["a picture of a {concept}"],
            placebo=True,
            labels=[
                JudgeLabels(judge="testbed/clip", labels=[f"a picture of a {word}"]),
                JudgeLabels(judge="testbed/judge", labels=[shape]),
                JudgeLabels(judge="testbed/second-judge", labels=[shape]),
            ],
        )
        client.create_concept(concept, [(EMBEDDED.parent / "pictures" / f"{shape}.png").read_bytes()], tile=32)
    yield list(PLACEBOS)
    for name in PLACEBOS.keys() & {concept.name for concept in client.concepts()}:
        client.delete_concept(name)


def _spec(**fields: object) -> AuditSpec:
    evaluations = []
    for name, parameters in TINY.items():
        request = EvaluationRequest(name=name)
        request.parameters.update(parameters)
        evaluations.append(request)
    battery = Battery(evaluations=evaluations, allow_incomplete=True)
    return AuditSpec(subject=SUBJECT, concept="hourglass", cases=4, steps=4, seed_base=61, battery=battery, **fields)


def _observed(client: Client, audit_id: str) -> set[tuple[str, str, str, int, str]]:
    """Evaluation, concept, model, case and prompt of every observation of the control."""
    *_, last = client.watch(audit_id, timeout=250)
    assert last.state_changed.state == AUDIT_STATE_SUCCEEDED, last.state_changed.error_message
    return {
        (row["evaluation"], row["concept"], row["model"], row["case_index"], row["prompt"])
        for row in client.observations(audit_id).to_pylist()
        if row["role"] == "control"
    }


def test_cases_take_custom_placebos_in_turn(client: Client, placebos: list[str]) -> None:
    audit = client.create_audit(_spec(placebos=placebos))
    assert (audit.spec.control, audit.spec.placebos) == ("", placebos)
    # What the audit needs of them is the audit's own by now.
    for name in placebos:
        client.delete_concept(name)
    seen = _observed(client, audit.id)
    for evaluation in TINY:
        models = {(concept, model, case) for name, concept, model, case, _ in seen if name == evaluation}
        assert models == {(placebos[case % 2], SUBJECT, case) for case in range(4)}
    assert client.artifact(audit.id, next(iter(_pictures(client, audit.id)))).startswith(b"\x89PNG")


def _pictures(client: Client, audit_id: str) -> set[str]:
    return {row["picture_digest"] for row in client.observations(audit_id).to_pylist()} - {"", None}


def test_without_a_placebo_prompts_of_other_concepts_are_the_control(client: Client) -> None:
    audit = client.create_audit(_spec(control_kind=ControlKind.CONTROL_KIND_CONCEPT_FREE))
    assert (audit.spec.control, audit.spec.placebos) == ("", [])
    seen = _observed(client, audit.id)
    # An injecting evaluation hands the model the concept itself, and has none.
    assert {name for name, *_ in seen} == {"standard-prompt", "noise-based"}
    assert {(concept, model) for _, concept, model, *_ in seen} == {("hourglass", SUBJECT)}
    assert {case for *_, case, _ in seen} == set(range(4))
    assert not any("hourglass" in prompt or "sandglass" in prompt for *_, prompt in seen)
