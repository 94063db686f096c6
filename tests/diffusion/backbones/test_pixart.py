"""What PixArt has beside what every family must keep (`test_conformance`)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.tiny_models import PROMPTS, TinyModel, saved
from unerase_backend.catalogue.findings import ModelCheck
from unerase_backend.catalogue.prompt_checks import text_reaches
from unerase_backend.diffusion.model_check import check_model

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved("pixart-alpha", tmp_path_factory.mktemp("alpha"))


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved("pixart-sigma", tmp_path_factory.mktemp("sigma"))


@pytest.fixture
def spoiled(sigma: TinyModel, tmp_path: Path) -> Callable[..., TinyModel]:
    """Copies the pipeline, with other values in the configuration of a part."""

    def spoil(part: str, **changed: Any) -> TinyModel:
        shutil.copytree(sigma.folder / "pipeline", tmp_path / "pipeline")
        config = tmp_path / "pipeline" / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
        return TinyModel(sigma.name, tmp_path, sigma.pipeline)

    return spoil


def check(model: TinyModel, **entry: Any) -> ModelCheck:
    return check_model(model.catalogue(other={"pipeline": "pipeline", "resolution": 16, **entry}), "other")


@pytest.mark.parametrize(("name", "length"), [("pixart-alpha", 120), ("pixart-sigma", 300)])
def test_prompts_are_as_long_as_the_pipelines(name: str, length: int, alpha: TinyModel, sigma: TinyModel) -> None:
    model = alpha if name == "pixart-alpha" else sigma
    catalogue = model.catalogue(whole={"pipeline": "pipeline", "resolution": 16})
    (reach,) = text_reaches(catalogue, "whole")
    # The end is a token too.
    assert reach.limit == length - 1
    from unerase_backend.diffusion.loading import load_model

    loaded = load_model(catalogue, "whole", torch.device("cpu"), torch.float32)
    assert loaded.prompt_length == length
    text = " ".join(["toy"] * length)
    (theirs, mask, _, _) = model.pipeline.encode_prompt(text, False, max_sequence_length=length)
    from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning
    from unerase_backend.diffusion.conditioning import encode

    (ours,) = encode(loaded, [Conditioning(text=text)])
    assert torch.equal(ours.mask, mask[0])
    torch.testing.assert_close(ours.states, theirs[0], rtol=1e-5, atol=1e-5)


def test_a_prompt_is_read_in_lower_case(sigma: TinyModel) -> None:
    one, other = sigma.encoded(["  A Red HEART ", "a red heart"])[0], sigma.encoded(["a red heart"])[0]
    theirs, _, _, _ = sigma.pipeline.encode_prompt("  A Red HEART ", False, max_sequence_length=12)
    assert torch.equal(one.states, other.states)
    torch.testing.assert_close(one.states, theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("written", ["<Toy>", "<toy>", "<TOY>"])
def test_a_learned_word_with_capitals_is_read_in_lower_case_text(sigma: TinyModel, written: str) -> None:
    rows = sigma.put({"t5": torch.ones(2, 16)})
    (reader,) = sigma.load({"embedding": rows, "token": "<Toy>"}).backbone.readers
    ((_, ids),) = reader.words.items()
    assert reader.tokens_of(f"A Red {written}") == [*reader.tokens_of("a red"), *ids]


def test_two_words_that_are_one_in_lower_case_are_refused(sigma: TinyModel) -> None:
    width = sigma.model.backbone.readers[0].width
    words = [{"file": sigma.put({"a": torch.ones(width)}), "token": token} for token in ("<Toy>", "<toy>")]
    (problem,) = check_model(sigma.catalogue({"embedding": words}), "changed").problems
    assert problem.reason == "EMBEDDING_TOKEN_TWICE"
    assert "two embeddings have the token '<toy>', as prompts are read in lower case" in problem.what


def test_padding_does_not_show(sigma: TinyModel) -> None:
    """What T5 says of padding is masked: any numbers may stand there."""
    encoding = sigma.encoded(PROMPTS)
    times = sigma.model.schedule.times_at(torch.tensor([400, 400]))
    noisy = sigma.noise(1, 2)
    expected = sigma.model.predict(noisy, times, encoding)
    other = encoding.clone()
    other.states[other.mask == 0] = 7.0
    assert not torch.equal(other.states, encoding.states)
    assert torch.equal(sigma.model.predict(noisy, times, other), expected)


def test_the_size_of_the_picture_shows_where_the_transformer_reads_it(alpha: TinyModel, sigma: TinyModel) -> None:
    assert alpha.model.denoiser.use_additional_conditions
    assert not sigma.model.denoiser.use_additional_conditions
    read: list[Any] = []

    def note(module: Any, inputs: Any) -> None:
        read.append(inputs)

    layer = alpha.model.denoiser.adaln_single.emb.resolution_embedder
    hook = layer.register_forward_pre_hook(note)
    alpha.model.predict(alpha.noise(1), torch.tensor([5]), alpha.encoded([""]))
    hook.remove()
    # The height and the width, each embedded by its own.
    assert read[0][0].shape[0] == 2
    assert torch.equal(read[0][0][0], read[0][0][1])


def test_the_first_releases_of_alpha(alpha: TinyModel, tmp_path: Path) -> None:
    """They name a class that diffusers reads as PixArt's, and hold a tensor that no picture depends on."""
    shutil.copytree(alpha.folder / "pipeline", tmp_path / "pipeline")
    for file, key in (("model_index.json", "transformer"), ("transformer/config.json", "_class_name")):
        path = tmp_path / "pipeline" / file
        content = json.loads(path.read_text())
        content[key] = ["diffusers", "Transformer2DModel"] if key == "transformer" else "Transformer2DModel"
        path.write_text(json.dumps(content))
    weights = tmp_path / "pipeline" / WEIGHTS
    stored = load_file(weights)
    unused = {"caption_projection.y_embedding": torch.zeros(120, 16), "pos_embed.pos_embed": torch.zeros(1, 4096, 48)}
    save_file(stored | unused, weights)
    old = TinyModel(alpha.name, tmp_path, alpha.pipeline)
    found = check(old)
    assert found.problems == ()
    assert any("caption_projection.y_embedding" in note for note in found.notes)
    for name, tensor in alpha.model.denoiser.state_dict().items():
        assert torch.equal(tensor, old.model.denoiser.state_dict()[name])
    assert torch.equal(old.model.denoiser.pos_embed.pos_embed, alpha.pipeline.transformer.pos_embed.pos_embed)


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        (
            "transformer",
            {"caption_channels": 24},
            "reads another width (24, caption_channels) than T5 writes (16, d_model)",
        ),
        ("transformer", {"cross_attention_dim": 40}, "cross_attention_dim is 40, and must be 48"),
        ("transformer", {"in_channels": 6}, "takes 6 channels and gives 8, and the VAE's latents have 4"),
        ("transformer", {"out_channels": 12}, "takes 4 channels and gives 12, and the VAE's latents have 4"),
        (
            "transformer",
            {"use_additional_conditions": True, "attention_head_dim": 20},
            "its width 40 does not divide by 3",
        ),
        ("vae", {"scaling_factor": 0}, "the scaling_factor of the VAE is 0, and must be a number above 0"),
        ("text_encoder", {"d_model": 24}, "reads another width (16, caption_channels) than T5 writes (24, d_model)"),
    ],
)
def test_parts_that_do_not_fit(
    spoiled: Callable[..., TinyModel], part: str, changed: dict[str, Any], told: str
) -> None:
    assert any(told in problem.what for problem in check(spoiled(part, **changed)).problems)


def test_a_resolution_that_does_not_divide(sigma: TinyModel) -> None:
    (problem,) = check(sigma, resolution=18).problems
    assert (problem.what, problem.remedy) == (
        "the resolution 18 does not divide into patches of latents",
        "give a multiple of 4 in the catalogue",
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_layers": 10**9}, "the configuration of transformer makes no PixArtTransformer2DModel"),
        ({"sample_size": 10**5}, "the transformer computes 120000000000 numbers that no file holds"),
        ({"sample_size": 10**15}, "the configuration of transformer makes no PixArtTransformer2DModel"),
    ],
)
def test_what_would_take_forever_is_refused(
    spoiled: Callable[..., TinyModel], changed: dict[str, Any], told: str
) -> None:
    found = check(spoiled("transformer", **changed))
    assert any(told in problem.what for problem in found.problems), found.problems
