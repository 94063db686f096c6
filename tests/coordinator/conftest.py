"""A catalogue whose weights are a few bytes, with real tokenizers: enough to plan with."""

import shutil
from pathlib import Path

import pytest

from support.small_files import write_pipeline, write_weights
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_ELICITING,
    EVALUATION_CLASS_INJECTING,
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_PLAIN,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
)
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.evaluation.registry import parameter
from unerase_backend.runtime.artifacts import ArtifactStore

CATALOGUE = """
models:
  small/reference: {pipeline: small, guidance_scale: 3.0, steps: 40, resolution: 32}
  small/never: {base: small/reference, unet: never.safetensors, never_learned: [hourglass]}
  small/edited: {base: small/reference, unet: edited.safetensors, erased: [hourglass], guidance_scale: 2.0}
  small/again: {base: small/edited}
  large/reference: {pipeline: large, resolution: 64}
judges:
  clip: {kind: clip, path: clip}
  first: {kind: classifier, path: first}
  second: {kind: classifier, path: second}
concepts:
  hourglass:
    kind: object
    names: [hourglass, sandglass]
    prompts: ["a {concept}", "the {concept}", "one {concept}"]
    held_out_prompts: ["this {concept}", "that {concept}"]
    labels: {clip: [an hourglass], first: [hourglass], second: [hourglass]}
    control: small/never
  circle: {kind: object, names: [circle], labels: {clip: [a circle], first: [circle], second: [circle]}}
  yeti: {kind: object, names: [yeti], labels: {clip: [a yeti], first: [yeti], second: [yeti]}, placebo: true}
  unlabelled: {kind: style, names: [plain], labels: {clip: [plain]}}
"""


def write_catalogue(folder: Path, more: str = "", content: str = CATALOGUE) -> Path:
    """Write a catalogue, further concepts behind its own, with files of weights; returns its file."""
    for pipeline in ("small", "large"):
        write_pipeline(folder / pipeline, pipeline)
    for judge in ("clip", "first", "second"):
        (folder / judge).mkdir()
        (folder / judge / "model.safetensors").write_text(judge)
    for file in (EMBEDDED.parent / "clip").glob("*.json"):
        shutil.copy(file, folder / "clip")
    for change in ("never", "edited"):
        write_weights(folder / f"{change}.safetensors", change)
    path = folder / "catalogue.yaml"
    path.write_text(content + more)
    return path


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    path = write_catalogue(tmp_path_factory.mktemp("catalogue"))
    return Catalogue.load([str(path)], embedded=Path("none"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="session")
def descriptions() -> dict[str, EvaluationDescription]:
    classes = {
        "standard-prompt": EVALUATION_CLASS_PLAIN,
        "noise-based": EVALUATION_CLASS_ELICITING,
        "unlearn-diff-atk": EVALUATION_CLASS_ELICITING,
        "unconditional-rate": EVALUATION_CLASS_ELICITING,
        "alternatives": EVALUATION_CLASS_MEASURE,
        "interference": EVALUATION_CLASS_MEASURE,
        "likelihood": EVALUATION_CLASS_MEASURE,
        "judge-quality": EVALUATION_CLASS_MEASURE,
    }
    parameters = [
        parameter("steps", "Optimisation steps.", 250, minimum=1, maximum=10_000, integer=True),
        parameter("etas", "DDIM's eta.", [1.0, 1.5], minimum=0.0, maximum=3.0),
        parameter("variance_scales", "Scales of the added noise.", [1.0], minimum=0.0, maximum=3.0),
    ]
    return {
        name: EvaluationDescription(
            name=name,
            evaluation_class=classes.get(name, EVALUATION_CLASS_INJECTING),
            parameters=parameters,
            cases_per_unit=10 if name == "noise-based" else 0,
            reference_begins=name in ("diffusion-completion", "inpainting"),
            others=classes.get(name) == EVALUATION_CLASS_MEASURE,
            without_model=name == "judge-quality",
            roles=[MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE] if name == "interference" else [],
        )
        for name in PRESETS["standard"].evaluations
    }
