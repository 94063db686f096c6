"""A campaign in MLflow: a run for the campaign, below it a run for each cell, and the report as an artefact.

Needs the extra `mlflow` (mlflow-skinny). `runs_of` is pure; `log` writes what it says through MLflow's client.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unerase.integrations._reports import ReportFile, conclusion_word, outcome_word
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell, CellState
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.verdicts_pb2 import Verdict

MOST_VALUE = 5000
"""Characters of a tag's value; MLflow refuses more."""
MOST_PARAMETER = 6000
BATCH_METRICS, BATCH_TAGS = 1000, 100


@dataclass
class Run:
    """What is logged of a campaign or of a cell."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    failed: bool = False


def runs_of(report: CampaignReport) -> Iterator[Run]:
    """Yield the campaign's run, then one for each cell.

    A figure that is not there is no metric: an evaluation of which every case is unscored has no detection rate.
    """
    yield _whole(report)
    audits = list(report.audits)
    for at, cell in enumerate(report.content.cells):
        yield _cell(cell, audits[at] if at < len(audits) else "")


def log(file: ReportFile, experiment: str, tracking_uri: str | None = None) -> str:
    """Log a campaign's report, and return the id of the campaign's run.

    A campaign that is logged again gets new runs. `tracking_uri` is MLflow's own default if it is None.

    Raises:
        ValueError: the report is not a campaign's, MLflow is not installed, or MLflow refuses.
    """
    report = file.message
    if not isinstance(report, CampaignReport):
        raise ValueError(f"{file.name} is the report of an audit; MLflow gets the report of a campaign")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ValueError("MLflow is not installed; install it with: pip install 'unerase[mlflow]'") from None
    try:
        return _log(MlflowClient(tracking_uri), report, file, experiment)
    except MlflowException as error:
        raise ValueError(f"MLflow refuses: {error}") from None


def _log(client: Any, report: CampaignReport, file: ReportFile, experiment: str) -> str:
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known is not None else client.create_experiment(experiment)
    begin, end = (_milliseconds(time) for time in (report.create_time, report.end_time))
    parent = ""
    for run in runs_of(report):
        tags = {**run.tags, "mlflow.runName": run.name, **({"mlflow.parentRunId": parent} if parent else {})}
        run_id = str(client.create_run(experiment_id, start_time=begin, tags=tags).info.run_id)
        _write(client, run_id, run, end)
        if not parent:
            parent = run_id
            _attach(client, run_id, file)
        client.set_terminated(run_id, "FAILED" if run.failed else "FINISHED", end_time=end)
    return parent


def _write(client: Any, run_id: str, run: Run, time: int) -> None:
    from mlflow.entities import Metric, Param

    metrics = [Metric(name, value, time, 0) for name, value in run.metrics.items()]
    parameters = [Param(name, value[:MOST_PARAMETER]) for name, value in run.parameters.items()]
    client.log_batch(run_id, metrics=metrics[:BATCH_METRICS], params=parameters[:BATCH_TAGS])
    for at in range(BATCH_METRICS, len(metrics), BATCH_METRICS):
        client.log_batch(run_id, metrics=metrics[at : at + BATCH_METRICS])


def _attach(client: Any, run_id: str, file: ReportFile) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        path.write_bytes(file.content)
        client.log_artifact(run_id, str(path))


def _whole(report: CampaignReport) -> Run:
    content = report.content
    states = [cell.state for cell in content.cells]
    run = Run(f"campaign {report.campaign_id}")
    spec = content.spec
    run.parameters = {
        "subjects": str(len(spec.subjects)),
        "concepts": str(len(spec.concepts)),
        "cases": str(spec.template.cases),
        "steps": str(spec.template.steps),
        "battery": spec.template.battery.preset,
        "sequential": str(spec.sequential).lower(),
    }
    if spec.template.HasField("seed_base"):
        run.parameters["seed_base"] = str(spec.template.seed_base)
    run.metrics = {"cells": float(len(states))}
    for state in (CellState.CELL_STATE_SUCCEEDED, CellState.CELL_STATE_FAILED, CellState.CELL_STATE_CANCELLED):
        run.metrics[f"cells_{CellState.Name(state).removeprefix('CELL_STATE_').lower()}"] = float(states.count(state))
    for cell in content.cells:
        if cell.HasField("verdict"):
            name = f"conclusion_{conclusion_word(cell.verdict)}"
            run.metrics[name] = run.metrics.get(name, 0.0) + 1
    run.tags = {f"unerase.label.{_key(key)}": value for key, value in report.labels.items()}
    run.tags["unerase.campaign"] = report.campaign_id
    if content.HasField("gate_result"):
        gate = content.gate_result
        run.tags["unerase.gate"] = GateOutcome.Name(gate.outcome).removeprefix("GATE_OUTCOME_").lower()
        run.tags["unerase.gate_statement"] = gate.statement[:MOST_VALUE]
        run.metrics.update(
            gate_passed=float(gate.passed), gate_failed=float(gate.failed), gate_undecided=float(gate.undecided)
        )
    return run


def _cell(cell: CampaignReportCell, audit: str) -> Run:
    run = Run(f"{cell.subject} x {cell.concept}")
    run.parameters = {"subject": cell.subject, "concept": cell.concept}
    run.tags = {
        key: value[:MOST_VALUE]
        for key, value in {
            "unerase.audit": audit,
            "unerase.subject_digest": cell.subject_digest,
            "unerase.content_digest": cell.content_digest,
            "unerase.comparability_digest": cell.comparability_digest,
            "unerase.error_reason": cell.error_reason,
            "unerase.error_message": cell.error_message,
        }.items()
        if value
    }
    run.failed = cell.state != CellState.CELL_STATE_SUCCEEDED
    if cell.HasField("verdict"):
        _add(run, cell.verdict, "")
        if cell.verdict.HasField("deployed"):
            _add(run, cell.verdict.deployed, "deployed/")
    return run


def _add(run: Run, verdict: Verdict, prefix: str) -> None:
    dotted = prefix.replace("/", ".")
    run.tags[f"unerase.{dotted}conclusion"] = conclusion_word(verdict)
    run.tags[f"unerase.{dotted}statement"] = verdict.statement[:MOST_VALUE]
    run.tags[f"unerase.{dotted}damaged"] = str(verdict.damaged).lower()
    for one in verdict.not_applicable:
        run.tags[f"unerase.{dotted}not_applicable.{_key(one.name)}"] = one.why.reason[:MOST_VALUE]
    figures: dict[str, float] = {}
    for result in verdict.evaluations:
        run.tags[f"unerase.{dotted}outcome.{_key(result.name)}"] = outcome_word(result)
        place = f"{_key(result.name)}/"
        for role, rate in (("subject", result.subject), ("reference", result.reference), ("control", result.control)):
            if rate.cases:
                figures[f"{place}{role}_rate"] = rate.hits / rate.cases
        if result.subject.cases:
            figures[f"{place}cases"] = float(result.subject.cases)
            if result.HasField("excess"):
                figures[f"{place}excess"] = result.excess.value
                figures[f"{place}excess_lower"] = result.excess.bounds.lower
                figures[f"{place}excess_upper"] = result.excess.bounds.upper
        if result.HasField("subject"):
            figures[f"{place}unscored"] = float(result.subject.unscored)
    if verdict.HasField("likelihood"):
        figures["destruction"] = verdict.likelihood.destruction.value
        figures["general_damage"] = verdict.likelihood.general_damage.value
    if verdict.HasField("interference"):
        figures["interference"] = verdict.interference.loss.value
    run.metrics.update({prefix + name: value for name, value in figures.items() if math.isfinite(value)})


def _key(name: str) -> str:
    """Return a name with only what MLflow allows in keys."""
    return "".join(each if each.isascii() and (each.isalnum() or each in "-_. ") else "_" for each in name)[:200]


def _milliseconds(time: Any) -> int:
    return int(time.ToMilliseconds())
