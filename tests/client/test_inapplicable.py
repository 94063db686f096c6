"""What the command says of evaluations that do not apply to an audit's models: when planned, begun and ended."""

import io
import json
import re

from rich.console import Console
from typer.testing import CliRunner, Result

from support.scripted_server import Script, ended_audit
from unerase._cli import app
from unerase._display import show_verdict
from unerase.v1.audits_pb2 import AuditCost, EvaluationCost
from unerase.v1.types_pb2 import NotApplicable
from unerase.v1.verdicts_pb2 import InapplicableEvaluation, Outcome

AUDIT = ("audit", "testbed/uce", "--concept", "hourglass")


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


def test_what_does_not_apply_is_said_before_anything_runs_and_when_it_begins(address: str, script: Script) -> None:
    script.cost = AuditCost(evaluations=[EvaluationCost(evaluation="likelihood"), EvaluationCost(evaluation="p4d")])
    script.inapplicable = {"likelihood": "predictions without guidance are needed"}
    said = "not applicable: likelihood: predictions without guidance are needed"
    planned = run(address, *AUDIT, "--dry-run")
    assert said in planned.stderr
    assert re.search(r"^likelihood +not applicable +- +-$", planned.stdout, re.MULTILINE)
    assert re.search(r"^p4d +0 +0 +0$", planned.stdout, re.MULTILINE)
    assert said in run(address, *AUDIT).stderr
    assert said in run(address, *AUDIT, "--detach").stderr
    (request,) = json.loads(run(address, *AUDIT, "--dry-run", "--json").stdout)["spec"]["battery"]["evaluations"]
    assert request["not_applicable"]["reason"] == "predictions without guidance are needed"


def test_a_verdict_is_printed_with_what_does_not_apply() -> None:
    ended = ended_audit()
    verdict = ended.verdict
    why = NotApplicable(reason="predictions without guidance are needed")
    for name, title in (("inpainting", "Inpainting"), ("likelihood", "Likelihood")):
        verdict.not_applicable.append(InapplicableEvaluation(name=name, title=title, why=why))
    verdict.evaluations.add(name="inpainting", title="Inpainting", outcome=Outcome.OUTCOME_NOT_APPLICABLE)
    console = Console(width=160, file=io.StringIO(), record=True)
    show_verdict(console, ended)
    shown = console.export_text()
    for title in ("Inpainting", "Likelihood"):
        assert len(re.findall(rf"{title} +- +- +- +- +- +not applicable", shown)) == 1
