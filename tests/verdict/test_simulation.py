"""The simulation goes by the rules of a real audit, and what the rules promise holds in it."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from unerase.v1.types_pb2 import DecidedBy, EvaluationRequest
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.verdict import conclude, has_answer, simulated_models, simulation, statistics
from unerase_backend.verdict.simulation import Conditions

from .conftest import CONTROL, REFERENCE, SUBJECT, sample

Audit = Any
TRUTHS = {truth.name: truth for truth in simulated_models.TRUTHS}
# Noise-based cannot tell, and in the subject it is not silent either.
TRUTHS["a weak reference"] = replace(
    TRUTHS["removed, destruction 1.0"],
    name="a weak reference",
    subject=(0.0, 0.15, 0.0, 0.0, 0.0),
    reference=(0.98, 0.15, 0.95, 0.95, 1.0),
)


def _drawn(truth: Any, conditions: Conditions, audits: int, generator: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Draw subject, reference and control as the simulation says that it does."""
    shape = (audits, len(simulation.BATTERY), conditions.cases)
    return [
        generator.random(shape) < simulation.detection_rates(rates, conditions)[:, None]
        for rates in (truth.subject, truth.reference, (0,) * len(simulation.BATTERY))
    ]


def _bounds(truth: Any, audits: int) -> NDArray[np.float64]:
    """Far from the tolerance, so that destruction is there on both paths."""
    return np.array([[0.6, 1.4]] * audits) - truth.destruction


@pytest.mark.parametrize("control", ["model", "placebo", "none"])
@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("removed, destruction 1.0", 24),
        ("removed, destruction 1.0", 36),
        ("avoided, destruction 0.3, only textual inversion, 20 %", 24),
        ("a weak reference", 24),
    ],
)
def test_simulated_audits_are_concluded_like_real_ones(
    new_audit: type[Audit], name: str, cases: int, control: Literal["model", "placebo", "none"]
) -> None:
    """The same cases, once through the simulation and once as observations through `conclude`."""
    truth, audits = TRUTHS[name], 10
    conditions = Conditions(cases, 0.03, shared=0.05, control=control)
    simulated = simulation.simulate(truth, conditions, _bounds(truth, audits), np.random.default_rng(4))
    generator = np.random.default_rng(4)
    models = _drawn(truth, conditions, audits, generator)
    uncompared = simulation.uncompared_hits(truth, conditions, audits, generator)
    concluded = []
    for index in range(audits):
        audit = new_audit(cases=cases)
        for position, evaluation in enumerate(simulation.BATTERY):
            audit.evaluation(evaluation, *(model[index, position].tolist() for model in models))
        if control == "none":
            audit.observations = [one for one in audit.observations if one.role != CONTROL]
        if control == "placebo":
            _hold_against_a_placebo(audit, dict(zip(simulation.BATTERY, uncompared[index].tolist(), strict=True)))
        concluded.append(audit.likelihood(1.0).verdict().conclusion)
    assert list(simulated) == concluded
    # Without a control hardly anything but one conclusion is possible.
    assert len(set(concluded)) > 1 or control == "none"


def _hold_against_a_placebo(audit: Audit, hits: dict[str, int]) -> None:
    """Make the control a placebo on the subject, and add the hits in the arm that it lacks."""
    audit.held_against_itself("fish")
    for name in simulation.UNCOMPARED:
        audit.observations += [
            sample(name, role, case, role == REFERENCE or case < hits[name], arm="empty@0.1")
            for role in (SUBJECT, REFERENCE)
            for case in range(audit.cases)
        ]


