"""What the import knows of other families than Stable Diffusion 1 and 2: their LoRAs, and that the rest is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.importing import imported
from support.tiny_models import TinyModel, saved
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.importing.folders import jobs_of
from unerase_backend.runtime.errors import UnsafeModelError


def pickled(model: TinyModel, part: str, name: str) -> Path:
    """Put a pickle in the place of a part's safetensors."""
    folder = model.folder / "pipeline" / part
    (file,) = folder.glob("*.safetensors")
    torch.save(load_file(file), folder / name)
    file.unlink()
    return folder / name


@pytest.mark.parametrize(("name", "part"), [("stable-diffusion-xl", "text_encoder_2"), ("sana", "text_encoder")])
def test_a_folder_of_another_family_is_not_imported_and_nothing_says_so(tmp_path: Path, name: str, part: str) -> None:
    model = saved(name, tmp_path)
    pickled(model, part, "pytorch_model.bin")
    (problem,) = check_model(model.catalogue(), "base").problems
    assert (problem.reason, problem.remedy) == ("WEIGHTS_NOT_SAFETENSORS", "convert it to safetensors")
    with pytest.raises(ValueError, match="only those of Stable Diffusion 1 and 2 are imported whole"):
        jobs_of(tmp_path / "pipeline", "")


def test_a_text_encoder_whose_projection_is_read_is_not_imported_without_it(tmp_path: Path) -> None:
    file = pickled(saved("stable-diffusion-3", tmp_path), "text_encoder", "pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match="text encoder's text_projection"):
        imported(file, "text-encoder", base=tmp_path / "pipeline")
    # Without its base nothing is known of the model.
    (note,) = imported(file, "text-encoder").notes
    assert "which no picture of Stable Diffusion 1 and 2 or of FLUX depends on" in note


@pytest.mark.parametrize(
    ("name", "layer"),
    [("pixart-sigma", "encoder.block.0.layer.0.SelfAttention.q"), ("sana", "layers.0.self_attn.q_proj")],
)
def test_a_lora_of_a_text_encoder_that_is_no_clip(tmp_path: Path, name: str, layer: str) -> None:
    saved(name, tmp_path)
    factors = {"lora_A.weight": torch.zeros(2, 16), "lora_B.weight": torch.zeros(16, 2)}
    save_file({f"text_encoder.{layer}.{key}": each for key, each in factors.items()}, tmp_path / "lora.safetensors")
    (tensors,) = imported(tmp_path / "lora.safetensors", "lora", base=tmp_path / "pipeline").files.values()
    assert all(layer in key for key in tensors)
