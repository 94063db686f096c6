"""What FLUX.1 has of its own: its guidance scale, its packed latents, what keeps its parts apart, LoRAs, and words."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_models import CPU, PROMPTS, TinyModel, saved
from support.tiny_pipelines import RESOLUTION
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Resumption
from unerase_backend.catalogue.findings import ModelCheck
from unerase_backend.catalogue.model_families import Guidance, family_of_model
from unerase_backend.diffusion.backbones.flux import packed, unpacked
from unerase_backend.diffusion.conditioning import encode, encode_tokens, tokenise_learned
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import PreconditionError

SCALES = (1.0, 3.5, 7.0)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved("flux-dev", tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved("flux-schnell", tmp_path_factory.mktemp("schnell"))


def test_a_folder_of_diffusers_is_without_problems(dev: TinyModel, schnell: TinyModel) -> None:
    for tiny, family in ((dev, "flux-dev"), (schnell, "flux-schnell")):
        found = check_model(tiny.catalogue(), "base")
        assert not found.problems
        assert not [note for note in found.notes if "shift" not in note]
        assert family_of_model(tiny.catalogue(), "changed").name == family
    assert dev.model.backbone.guidance is Guidance.EMBEDDED
    assert schnell.model.backbone.guidance is Guidance.NONE


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_an_input_of_dev_and_nothing_to_schnell(dev: TinyModel, schnell: TinyModel, scale: float) -> None:
    """To 1e-4, absolute and relative, of latents of about 4 in float32."""
    for tiny in (dev, schnell):
        given = [tiny.trajectory(text, latent_seed=seed, guidance_scale=scale) for seed, text in enumerate(PROMPTS, 1)]
        theirs = tiny.call(PROMPTS, scale, tiny.noise(1, 2))
        for found, expected in zip(tiny.sampler.run(given), theirs, strict=True):
            torch.testing.assert_close(found.latents, expected, rtol=1e-4, atol=1e-4)
        other = tiny.call(PROMPTS, scale + 2, tiny.noise(1, 2))
        assert torch.equal(other, theirs) if tiny is schnell else (other - theirs).abs().max() > 0.01


def test_a_guided_trajectory_has_one_row_and_its_own_scale(dev: TinyModel) -> None:
    given = [dev.trajectory(text, guidance_scale=scale) for scale in SCALES for text in ("", "the ring", *PROMPTS)]
    sampler = Sampler(dev.model, batch_rows=len(given), decode_batch=2)
    alone = [sampler.run([one])[0].latents for one in given]
    together = sampler.run(given)
    assert sampler.rows_called == len(given)
    assert all(torch.equal(found.latents, expected) for found, expected in zip(together, alone, strict=True))
    assert not any(torch.equal(one, two) for place, one in enumerate(alone) for two in alone[:place])
    (first,) = sampler.run([dev.trajectory(guidance_scale=3.5, stop_step=2)], picture=False)
    resumption = Resumption(latents=to_message(first.latents), step=2)
    (rest,) = sampler.run([dev.trajectory(guidance_scale=3.5, resumption=resumption)])
    assert torch.equal(rest.latents, sampler.run([dev.trajectory(guidance_scale=3.5)])[0].latents)


@torch.no_grad()
def test_errors_are_of_the_prediction_at_scale_one(dev: TinyModel) -> None:
    """The scale is that of the encoding; attacks and relearning predict from it as it is."""
    pipeline, latents = dev.pipeline, dev.noise(3, 4)
    states, pooled, places = pipeline.encode_prompt(list(PROMPTS), max_sequence_length=12)
    times = torch.tensor([900.0, 250.0])
    encoded = dev.encoded(PROMPTS)
    rows, channels, height, width = latents.shape
    for scale, given in ((1.0, encoded), (3.5, encoded.guided(3.5))):
        theirs = pipeline.transformer(
            hidden_states=pipeline._pack_latents(latents, rows, channels, height, width),
            timestep=times / 1000,
            guidance=torch.full((rows,), scale),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            txt_ids=places,
            img_ids=pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, CPU, torch.float32),
            return_dict=False,
        )[0]
        expected = pipeline._unpack_latents(theirs, RESOLUTION, RESOLUTION, pipeline.vae_scale_factor)
        torch.testing.assert_close(dev.model.predict(latents, times, given), expected, rtol=1e-5, atol=1e-5)


def test_dev_and_schnell_with_the_same_text_encoders_share_no_encodings(dev: TinyModel, schnell: TinyModel) -> None:
    shutil.copytree(dev.folder / "pipeline", dev.folder / "other")
    shutil.copytree(
        schnell.folder / "pipeline" / "transformer", dev.folder / "other" / "transformer", dirs_exist_ok=True
    )
    catalogue = dev.catalogue(other={"pipeline": "other", "resolution": RESOLUTION, **dev.tiny.entry})
    other = load_model(catalogue, "other", CPU, torch.float32)
    with torch.no_grad():
        before = dev.encoded(PROMPTS), encode(other, [Conditioning(text=PROMPTS[0])])[0]
    assert torch.equal(before[0].states[0], before[1].states)
    assert other.text_digest != dev.model.text_digest
    prompt = dev.trajectory(guidance_scale=3.5)
    for model in (dev.model, other, dev.model):
        (found,) = Sampler(model, batch_rows=2).run([prompt], picture=False)
        assert not found.failure


def test_latents_that_are_no_square_are_packed_as_diffusers_packs_them(dev: TinyModel) -> None:
    latents = torch.randn((2, 4, 6, 10), generator=torch.Generator().manual_seed(0))
    tokens = packed(latents)
    assert torch.equal(tokens, dev.pipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpacked(tokens, 3, 5), latents)


def test_a_pooled_encoding_is_read_at_the_end_of_a_prompt_with_a_learned_word(dev: TinyModel) -> None:
    """CLIP knows the end by the first id that also pads; the reference reads a vocabulary with the word in it."""
    pipeline = deepcopy(dev.pipeline)
    rows, draws = [], torch.Generator().manual_seed(4)
    for name, encoder in (("tokenizer_2", pipeline.text_encoder_2), ("tokenizer", pipeline.text_encoder)):
        tokenizer = getattr(pipeline, name)
        tokenizer.add_tokens("<it>")
        (token,) = tokenizer("<it>", add_special_tokens=False).input_ids
        row = torch.randn(encoder.get_input_embeddings().weight.shape[1], generator=draws)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            encoder.get_input_embeddings().weight[token] = row
        rows.append(row)
    text = "a <it> of the heart"
    with torch.no_grad():
        states, pooled, _ = pipeline.encode_prompt(text, max_sequence_length=12)
    found = encode_tokens(dev.model, [tokenise_learned(dev.model, text, "<it>", 1)], [torch.cat(rows)[None]])
    torch.testing.assert_close(found.states, states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "guard", [{"kind": "negative-prompt", "text": "heart"}, {"kind": "safe-latent-diffusion", "text": "heart"}]
)
def test_a_guard_of_classifier_free_guidance_does_not_fit(dev: TinyModel, guard: dict[str, Any]) -> None:
    catalogue = dev.catalogue({"guards": [guard]})
    (problem,) = check_model(catalogue, "changed").problems
    assert problem.reason == "GUARD_UNFIT"
    guards = Guards.load(catalogue.guards("changed"), dev.folder / "pipeline", CPU)
    with pytest.raises(PreconditionError) as refused:
        dev.sampler.admit("guarded", dev.trajectory(guidance_scale=3.5), given=Given(guards=guards))
    assert refused.value.reason == "GUARD_UNFIT"
    assert "predicts one row" in refused.value.message


def test_a_guard_of_prompts_fits(dev: TinyModel) -> None:
    catalogue = dev.catalogue({"guards": [{"kind": "prompt-filter", "words": ["heart"]}]})
    assert not check_model(catalogue, "changed").problems
    guards = Guards.load(catalogue.guards("changed"), dev.folder / "pipeline", CPU)
    (refused,) = dev.sampler.run([dev.trajectory(PROMPTS[1], guidance_scale=3.5)], given=[Given(guards=guards)])
    assert refused.withheld


@pytest.fixture
def edited(dev: TinyModel) -> Iterator[Any]:
    """Checks the model with other values in a part's configuration, which is restored afterwards."""
    kept: dict[Path, str] = {}

    def check(part: str, resolution: int = RESOLUTION, **values: Any) -> ModelCheck:
        file = dev.folder / "pipeline" / part / "config.json"
        content = kept.setdefault(file, file.read_text())
        file.write_text(json.dumps({**json.loads(content), **values}))
        catalogue = dev.catalogue(other={"pipeline": "pipeline", "resolution": resolution})
        return check_model(catalogue, "other")

    yield check
    for file, content in kept.items():
        file.write_text(content)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("transformer", {"in_channels": 64}, "takes 64 channels, and the VAE's latents have 4 x 4 once packed"),
        ("transformer", {"in_channels": 96, "out_channels": 16}, "it reads a picture too"),
        ("transformer", {"patch_size": 2}, "patch_size is 2"),
        ("transformer", {"axes_dims_rope": [2, 2, 2]}, "three even numbers with the sum 8"),
        ("transformer", {"axes_dims_rope": [1, 3, 4]}, "three even numbers with the sum 8"),
        ("transformer", {"joint_attention_dim": 32}, "(32, joint_attention_dim) than T5 writes (24, d_model)"),
        (
            "transformer",
            {"pooled_projection_dim": 32},
            "(32, pooled_projection_dim) than CLIP writes (16, hidden_size)",
        ),
        ("transformer", {"in_channels": "many"}, "a value of the wrong type"),
        ("text_encoder", {"max_position_embeddings": 8}, "prompts are longer (16) than the text encoder reads (8)"),
        ("vae", {"scaling_factor": 0}, "scaling_factor of the VAE is 0"),
        ("vae", {"shift_factor": "none"}, "shift_factor of the VAE is 'none'"),
        ("vae", {"latent_channels": 16}, "the VAE's latents have 4 x 16 once packed"),
    ],
)
def test_parts_that_do_not_fit_are_named(edited: Any, part: str, values: dict[str, Any], said: str) -> None:
    found = edited(part, **values)
    assert any(said in problem.text for problem in found.problems), [problem.text for problem in found.problems]


def test_a_resolution_divides_into_squares_of_latents(edited: Any) -> None:
    (problem,) = edited("vae", resolution=18).problems
    assert "18 does not divide into squares of 2 x 2 latents" in problem.text
    assert "multiple of 4" in problem.text
    assert not edited("vae", resolution=20).problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dev: TinyModel, dtype: torch.dtype) -> None:
    """In float16, T5 has layers in float32, as transformers loads it."""
    half = load_model(dev.catalogue(), "base", CPU, dtype)
    (found,) = Sampler(half, batch_rows=2).run([dev.trajectory(guidance_scale=3.5)])
    (exact,) = dev.sampler.run([dev.trajectory(guidance_scale=3.5)])
    assert half.backbone.denoiser.dtype == dtype
    assert 0 < (found.latents - exact.latents).abs().max() < 0.3 * exact.latents.abs().max()
