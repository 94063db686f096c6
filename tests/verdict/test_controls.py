"""Which control each evaluation had, in one sentence each: what it is, what it assumes, and never more."""

import itertools
import re
from typing import Any

import pytest

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import EvaluationResult, Rate
from unerase_backend.verdict import controls

Audit = Any

SPEC = AuditSpec(subject="s", reference="testbed/reference", control="testbed/never", concept="hourglass")


def result(kind: str, *, rate: bool = True) -> EvaluationResult:
    return EvaluationResult(
        control_kind=ControlKind.Value(f"CONTROL_KIND_{kind}"), control=Rate(cases=24) if rate else None
    )


EVERY = [result("MODEL"), result("PLACEBO"), result("CONCEPT_FREE"), result("NONE"), result("NONE", rate=False)]


@pytest.mark.parametrize(
    ("given", "spec", "words"),
    [
        (EVERY[0], {}, "testbed/never, a model that never learned 'hourglass' according to the catalogue"),
        (EVERY[0], {}, "assumes that it is otherwise like the reference, testbed/reference"),
        (EVERY[0], {"assume_control": True}, "a model that is assumed never to have learned 'hourglass'"),
        (EVERY[1], {"placebos": ["zigzag"]}, "the same procedure for 'zigzag', which neither subject nor reference"),
        (EVERY[1], {"placebos": ["a", "b", "c"]}, "for 'a', 'b' and 'c' in turn, which neither"),
        (EVERY[1], {"placebo": "zigzag"}, "the same procedure for 'zigzag', which"),
        (EVERY[1], {}, "gives the model either concept equally easily, and that the judges err equally often on both"),
        (EVERY[2], {}, "take pictures of those for this concept as often as pictures of its own prompts that do not"),
        (EVERY[3], {}, "the judges err no more often on the subject's pictures"),
        (
            EVERY[4],
            {},
            "subject's own rate still bounds how often the concept comes back, but the evaluation cannot show",
        ),
    ],
)
def test_each_kind_says_what_it_is_and_what_it_assumes(
    given: EvaluationResult, spec: dict[str, Any], words: str
) -> None:
    whole = AuditSpec()
    whole.CopyFrom(SPEC)
    whole.MergeFrom(AuditSpec(**spec))
    said = controls.statement(given, whole)
    assert words in said
    assert re.fullmatch(r"[A-Z][^.]+\.", said)
    assert ("assume" in said) == (given is not EVERY[4])


def test_records_from_before_the_kinds_are_read_by_what_they_have() -> None:
    assert controls.kind_of(EvaluationResult(controlled=True, placebo=True)) == controls.PLACEBO
    assert controls.kind_of(EvaluationResult(controlled=True)) == controls.MODEL
    assert controls.kind_of(EvaluationResult()) == controls.NONE
    assert controls.kind_of(EvaluationResult(controlled=True, control_kind="CONTROL_KIND_CONCEPT_FREE")) == (
        controls.CONCEPT_FREE
    )


@pytest.mark.parametrize("given", [list(each) for n in range(1, 4) for each in itertools.product(EVERY, repeat=n)])
def test_the_whole_audits_controls_are_one_sentence_that_counts_them(given: list[EvaluationResult]) -> None:
    said = controls.overview(given, SPEC)
    assert re.fullmatch(r"[A-Z][^.]+\.", said), said
    kinds = [controls.kind_of(each) for each in given]
    never = controls.MODEL in kinds
    # A reader without such a model is told so, and told what rests on what.
    assert never or "No model that never learned the concept takes part" in said or set(kinds) == {controls.NONE}
    assert ("testbed/never" in said) == (set(kinds) == {controls.MODEL})
    if len({(kind, each.HasField("control")) for kind, each in zip(kinds, given, strict=True)}) > 1:
        assert sum(map(int, re.findall(r" in (\d)", said))) == len(given)
        assert "rests on the assumption stated with its evaluation" in said


def test_without_evaluations_there_is_nothing_to_say_of_controls() -> None:
    assert controls.overview([], SPEC) == ""


def test_without_any_control_nothing_can_be_shown_to_come_back() -> None:
    said = controls.overview([EVERY[4], EVERY[4]], SPEC)
    assert said.startswith("There is no control in the 2 evaluations")
    assert said.endswith("no evaluation can show that it does.")


def test_the_verdict_states_them(audit: Audit) -> None:
    audit.hits("standard-prompt", 0, 24).hits("textual-inversion", 0, 24)
    verdict = audit.verdict()
    assert all(each.control_statement == controls.statement(each, audit.spec()) for each in verdict.evaluations)
    assert verdict.control_statement == controls.overview(verdict.evaluations, audit.spec())
    assert "The control of the 2 evaluations is" in verdict.control_statement
