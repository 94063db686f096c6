"""What is loaded, what a replacing file may hold, and what is refused, with its reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import DiffusionModel, load_model
from unerase_backend.diffusion.profile import numerics_profile
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

Load = Callable[..., DiffusionModel]
UNET = Path("pipeline/unet/diffusion_pytorch_model.safetensors")
KEY = "conv_in.weight"


def test_the_testbed_is_frozen_and_finite(model: DiffusionModel) -> None:
    assert model.latent_shape == (4, 8, 8)
    assert model.resolution == 32
    for module in (model.unet, model.vae, model.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert model.alphas_cumprod.shape == (1000,)


def test_a_change_of_the_testbed_changes_its_modules(catalogue: Catalogue, model: DiffusionModel) -> None:
    never = load_model(catalogue, "testbed/never", torch.device("cpu"), torch.float32)
    assert never.digest != model.digest
    replaced = load_file(catalogue.model_parts("testbed/never").unet[0])
    state = never.unet.state_dict()
    assert all(torch.equal(state[key], tensor.float()) for key, tensor in replaced.items())
    assert any(not torch.equal(state[key], tensor) for key, tensor in model.unet.state_dict().items())


def test_a_file_may_replace_some_tensors(tiny: Path, load_tiny: Load) -> None:
    before = load_tiny()
    save_file({KEY: load_file(tiny / UNET)[KEY].half() + 1}, tiny / "edit.safetensors")
    after = load_tiny(unet="edit.safetensors")
    assert after.digest != before.digest
    for key, tensor in after.unet.state_dict().items():
        if key == KEY:
            torch.testing.assert_close(tensor, before.unet.state_dict()[key] + 1, rtol=0, atol=2e-3)
            assert tensor.dtype == torch.float32
        else:
            assert torch.equal(tensor, before.unet.state_dict()[key])


def test_a_file_may_replace_all_tensors_of_the_text_encoder(tiny: Path, load_tiny: Load) -> None:
    state = {key: torch.zeros_like(tensor) for key, tensor in load_tiny().text_encoder.state_dict().items()}
    save_file(state, tiny / "edit.safetensors")
    replaced = load_tiny(text_encoder="edit.safetensors").text_encoder.state_dict()
    assert all(not tensor.any() for tensor in replaced.values())


def test_weights_are_trainable_on_request(tiny: Path, load_tiny: Load) -> None:
    load_tiny()
    read = Catalogue.load(embedded=tiny / "catalogue.yaml")
    model = load_model(read, "changed", torch.device("cpu"), torch.float32, trainable=True)
    assert all(parameter.requires_grad for parameter in model.unet.parameters())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"conv_in.wait": torch.zeros(8, 4, 3, 3)}, "WEIGHTS_UNKNOWN_TENSOR"),
        ({KEY: torch.zeros(8, 4, 3, 1)}, "WEIGHTS_WRONG_SHAPE"),
        ({KEY: torch.zeros((8, 4, 3, 3), dtype=torch.int32)}, "WEIGHTS_WRONG_TYPE"),
        ({KEY: torch.full((8, 4, 3, 3), float("nan"))}, "WEIGHTS_NOT_FINITE"),
        ({KEY: torch.full((8, 4, 3, 3), float("-inf"))}, "WEIGHTS_NOT_FINITE"),
        ({KEY: torch.full((8, 4, 3, 3), 1e300, dtype=torch.float64)}, "WEIGHTS_NOT_FINITE"),
        ({}, "WEIGHTS_INCOMPLETE"),
    ],
)
def test_a_bad_replacement_is_refused(
    tiny: Path, load_tiny: Load, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    save_file(tensors, tiny / "edit.safetensors")
    with pytest.raises(UnsafeModelError) as caught:
        load_tiny(unet="edit.safetensors")
    assert caught.value.reason == reason


def test_a_file_that_is_no_safetensors_is_refused(tiny: Path, load_tiny: Load) -> None:
    torch.save({KEY: torch.zeros(8, 4, 3, 3)}, tiny / "edit.safetensors")
    with pytest.raises(UnsafeModelError) as caught:
        load_tiny(unet="edit.safetensors")
    assert caught.value.reason == "WEIGHTS_UNREADABLE"


def test_pickled_weights_are_never_read(tiny: Path, load_tiny: Load) -> None:
    torch.save(load_file(tiny / UNET), tiny / UNET.with_suffix(".bin"))
    (tiny / UNET).unlink()
    with pytest.raises(UnsafeModelError) as caught:
        load_tiny()
    assert caught.value.reason == "WEIGHTS_NOT_SAFETENSORS"


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_a_checkpoint_that_leaves_a_weight_to_chance_is_refused(tiny: Path, load_tiny: Load, part: str) -> None:
    file = tiny / "pipeline" / f"{part}.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[3])
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsafeModelError) as caught:
        load_tiny()
    assert caught.value.reason == "WEIGHTS_INCOMPLETE"


def test_cut_off_weights_are_refused(tiny: Path, load_tiny: Load) -> None:
    (tiny / UNET).write_bytes((tiny / UNET).read_bytes()[:-100])
    with pytest.raises(UnsafeModelError) as caught:
        load_tiny()
    assert caught.value.reason == "WEIGHTS_UNREADABLE"


def test_another_kind_of_pipeline_is_refused(tiny: Path, load_tiny: Load) -> None:
    index = tiny / "pipeline" / "model_index.json"
    content = json.loads(index.read_text()) | {"text_encoder": ["transformers", "T5EncoderModel"]}
    index.write_text(json.dumps(content))
    with pytest.raises(PreconditionError) as caught:
        load_tiny()
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_a_profile_names_what_fixes_the_bits() -> None:
    def of(threads: int = 1, rows: int = 48, batch: int = 8, dtype: torch.dtype = torch.float32) -> str:
        return numerics_profile(torch.device("cpu"), dtype, threads, rows, batch)

    assert of() == of()
    assert len({of(), of(threads=2), of(rows=32), of(batch=4), of(dtype=torch.bfloat16)}) == 5
