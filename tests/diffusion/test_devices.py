"""The path of a GPU, on a device of its own memory: no operation mixes memories, and the bits are those of the CPU."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from support.separate_memory import DEVICE, on_device, separate_memory
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Resumption, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion import conditioning, pictures
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Given, Sampler

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PICTURE = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PLAIN = Trajectory(
    conditioning=Conditioning(text="a picture of a hourglass"),
    guidance_scale=3.0,
    latent_seed=1,
    noise_seed=2,
    steps=3,
    variance_scale=1.0,
)


def with_fields(**fields: object) -> Trajectory:
    made = Trajectory()
    made.CopyFrom(PLAIN)
    made.MergeFrom(Trajectory(**fields))
    return made


TRAJECTORIES = {
    "plain": (PLAIN, Given()),
    "noise": (with_fields(eta=1.34), Given()),
    "unguided": (with_fields(guidance_scale=1.0, latent_seed=3), Given()),
    "resumed": (with_fields(resumption=Resumption(step=1, picture_digest="0" * 64)), Given(beginning=PICTURE)),
    "inpainting": (
        with_fields(inpainting={"picture_digest": "1" * 64, "mask_share": 0.5}),
        Given(picture=PICTURE),
    ),
    "estimate": (with_fields(estimate=True, stop_step=2), Given()),
}


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def models(request: pytest.FixtureRequest) -> tuple[DiffusionModel, DiffusionModel]:
    """A model in main memory and the same on the device."""
    model = load_model(Catalogue.load(), "testbed/reference", torch.device("cpu"), request.param)
    return model, on_device(model)


@pytest.fixture
def device() -> Iterator[None]:
    with separate_memory():
        yield


def run(model: DiffusionModel, names: list[str]) -> list[Finished]:
    sampler = Sampler(model, batch_rows=6, decode_batch=2)
    chosen = [TRAJECTORIES[name] for name in names]
    return sampler.run([trajectory for trajectory, _ in chosen], given=[given for _, given in chosen])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_sampler_gives_the_same_bits(
    name: str, models: tuple[DiffusionModel, DiffusionModel], device: None
) -> None:
    of_cpu, of_device = (run(model, [name])[0] for model in models)
    assert not of_device.failure
    assert torch.equal(of_cpu.latents, of_device.latents)
    assert of_cpu.picture is not None
    assert np.array_equal(of_cpu.picture, of_device.picture)


def test_encoding_decoding_and_the_likelihood_give_the_same_bits(
    models: tuple[DiffusionModel, DiffusionModel], device: None
) -> None:
    found = []
    for model in models:
        prompts = conditioning.encode(model, [Conditioning(text=""), Conditioning(text="a heart")])
        measured = measure_denoising(model, [PICTURE], ["0" * 64], prompts, [100, 900], 7, batch_rows=4, decode_batch=2)
        while True:
            try:
                next(measured)
            except StopIteration as stop:
                errors = stop.value
                break
        found.append((errors, pictures.encode(model, [PICTURE], 2)))
    assert np.array_equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "a sum of both memories": lambda held: held + torch.ones(3),
    "a product of both memories": lambda held: held[None] @ torch.ones(3, 1),
    "an index of the device into main memory": lambda held: torch.ones(3)[held.long()],
    "a generator of the CPU": lambda held: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    "a mixed dtype": lambda held: held[None] @ held[:, None].to(torch.float16),
    "a conversion to NumPy": lambda held: held.numpy(),
    "a choice between both memories": lambda held: torch.where(held > 0, held, torch.zeros(3)),
    "a stack of both memories": lambda held: torch.stack([held, torch.ones(3)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_device_refuses_what_a_gpu_refuses(name: str, device: None) -> None:
    held = torch.ones(3).to(DEVICE)
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](held)


def test_the_device_takes_what_a_gpu_takes(device: None) -> None:
    held = torch.arange(3.0).to(DEVICE)
    assert (held * 2 + torch.tensor(1.0)).cpu().tolist() == [1, 3, 5]
    assert held[torch.tensor([2, 0])].cpu().tolist() == [2, 0]
    assert torch.tensor([1.0, 2.0], device=DEVICE).device == DEVICE
    held[1] = 7
    assert held.cpu().tolist() == [0, 7, 2]
    learned = torch.ones(2).to(DEVICE).requires_grad_()
    (gradient,) = torch.autograd.grad((learned**2).sum(), [learned])
    assert gradient.device == DEVICE
    assert gradient.cpu().tolist() == [2, 2]
