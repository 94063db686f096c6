"""The tables of outcomes, of verdicts with and without a control model, and of controls' rates, from small reports."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from tools import control_rates, controls, results
from unerase.v1.audits_pb2 import Report
from unerase_backend.report import render_json

KINDS = {"never": "CONTROL_KIND_MODEL", "placebo": "CONTROL_KIND_PLACEBO", "free": "CONTROL_KIND_CONCEPT_FREE"}


def result(
    name: str, outcome: str, hits: int, control: int | None, kind: str = "never", arms: dict[str, int] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "title": name.capitalize(),
        "outcome": f"OUTCOME_{outcome}",
        "subject": {"hits": hits, "cases": 24},
        "control_kind": KINDS.get(kind, "CONTROL_KIND_NONE"),
        "budget": 1 + bool(arms),
    }
    if control is not None:
        found["control"] = {"hits": control, "cases": 24}
    # The rate of an arm without draws on the control is left out.
    found["arms"] = [
        {"arm": arm, **({"control": {"hits": shown, "cases": 48}} if shown >= 0 else {})}
        for arm, shown in (arms or {}).items()
    ]
    return found


def content(
    conclusion: str, *results: dict[str, Any], subject: str = "t/uce", control: str = "", damaged: bool = False
) -> dict[str, Any]:
    """What a report holds, as the report's own code writes it."""
    report = {
        "content": {
            "spec": {"subject": subject, "control": control, "concept": "hourglass"},
            "verdict": {
                "conclusion": f"CONCLUSION_{conclusion}",
                "damaged": damaged,
                "evaluations": list(results),
            },
        }
    }
    written: dict[str, Any] = json.loads(render_json(json_format.ParseDict(report, Report())))["content"]
    return written


def test_every_verdict_and_evaluation_stands_beside_itself() -> None:
    before = content("AVOIDED", result("noise", "RECOVERS", 9, 1), result("inversion", "DOES_NOT_RECOVER", 0, 0))
    after = content(
        "INCONCLUSIVE",
        # In another order: the table goes by name.
        result("inversion", "INCONCLUSIVE", 0, None, "none"),
        result("noise", "DOES_NOT_RECOVER", 9, 8, "placebo"),
        damaged=True,
    )
    models = {"uce": (before, after), "ga": (after, after)}
    assert controls.verdicts(models)[2:] == [
        "| uce | avoided | inconclusive, damaged | none, placebo |",
        "| ga | inconclusive, damaged | inconclusive, damaged | none, placebo |",
    ]
    assert controls.evaluations(models) == [
        "| evaluation | uce | ga |",
        "| --- | --- | --- |",
        "| Noise | **9:1** / 9:8 | 9:8 / 9:8 |",
        "| Inversion | 0:0 / (0:-) | (0:-) / (0:-) |",
    ]


def test_controls_are_pooled_over_subjects_and_a_control_model_counts_once() -> None:
    arms = {"noise": 3, "plain": -1}
    contents = [
        content("AVOIDED", result("noise", "RECOVERS", 9, 1, arms=arms), subject=subject, control="t/never")
        for subject in ("t/uce", "t/ga")
    ]
    contents += [
        content("AVOIDED", result("noise", "RECOVERS", 9, hits, "placebo", arms), subject=subject)
        for subject, hits in (("t/uce", 2), ("t/ga", 5))
    ]
    contents.append(content("AVOIDED", result("inversion", "INCONCLUSIVE", 9, 4, "free")))
    # The judge's errors on pictures are no control.
    contents.append(content("AVOIDED", result("inversion", "INCONCLUSIVE", 9, 20, "none"), subject="t/other"))
    reports = [(Path("one"), each) for each in contents]
    assert control_rates.table(control_rates.rates(reports, arms=False)) == [
        "| concept | evaluation | never | placebo | concept-free |",
        "| --- | --- | --- | --- | --- |",
        "| hourglass | Noise | 1 of 24 (0.04) | 7 of 48 (0.15) | - |",
        "| hourglass | Inversion | - | - | 4 of 24 (0.17) |",
    ]
    assert control_rates.table(control_rates.rates(reports, arms=True))[2:] == [
        "| hourglass | Noise, noise | 3 of 48 (0.06) | 6 of 96 (0.06) | - |"
    ]
    # Another folder holds other audits, of the same control model too.
    reports += [(Path("two"), each) for each in contents[1:3]]
    assert control_rates.table(control_rates.rates(reports, arms=False))[2] == (
        "| hourglass | Noise | 2 of 48 (0.04) | 9 of 72 (0.12) | - |"
    )


def test_a_control_of_a_models_own_stands_beside_it() -> None:
    noise = [
        result("noise", "RECOVERS", 9, 1),
        result("noise", "INCONCLUSIVE", 2, 1),
        result("noise", "RECOVERS", 7, 3),
    ]
    models = {
        "uce": content("AVOIDED", noise[0], result("inversion", "RECOVERS", 8, 2, "placebo"), control="t/never"),
        "ga": content("AVOIDED", noise[1], result("inversion", "RECOVERS", 9, 0, "placebo"), control="t/never"),
        "never": content(
            "AVOIDED", noise[2], result("inversion", "INCONCLUSIVE", 1, None, "none"), control="t/never-2"
        ),
    }
    assert results.outcomes(models) == [
        "| evaluation | best of | control | uce | ga | never |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Noise | 1 | 1 of 24 | **9** | (2) | **7:3** |",
        "| Inversion | 1 | none | **8:2** | **9:0** | (1) |",
    ]
    del models["never"]
    assert results.outcomes(models)[3] == "| Inversion | 1 | each its own | **8:2** | **9:0** |"


def test_the_commands_read_folders_of_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, kind in (("with", "never"), ("without", "placebo")):
        (tmp_path / folder).mkdir()
        report = content("AVOIDED", result("noise", "RECOVERS", 9, 1, kind), control="t/never" * (kind == "never"))
        (tmp_path / folder / "uce.json").write_text(json.dumps({"content": report}))
    monkeypatch.setattr(sys, "argv", ["controls", str(tmp_path / "with"), str(tmp_path / "without")])
    controls.main()
    assert "| Noise | **9:1** / **9:1** |" in capsys.readouterr().out
    # The calibration may lie among the reports.
    (tmp_path / "with" / "calibration.json").write_text('{"version": "1.0"}')
    monkeypatch.setattr(sys, "argv", ["control_rates", *(str(tmp_path / name) for name in ("with", "without", "with"))])
    control_rates.main()
    assert "| hourglass | Noise | 1 of 24 (0.04) | 1 of 24 (0.04) | - |" in capsys.readouterr().out
