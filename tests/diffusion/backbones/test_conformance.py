"""What every family of models must keep: its sampler equals diffusers' pipeline, and the formulas of `path`.

The references are diffusers' own pipeline and slow loops in float64, one trajectory at a time.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.tiny_models import PROMPTS, ROWS, STEPS, TinyModel
from support.tiny_pipelines import PIPELINES, RESOLUTION
from unerase.internal.v1alpha1.trajectories_pb2 import ClassifierGuidance, Inpainting, Resumption, Trajectory
from unerase_backend.catalogue.backbone_kinds import BACKBONES
from unerase_backend.diffusion import fewer_rows, pictures
from unerase_backend.diffusion.classifier import LatentClassifier, log_probability_gradient, new_classifier
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.seeds import derive_seed

Numbers = NDArray[np.float64]


def test_every_family_has_a_small_pipeline() -> None:
    assert {tiny.family for tiny in PIPELINES.values()} == {*BACKBONES.all()}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_it_equals_the_pipeline_of_diffusers(tiny_model: TinyModel, scale: float) -> None:
    """To 1e-4, absolute and relative: the latents of these models are about 10, in float32."""
    given = enumerate(PROMPTS, start=1)
    ours = tiny_model.sampler.run(
        [tiny_model.trajectory(text, latent_seed=seed, guidance_scale=scale) for seed, text in given]
    )
    theirs = tiny_model.call(PROMPTS, scale, tiny_model.noise(1, 2))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.latents, expected, rtol=1e-4, atol=1e-4)
    # The prompts show: else the comparison would say nothing of the text encoders.
    assert (theirs - tiny_model.call(PROMPTS[::-1], scale, tiny_model.noise(1, 2))).abs().max() > 0.05


def test_a_picture_is_what_the_pipeline_decodes(tiny_model: TinyModel) -> None:
    (ours,) = tiny_model.sampler.run([tiny_model.trajectory(guidance_scale=1.0)])
    vae = tiny_model.pipeline.vae
    with torch.no_grad():
        latents = tiny_model.call(PROMPTS[:1], 1.0, tiny_model.noise(1))
        values = vae.decode(latents / vae.config.scaling_factor + (vae_shift(vae) or 0.0), return_dict=False)[0][0]
    expected = ((values / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - expected).max() <= 1


def vae_shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def same(one: Finished, other: Finished) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


def picture(seed: int = 0, side: int = RESOLUTION) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def classifier_of(tiny_model: TinyModel) -> LatentClassifier:
    made = new_classifier("mlp", tiny_model.model.latent_shape, torch.Generator().manual_seed(3))
    return made.requires_grad_(False).eval()


def test_neighbours_change_no_bit(tiny_model: TinyModel) -> None:
    sampler, of = tiny_model.sampler, tiny_model.trajectory
    guidance = ClassifierGuidance(classifier_digest="c", scale=5.0)
    mixed = [
        (of(), Given()),
        (of("", guidance_scale=1.0, steps=3), Given()),
        (of(PROMPTS[1], eta=1.34, steps=4), Given()),
        (
            of(inpainting=Inpainting(picture_digest="p", mask_share=0.5)),
            Given(picture=picture(side=tiny_model.tiny.resolution)),
        ),
        (of("a blue ring", classifier_guidance=guidance), Given(classifier=classifier_of(tiny_model))),
        (of(PROMPTS[1], guidance_scale=1.0, stop_step=2, latent_seed=9), Given()),
    ]
    alone = [sampler.run([one], given=[given])[0] for one, given in mixed]
    assert not any(one.failure for one in alone)
    for order in ([0, 1, 2, 3, 4, 5], [4, 5, 2, 0, 3, 1]):
        together = sampler.run([mixed[place][0] for place in order], given=[mixed[place][1] for place in order])
        assert all(same(found, alone[place]) for place, found in zip(order, together, strict=True))
    # Each option has an effect.
    assert not any(torch.equal(one.latents, two.latents) for i, one in enumerate(alone) for two in alone[:i])


def test_its_graph_says_what_its_modules_say_and_neighbours_change_no_bit(tiny_model: TinyModel) -> None:
    sampler = tiny_model.graph_sampler
    assert sampler.model.graph is not None
    assert sampler.model.decoder is not None
    asked = [tiny_model.trajectory(text, latent_seed=seed, eta=seed % 2) for seed, text in enumerate(PROMPTS)]
    together, by_modules = sampler.run(asked), tiny_model.sampler.run(asked)
    for place, (ours, theirs) in enumerate(zip(together, by_modules, strict=True)):
        torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-4)
        assert same(ours, sampler.run([asked[place]])[0])


def test_fewer_rows_give_the_same_bits(tiny_model: TinyModel) -> None:
    model = tiny_model.model
    given = [tiny_model.trajectory(latent_seed=7), tiny_model.trajectory(PROMPTS[1], guidance_scale=1.0)]
    rows = fewer_rows.fewest_rows(model, 2, 12, tiny_model.encoded(PROMPTS))
    assert rows in (2, 12)
    few, full = Sampler(model, batch_rows=12), Sampler(model, batch_rows=12, in_full=True)
    for one in given:
        assert same(few.run([one])[0], full.run([one])[0])
        assert few.rows_called in (rows, 12)


@pytest.mark.parametrize("eta", [0.0, 1.34])
@pytest.mark.parametrize("step", [1, 3])
def test_resuming_is_never_having_stopped(tiny_model: TinyModel, eta: float, step: int) -> None:
    sampler, of = tiny_model.sampler, tiny_model.trajectory
    (whole,) = sampler.run([of(eta=eta)])
    (first,) = sampler.run([of(eta=eta, stop_step=step)], picture=False)
    (rest,) = sampler.run([of(eta=eta, resumption=Resumption(latents=to_message(first.latents), step=step))])
    assert same(rest, whole)


def parts_of(kind: str, x: Numbers, output: Numbers, a: float, s: float) -> tuple[Numbers, Numbers]:
    """x0 and e of a model's output at noised latents x."""
    if kind == "epsilon":
        return (x - s * output) / a, output
    if kind == "v_prediction":
        return a * x - s * output, s * x + a * output
    return x - s * output, x + a * output


