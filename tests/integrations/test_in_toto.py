"""Attestations against in-toto's own libraries: `make integrations`."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from support import campaign_by_hand, report_by_hand
from unerase._cli import app
from unerase.v1.models_pb2 import Model, WeightFile

pytestmark = pytest.mark.integrations
pytest.importorskip("in_toto")
pytest.importorskip("in_toto_attestation")

from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa  # noqa: E402
from in_toto.models.metadata import Envelope  # noqa: E402
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Predicate  # noqa: E402
from in_toto_attestation.v1.statement import Statement  # noqa: E402
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage  # noqa: E402
from securesystemslib.exceptions import VerificationError  # noqa: E402
from securesystemslib.signer import SSlibKey  # noqa: E402

KEYS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 3072),
}


@pytest.fixture(params=["audit", "campaign"])
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The JSON of a report."""
    message: Any = campaign_by_hand.campaign().whole
    if request.param == "audit":
        message = report_by_hand.whole()
        own = [WeightFile(component="unet", digest="0a" * 32)]
        message.content.manifest.models.append(Model(name="s", digest="ee" * 32, files=own))
    path = tmp_path / "report.json"
    path.write_text(json_format.MessageToJson(message, preserving_proto_field_name=True))
    return path


def key_file(folder: Path, private: Any, password: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path = folder / "key.pem"
    path.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


def export(*arguments: Path | str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["export", "in-toto", *map(str, arguments)], env={"COLUMNS": "200"})
    return ended.exit_code, ended.output


def parsed(payload: bytes) -> tuple[StatementMessage, Predicate]:
    """The payload by in-toto's own contracts, strictly: a field that they do not know is an error."""
    statement = json_format.Parse(payload, StatementMessage())
    Statement.copy_from_pb(statement).validate()
    return statement, json_format.ParseDict(json_format.MessageToDict(statement.predicate), Predicate())


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_statement_is_verified(kind: str, report: Path, tmp_path: Path) -> None:
    private = KEYS[kind]()
    out = tmp_path / "attestation.json"
    code, said = export(report, "--key", key_file(tmp_path, private), "--out", out)
    assert code == 0, said
    public = SSlibKey.from_crypto(private.public_key())
    envelope = Envelope.from_dict(json.loads(out.read_text()))
    envelope.verify([public], 1)
    assert envelope.payload_type == "application/vnd.in-toto+json"
    statement, result = parsed(envelope.payload)
    assert statement.predicate_type == "https://in-toto.io/attestation/test-result/v0.1"
    assert result.result in {"PASSED", "WARNED", "FAILED"}
    assert result.configuration[0].digest["sha256"]

    other = SSlibKey.from_crypto(KEYS[kind]().public_key())
    with pytest.raises(VerificationError):
        envelope.verify([other], 1)
    changed = json.loads(out.read_text())
    payload = base64.b64decode(changed["payload"])
    assert b'"FAILED"' in payload or b'"WARNED"' in payload
    forged = payload.replace(b'"result":"FAILED"', b'"result":"PASSED"').replace(
        b'"result":"WARNED"', b'"result":"PASSED"'
    )
    changed["payload"] = base64.b64encode(forged).decode()
    with pytest.raises(VerificationError):
        Envelope.from_dict(changed).verify([public], 1)


def test_without_a_key_it_is_a_statement(report: Path, tmp_path: Path) -> None:
    out = tmp_path / "statement.json"
    assert export(report, "--out", out)[0] == 0
    parsed(out.read_bytes())


def test_keys_that_cannot_sign_are_refused(report: Path, tmp_path: Path) -> None:
    locked = key_file(tmp_path, KEYS["ed25519"](), b"secret")
    code, said = export(report, "--key", locked)
    assert (code, "no private key that can sign" in said) == (2, True)
    weak = key_file(tmp_path, dsa.generate_private_key(2048))
    code, said = export(report, "--key", weak)
    assert (code, "no private key that can sign" in said) == (2, True), said
    none = tmp_path / "none.pem"
    none.write_text("-----BEGIN PRIVATE KEY-----\n")
    code, said = export(report, "--key", none)
    assert (code, "no private key that can sign" in said) == (2, True)
    assert export(report, "--key", tmp_path / "missing.pem")[0] == 2
