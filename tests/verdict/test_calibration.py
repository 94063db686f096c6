"""What evaluations are worth, from hand-made audits of models of known truth."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from unerase.v1.audits_pb2 import AuditSpec, Manifest, ReportContent
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    DecidedBy,
    EvaluationRequest,
    ModelAccess,
    ModelRole,
    Observation,
)
from unerase.v1.verdicts_pb2 import EvaluationResult, Verdict
from unerase_backend.report import render_parquet, shipped
from unerase_backend.report.calibrated import calibrate_files
from unerase_backend.verdict import statistics
from unerase_backend.verdict.calibration import Calibrations, Trial, Truth, calibrate

from .conftest import CLASSES, describe, sample

CASES = 24
REFERENCE = Model(name="t/reference", digest="0a")
REDIRECTED = Model(name="t/redirected", base="t/reference", method="redirected", digest="0b")
NEVER = Model(name="t/never", base="t/reference", never_learned=["hourglass"], digest="0c")
ERASED = Model(name="t/uce", base="t/reference", method="UCE", erased=["hourglass"], digest="0d")
MODELS = (REFERENCE, REDIRECTED, NEVER, ERASED)
SUBJECT = ModelRole.MODEL_ROLE_SUBJECT


def _spec(model: str, **fields: Any) -> AuditSpec:
    battery = {
        "evaluations": [
            {"name": "noise-based", "parameters": {"etas": [1.0, 1.5]}},
            {"name": "likelihood"},
            {"name": "standard-prompt"},
        ]
    }
    whole = {"subject": model, "reference": "t/reference", "concept": "hourglass", "cases": CASES, "steps": 10}
    # The reference is held against itself.
    whole["assume_reference"] = model == "t/reference"
    return json_format.ParseDict(
        {**whole, "seed_base": 3, "battery": battery, "selector": "clip", **fields}, AuditSpec()
    )


def _observations(hits: int) -> list[Observation]:
    """Noise: draw k of 3 shows it in the first `hits` / (3 - k) cases, and the selector likes what shows it."""
    drawn = [sample("standard-prompt", SUBJECT, case, case < hits) for case in range(CASES)]
    for case in range(CASES):
        for variant in range(3):
            shown = case < hits // (3 - variant)
            drawn.append(
                sample("noise-based", SUBJECT, case, shown, arm="noise", variant=variant, selector=0.1 + 0.8 * shown)
            )
            drawn.append(sample("noise-based", SUBJECT, case, True, arm="plain-seeds", variant=variant))
    return drawn


def _trial(model: Model, hits: int, **fields: Any) -> Trial:
    return Trial(_spec(model.name, **fields), model, [describe(name) for name in CLASSES], _observations(hits))


@pytest.fixture
def trials() -> list[Trial]:
    return [_trial(model, hits) for model, hits in zip(MODELS, (24, 18, 3, 12), strict=True)]


def _points(calibrated: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return next(one["budgets"] for one in calibrated["evaluations"] if one["name"] == name)


def test_rates_at_each_budget(trials: list[Trial]) -> None:
    calibrated = calibrate(trials)
    assert [one["name"] for one in calibrated["evaluations"]] == ["noise-based", "standard-prompt"]
    points = _points(calibrated, "noise-based")
    assert [point["budget"] for point in points] == [1, 2, 3]
    for point in points:
        kept = {24: [8, 12, 24], 18: [6, 9, 18], 3: [1, 1, 3], 12: [4, 6, 12]}
        expected = {model.name: kept[hits][point["budget"] - 1] for model, hits in zip(MODELS, kept, strict=True)}
        assert {name: rate["hits"] for name, rate in point["models"].items()} == expected
        assert point["sensitivity"]["hits"] == expected["t/reference"] + expected["t/redirected"]
        assert point["sensitivity"]["cases"] == 2 * CASES
        assert point["specificity"]["hits"] == CASES - expected["t/never"]
        assert point["specificity"]["cases"] == CASES
    (single,) = _points(calibrated, "standard-prompt")
    assert single["models"]["t/uce"]["hits"] == 12


def test_models_that_share_their_cases_do_not_count_twice(trials: list[Trial]) -> None:
    """Two models of one mind know as much as one: the interval is that of their 24 cases, not of 48."""
    trials[1] = _trial(REDIRECTED, 12)
    trials[0] = _trial(REFERENCE, 12)
    rate = _points(calibrate(trials), "standard-prompt")[0]["sensitivity"]
    assert (rate["hits"], rate["cases"]) == (24, 48)
    sample_of_both = statistics.effective_sample(np.repeat([2, 0], 12), np.full(24, 2))
    lower, upper = statistics.wilson(sample_of_both.hits, sample_of_both.size)
    assert rate["wilson"] == {"lower": pytest.approx(lower), "upper": pytest.approx(upper)}
    alone_lower, alone_upper = statistics.wilson(12, 24)
    both_lower, both_upper = statistics.wilson(24, 48)
    assert upper - lower > 0.9 * (alone_upper - alone_lower) > both_upper - both_lower


def test_what_is_unscored_is_counted(trials: list[Trial]) -> None:
    observations = [sample("standard-prompt", SUBJECT, case, None if case < 2 else True) for case in range(CASES)]
    trials[0] = Trial(trials[0].spec, REFERENCE, trials[0].descriptions, observations)
    rate = _points(calibrate(trials), "standard-prompt")[0]["sensitivity"]
    assert (rate["hits"], rate["cases"], rate["unscored"]) == (22 + 18, 22 + 24, 2)


def test_the_truth_is_the_catalogues() -> None:
    spec = _spec("t/uce")
    truths = [Truth.of(model, spec) for model in MODELS]
    assert truths == [Truth.HOLDS, Truth.HOLDS, Truth.NEVER_LEARNED, Truth.UNKNOWN]
    assert Truth.of(NEVER, _spec("t/never", concept="moon")) == Truth.UNKNOWN
    assert Truth.of(Model(name="x", base="t/uce", method="redirected"), spec) == Truth.UNKNOWN


def test_models_of_unknown_truth_change_no_figure(trials: list[Trial]) -> None:
    whole, without = calibrate(trials), calibrate(trials[:3])
    for one, other in zip(whole["evaluations"], without["evaluations"], strict=True):
        for point, bare in zip(one["budgets"], other["budgets"], strict=True):
            assert (point["sensitivity"], point["specificity"]) == (bare["sensitivity"], bare["specificity"])
    assert whole["source"] == without["source"]
    again = Model()
    again.CopyFrom(NEVER)
    again.digest = "0e"
    retrained = [*trials[:2], Trial(trials[2].spec, again, trials[2].descriptions, trials[2].observations)]
    assert calibrate(retrained)["source"] != whole["source"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda trials: trials.pop(2), "no audit of a model that never learned it"),
        (lambda trials: (trials.pop(0), trials.pop(0)), "no audit of a model that holds the concept"),
        (lambda trials: trials.append(trials[0]), "two audits have the same subject"),
        (lambda trials: trials.append(_trial(Model(name="t/x"), 1, steps=50)), "t/reference and t/x differ"),
        (lambda trials: trials.append(_trial(Model(name="t/x"), 1, seed_base=4)), "t/reference and t/x differ"),
        (lambda trials: trials.append(_trial(Model(name="t/x"), 1, sequential=True)), "t/x is sequential"),
    ],
)
def test_audits_that_do_not_belong_together_are_refused(trials: list[Trial], change: Any, said: str) -> None:
    change(trials)
    with pytest.raises(ValueError, match=said):
        calibrate(trials)


def test_tolerances_and_control_may_differ(trials: list[Trial]) -> None:
    before = calibrate(trials)
    trials[0] = _trial(REFERENCE, 24, tolerances={"excess": 0.3}, control="t/never")
    assert calibrate(trials) == before
    # Nor does it matter which control the audits had: a calibration without one that never learned is the same.
    for trial in trials:
        trial.spec.ClearField("control")
        trial.spec.control_kind = CONTROL_KIND_PLACEBO
        trial.spec.placebos.append(f"placebo of {trial.spec.subject}")
    assert calibrate(trials) == before


def _request(name: str, **parameters: Any) -> EvaluationRequest:
    return json_format.ParseDict({"name": name, "parameters": parameters}, EvaluationRequest())


def test_only_what_was_calibrated_is_quoted(trials: list[Trial]) -> None:
    calibrations = Calibrations(json.loads(json.dumps(calibrate(trials))))
    asked = _request("noise-based", etas=[1.0, 1.5]).parameters
    known = calibrations.of("noise-based", asked, 10, 3)
    assert known is not None
    assert (known.sensitivity.hits, known.sensitivity.cases, known.specificity.hits) == (42, 48, 21)
    assert (known.budget, known.steps) == (3, 10)
    assert known.source.startswith(
        "hourglass: held by t/reference, t/redirected, never learned by t/never; these weights"
    )
    assert calibrations.of("noise-based", asked, 50, 3) is None
    assert calibrations.of("noise-based", asked, 10, 2) is None
    assert calibrations.of("noise-based", _request("noise-based", etas=[1.0]).parameters, 10, 3) is None
    assert calibrations.of("textual-inversion", asked, 10, 3) is None


def test_a_verdict_quotes_what_is_known(trials: list[Trial]) -> None:
    results = [
        EvaluationResult(name="noise-based", budget=3),
        EvaluationResult(name="standard-prompt", budget=2),
        EvaluationResult(name="another", budget=1),
    ]
    verdict = Verdict(evaluations=results)
    spec = _spec("t/uce")
    spec.battery.evaluations.add(name="another")
    Calibrations(calibrate(trials)).quote(verdict, spec)
    assert [result.HasField("calibration") for result in verdict.evaluations] == [True, False, False]
    Calibrations().quote(Verdict(evaluations=results), spec)


def test_nothing_is_quoted_where_others_decided(trials: list[Trial]) -> None:
    calibrated = calibrate(trials)
    before = {key: value for key, value in calibrated.items() if key != "decided_by"}
    for known, decided_by, quoted in (
        (calibrated, DecidedBy.DECIDED_BY_JUDGE, True),
        (calibrated, DecidedBy.DECIDED_BY_BOTH, False),
        (before, DecidedBy.DECIDED_BY_UNSPECIFIED, True),
        (before, DecidedBy.DECIDED_BY_BOTH, False),
    ):
        verdict, spec = Verdict(evaluations=[EvaluationResult(name="noise-based", budget=3)]), _spec("t/uce")
        spec.decided_by = decided_by
        Calibrations(known).quote(verdict, spec)
        assert verdict.evaluations[0].HasField("calibration") == quoted


def test_nothing_is_quoted_beside_a_list_of_prompts(trials: list[Trial]) -> None:
    verdict, spec = Verdict(evaluations=[EvaluationResult(name="noise-based", budget=3)]), _spec("t/uce")
    spec.fixed_prompts.add(prompt="a hourglass")
    Calibrations(calibrate(trials)).quote(verdict, spec)
    assert not verdict.evaluations[0].HasField("calibration")


def test_another_version_is_refused(trials: list[Trial]) -> None:
    assert Calibrations({**calibrate(trials), "version": "1.7"})
    with pytest.raises(ValueError, match=r"has version 2\.0"):
        Calibrations({**calibrate(trials), "version": "2.0"})


def test_what_is_shipped_can_be_read() -> None:
    shipped().quote(Verdict(), AuditSpec())


def _exported(trial: Trial) -> bytes:
    content = ReportContent(spec=trial.spec, manifest=Manifest(models=[trial.model]))
    return render_parquet("a", content, trial.descriptions, trial.observations)


def test_a_calibration_is_made_of_exported_audits(trials: list[Trial]) -> None:
    content, table = calibrate_files([_exported(trial) for trial in trials])
    assert json.loads(content) == calibrate(trials)
    lines = table.splitlines()
    assert "reference (holds it) | redirected (holds it) | never (never) | uce |" in lines[0]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| noise-based", "1"],
        ["| noise-based", "2"],
        ["| noise-based", "3"],
        ["| standard-prompt", "1"],
    ]
    assert "| 24 of 24 | 18 of 24 | 3 of 24 | 12 of 24 |" in lines[-1]
    lower, upper = (100 * float(bound) for bound in statistics.wilson(21, 24))
    assert f"| 88 ({lower:.0f} to {upper:.0f}) | 24 of 24" in lines[-1]


def test_an_export_whose_control_is_its_subject_is_refused(trials: list[Trial]) -> None:
    trials[2].spec.control = "t/never"
    with pytest.raises(ValueError, match=r"^the audit a of t/never cannot be used: spec.control: is the subject"):
        calibrate_files([_exported(trial) for trial in trials])


def test_a_model_may_tell_of_one_of_the_concepts_words() -> None:
    worded = Model(name="t/never-2", never_learned=["sandglass"])
    assert Truth.of(worded, _spec("t/never-2")) is Truth.UNKNOWN
    assert Truth.of(worded, _spec("t/never-2"), ["hourglass", "sandglass"]) is Truth.NEVER_LEARNED


def test_an_export_without_its_subject_is_refused(trials: list[Trial]) -> None:
    nameless = Trial(trials[0].spec, Model(name="t/other"), trials[0].descriptions, [])
    with pytest.raises(ValueError, match="lacks its subject t/reference"):
        calibrate_files([_exported(nameless)])


def test_of_both_accesses_the_weights_count(trials: list[Trial]) -> None:
    plain = calibrate(trials)
    shown = [sample("standard-prompt", SUBJECT, case, False) for case in range(CASES)]
    for each in shown:
        each.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    trials[3].spec.access = ModelAccess.MODEL_ACCESS_BOTH
    for each in trials[3].observations:
        each.access = ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS
    trials[3] = dataclasses.replace(trials[3], observations=[*trials[3].observations, *shown])
    assert calibrate(trials) == plain


def test_a_model_as_deployed_calibrates_nothing_and_quotes_nothing(trials: list[Trial]) -> None:
    calibrated = calibrate(trials)
    spec = trials[0].spec
    verdict = Verdict(evaluations=[EvaluationResult(name="standard-prompt", budget=1)])
    Calibrations(calibrated).quote(verdict, spec)
    assert verdict.evaluations[0].HasField("calibration")
    verdict.evaluations[0].ClearField("calibration")
    verdict.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    Calibrations(calibrated).quote(verdict, spec)
    assert not verdict.evaluations[0].HasField("calibration")
    trials[3].spec.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    with pytest.raises(ValueError, match="the audit of t/uce is of the model as deployed"):
        calibrate(trials)
