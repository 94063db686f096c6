"""Models registered and audited end to end: over real processes, by both rooms that load models."""

import shutil
from pathlib import Path

import pytest

from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import ReportFormat
from unerase.v1.models_pb2 import REGISTRATION_STATE_REFUSED, REGISTRATION_STATE_REGISTERED
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.catalogue import EMBEDDED

from .conftest import small_spec

WEIGHTS = EMBEDDED.parent


def test_a_registered_model_is_audited_as_one_of_the_catalogue(client: Client, models_folder: Path) -> None:
    shutil.copytree(WEIGHTS / "reference", models_folder / "plain")
    shutil.copy(WEIGHTS / "uce" / "unet.safetensors", models_folder)
    base = client.register_model("own/base", {"pipeline": f"{models_folder}/plain", "resolution": 32})
    assert base.state == REGISTRATION_STATE_REGISTERED, base.error_message
    entry = {"base": "own/base", "unet": f"{models_folder}/unet.safetensors", "erased": ["hourglass"]}
    edited = client.register_model("own/edited", entry, labels={"release": "2"})
    assert edited.state == REGISTRATION_STATE_REGISTERED, edited.error_message
    assert edited.model.digest == client.model("testbed/uce").digest
    specs = []
    for subject in ("testbed/uce", "own/edited"):
        # The base's own figures are its folder's owner's.
        spec = small_spec(77, cases=4, subject=subject)
        spec.guidance_scale = 3.0
        attack = EvaluationRequest(name="textual-inversion")
        attack.parameters.update({"steps": 2})
        spec.battery.evaluations.append(attack)
        specs.append(spec)
    theirs, own = (client.audit(spec, timeout=240) for spec in specs)
    assert (own.spec.subject, own.spec.reference) == ("own/edited", "own/base")
    assert own.verdict.conclusion == theirs.verdict.conclusion
    for mine, other in zip(own.verdict.evaluations, theirs.verdict.evaluations, strict=True):
        assert (mine.subject, mine.reference) == (other.subject, other.reference)
    report = client.report(own.id, ReportFormat.REPORT_FORMAT_JSON).decode()
    assert '"own/edited"' in report
    assert "model:" not in report
    # A file that is swapped now is refused where an audit is asked for.
    shutil.copy(WEIGHTS / "esd-x" / "unet.safetensors", models_folder)
    with pytest.raises(UneraseError) as refused:
        client.create_audit(specs[1])
    assert refused.value.reason == "WEIGHTS_CHANGED"
    client.delete_model("own/edited")
    client.delete_model("own/base")
    assert client.get_audit(own.id).spec.subject == "own/edited"


def test_a_pickle_is_refused(client: Client, models_folder: Path) -> None:
    folder = shutil.copytree(WEIGHTS / "reference", models_folder / "pickled")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    found = client.register_model("own/pickled", {"pipeline": str(folder), "resolution": 32})
    assert (found.state, found.error_reason) == (REGISTRATION_STATE_REFUSED, "WEIGHTS_NOT_SAFETENSORS")
    with pytest.raises(UneraseError) as refused:
        client.model("own/pickled")
    assert refused.value.reason == "MODEL_NOT_FOUND"
