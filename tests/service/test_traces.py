"""One trace of an audit: from its caller's span to those of the sampler and the judges."""

import pytest

from support.collector import Collector, Seen

from .conftest import Traced

ALL = {"audit", "generation.sample", "classification.judge", "attack.compute"}


@pytest.fixture(scope="module")
def spans(collector: Collector, traced: Traced) -> list[Seen]:
    """The audit's trace, once no span misses its parent: rooms send theirs at times of their own."""

    def complete(spans: list[Seen]) -> bool:
        there = {span.id for span in spans} | {traced.span}
        return {span.name for span in spans} >= ALL and all(span.parent in there for span in spans)

    return collector.spans(traced.trace, complete)


def _chain(span: Seen, spans: list[Seen]) -> list[str]:
    """Return the names from a span up to the last that has a parent among them, and the id of that one's parent."""
    by_id = {each.id: each for each in spans}
    names = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return [*names, span.parent]


def test_an_audit_is_one_trace_from_its_caller_to_the_sampler_and_the_judges(spans: list[Seen], traced: Traced) -> None:
    asked = "unerase.v1.AuditService/CreateAudit"
    unit = ["unit", "audit", asked, traced.span]
    expected = {
        "generation.sample": [
            ["generation.sample", "generation.Generate", room, *unit] for room in ("probing.Probe", "attack.Attack")
        ],
        "attack.compute": [["attack.compute", "attack.Attack", *unit]],
    }
    for name, chains in expected.items():
        found = [_chain(span, spans) for span in spans if span.name == name]
        assert found
        assert all(chain in chains for chain in found), found
    judged = [_chain(span, spans) for span in spans if span.name == "classification.judge"]
    assert ["classification.judge", "classification.Classify", "generation.Generate", "probing.Probe", *unit] in judged
    assert all(_chain(span, spans)[-1] == traced.span for span in spans)
    (audit,) = (span for span in spans if span.name == "audit")
    assert audit.attributes == {"audit": traced.audit, "state": "succeeded"}
    assert {span.service for span in spans} == {
        f"unerase-{room}" for room in ("coordinator", "probing", "attack", "generation", "classification")
    }


def test_a_span_ends_after_it_begins_and_within_the_audit(spans: list[Seen]) -> None:
    (audit,) = (span for span in spans if span.name == "audit")
    for span in spans:
        assert span.begin <= span.end
    for span in (each for each in spans if each.name in ("unit", "generation.sample", "classification.judge")):
        assert audit.begin <= span.begin
        assert span.end <= audit.end


def test_no_span_holds_what_was_asked(spans: list[Seen]) -> None:
    told = {key for span in spans for key in span.attributes}
    assert told == {
        "audit", "state", "unit", "evaluation", "outcome", "model", "trajectories", "judge", "pictures",
        "rpc.system", "rpc.grpc.status_code",
    }  # fmt: skip
    assert not any("hourglass" in value for span in spans for value in span.attributes.values())
