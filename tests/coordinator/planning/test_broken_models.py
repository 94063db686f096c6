"""An audit of a model that cannot be loaded is refused by field and reason before anything is computed."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from support.small_files import write_pipeline, write_weights
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription, JudgeLabels
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from ..conftest import write_catalogue

BROKEN = {
    "broken/bin": ("WEIGHTS_NOT_SAFETENSORS", "diffusion_pytorch_model.bin"),
    "broken/scheduler": ("MODEL_INCOMPLETE", "scheduler_config.json is not JSON"),
    "broken/cut": ("WEIGHTS_UNREADABLE", "cut.safetensors"),
    "broken/cascade": (
        "MODEL_UNSUPPORTED",
        "StableCascadeCombinedPipeline (Stable Cascade), which cannot be",
    ),
    "broken/lora": ("WEIGHTS_LAYOUT", "a LoRA in PEFT's layout; import it: unerase import lora.safetensors --as lora"),
    "broken/wide": ("WEIGHTS_WRONG_SHAPE", "'conv_in.bias' of the unet has the shape (1,), not (2,) as in the file"),
    "broken/other": ("WEIGHTS_UNKNOWN_TENSOR", "the unet has no tensor 'conv_out.bias'"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("broken")
    path = write_catalogue(folder)
    unet = write_pipeline(folder / "bin", "bin") / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    scheduler = write_pipeline(folder / "scheduler", "scheduler") / "scheduler"
    (scheduler / "scheduler_config.json").write_text("{")
    cut = write_weights(folder / "cut.safetensors", "cut")
    cut.write_bytes(cut.read_bytes()[:40])
    index = write_pipeline(folder / "cascade", "cascade") / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableCascadeCombinedPipeline"}))
    lora = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{}.weight"
    save_file({lora.format(side): np.zeros((2, 2), np.float32) for side in "AB"}, folder / "lora.safetensors")
    for name, tensor in (("wide", "conv_in.bias"), ("other", "conv_out.bias")):
        save_file({tensor: np.zeros(2, np.float32)}, folder / f"{name}.safetensors")
    content = yaml.safe_load(path.read_text())
    content["models"] |= {
        "broken/bin": {"pipeline": "bin", "resolution": 32},
        "broken/scheduler": {"pipeline": "scheduler", "resolution": 32},
        "broken/cascade": {"pipeline": "cascade", "resolution": 32},
        "broken/wide": {"base": "small/reference", "unet": "wide.safetensors"},
        "broken/other": {"base": "small/reference", "unet": "other.safetensors"},
        "broken/lora": {"base": "small/reference", "unet": "lora.safetensors"},
        "broken/cut": {"base": "small/reference", "unet": "cut.safetensors", "never_learned": ["hourglass"]},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Catalogue.load([str(path)], embedded=Path("none"))


def plan(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription], **fields: str
) -> Plan:
    spec = AuditSpec(**{"subject": "small/edited", "reference": "small/reference", "concept": "hourglass", **fields})
    return make_plan(spec, catalogue, store, descriptions, lambda: 77)


@pytest.mark.parametrize("role", ["subject", "reference", "control"])
@pytest.mark.parametrize("name", BROKEN)
def test_it_is_refused_in_every_role(
    broken: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    name: str,
    role: str,
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        plan(broken, store, descriptions, **{role: name})
    (violation,) = refused.value.violations
    reason, said = BROKEN[name]
    assert (violation.field, refused.value.reason) == (f"spec.{role}", reason)
    assert name in violation.description
    assert said in violation.description


def test_two_broken_models_are_two_violations(
    broken: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        plan(broken, store, descriptions, subject="broken/bin", reference="broken/scheduler")
    assert [each.field for each in refused.value.violations] == ["spec.subject", "spec.reference"]


def test_others_are_audited_beside_it(
    broken: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    assert plan(broken, store, descriptions).spec.control == "small/never"


def test_a_broken_model_is_no_default_control(
    broken: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    """The next one after the subject, which is the concept's own control, would be the broken one."""
    assert plan(broken, store, descriptions, subject="small/never").spec.control == ""


@pytest.mark.parametrize("words", [["sandglass", "hourglass"], ["hourglass"]])
def test_a_custom_concept_finds_its_control_by_a_word(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription], words: list[str]
) -> None:
    """The key alone says nothing: the model never learned "hourglass", and the concept is "sd-hourglass"."""
    labels = [JudgeLabels(judge=judge, labels=["hourglass"]) for judge in ("clip", "first", "second")]
    concept = Concept(
        name="sd-hourglass", kind=CONCEPT_KIND_OBJECT, names=words, labels=labels, prompts=["a {concept}"]
    )
    extended = catalogue.extended([CustomConcept(concept, 0)])
    assert plan(extended, store, descriptions, concept="sd-hourglass").spec.control == "small/never"
