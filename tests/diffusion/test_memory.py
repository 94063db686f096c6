"""The memory of a model, against modules that torch itself counts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from support.tiny_models import TinyModel, saved
from support.tiny_pipelines import PIPELINES, RESOLUTION
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.catalogue.backbone_kinds import BACKBONES, Role, denoiser_of, of_role
from unerase_backend.diffusion.memory import LARGE_TEXT_ENCODER, ModelSize, folder_parameters, pipeline_size
from unerase_backend.diffusion.row_memory import row_memory

REFERENCE = EMBEDDED.parent / "reference"
UNET = {"block_out_channels": [320, 640, 1280, 1280]}
# Stable Diffusion 1.4: 859.5, 123.1 and 83.7 million parameters.
SD_14 = ModelSize(
    859_520_964, (123_060_480,), 83_653_863, row_memory("UNet2DConditionModel", UNET, 64, 0), 128, 512 * 512
)
T5_XXL = 4_762_310_656


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


def test_parameters_are_those_that_torch_counts() -> None:
    size = pipeline_size(REFERENCE, 32)
    for kind, part, counted in (
        (UNet2DConditionModel, "unet", size.denoiser_parameters),
        (AutoencoderKL, "vae", size.autoencoder_parameters),
        (CLIPTextModel, "text_encoder", *size.text_parameters),
    ):
        module = kind.from_pretrained(REFERENCE / part, local_files_only=True)
        assert counted == sum(weight.numel() for weight in module.parameters())
    assert (size.row.width, size.row.tokens, size.autoencoder_width, size.pixels) == (32, 64, 16, 1024)


def test_every_part_of_every_family_counts(tiny: TinyModel) -> None:
    """What is in the files is what diffusers saved: weights, and tables that are kept with them."""
    pipeline, size = tiny.pipeline, pipeline_size(tiny.folder / "pipeline", RESOLUTION)
    parts = BACKBONES.all()[tiny.tiny.family].parts

    def values(part: str) -> int:
        kept = getattr(pipeline, part).state_dict(keep_vars=True).values()
        return sum({id(each): each.numel() for each in kept}.values())

    encoders = [part for part in of_role(parts, Role.TEXT_ENCODER) if getattr(pipeline, part) is not None]
    assert size.denoiser_parameters == values(denoiser_of(parts))
    assert size.text_parameters == tuple(map(values, encoders))
    assert [size.autoencoder_parameters] == [values(part) for part in of_role(parts, Role.AUTOENCODER)]
    assert size.weight_bytes("bfloat16") - size.text_bytes("bfloat16") == (
        2 * size.denoiser_parameters + 4 * size.autoencoder_parameters
    )
    assert 0 < size.row_bytes("float32") < size.gradient_row_bytes("float32")


def test_large_text_encoders_wait_in_main_memory_one_by_one() -> None:
    size = replace(SD_14, text_parameters=(123_060_480, T5_XXL, LARGE_TEXT_ENCODER))
    large = T5_XXL + LARGE_TEXT_ENCODER
    assert size.held_bytes("bfloat16") == SD_14.weight_bytes("bfloat16")
    assert size.weight_bytes("bfloat16") == size.held_bytes("bfloat16") + 2 * large
    assert size.visiting_bytes("bfloat16") == 2 * T5_XXL
    assert size.text_bytes("float32") == 4 * (123_060_480 + large)
    assert (SD_14.held_bytes("float32"), SD_14.visiting_bytes("float32")) == (SD_14.weight_bytes("float32"), 0)


@pytest.mark.parametrize(("part", "key"), [("transformer", "num_layers"), ("vae", "block_out_channels")])
def test_a_configuration_that_lacks_something_is_named(part: str, key: str, tmp_path: Path) -> None:
    folder = saved("stable-diffusion-3", tmp_path).folder / "pipeline"
    file = folder / part / "config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        pipeline_size(folder, RESOLUTION)


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


def test_graphs_hold_small_models_on_a_cpu_and_decoders_of_small_pictures() -> None:
    small = replace(SD_14, denoiser_parameters=1000, autoencoder_parameters=500)
    of_side = {side: replace(small, pixels=side * side).graph_bytes("float32") for side in (64, 65)}
    assert of_side == {64: 2 * 4 * 1500, 65: 2 * 4 * 1000}
    assert small.gradient_graph_bytes("float32") == 4 * 4 * 1000
    assert small.graph_bytes("bfloat16") == SD_14.graph_bytes("float32") == SD_14.gradient_graph_bytes("float32") == 0
