"""Steering against a hook written out by hand, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusion.guards.conftest import Run, catalogue_of
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.guarding import UNGUARDED, Guards
from unerase_backend.diffusion.loading import DiffusionModel
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

TrajectoryOf = Callable[..., Trajectory]
CPU = torch.device("cpu")
MODULE = "mid_block.attentions.0.transformer_blocks.0"


def steering(folder: Path, direction: torch.Tensor, **given: object) -> Guards:
    save_file({"direction": direction}, folder / "direction.safetensors")
    entry = {"kind": "steering", "module": MODULE, "direction": "direction.safetensors", **given}
    catalogue = catalogue_of(folder, entry)
    return Guards.load(catalogue.guards("own/guarded"), catalogue.model_parts("own/guarded").folder, CPU)


def width_of(model: DiffusionModel) -> int:
    width: int = model.unet.get_submodule(MODULE).norm1.normalized_shape[0]
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

    hook = model.unet.get_submodule(MODULE).register_forward_hook(by_hand)
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
    channels = model.unet.config.block_out_channels[-1]
    guards = steering(tmp_path, torch.ones(channels), module="mid_block", operation="add", strength=0.5)
    (ours,) = run([trajectory_of()], guards)
    hook = model.unet.mid_block.register_forward_hook(lambda module, inputs, output: output + 0.5)
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


@pytest.mark.parametrize("direction", [torch.zeros(3), torch.ones(3, 2), torch.tensor([1.0, float("nan")])])
def test_what_is_no_direction_is_refused(tmp_path: Path, direction: torch.Tensor) -> None:
    with pytest.raises(UnsafeModelError, match="must be a finite vector"):
        steering(tmp_path, direction)


def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match="no tensor 'feature 3'"):
        steering(tmp_path, torch.ones(3), tensor="feature 3")
