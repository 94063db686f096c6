"""`unerase check` and the marks of broken models, against the scripted server and on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import Script
from unerase._cli import app
from unerase._commands import checking
from unerase.v1.models_pb2 import Model, ModelCheck, ModelMemory, ModelPart, ModelProblem


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


RIGHT = ModelCheck(
    name="right",
    family="Stable Diffusion",
    notes=["PNDMScheduler is not run"],
    parts=[ModelPart(component="unet", parameters=860_000_000, dtypes=["F16"])],
    memory=[
        ModelMemory(dtype="float32", weight_bytes=4_265_000_000, row_bytes=148_000_000, decoded_bytes=760_000_000),
        ModelMemory(dtype="bfloat16", weight_bytes=2_300_000_000, row_bytes=90_000_000, decoded_bytes=760_000_000),
    ],
)
WRONG = ModelCheck(
    name="wrong",
    problems=[ModelProblem(part="unet", reason="WEIGHTS_MISSING", description="unet has no weights\x1b[31m")],
)


def test_text_encoders_are_a_figure_of_their_own(address: str, script: Script) -> None:
    memory = [ModelMemory(dtype="float32", weight_bytes=27_000_000_000, text_encoder_bytes=22_000_000_000)]
    memory.append(ModelMemory(dtype="bfloat16", weight_bytes=13_600_000_000, text_encoder_bytes=11_000_000_000))
    script.checks = {"right": ModelCheck(name="right", memory=memory)}
    shown = run("check", "right", "--address", address).output
    assert "weights 27.00 GB / 13.60 GB, text encoders among them 22.00 GB / 11.00 GB, each row" in shown
    script.checks = {"right": RIGHT}
    assert "text encoders" not in run("check", "right", "--address", address).output


def test_a_backend_is_asked_about_its_own_models(address: str, script: Script) -> None:
    script.checks = {"right": RIGHT, "wrong": WRONG}
    shown = run("check", "right", "--address", address)
    assert shown.exit_code == 0, shown.output
    assert "nothing is wrong" in shown.output
    assert "4.26 GB / 2.30 GB" in shown.output or "4.27 GB / 2.30 GB" in shown.output
    assert "860.0 M" in shown.output
    assert "note: right: PNDMScheduler is not run" in shown.output
    shown = run("check", "right", "wrong", "--address", address)
    assert shown.exit_code == 2
    assert "problem: wrong: unet has no weights" in shown.output
    assert "\x1b" not in shown.output
    assert shown.output.rstrip().endswith("1 problem")


@pytest.mark.parametrize(("arguments", "said"), [(["", "right"], "name of a model is empty"), ([" "], "is empty")])
def test_an_empty_name_is_refused_before_anything_is_asked(
    address: str, script: Script, arguments: list[str], said: str
) -> None:
    shown = run("check", "--address", address, "--", *arguments)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert not script.requests


def test_an_empty_address_is_not_this_machine() -> None:
    shown = run("check", "--address", "")
    assert shown.exit_code == 2
    assert "'' is not HOST:PORT" in shown.stderr


def test_a_note_is_told_once(address: str, script: Script) -> None:
    changes = {f"changed/{number}": ModelCheck(name=f"changed/{number}", notes=RIGHT.notes) for number in range(1000)}
    changes["changed/7"].notes.append("safety_checker is not used")
    script.checks = {"right": RIGHT, **changes}
    shown = run("check", "right", *changes, "--address", address)
    assert [line for line in shown.output.splitlines() if line.startswith("note: ")] == [
        "note: right, changed/0, changed/1 and 998 more: PNDMScheduler is not run",
        "note: changed/7: safety_checker is not used",
    ]
    assert shown.output.rstrip().endswith("nothing is wrong; weights were not read for NaN and infinity")


def test_json_holds_what_the_table_shows(address: str, script: Script) -> None:
    script.checks = {"wrong": WRONG}
    shown = run("check", "wrong", "--json", "--address", address)
    assert shown.exit_code == 2
    (model,) = json.loads(shown.stdout)["models"]
    assert model["problems"][0]["reason"] == "WEIGHTS_MISSING"


def test_a_backend_has_its_own_catalogue(address: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{}")
    shown = run("check", "--address", address, "--catalogue", str(tmp_path / "c.yaml"))
    assert shown.exit_code == 2
    assert "--address: the backend has its own catalogue" in shown.output
    shown = run("check", "--address", address, "--weights")
    assert shown.exit_code == 2
    assert "reads no weights" in shown.output


def test_broken_models_are_marked_below_the_list(address: str, script: Script) -> None:
    script.models = [Model(name="a", digest="f" * 64), Model(name="b", problem="unet has no weights"), Model(name="c")]
    shown = run("models", "--address", address)
    assert shown.exit_code == 0
    assert "b cannot be audited: unet has no weights" in shown.output
    assert shown.output.count("cannot be audited") == 2
    listed = json.loads(run("models", "--json", "--address", address).stdout)
    assert [model.get("problem", "") for model in listed] == ["", "unet has no weights", ""]


def test_on_this_machine_a_wrong_catalogue_is_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("concepts: {Van Gogh: {kind: style, names: [Van Gogh]}}")
    code = (
        "import sys; from unerase._commands import checking; from unerase_backend.check_command import check; "
        "checking.of_the_backend = lambda name: check; from unerase._cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "check", "--catalogue", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "problem: own.yaml: concepts.Van Gogh: must be a name of letters" in ended.stdout
    assert checking.of_the_backend is not None
