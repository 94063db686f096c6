"""What Sana has beside what every family must keep (`test_conformance`)."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from support.tiny_models import PROMPTS, STEPS, TinyModel, saved
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, TokenIds
from unerase_backend.catalogue.findings import ModelCheck
from unerase_backend.diffusion.conditioning import encode, tokenise
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.diffusion.text_reader import Framing, Lead, TextReader
from unerase_backend.runtime.errors import InvalidRequestError

TOKENS = 12


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved("sana", tmp_path_factory.mktemp("sana"))


def instruction(sana: TinyModel) -> list[str]:
    call = inspect.signature(type(sana.pipeline).__call__)
    given: list[str] = call.parameters["complex_human_instruction"].default
    return given


def copied(sana: TinyModel, folder: Path, part: str, **changed: Any) -> TinyModel:
    shutil.copytree(sana.folder / "pipeline", folder / "pipeline")
    config = folder / "pipeline" / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    return TinyModel(sana.name, folder, sana.pipeline)


def check(model: TinyModel, **entry: Any) -> ModelCheck:
    return check_model(model.catalogue(other={"pipeline": "pipeline", "resolution": 32, **entry}), "other")


@pytest.mark.parametrize("text", [*PROMPTS, "  A Red HEART ", "(toy)", "é", " ".join(["toy"] * 40)])
def test_prompts_are_read_after_the_instruction_and_the_empty_one_without(sana: TinyModel, text: str) -> None:
    found = sana.pipeline.encode_prompt(
        text, True, max_sequence_length=TOKENS, complex_human_instruction=instruction(sana)
    )
    ours = sana.encoded([text, ""])
    for row, (states, mask) in enumerate((found[:2], found[2:])):
        assert torch.equal(ours.mask[row], mask[0])
        torch.testing.assert_close(ours.states[row], states[0], rtol=1e-5, atol=1e-5)


def test_the_instruction_is_in_no_prompts_tokens(sana: TinyModel) -> None:
    model = sana.model
    assert model.text_of(model.tokens_of("a red heart")).split() == ["a", "red", "heart"]
    assert model.prompt_room == TOKENS - 1
    prompt = tokenise(model, "a red heart")
    assert len(prompt.frames[0].ids) == model.prompt_length
    # What is read of it are the first token and the last.
    assert prompt.frames[0].words == 3


def test_no_token_ids_are_the_empty_prompt(sana: TinyModel) -> None:
    none, empty = encode(sana.model, [Conditioning(token_ids=TokenIds()), Conditioning(text="")])
    assert torch.equal(none.states, empty.states)


def test_a_beginning_that_changes_the_instruction_is_refused(sana: TinyModel) -> None:
    reader = sana.model.backbone.readers[0]
    # "Prompt: a" would be read as one token with what is taken for the instruction's last.
    lead = Lead("a pict", tuple(reader.tokenizer("a pict", add_special_tokens=False).input_ids))
    framing = Framing(9, lead.ids, (), 0)
    crossed = TextReader(reader.part, reader.encoder, reader.tokenizer, framing, lead=lead)
    assert crossed.tokens_of("!") == reader.tokenizer("!", add_special_tokens=False).input_ids
    with pytest.raises(InvalidRequestError, match="'u' cannot begin a prompt"):
        crossed.tokens_of("ure")


def with_solver(sana: TinyModel, folder: Path, order: int) -> TinyModel:
    """The pipeline with the scheduler that Sana is published with."""
    sana.pipeline.scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        flow_shift=3.0,
        prediction_type="flow_prediction",
        solver_order=order,
        final_sigmas_type="zero",
    )
    sana.pipeline.save_pretrained(folder / "pipeline")
    return TinyModel(sana.name, folder, sana.pipeline)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_published_scheduler_at_its_first_order(sana: TinyModel, tmp_path: Path, scale: float) -> None:
    """DPM-Solver++ of order 1 is a step of Euler's; of order 2, as published, it goes elsewhere from the same noise."""
    before = sana.pipeline.scheduler
    try:
        model = with_solver(sana, tmp_path / "first", 1)
        given = enumerate(PROMPTS, start=1)
        ours = model.sampler.run(
            [model.trajectory(text, latent_seed=seed, guidance_scale=scale) for seed, text in given]
        )
        theirs = model.call(PROMPTS, scale, model.noise(1, 2))
        found = torch.stack([each.latents for each in ours])
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.model.schedule.times(STEPS).float(), model.pipeline.scheduler.timesteps.float())
        second = with_solver(sana, tmp_path / "second", 2)
        assert check(second).problems == ()
        difference = (second.call(PROMPTS, scale, second.noise(1, 2)) - theirs).abs().max()
        assert difference > 1e-3
    finally:
        sana.pipeline.scheduler = before


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("transformer", {"guidance_embeds": True}, "as that of Sana Sprint does"),
        ("transformer", {"caption_channels": 24}, "(24, caption_channels) than Gemma writes (16, hidden_size)"),
        ("transformer", {"cross_attention_dim": 40}, "cross_attention_dim is 40, and must be 32"),
        ("transformer", {"in_channels": 4}, "takes 4 channels and gives 8, and the VAE's latents have 8"),
        ("vae", {"latent_channels": 4}, "takes 8 channels and gives 8, and the VAE's latents have 4"),
        ("vae", {"scaling_factor": "much"}, "the scaling_factor of the VAE is 'much', and must be a number above 0"),
        ("vae", {"encoder_layers_per_block": [10**9, 1]}, "the configuration of vae makes no AutoencoderDC"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "the configuration of text_encoder makes no Gemma2Model"),
    ],
)
def test_parts_that_do_not_fit(sana: TinyModel, tmp_path: Path, part: str, changed: dict[str, Any], told: str) -> None:
    found = check(copied(sana, tmp_path, part, **changed))
    assert any(told in problem.what for problem in found.problems), found.problems


def test_a_resolution_that_does_not_divide(sana: TinyModel) -> None:
    (problem,) = check(sana, resolution=31).problems
    assert (problem.what, problem.remedy) == (
        "the resolution 31 does not divide into latents",
        "give a multiple of 2 in the catalogue",
    )
