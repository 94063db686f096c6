"""Steering against a hook written out by hand, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusion.guards.conftest import Run, catalogue_of
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.catalogue.model_check import check_model as check_headers
from unerase_backend.diffusion.guarding import UNGUARDED, Guards
from unerase_backend.diffusion.guards.steering import _values
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

TrajectoryOf = Callable[..., Trajectory]
CPU = torch.device("cpu")
MODULE = "mid_block.attentions.0.transformer_blocks.0"


def entry_of(**keys: object) -> dict[str, object]:
    return {"kind": "steering", "module": MODULE, "direction": "direction.safetensors", **keys}


def steering(folder: Path, direction: torch.Tensor, **keys: object) -> Guards:
    save_file({"direction": direction}, folder / "direction.safetensors")
    catalogue = catalogue_of(folder, entry_of(**keys))
    return Guards.load(catalogue.guards("own/guarded"), catalogue.model_parts("own/guarded").folder, CPU)


def width_of(model: DiffusionModel) -> int:
    width: int = model.denoiser.get_submodule(MODULE).norm1.normalized_shape[0]
    return width


@pytest.mark.parametrize("operation", ["add", "ablate"])
def test_it_is_the_hook_written_out(
    run: Run, tmp_path: Path, model: DiffusionModel, trajectory_of: TrajectoryOf, operation: str
) -> None:
    direction = torch.randn(width_of(model), generator=torch.Generator().manual_seed(1))
    guards = steering(tmp_path, direction, operation=operation, strength=0.7)
    (ours,) = run([trajectory_of()], guards)

    def by_hand(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        steered = output.clone()
        for row, token in torch.cartesian_prod(*map(torch.arange, output.shape[:2])).tolist():
            features = output[row, token]
            if operation == "add":
                steered[row, token] = features + 0.7 * direction
            else:
                steered[row, token] = features - 0.7 * (features @ direction) / (direction @ direction) * direction
        return steered

    hook = model.denoiser.get_submodule(MODULE).register_forward_hook(by_hand)
    try:
        (expected,) = run([trajectory_of()], UNGUARDED)
    finally:
        hook.remove()
    torch.testing.assert_close(ours.latents, expected.latents, rtol=1e-4, atol=1e-4)
    (plain,) = run([trajectory_of()], UNGUARDED)
    assert (ours.latents - plain.latents).abs().max() > 1e-3


def test_channels_are_steered_where_the_output_has_them(
    run: Run, tmp_path: Path, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    channels = model.denoiser.config.block_out_channels[-1]
    guards = steering(tmp_path, torch.ones(channels), module="mid_block", operation="add", strength=0.5)
    (ours,) = run([trajectory_of()], guards)
    hook = model.denoiser.mid_block.register_forward_hook(lambda module, inputs, output: output + 0.5)
    try:
        (expected,) = run([trajectory_of()], UNGUARDED)
    finally:
        hook.remove()
    torch.testing.assert_close(ours.latents, expected.latents, rtol=1e-5, atol=1e-5)


def test_a_module_that_is_not_there_or_of_another_width_is_refused(
    run: Run, tmp_path: Path, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    with pytest.raises(PreconditionError, match="no module 'no_block'"):
        run([trajectory_of()], steering(tmp_path, torch.ones(3), module="no_block"))
    with pytest.raises(PreconditionError, match=f"{width_of(model)} features, and the direction 3"):
        run([trajectory_of()], steering(tmp_path, torch.ones(3)))


@pytest.mark.parametrize(
    ("module", "width", "said"),
    [
        ("mid_blok", 3, "the UNet has no module 'mid_blok'; there is mid_block"),
        (MODULE, 3, "features, and the direction 3"),
        ("conv_in", 3, "features, and the direction 3"),
        # Modules without tensors of their own.
        ("conv_act", None, ""),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.1", 0, "features, and the direction 1"),
    ],
)
def test_a_check_finds_a_module_that_does_not_fit_before_anything_is_loaded(
    tmp_path: Path, model: DiffusionModel, module: str, width: int | None, said: str
) -> None:
    channels: int = model.denoiser.config.block_out_channels[0]
    save_file({"direction": torch.ones(channels if width is None else width or 1)}, tmp_path / "d.safetensors")
    read = catalogue_of(tmp_path, {"kind": "steering", "module": module, "direction": "d.safetensors"})
    problems = check_model(read, "own/guarded").problems
    assert [(problem.part, problem.reason) for problem in problems] == [("guard", "GUARD_UNFIT")] * bool(said)
    assert all(said in problem.text for problem in problems)


@pytest.mark.parametrize(
    "direction",
    [
        torch.zeros(3),
        torch.ones(3, 2),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]).half(),
        torch.tensor([1.0, float("nan")]).bfloat16(),
        torch.tensor([1e300], dtype=torch.float64),
    ],
)
def test_what_is_no_direction_is_refused(tmp_path: Path, direction: torch.Tensor) -> None:
    with pytest.raises(UnsafeModelError, match="must be a finite vector"):
        steering(tmp_path, direction)
    [problem] = check_headers(catalogue_of(tmp_path, entry_of()), "own/guarded").problems
    assert (problem.part, problem.reason) == ("guard", "WEIGHTS_WRONG_SHAPE")


@given(
    floats=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9).filter(any),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_direction_of_any_number_type_is_read_as_torch_reads_it(floats: list[float], dtype: torch.dtype) -> None:
    direction = torch.tensor([1.0, *floats], dtype=dtype)
    with TemporaryDirectory() as folder:
        save_file({"a": torch.ones(3), "d": direction, "z": torch.ones(2)}, Path(folder) / "d.safetensors")
        read = _values(Path(folder) / "d.safetensors", "d")
    assert np.array_equal(read, direction.float().numpy())


def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match="no tensor 'feature 3'"):
        steering(tmp_path, torch.ones(3), tensor="feature 3")
