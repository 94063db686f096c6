"""The memory of a model, against modules that torch itself counts."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from unerase_backend.catalogue import EMBEDDED
from unerase_backend.diffusion.memory import ModelSize, folder_parameters, pipeline_size

REFERENCE = EMBEDDED.parent / "reference"
# Stable Diffusion 1.4: 859.5, 123.1 and 83.7 million parameters.
SD_14 = ModelSize(859_520_964, 123_060_480, 83_653_863, 320, 64 * 64, 128, 512 * 512)


def test_parameters_are_those_that_torch_counts() -> None:
    size = pipeline_size(REFERENCE, 32)
    for kind, part, counted in (
        (UNet2DConditionModel, "unet", size.unet_parameters),
        (AutoencoderKL, "vae", size.vae_parameters),
        (CLIPTextModel, "text_encoder", size.text_parameters),
    ):
        module = kind.from_pretrained(REFERENCE / part, local_files_only=True)
        assert counted == sum(weight.numel() for weight in module.parameters())
    assert (size.channels, size.cells, size.vae_channels, size.pixels) == (32, 64, 16, 1024)


def test_the_measured_figures_of_stable_diffusion_come_out() -> None:
    """The figures of docs/real-models.md, which the constants were taken from."""
    assert SD_14.weight_bytes("float32") == pytest.approx(4.26e9, rel=0.01)
    assert SD_14.weight_bytes("bfloat16") == pytest.approx(2.30e9, rel=0.01)
    assert SD_14.row_bytes("float32") == pytest.approx(148e6, rel=0.02)
    assert SD_14.row_bytes("bfloat16") == pytest.approx(90e6, rel=0.02)
    assert SD_14.gradient_row_bytes("float32") == pytest.approx(1444e6, rel=0.02)
    assert SD_14.gradient_row_bytes("bfloat16") == pytest.approx(723e6, rel=0.02)
    assert SD_14.decoded_bytes() == pytest.approx(760e6, rel=0.02)


def test_a_tensor_in_two_variants_counts_once(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(3, 4, dtype=torch.float16)}, tmp_path / "model.fp16.safetensors")
    assert folder_parameters(tmp_path) == 12


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_damaged_header_names_its_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        folder_parameters(tmp_path)