def slow_loop(
    tiny_model: TinyModel,
    trajectory: Trajectory,
    *,
    changed_noise: Callable[[Numbers, Numbers, float, float], Numbers] | None = None,
    after: Callable[[int, Numbers], Numbers] | None = None,
) -> Numbers:
    """One trajectory by the step of `path`, with times and levels as diffusers' scheduler has them."""
    times, levels = tiny_model.visited(trajectory.steps)
    kind = str(tiny_model.model.prediction)
    x: Numbers = tiny_model.noise(trajectory.latent_seed)[0].double().numpy()
    draws = torch.Generator().manual_seed(trajectory.noise_seed)
    for step, time in enumerate(times):
        (a, s), (a_next, s_next) = levels[step], levels[step + 1]
        output = tiny_model.output(x, time, trajectory.conditioning.text, trajectory.guidance_scale)
        x0, e = parts_of(kind, x, output, a, s)
        # With v and flow, a gradient at pure noise is left out.
        if changed_noise is not None and (kind == "epsilon" or a >= 0.02):
            e = changed_noise(e, x, a, s)
            x0 = (x - s * e) / a
        variance = s_next**2 * (1 - (a * s_next) ** 2 / (a_next * s) ** 2)
        drawn: Any = 0.0
        if trajectory.eta:
            z = torch.randn(tiny_model.model.latent_shape, generator=draws).double().numpy()
            drawn = trajectory.variance_scale * trajectory.eta * math.sqrt(variance) * z
        x = a_next * x0 + math.sqrt(abs(s_next**2 - trajectory.eta**2 * variance)) * e + drawn
        if after is not None:
            x = after(step, x)
    return x


def assert_equal(found: Finished, expected: Numbers) -> None:
    torch.testing.assert_close(found.latents.double(), torch.from_numpy(expected), rtol=2e-4, atol=5e-4)


@pytest.mark.parametrize(("eta", "variance_scale"), [(0.0, 1.0), (1.0, 1.0), (1.34, 0.8)])
def test_the_noise_based_step_is_its_formula(tiny_model: TinyModel, eta: float, variance_scale: float) -> None:
    trajectory = tiny_model.trajectory(PROMPTS[1], eta=eta, variance_scale=variance_scale)
    (ours,) = tiny_model.sampler.run([trajectory])
    assert_equal(ours, slow_loop(tiny_model, trajectory))