@pytest.mark.parametrize(
    "name", ["removed, destruction 1.0", "not erased, everything, 40 %, knowledge intact", "a weak reference"]
)
def test_simulated_sequential_audits_are_stopped_and_concluded_like_real_ones(
    new_audit: type[Audit], name: str
) -> None:
    """The same cases, once through the simulation and once looked at as the coordinator does."""
    truth, audits = TRUTHS[name], 3
    conditions = Conditions(24, 0.01, both=False)
    bounds = _bounds(truth, audits)
    simulated, run = simulation.simulate_sequential(truth, conditions, bounds, np.random.default_rng(3))
    models = _drawn(truth, conditions, audits, np.random.default_rng(3))
    for index in range(audits):
        audit = new_audit()
        for position, evaluation in enumerate(simulation.BATTERY):
            audit.evaluation(evaluation, *(model[index, position].tolist() for model in models))
        descriptions = {description.name: description for description in audit.descriptions()}
        spec = audit.spec()
        spec.sequential, spec.decided_by = True, DecidedBy.DECIDED_BY_JUDGE
        spec.battery.evaluations.extend(EvaluationRequest(name=each) for each in simulation.BATTERY)
        for position, evaluation in enumerate(simulation.BATTERY):
            whole = evaluation in simulation.WHOLE
            descriptions[evaluation].cases_per_unit = 0 if whole else 24
            of_evaluation = [each for each in audit.observations if each.evaluation == evaluation]
            after = 24
            if not whole:
                answers = (
                    look
                    for look in range(3, 24, 3)
                    if has_answer(descriptions[evaluation], of_evaluation, look, descriptions, spec)
                )
                after = next(answers, 24)
            assert run[index, position] == after
            audit.observations = [
                each for each in audit.observations if each.evaluation != evaluation or each.case_index < after
            ]
        audit.likelihood(1.0)
        requested = [EvaluationRequest(name=each) for each in audit.battery]
        verdict = conclude(audit.observations, list(descriptions.values()), requested, spec)
        assert verdict.conclusion == simulated[index]


@pytest.mark.parametrize("false_positive", simulation.FALSE_POSITIVES)
def test_stopping_early_keeps_the_errors_of_a_removed_model_rare(false_positive: float) -> None:
    bounds = simulation.destruction_bounds(400, np.random.default_rng(1))
    truth, conditions = TRUTHS["removed, destruction 1.0"], Conditions(48, false_positive, both=False)
    conclusions, run = simulation.simulate_sequential(truth, conditions, bounds, np.random.default_rng(2))
    errors = int(np.isin(conclusions, list(truth.wrong)).sum())
    assert statistics.clopper_pearson_lower(errors, 400, 0.001) <= 0.05
    names = list(simulation.BATTERY)
    assert all((run[:, names.index(whole)] == 48).all() for whole in simulation.WHOLE)
    if not false_positive:
        # Without a single detection 33 cases are enough for a tolerance of 0.10, and 42 for that of one draw, 0.08.
        assert [set(run[:, names.index(name)]) for name in ("noise-based", simulation.PLAIN)] == [{33}, {42}]


def test_a_best_of_n_fires_where_any_draw_does() -> None:
    nothing, half = (0,) * 5, (0.5,) * 5
    assert simulation.detection_rates(nothing, Conditions(24, 0.01, both=False))[1] == pytest.approx(1 - 0.99**24)
    assert simulation.detection_rates(half, Conditions(24, 0.0)) == pytest.approx([0.5] * 5)
    some = Conditions(24, 0.01, evaluations=("standard-prompt", "unlearn-diff-atk"))
    assert simulation.detection_rates(nothing, some) == pytest.approx([1e-4, 1 - (1 - 1e-4) ** 11])


