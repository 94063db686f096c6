"""Parts that do not belong together are found by their configurations, before anything is loaded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_models import CPU, TinyModel, saved
from unerase_backend.catalogue.model_check import check_model as check_files
from unerase_backend.catalogue.text_reach import model_reaches
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.runtime.errors import PreconditionError

XL, THREE, WITH_T5 = "stable-diffusion-xl", "stable-diffusion-3", "stable-diffusion-3-t5"


@pytest.mark.parametrize(
    ("name", "part", "change", "said"),
    [
        (XL, "text_encoder_2", {"hidden_size": 32}, "(40, cross_attention_dim) than the text encoders write (48"),
        (XL, "text_encoder_2", {"projection_dim": 24}, "(68, projection_class_embeddings_input_dim)"),
        (XL, "unet", {"addition_embed_type": None}, "reads nothing beside the prompt"),
        (XL, "unet", {"time_cond_proj_dim": 8}, "as a latent consistency model"),
        (XL, "vae", {"latent_channels": 8}, "have different latents"),
        (XL, "vae", {"scaling_factor": 0}, "must be a number above 0"),
        (THREE, "transformer", {"in_channels": 16}, "takes 16 channels and gives 8"),
        (THREE, "text_encoder", {"hidden_size": 32}, "both CLIPs write 56"),
        (THREE, "text_encoder_2", {"projection_dim": 36}, "(36, pooled_projection_dim) than both CLIPs write (52"),
        (WITH_T5, "text_encoder_3", {"d_model": 40}, "than T5 writes (40, d_model)"),
        (THREE, "transformer", {"pos_embed_max_size": 3}, "give at most 12"),
        (THREE, "transformer", {"patch_size": 3}, "does not divide into patches"),
        (THREE, "transformer", {"joint_attention_dim": "wide"}, "a value of the wrong type"),
    ],
)
def test_a_part_of_another_model_is_found(tmp_path: Path, name: str, part: str, change: Any, said: str) -> None:
    model = saved(name, tmp_path)
    file = tmp_path / "pipeline" / part / "config.json"
    config = json.loads(file.read_text())
    assert config.keys() >= change.keys()
    file.write_text(json.dumps(config | change))
    catalogue = model.catalogue()
    for check in (check_files, check_model):
        found = check(catalogue, "base").problems
        assert any(said in f"{problem.what}; {problem.remedy}" for problem in found), found
    with pytest.raises(PreconditionError):
        load_model(catalogue, "base", CPU, torch.float32)


def test_a_value_that_only_loading_looks_at_is_refused_by_its_part(tmp_path: Path) -> None:
    model = saved(THREE, tmp_path)
    file = tmp_path / "pipeline" / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"initializer_factor": None}))
    with pytest.raises(PreconditionError, match="'base' cannot be loaded: the configuration of text_encoder makes no"):
        load_model(model.catalogue(), "base", CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_3": [None, None]}, "text_encoder_3 is there without its tokenizer_3"),
        ({"tokenizer_3": [[]]}, "text_encoder_3 is there without its tokenizer_3"),
        ({"text_encoder_3": "T5EncoderModel"}, "must be a T5EncoderModel or [null, null]"),
        ({"text_encoder_3": [None, None], "tokenizer_3": [None, None]}, ""),
        ({"text_encoder_3": [None, None]}, ""),
    ],
)
def test_an_encoder_that_may_be_absent_is_there_with_its_tokenizer(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    model = saved(WITH_T5, tmp_path)
    file = tmp_path / "pipeline" / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    catalogue = model.catalogue()
    if said:
        for check in (check_files, check_model):
            assert any(said in problem.what for problem in check(catalogue, "base").problems)
        with pytest.raises(PreconditionError, match=re.escape(said)):
            load_model(catalogue, "base", CPU, torch.float32)
    else:
        loaded = load_model(catalogue, "base", CPU, torch.float32)
        # The folders of both are still there.
        limits = [each.limit for each in model_reaches(tmp_path / "pipeline")]
        assert limits == [each.framing.room for each in loaded.backbone.readers]


def test_an_encoder_that_the_folder_lacks_cannot_be_replaced(tmp_path: Path) -> None:
    model = saved(THREE, tmp_path)
    catalogue = model.catalogue({"text_encoder_3": model.put({"shared.weight": torch.zeros(4, 4)})})
    for check in (check_files, check_model):
        (problem,) = check(catalogue, "changed").problems
        assert "replaces the text_encoder_3, which this Stable Diffusion 3 does not have" in problem.what
    with pytest.raises(PreconditionError):
        load_model(catalogue, "changed", CPU, torch.float32)


def test_a_guard_for_other_families_is_refused_by_a_check(tiny_model: TinyModel) -> None:
    direction = tiny_model.put({"direction": torch.ones(16)})
    guards = [
        {"kind": "steering", "module": "mid_block", "direction": direction},
        {"kind": "safree", "concepts": ["heart"]},
    ]
    catalogue = tiny_model.catalogue({"guards": guards})
    for check in (check_files, check_model):
        found = [problem.what for problem in check(catalogue, "changed").problems]
        fits = tiny_model.tiny.family == "stable-diffusion"
        said = [
            f"the guard {guard['kind']} does not fit the model: it is for stable-diffusion, not" for guard in guards
        ]
        assert [what.startswith(start) for what, start in zip(found, said, strict=not fits)] == [True] * len(found)


def test_what_fits_has_no_misfits(tiny_model: TinyModel) -> None:
    assert check_files(tiny_model.catalogue(), "base").problems == ()