def test_inpainting_is_its_formula(tiny_model: TinyModel) -> None:
    """Around the mask stands a' y + s' n after each step, with the clean latents y and the initial noise n."""
    inpainting = Inpainting(picture_digest="p", mask_share=0.5)
    trajectory = tiny_model.trajectory(latent_seed=5, eta=1.0, inpainting=inpainting)
    (ours,) = tiny_model.sampler.run([trajectory], given=[Given(picture=picture(side=tiny_model.tiny.resolution))])
    y: Numbers = clean_latents(tiny_model, picture(side=tiny_model.tiny.resolution))[0].double().numpy()
    n: Numbers = tiny_model.noise(5)[0].double().numpy()
    _, levels = tiny_model.visited(STEPS)
    side = y.shape[-1]
    m = np.zeros((side, side))
    m[side // 4 : side - side // 4, side // 4 : side - side // 4] = 1

    def around(step: int, x: Numbers) -> Numbers:
        a, s = levels[step + 1] if step + 1 < STEPS else (1.0, 0.0)
        return m * x + (1 - m) * (a * y + s * n)

    assert_equal(ours, slow_loop(tiny_model, trajectory, after=around))


def clean_latents(tiny_model: TinyModel, shown: NDArray[np.uint8]) -> torch.Tensor:
    """The latents of a picture, by diffusers' own parts."""
    vae, processor = tiny_model.pipeline.vae, tiny_model.pipeline.image_processor
    with torch.no_grad():
        encoded = vae.encode(processor.preprocess(shown[None].astype(np.float32) / 255), return_dict=False)[0]
    mode: torch.Tensor = encoded.mode() if hasattr(encoded, "mode") and not torch.is_tensor(encoded) else encoded
    return (mode - vae_shift(vae)) * vae.config.scaling_factor


def test_latents_of_pictures_are_those_of_diffusers(tiny_model: TinyModel) -> None:
    shown = picture(4, tiny_model.tiny.resolution)
    found = pictures.encode(tiny_model.model, [shown], 2)[0]
    torch.testing.assert_close(found, clean_latents(tiny_model, shown)[0], rtol=1e-5, atol=1e-5)


def test_classifier_guidance_is_its_formula(tiny_model: TinyModel) -> None:
    """e <- e - s scale grad log p."""
    classifier, scale = classifier_of(tiny_model), 30.0
    guidance = ClassifierGuidance(classifier_digest="c", scale=scale)
    trajectory = tiny_model.trajectory(classifier_guidance=guidance)
    (ours,) = tiny_model.sampler.run([trajectory], given=[Given(classifier=classifier)])

    def guided(e: Numbers, x: Numbers, a: float, s: float) -> Numbers:
        level = Level(torch.tensor([a]), torch.tensor([s]))
        gradient = log_probability_gradient(classifier, torch.from_numpy(x).float()[None], level)
        return e - s * scale * gradient[0].double().numpy()

    assert_equal(ours, slow_loop(tiny_model, trajectory, changed_noise=guided))
    assert np.abs(slow_loop(tiny_model, tiny_model.trajectory()) - ours.latents.numpy()).max() > 0.01


def finish(errors: Any) -> Numbers:
    while True:
        try:
            next(errors)
        except StopIteration as stop:
            found: Numbers = stop.value
            return found


def test_the_training_error_is_that_of_a_slow_loop(tiny_model: TinyModel) -> None:
    model, timesteps, texts = tiny_model.model, [3, 500, 999], ["", *PROMPTS]
    side = tiny_model.tiny.resolution
    shown, digests = [picture(1, side), picture(2, side)], ["aa", "bb"]
    encodings = [tiny_model.encoded([text])[0] for text in texts]
    errors = finish(measure_denoising(model, shown, digests, encodings, timesteps, 7, batch_rows=ROWS, decode_batch=2))
    for i, given in enumerate(shown):
        y: Numbers = clean_latents(tiny_model, given)[0].double().numpy()
        for k, timestep in enumerate(timesteps):
            (a, s), time = tiny_model.trained_at(timestep)
            draw = torch.Generator().manual_seed(derive_seed(7, digests[i], timestep))
            n: Numbers = torch.randn(model.latent_shape, generator=draw).double().numpy()
            target = {"epsilon": n, "v_prediction": a * n - s * y}.get(str(model.prediction), n - y)
            for j, text in enumerate(texts):
                output = tiny_model.output(a * y + s * n, time, text, 1.0)
                assert errors[i, j, k] == pytest.approx(((target - output) ** 2).mean(), rel=1e-3)
