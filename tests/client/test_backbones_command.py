"""`unerase backbones`: the table of families, the evaluations of each, and why others do not apply."""

import json

from click.testing import Result
from typer.testing import CliRunner

from support.scripted_server import Script
from unerase._cli import app
from unerase.v1.models_pb2 import (
    GUIDANCE_KIND_CLASSIFIER_FREE,
    GUIDANCE_KIND_EMBEDDED,
    NOISE_PATH_RECTIFIED_FLOW,
    FamilyEvaluation,
    FamilyPart,
    ModelFamily,
)
from unerase.v1.types_pb2 import NotApplicable

REASON = "predictions without guidance are needed, and this one has none"
FLUX = ModelFamily(
    name="flux-dev",
    title="FLUX.1 dev",
    pipelines=["FluxPipeline"],
    path=NOISE_PATH_RECTIFIED_FLOW,
    prediction_types=["flow_prediction"],
    guidance=GUIDANCE_KIND_EMBEDDED,
    evaluations=[
        FamilyEvaluation(name="likelihood", not_applicable=NotApplicable(reason=REASON)),
        FamilyEvaluation(name="noise-based"),
        FamilyEvaluation(name="tracing", not_applicable=NotApplicable(reason=REASON)),
    ],
)
SD_3 = ModelFamily(
    name="stable-diffusion-3",
    title="Stable Diffusion 3",
    pipelines=["StableDiffusion3Pipeline"],
    parts=[
        FamilyPart(name="transformer", class_name="SD3Transformer2DModel", role="denoiser"),
        FamilyPart(name="text_encoder_3", class_name="T5EncoderModel", role="text encoder", optional=True),
    ],
    path=NOISE_PATH_RECTIFIED_FLOW,
    prediction_types=["flow_prediction"],
    guidance=GUIDANCE_KIND_CLASSIFIER_FREE,
    evaluations=[FamilyEvaluation(name=name) for name in ("likelihood", "noise-based", "tracing")],
    loaded=True,
)


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["backbones", *arguments, "--address", address], env={"COLUMNS": "400"})


def test_families_and_evaluations_are_tables_and_the_reasons_lines(address: str, script: Script) -> None:
    script.families = [SD_3, FLUX]
    lines = [" ".join(line.split()) for line in run(address).stdout.splitlines()]
    assert lines == [
        "name title pipelines parts path predicts guidance",
        "stable-diffusion-3 Stable Diffusion 3 StableDiffusion3Pipeline transformer (SD3Transformer2DModel), "
        "text_encoder_3 (T5EncoderModel, optional) rectified flow flow_prediction classifier free",
        "flux-dev FLUX.1 dev FluxPipeline not loaded yet rectified flow flow_prediction embedded",
        "",
        "evaluation stable-diffusion-3 flux-dev",
        "likelihood yes no",
        "noise-based yes yes",
        "tracing yes no",
        "",
        f"not applicable to flux-dev: likelihood, tracing: {REASON}",
    ]


def test_where_everything_applies_there_are_no_reasons(address: str, script: Script) -> None:
    script.families = [SD_3]
    assert run(address).stdout.rstrip().splitlines()[-1].split() == ["tracing", "yes"]


def test_a_path_that_only_the_scheduler_says(address: str, script: Script) -> None:
    script.families = [ModelFamily(name="own", loaded=True)]
    assert "as its scheduler says" in run(address).stdout


def test_json_holds_the_messages(address: str, script: Script) -> None:
    script.families = [SD_3, FLUX]
    first, second = json.loads(run(address, "--json").stdout)
    assert (first["name"], first["loaded"], len(first["parts"])) == ("stable-diffusion-3", True, 2)
    assert "loaded" not in second
    assert second["evaluations"][0]["not_applicable"]["reason"] == REASON
