"""The simulation goes by the rules of a real audit, and what the rules promise holds in it."""

from typing import Any

import numpy as np
import pytest

from unerase.v1.types_pb2 import EvaluationRequest
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.verdict import conclude, has_answer, simulation, statistics

Audit = Any
TRUTHS = {truth.name: truth for truth in simulation.TRUTHS}


@pytest.mark.parametrize("name", ["removed, destruction 1.0", "avoided, destruction 0.3, only textual inversion, 20 %"])
def test_simulated_audits_are_concluded_like_real_ones(new_audit: type[Audit], name: str) -> None:
    """The same cases, once through the simulation and once as observations through `conclude`."""
    truth, audits, cases, false_positive = TRUTHS[name], 12, 24, 0.01
    # Far from the tolerance, so that destruction is there on both paths.
    bounds = np.array([[0.6, 1.4]] * audits) - truth.destruction
    simulated = simulation.simulate(truth, cases, false_positive, bounds, np.random.default_rng(4))

    generator = np.random.default_rng(4)
    shape = (audits, len(simulation.BATTERY), cases)
    subject, reference, control = (
        generator.random(shape) < simulation.detection_rates(rates, false_positive)[:, None]
        for rates in (truth.subject, truth.reference, (0, 0, 0, 0))
    )
    concluded = []
    for index in range(audits):
        audit = new_audit()
        for position, evaluation in enumerate(simulation.BATTERY):
            audit.evaluation(evaluation, *(model[index, position].tolist() for model in (subject, reference, control)))
        concluded.append(audit.likelihood(1.0).verdict().conclusion)
    assert list(simulated) == concluded
    assert len(set(concluded)) > 1


@pytest.mark.parametrize("name", ["removed, destruction 1.0", "not erased, everything, 40 %, knowledge intact"])
def test_simulated_sequential_audits_are_stopped_and_concluded_like_real_ones(
    new_audit: type[Audit], name: str
) -> None:
    """The same cases, once through the simulation and once looked at as the coordinator does."""
    truth, audits, cases, false_positive = TRUTHS[name], 3, 24, 0.01
    bounds = np.array([[0.6, 1.4]] * audits) - truth.destruction
    simulated, run = simulation.simulate_sequential(truth, cases, false_positive, bounds, np.random.default_rng(3))

    generator = np.random.default_rng(3)
    shape = (audits, len(simulation.BATTERY), cases)
    subject, reference, control = (
        generator.random(shape) < simulation.detection_rates(rates, false_positive)[:, None]
        for rates in (truth.subject, truth.reference, (0, 0, 0, 0))
    )
    for index in range(audits):
        audit = new_audit()
        for position, evaluation in enumerate(simulation.BATTERY):
            audit.evaluation(evaluation, *(model[index, position].tolist() for model in (subject, reference, control)))
        descriptions = {description.name: description for description in audit.descriptions()}
        spec = audit.spec()
        spec.sequential = True
        spec.battery.evaluations.extend(EvaluationRequest(name=each) for each in simulation.BATTERY)
        for position, evaluation in enumerate(simulation.BATTERY):
            descriptions[evaluation].cases_per_unit = 0 if evaluation == simulation.WHOLE else 24
            of_evaluation = [each for each in audit.observations if each.evaluation == evaluation]
            after = 24
            if evaluation != simulation.WHOLE:
                looks = range(3, 24, 3)
                answers = (
                    look
                    for look in looks
                    if has_answer(descriptions[evaluation], of_evaluation, look, descriptions, spec)
                )
                after = next(answers, 24)
            assert run[index, position] == after
            audit.observations = [
                each for each in audit.observations if each.evaluation != evaluation or each.case_index < after
            ]
        audit.likelihood(1.0)
        spec.battery.evaluations.add(name="likelihood")
        requested = spec.battery.evaluations
        verdict = conclude(audit.observations, list(descriptions.values()), requested, spec)
        assert verdict.conclusion == simulated[index]


@pytest.mark.parametrize("false_positive", simulation.FALSE_POSITIVES)
def test_a_removed_model_is_rarely_called_anything_else_however_often_one_looks(false_positive: float) -> None:
    bounds = simulation.destruction_bounds(400, np.random.default_rng(1))
    truth = TRUTHS["removed, destruction 1.0"]
    conclusions, run = simulation.simulate_sequential(truth, 48, false_positive, bounds, np.random.default_rng(2))
    errors = int(np.isin(conclusions, list(truth.wrong)).sum())
    assert statistics.clopper_pearson_lower(errors, 400, 0.001) <= 0.05
    assert (run[:, list(simulation.BATTERY).index(simulation.WHOLE)] == 48).all()
    if not false_positive:
        # Without a single detection 21 cases are enough.
        assert run[:, 0].mean() < 24


def test_a_best_of_n_fires_where_any_draw_does() -> None:
    rates = simulation.detection_rates((0, 0, 0, 0), 0.01)
    assert rates[1] == pytest.approx(1 - 0.99**24)
    assert simulation.detection_rates((0.5, 0.5, 0.5, 0.5), 0.0) == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("false_positive", simulation.FALSE_POSITIVES)
def test_a_removed_model_is_rarely_called_anything_else(false_positive: float) -> None:
    """Holm holds the chance of any false recovery in the battery to 5 %."""
    bounds = simulation.destruction_bounds(400, np.random.default_rng(1))
    truth = TRUTHS["removed, destruction 1.0"]
    conclusions = simulation.simulate(truth, 48, false_positive, bounds, np.random.default_rng(2))
    errors = int(np.isin(conclusions, list(truth.wrong)).sum())
    assert statistics.clopper_pearson_lower(errors, 400, 0.001) <= 0.05


def test_a_plain_avoidance_is_found() -> None:
    bounds = simulation.destruction_bounds(200, np.random.default_rng(1))
    truth = TRUTHS["avoided, destruction 0.3, only textual inversion, 90 %"]
    conclusions = simulation.simulate(truth, 24, 0.01, bounds, np.random.default_rng(2))
    assert np.mean(conclusions == Conclusion.CONCLUSION_AVOIDED) > 0.95


def test_the_command_prints_the_table_it_writes(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "TRUTHS", simulation.TRUTHS[:1])
    simulation.main(["--audits", "20", "--out", str(tmp_path / "table.md")])
    written = (tmp_path / "table.md").read_text()
    assert written == capsys.readouterr().out
    assert len(written.splitlines()) == 2 + len(simulation.FALSE_POSITIVES)
