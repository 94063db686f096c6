"""What is loaded, what a replacing file may hold, and what is refused, with its reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.profile import numerics_profile
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError, PreconditionError, UnsafeModelError

Load = Callable[..., DiffusionModel]
UNET = Path("pipeline/unet/diffusion_pytorch_model.safetensors")
KEY = "conv_in.weight"


@pytest.fixture(scope="module")
def never(catalogue: Catalogue) -> DiffusionModel:
    return load_model(catalogue, "testbed/never", torch.device("cpu"), torch.float32)


def test_the_testbed_is_frozen_and_finite(model: DiffusionModel) -> None:
    assert model.latent_shape == (4, 8, 8)
    assert model.resolution == 32
    for module in (model.denoiser, model.vae, model.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert model.schedule.training_timesteps == 1000


def test_a_change_of_the_testbed_changes_its_modules(
    catalogue: Catalogue, model: DiffusionModel, never: DiffusionModel
) -> None:
    assert never.digest != model.digest
    replaced = load_file(catalogue.model_parts("testbed/never").changes["unet"][0])
    state = never.denoiser.state_dict()
    assert all(torch.equal(state[key], tensor.float()) for key, tensor in replaced.items())
    assert any(not torch.equal(state[key], tensor) for key, tensor in model.denoiser.state_dict().items())


def test_a_file_may_replace_some_tensors(tiny: Path, load_tiny: Load) -> None:
    before = load_tiny()
    save_file({KEY: load_file(tiny / UNET)[KEY].half() + 1}, tiny / "edit.safetensors")
    after = load_tiny(unet="edit.safetensors")
    assert after.digest != before.digest
    for key, tensor in after.denoiser.state_dict().items():
        if key == KEY:
            torch.testing.assert_close(tensor, before.denoiser.state_dict()[key] + 1, rtol=0, atol=2e-3)
            assert tensor.dtype == torch.float32
        else:
            assert torch.equal(tensor, before.denoiser.state_dict()[key])


def test_a_file_may_replace_all_tensors_of_the_text_encoder(tiny: Path, load_tiny: Load) -> None:
    state = {key: torch.zeros_like(tensor) for key, tensor in load_tiny().text_encoder.state_dict().items()}
    save_file(state, tiny / "edit.safetensors")
    replaced = load_tiny(text_encoder="edit.safetensors").text_encoder.state_dict()
    assert all(not tensor.any() for tensor in replaced.values())


def test_weights_are_trainable_on_request(tiny: Path, load_tiny: Load) -> None:
    load_tiny()
    read = Catalogue.load(embedded=tiny / "catalogue.yaml")
    model = load_model(read, "changed", torch.device("cpu"), torch.float32, trainable=True)
    assert all(parameter.requires_grad for parameter in model.denoiser.parameters())


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


def towards(name: str, share: float) -> ModelChange:
    return ModelChange(interpolation=Interpolation(model=name, share=share))


def changed(
    catalogue: Catalogue,
    *changes: ModelChange,
    name: str = "testbed/reference",
    dtype: torch.dtype = torch.float32,
    store: ArtifactStore | None = None,
) -> DiffusionModel:
    return load_model(catalogue, name, torch.device("cpu"), dtype, changes=changes, store=store, digest="derived")


def weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{key}": tensor
        for part in ("unet", "text_encoder")
        for key, tensor in model.backbone.modules[part].state_dict().items()
    }


def same_bits(one: DiffusionModel, other: DiffusionModel) -> bool:
    others = weights(other)
    # Zeros of either sign are equal, and other bits.
    return all(
        torch.equal(tensor.flatten().view(torch.uint8), others[key].flatten().view(torch.uint8))
        for key, tensor in weights(one).items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("share", "end"), [(0.0, "testbed/reference"), (1.0, "testbed/never")])
def test_the_ends_of_a_path_are_the_models_bit_for_bit(
    catalogue: Catalogue, share: float, end: str, dtype: torch.dtype
) -> None:
    derived = changed(catalogue, towards("testbed/never", share), dtype=dtype)
    assert same_bits(derived, load_model(catalogue, end, torch.device("cpu"), dtype))
    assert (derived.name, derived.digest) == ("testbed/reference", "derived")
    assert next(derived.denoiser.parameters()).dtype == dtype


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, allow_subnormal=False))
def test_between_two_models_every_weight_lies_between(
    catalogue: Catalogue, model: DiffusionModel, never: DiffusionModel, share: float
) -> None:
    ends = [weights(each) for each in (model, never)]
    for key, tensor in weights(changed(catalogue, towards("testbed/never", share))).items():
        one, other = (end[key].double() for end in ends)
        torch.testing.assert_close(tensor.double(), (1 - share) * one + share * other, rtol=1e-5, atol=1e-7)


def test_a_way_to_itself_leaves_every_bit(catalogue: Catalogue, model: DiffusionModel) -> None:
    assert same_bits(changed(catalogue, towards("testbed/reference", 0.3)), model)


def test_the_way_is_rounded_once(catalogue: Catalogue) -> None:
    exact = weights(changed(catalogue, towards("testbed/never", 0.5)))
    coarse = weights(changed(catalogue, towards("testbed/never", 0.5), dtype=torch.bfloat16))
    assert coarse.keys() == exact.keys()
    assert all(torch.equal(tensor, exact[key].bfloat16()) for key, tensor in coarse.items())


def test_changes_are_made_in_order(catalogue: Catalogue, model: DiffusionModel, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    bias = torch.arange(4.0)
    edit = ModelChange(unet_digest=store.put(save({"conv_out.bias": bias})))
    never = load_model(catalogue, "testbed/never", torch.device("cpu"), torch.float32)
    first = changed(catalogue, edit, towards("testbed/never", 0.5), store=store).denoiser.conv_out.bias
    torch.testing.assert_close(first, (bias + never.denoiser.conv_out.bias) / 2)
    last = changed(catalogue, towards("testbed/never", 0.5), edit, store=store)
    assert torch.equal(last.denoiser.conv_out.bias, bias)
    assert not torch.equal(last.denoiser.conv_in.weight, model.denoiser.conv_in.weight)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"conv_in.wait": torch.zeros(8, 4, 3, 3)}, "WEIGHTS_UNKNOWN_TENSOR"),
        ({"conv_out.bias": torch.zeros(5)}, "WEIGHTS_WRONG_SHAPE"),
        ({"conv_out.bias": torch.zeros(4, dtype=torch.int32)}, "WEIGHTS_WRONG_TYPE"),
        ({"conv_out.bias": torch.full((4,), float("nan"))}, "WEIGHTS_NOT_FINITE"),
        ({}, "WEIGHTS_INCOMPLETE"),
    ],
)
def test_a_bad_artefact_is_refused_like_a_bad_file(
    catalogue: Catalogue, tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(UnsafeModelError) as caught:
        changed(catalogue, ModelChange(unet_digest=store.put(save(tensors))), store=store)
    assert caught.value.reason == reason


def test_an_artefact_that_is_no_safetensors_or_not_there_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(UnsafeModelError) as caught:
        changed(catalogue, ModelChange(unet_digest=store.put(b"no tensors")), store=store)
    assert caught.value.reason == "WEIGHTS_UNREADABLE"
    with pytest.raises(NotFoundError):
        changed(catalogue, ModelChange(unet_digest="0" * 64), store=store)


def test_there_is_no_way_to_another_architecture(tiny: Path, load_tiny: Load) -> None:
    load_tiny()
    read = Catalogue.load([str(tiny / "catalogue.yaml")])
    with pytest.raises(PreconditionError) as caught:
        changed(read, towards("base", 0.5))
    assert caught.value.reason == "MODELS_DIFFER"


def test_a_profile_names_what_fixes_the_bits() -> None:
    def of(
        threads: int = 1, rows: int = 48, batch: int = 8, dtype: torch.dtype = torch.float32, small: str = "torch"
    ) -> str:
        return numerics_profile(torch.device("cpu"), dtype, threads, rows, batch, small)

    assert of() == of()
    others = [of(threads=2), of(rows=32), of(batch=4), of(dtype=torch.bfloat16), of(small="onnxruntime-1.32.0")]
    assert len({of(), *others}) == 6
