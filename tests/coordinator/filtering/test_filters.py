"""Filters: what they hold for, what is refused and where, and laws over random ones."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase.v1.audits_pb2 import AUDIT_STATE_FAILED, AUDIT_STATE_SUCCEEDED, Audit, AuditSpec
from unerase.v1.models_pb2 import Model
from unerase.v1.verdicts_pb2 import CONCLUSION_AVOIDED, Verdict
from unerase_backend.coordinator.filtering import (
    AUDIT_FIELDS,
    CELL_FIELDS,
    EVERYTHING,
    MODEL_FIELDS,
    audit_values,
    holds,
    model_values,
    read_filter,
)
from unerase_backend.coordinator.filtering.syntax import MAX_DEPTH, MAX_LENGTH, MAX_RESTRICTIONS
from unerase_backend.runtime.errors import InvalidRequestError

ENDED = Audit(
    spec=AuditSpec(subject="small/edited", concept="hourglass"),
    state=AUDIT_STATE_SUCCEEDED,
    verdict=Verdict(conclusion=CONCLUSION_AVOIDED),
    campaign="",
    labels={"team": "safety", "release/train": "2026-12", "a.b": 'say "x" \\ y'},
)
ENDED.create_time.FromJsonString("2026-12-01T08:00:00Z")
ENDED.end_time.FromJsonString("2026-12-01T09:00:00.5Z")
RUNNING = Audit(spec=AuditSpec(subject="large", concept="yeti"), state=2, campaign="c1")
RUNNING.create_time.FromJsonString("2026-12-02T08:00:00Z")


def passes(text: str, audit: Audit = ENDED) -> bool:
    return holds(read_filter(text, AUDIT_FIELDS), audit_values(audit))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\n",
        "state = SUCCEEDED",
        "state=SUCCEEDED",
        "state != FAILED",
        "subject = small/edited",
        'subject = "small/edited"',
        "subject = 'small/edited'",
        "concept > hour AND concept <= hourglass",
        "conclusion = AVOIDED",
        "conclusion:*",
        "NOT campaign:*",
        'campaign = ""',
        "-campaign:*",
        "create_time = 2026-12-01T08:00:00Z",
        "create_time = 2026-12-01T10:00:00+02:00",
        'create_time >= "2026-12-01t08:00:00.000000000z"',
        "create_time < 2026-12-01T08:00:00.000000001Z",
        "end_time > 2026-12-01T09:00:00Z AND end_time:*",
        "labels.team = safety",
        "labels.team:safety",
        "labels.team:*",
        "labels:team",
        "labels:*",
        'labels."release/train" >= "2026-11"',
        'labels."a.b" = "say \\"x\\" \\\\ y"',
        "NOT labels.absent = x",
        "NOT labels.absent != x",
        "NOT labels:absent",
        "NOT(state = FAILED)",
        "(((state = SUCCEEDED)))",
        # OR binds tighter: (state = FAILED) AND (...) would be false, and so is this.
        "state = SUCCEEDED OR state = FAILED AND concept = hourglass",
        "NOT (concept = hourglass AND state = FAILED OR state = RUNNING)",
    ],
)
def test_a_filter_holds(text: str) -> None:
    assert passes(text)


@pytest.mark.parametrize(
    "text",
    [
        "state = FAILED",
        "NOT state = SUCCEEDED",
        "campaign:*",
        "labels.team != safety",
        # What is not there compares with nothing.
        "labels.absent != x",
        "labels.absent = ''",
        "concept = yeti AND state = FAILED OR state = SUCCEEDED",
        "concept = yeti AND (state = FAILED OR state = SUCCEEDED)",
        "state = SUCCEEDED OR concept = yeti AND concept = yeti",
    ],
)
def test_a_filter_does_not_hold(text: str) -> None:
    assert not passes(text)


def test_what_is_not_there_is_neither_equal_nor_unequal() -> None:
    for text in ("end_time:*", "end_time < 2100-01-01T00:00:00Z", "conclusion != AVOIDED", "conclusion = AVOIDED"):
        assert not passes(text, RUNNING), text
        assert passes(f"NOT {text}", RUNNING), text
    assert passes("campaign:* AND campaign = c1", RUNNING)


def test_models_are_compared_with_what_their_entry_says() -> None:
    model = Model(name="acme/edited", base="sd/1.4", method="UCE", erased=["a b", "c"], registered=True)
    values = model_values(model)
    for text in ('erased:"a b"', "erased:c AND erased:*", "registered = true", "base = sd/1.4", "NOT method = MACE"):
        assert holds(read_filter(text, MODEL_FIELDS), values), text
    for text in ("erased:a", "registered != true", "registered = false", "labels:x"):
        assert not holds(read_filter(text, MODEL_FIELDS), values), text


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("FAILED", 1, "FAILED needs an operator"),
        ('"FAILED"', 1, "a value needs a field"),
        ("state = ", 9, "a value is missing behind ="),
        ("state == FAILED", 8, "write = once"),
        ("state = FAILED concept = x", 16, "AND or OR is missing"),
        ("state = FAILED and concept = x", 16, "write AND in capital letters"),
        ("state = FAILED AND", 19, "a field is missing"),
        ("AND state = FAILED", 1, "a comparison is missing"),
        ("NOT NOT state = FAILED", 5, "a comparison is missing"),
        ("(state = FAILED", 1, "this parenthesis is not closed"),
        ("state = FAILED)", 15, "this parenthesis closes nothing"),
        ("subject = 'x", 11, "this quote is not closed"),
        (r"subject = 'x\n'", 13, "stands before a quote"),
        ("subject = small/*", 11, "wildcards are not supported"),
        ("state = (FAILED OR RUNNING)", 9, "lists of values are not supported"),
        ("lower(subject) = x", 6, "functions are not supported"),
        ("subjekt = x", 1, "there is no field subjekt; did you mean subject?"),
        ("zzz = x", 1, "there are state, subject, concept"),
        ("state = DONE", 9, "state must be one of PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED"),
        ("state = AUDIT_STATE_UNSPECIFIED", 9, "state must be one of"),
        ("state < FAILED", 1, "state is compared with = and != only"),
        ("state:FAILED", 1, "write = in place of :"),
        ("state = *", 9, "write state:*"),
        ("subject.name = x", 1, "subject has no fields within it"),
        ("labels = x", 1, "labels.KEY = VALUE"),
        ("labels.a.b = x", 1, 'labels."a.b"'),
        ("labels.a/b = x", 9, 'stands in quotes, as in labels."team/name"'),
        ("labels. = x", 8, "a key is missing"),
        ("create_time > yesterday", 15, "create_time must be a time as in 2026-12-01T08:00:00Z"),
        ("create_time > 2026-12-01", 15, "create_time must be a time"),
        ("create_time > 2026-13-01T00:00:00Z", 15, "create_time must be a time"),
        ("create_time > 9999-01-01T00:00:00Z", 15, "from 1970 to 2262"),
        ("create_time > 0001-01-01T00:00:00+23:59", 15, "create_time must be a time"),
        ("subject = a\0b", 12, "no control and no invisible characters"),
        ("subject = a\ud800", 12, "no control and no invisible characters"),
        ("x" * (MAX_LENGTH + 1), MAX_LENGTH + 1, f"at most {MAX_LENGTH} characters, not {MAX_LENGTH + 1}"),
        ("(" * (MAX_DEPTH + 1) + "state = FAILED", MAX_DEPTH + 1, f"at most {MAX_DEPTH} deep"),
        (
            " OR ".join(["state = FAILED"] * (MAX_RESTRICTIONS + 1)),
            MAX_RESTRICTIONS * 18 + 1,
            f"at most {MAX_RESTRICTIONS} comparisons",
        ),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(text: str, position: int, says: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_filter(text, AUDIT_FIELDS)
    (violation,) = refused.value.violations
    assert (violation.field, refused.value.reason) == ("filter", "FILTER_INVALID")
    assert violation.description.startswith(f"at character {position}: ")
    assert says in violation.description


def test_numbers_and_flags_are_checked() -> None:
    assert holds(read_filter("attempts >= 2", CELL_FIELDS), {"attempts": 2}.__getitem__)
    for text, fields in (
        ("attempts > many", CELL_FIELDS),
        ("attempts > 1.5", CELL_FIELDS),
        ("attempts:*", CELL_FIELDS),
        (f"attempts > {10**18}", CELL_FIELDS),
        ("registered = yes", MODEL_FIELDS),
        ("registered:*", MODEL_FIELDS),
        ("erased = x", MODEL_FIELDS),
    ):
        with pytest.raises(InvalidRequestError):
            read_filter(text, fields)


PIECES = st.one_of(
    st.sampled_from(
        [*AUDIT_FIELDS, *"()=:<>!.-\"'\\ *", "AND", " OR ", "NOT", "!=", "FAILED", "labels.x", "2026-12-01T08:00:00Z"]
    ),
    st.text(max_size=5),
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    try:
        condition = read_filter(text, AUDIT_FIELDS)
    except InvalidRequestError:
        return
    assert holds(condition, audit_values(ENDED)) in (True, False)


Tree = tuple[str, Any]


def trees() -> st.SearchStrategy[Tree]:
    leaves = st.sampled_from(["a", "b", "c"]).map(lambda name: ("leaf", name))
    return st.recursive(
        leaves,
        lambda below: st.one_of(
            below.map(lambda tree: ("not", tree)),
            st.tuples(st.sampled_from(["and", "or"]), st.lists(below, min_size=2, max_size=3)),
        ),
        max_leaves=12,
    )


def written(tree: Tree) -> str:
    """Write a tree with no more parentheses than AIP-160's precedence needs: NOT, then OR, then AND."""
    kind, of = tree
    if kind == "leaf":
        return f"labels.{of} = 1"

    def inner(each: Tree, *bare: str) -> str:
        return written(each) if each[0] in bare else f"({written(each)})"

    if kind == "not":
        return f"NOT {inner(of, 'leaf')}"
    if kind == "or":
        return " OR ".join(inner(each, "leaf", "not") for each in of)
    return " AND ".join(inner(each, "leaf", "not", "or") for each in of)


def truth(tree: Tree, holds_for: Callable[[str], bool]) -> bool:
    kind, of = tree
    if kind == "leaf":
        return holds_for(of)
    if kind == "not":
        return not truth(of, holds_for)
    return (all if kind == "and" else any)(truth(each, holds_for) for each in of)


@given(trees(), st.sets(st.sampled_from(["a", "b", "c"])))
def test_or_binds_tighter_than_and(tree: Tree, true: set[str]) -> None:
    audit = Audit(labels=dict.fromkeys(true, "1"))
    assert passes(written(tree), audit) == truth(tree, true.__contains__)


def test_an_empty_filter_holds_for_everything() -> None:
    assert read_filter("", AUDIT_FIELDS) == EVERYTHING
    assert passes("", Audit())
    assert not passes("state = SUCCEEDED", Audit(state=AUDIT_STATE_FAILED))