def test_two_judges_err_together_as_often_as_their_shared_errors_say() -> None:
    """Against errors that are drawn: a shared one is both's; of the others each judge has its own."""
    generator = np.random.default_rng(6)
    errs = generator.random(400_000) < 0.2
    shared = generator.random(400_000) < 0.25
    second = np.where(shared, errs, generator.random(400_000) < 0.2)
    assert Conditions(24, 0.2, shared=0.25).wrong_picture == pytest.approx(np.mean(errs & second), abs=2e-3)
    assert Conditions(24, 0.2).wrong_picture == pytest.approx(0.04)
    assert Conditions(24, 0.2, shared=1.0).wrong_picture == Conditions(24, 0.2, both=False).wrong_picture == 0.2


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("false_positive", simulation.FALSE_POSITIVES)
def test_a_removed_model_is_rarely_called_anything_else(false_positive: float, both: bool) -> None:
    """Holm holds the chance of any false recovery in the battery to 5 %."""
    bounds = simulation.destruction_bounds(400, np.random.default_rng(1))
    truth, conditions = TRUTHS["removed, destruction 1.0"], Conditions(48, false_positive, both=both)
    conclusions = simulation.simulate(truth, conditions, bounds, np.random.default_rng(2))
    errors = int(np.isin(conclusions, list(truth.wrong)).sum())
    assert statistics.clopper_pearson_lower(errors, 400, 0.001) <= 0.05


def test_what_the_defaults_are_chosen_for() -> None:
    """At 48 cases and 1 % false positives, decided by both: a removed model is found, and no row errs often."""
    bounds = simulation.destruction_bounds(400, np.random.default_rng(1))
    for truth in simulated_models.TRUTHS:
        conclusions = simulation.simulate(truth, Conditions(48, 0.01), bounds, np.random.default_rng(2))
        errors = int(np.isin(conclusions, list(truth.wrong)).sum())
        assert statistics.clopper_pearson_lower(errors, 400, 0.001) <= 0.05
        if truth.name == "removed, destruction 1.0":
            right = int(np.sum(conclusions == truth.right))
            assert statistics.clopper_pearson_lower(right, 400, 0.001) >= 0.85


def test_nothing_recovers_without_a_control() -> None:
    bounds = simulation.destruction_bounds(200, np.random.default_rng(1))
    truth = TRUTHS["avoided, destruction 0.3, only textual inversion, 90 %"]
    conditions = Conditions(48, 0.0, control="none")
    conclusions = simulation.simulate(truth, conditions, bounds, np.random.default_rng(2))
    assert set(conclusions) == {Conclusion.CONCLUSION_INCONCLUSIVE}
    removed = simulation.simulate(TRUTHS["removed, destruction 1.0"], conditions, bounds, np.random.default_rng(2))
    assert set(removed) == {Conclusion.CONCLUSION_REMOVED}


def test_a_plain_avoidance_is_found() -> None:
    bounds = simulation.destruction_bounds(200, np.random.default_rng(1))
    truth = TRUTHS["avoided, destruction 0.3, only textual inversion, 90 %"]
    conclusions = simulation.simulate(truth, Conditions(24, 0.01), bounds, np.random.default_rng(2))
    assert np.mean(conclusions == Conclusion.CONCLUSION_AVOIDED) > 0.95


@pytest.mark.parametrize("control", ["placebo", "none"])
def test_sequential_audits_are_simulated_beside_a_model_alone(control: Literal["placebo", "none"]) -> None:
    truth = TRUTHS["removed, destruction 1.0"]
    with pytest.raises(ValueError, match="beside a control model"):
        simulation.simulate_sequential(
            truth, Conditions(24, 0.01, control=control), _bounds(truth, 1), np.random.default_rng(1)
        )


@pytest.mark.parametrize(("option", "rows"), [("", 3), ("--sequential", 3), ("--judges", 12)])
def test_the_command_prints_the_table_it_writes(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, rows: int
) -> None:
    monkeypatch.setattr(simulation, "TRUTHS", [replace(simulated_models.TRUTHS[0])])
    monkeypatch.setattr(simulation, "COMPARED", (0,))
    simulation.main(["--audits", "20", "--out", str(tmp_path / "table.md"), *filter(None, [option])])
    written = (tmp_path / "table.md").read_text()
    assert written == capsys.readouterr().out
    assert len(written.splitlines()) == 2 + rows
