"""Two small real audits of the testbed's models: what the comparison says of models whose truth is known."""

from collections.abc import AsyncIterator

import pytest

from support.backend import REFERENCE, LocalBackend, evaluations, local_backend
from unerase.v1.audits_pb2 import AuditSpec, Battery, Manifest
from unerase.v1.comparisons_pb2 import Change
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend import report
from unerase_backend.comparison import Recorded, compare_audits
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.verdict import conclude

CASES = 8
BATTERY = (EvaluationRequest(name="standard-prompt"), EvaluationRequest(name="likelihood"))
BATTERY[1].parameters.update({"timesteps": 2, "pictures": 8, "other_pictures": 2})


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    async with local_backend(tmp_path_factory.mktemp("compared")) as running:
        yield running


@pytest.fixture(scope="module")
async def erased(backend: LocalBackend) -> Recorded:
    """An audit of an eraser's model."""
    return await audited(backend, "testbed/uce")


async def audited(backend: LocalBackend, subject: str) -> Recorded:
    descriptions = {name: each.description for name, each in evaluations().items()}
    spec = AuditSpec(
        subject=subject,
        concept="hourglass",
        reference=REFERENCE,
        battery=Battery(evaluations=BATTERY, allow_incomplete=True),
        cases=CASES,
        steps=6,
        seed_base=11,
        assume_reference=subject == REFERENCE,
    )
    plan = make_plan(spec, backend.catalogue, backend.store, descriptions, lambda: 11)
    events = [event for unit in plan.units for event in await backend.run(whole(unit, plan.parts))]
    observations = [event.observation for event in events if event.HasField("observation")]
    names = dict.fromkeys((plan.spec.subject, plan.spec.reference, plan.spec.control))
    manifest = Manifest(
        models=[backend.catalogue.describe_model(name) for name in names],
        judge_digests={name: f"d-{name}" for name in (plan.spec.selector, plan.spec.judge, plan.spec.second_judge)},
        numerics_profile="the test's",
    )
    requested = list(plan.spec.battery.evaluations)
    described = list(descriptions.values())
    verdict = conclude(observations, described, requested, plan.spec)
    content = report.build(
        plan.spec, plan.concept, plan.cases, requested, verdict, observations, [], manifest, described
    )
    return Recorded(subject, content, observations)


async def test_an_unerased_model_after_an_erased_one(backend: LocalBackend, erased: Recorded) -> None:
    """What an audit of the original says after that of an eraser's model: it shows the concept in every case."""
    first, second = erased, await audited(backend, REFERENCE)
    comparison = compare_audits(first, second)
    assert comparison.alike
    assert not comparison.incomparable
    assert not comparison.noted
    (shown,) = comparison.evaluations
    results = [each.content.verdict.evaluations[0].subject for each in (first, second)]
    assert [rate.hits for rate in results] == [0, CASES]
    assert (shown.cases, shown.only_first, list(shown.only_second_cases)) == (CASES, 0, list(range(CASES)))
    assert shown.p == pytest.approx(2 / 2**CASES)
    assert comparison.change == Change.CHANGE_WORSE
    assert comparison.statement.startswith(
        "testbed/reference shows hourglass more often than testbed/uce in Standard prompt"
    )
    # Against itself the original has lost nothing, to the bit.
    likelihood = first.content.verdict.likelihood
    for figure, value in (("destruction", likelihood.destruction), ("general_damage", likelihood.general_damage)):
        found = next(each for each in comparison.figures if each.figure == figure)
        assert (found.first, found.second) == (pytest.approx(value.value), 0)


async def test_an_audit_run_again_did_not_change(backend: LocalBackend, erased: Recorded) -> None:
    comparison = compare_audits(erased, await audited(backend, "testbed/uce"))
    assert comparison.alike
    assert not comparison.evaluations[0].only_first_cases
    assert not comparison.evaluations[0].only_second_cases
    assert all(not figure.difference.value for figure in comparison.figures)
