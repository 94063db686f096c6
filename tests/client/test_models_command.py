"""`unerase models`, against the scripted server."""

from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import Script, failing
from unerase import Model, RegistrationState
from unerase._cli import app
from unerase.v1.models_pb2 import DeleteModelRequest, ListModelsRequest, RegisterModelRequest


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


MODELS = """
labels: {release: "2026-12"}
models:
  acme/edited: {base: testbed/reference, unet: /models/unet.safetensors, labels: {stage: ci}}
  acme/other: {pipeline: /models/other}
"""


def test_models_of_a_file_are_registered(address: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"))
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines() == [f"acme/edited: {'d' * 64}", f"acme/other: {'d' * 64}"]
    first, second = script.seen(RegisterModelRequest)
    assert dict(first.model.labels) == {"release": "2026-12", "stage": "ci"}
    assert dict(second.model.labels) == {"release": "2026-12"}
    assert dict(first.model.entry) == {"base": "testbed/reference", "unet": "/models/unet.safetensors"}


def test_a_model_that_is_refused_says_why(address: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    refused = script.campaign.registered
    refused.state, refused.error_reason = RegistrationState.REGISTRATION_STATE_REFUSED, "UNSAFE_MODEL"
    refused.error_message = "the folder holds code"
    refused.check.problems.add(description="unet/model.py: is code")
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"))
    assert ended.exit_code == 2
    assert "acme/edited is refused: UNSAFE_MODEL the folder holds code\n  unet/model.py: is code\n" in ended.stderr
    # The others are tried all the same.
    assert "acme/other is refused" in ended.stderr


def test_a_model_that_cannot_be_registered_does_not_keep_the_others_out(
    address: str, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    script.failures["RegisterModel"] = [
        failing(grpc.StatusCode.ALREADY_EXISTS, "there is one already", reason="MODEL_EXISTS")
    ]
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"))
    assert ended.exit_code == 2
    assert ended.stderr.splitlines() == [
        "acme/edited: there is one already",
        "acme/edited: --replace puts the new one in its place.",
    ]
    assert ended.stdout.splitlines() == [f"acme/other: {'d' * 64}"]
    assert not script.seen(DeleteModelRequest)


def test_a_model_takes_the_place_of_the_one_that_has_its_name(address: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    script.failures["RegisterModel"] = [failing(grpc.StatusCode.ALREADY_EXISTS, "there", reason="MODEL_EXISTS")]
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"), "--replace")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [f"acme/edited: {'d' * 64}", f"acme/other: {'d' * 64}"]
    assert [each.name for each in script.seen(DeleteModelRequest)] == ["acme/edited"]


def test_an_entry_that_breaks_a_rule_leaves_the_earlier_model(address: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    script.failures["RegisterModel"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, "model.entry.unett: no key")] * 2
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"), "--replace")
    assert ended.exit_code == 2
    assert "acme/edited: model.entry.unett: no key" in ended.stderr.splitlines()
    assert not script.seen(DeleteModelRequest)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("models: {}", "models: must name a model at least"),
        ("models: {acme/x: 3}", "line 1: models.acme/x: must be a mapping, not 3"),
        ("models: {acme/x: {labels: {a: 1}}}", "line 1: models.acme/x.labels.a: must be text, not 1"),
        ("model: {}", "line 1: model: there is no such key; did you mean models?"),
        ("models: {}\nxyz: 1", "line 2: xyz: there is no such key; the keys here are models, labels"),
    ],
)
def test_a_file_that_describes_no_models_is_refused(
    address: str, script: Script, tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "models.yaml").write_text(content)
    ended = run(address, "models", "register", str(tmp_path / "models.yaml"))
    assert (ended.exit_code, says in ended.stderr) == (2, True), ended.stderr
    assert not script.requests


def test_models_are_listed_shown_and_deleted(address: str, script: Script) -> None:
    script.models = [Model(name="acme/edited", registered=True, digest="d" * 64), Model(name="testbed/uce")]
    listed = run(address, "models", "--filter", "registered = true", "--order-by", "name desc").stdout
    assert "registered" in listed.splitlines()[1]
    request = script.seen(ListModelsRequest)[0]
    assert (request.filter, request.order_by) == ("registered = true", "name desc")
    assert "acme/edited" in run(address, "models", "show", "acme/edited").stdout
    script.failures["GetModel"] = [failing(grpc.StatusCode.NOT_FOUND, "no such model", reason="MODEL_NOT_FOUND")] * 3
    assert "is being checked" in run(address, "models", "show", "acme/edited").stdout
    script.failures["ImportStatus"] = [failing(grpc.StatusCode.NOT_FOUND, "nothing", reason="REGISTRATION_NOT_FOUND")]
    missing = run(address, "models", "show", "acme/nothing")
    assert (missing.exit_code, "no such model" in missing.stderr) == (2, True)
    assert run(address, "models", "delete", "acme/edited").exit_code == 0
    assert script.seen(DeleteModelRequest)[0].name == "acme/edited"


@pytest.mark.parametrize("columns", ["", "60"])
def test_what_other_commands_take_is_shown_whole(address: str, script: Script, columns: str) -> None:
    name = "acme/a-name-of-some-length-that-is-not-cut"
    script.models = [
        Model(name=name, base="testbed/reference", method="a method", erased=["hourglass", "heart"], registered=True)
    ]
    listed = CliRunner().invoke(app, ["models", "--address", address], env={"COLUMNS": columns}).stdout
    assert name in listed
    assert "…" not in listed
    assert (len(listed.splitlines()) == 2) == (columns == "")
    for cell in ("testbed/reference", "hourglass, heart", "registered") if not columns else ():
        assert cell in listed.splitlines()[1]
