"""Guidance by a classifier: closed forms, finite differences, diffusers' parts, and the sampler's laws."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import ClassifierGuidance, Inpainting, Resumption, Trajectory
from unerase_backend.diffusion.classifier import (
    ARCHITECTURES,
    ConvolutionalClassifier,
    LatentClassifier,
    MlpClassifier,
    load_classifier,
    log_probability_gradient,
    new_classifier,
    save_classifier,
)
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import InvalidRequestError, UnsafeModelError

TrajectoryOf = Callable[..., Trajectory]
ROWS = 6
SHAPE = (4, 8, 8)


def random_classifier(kind: type[LatentClassifier], seed: int = 3) -> LatentClassifier:
    generator = torch.Generator().manual_seed(seed)
    return new_classifier(kind.architecture, SHAPE, generator).requires_grad_(False)


def logistic(weights: Tensor, bias: float, slope: float) -> MlpClassifier:
    """The regression sigmoid(w x + slope sqrt(a_t) + bias), planted: silu(z) - silu(-z) = z, in both layers."""
    classifier = MlpClassifier(SHAPE)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
        for row, sign in enumerate((1, -1)):
            classifier.of_latents.weight[row] = sign * weights.flatten()
            classifier.of_latents.bias[row] = sign * bias
            classifier.of_time.weight[row, 0] = sign * slope
            classifier.hidden.weight[row, :2] = torch.tensor([sign, -sign])
            classifier.head.weight[0, row] = sign
    return classifier.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) / 8


@pytest.fixture(scope="module")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=ROWS, decode_batch=2)


def guidance(scale: float, classifier: str = "a") -> ClassifierGuidance:
    return ClassifierGuidance(classifier_digest=classifier, scale=scale)


def test_the_planted_regression_is_one(weights: Tensor) -> None:
    latents = torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(2))
    alphas = torch.linspace(0.01, 0.99, 5)
    logits = (latents * weights).flatten(1).sum(1) + 0.7 * alphas.sqrt() - 0.2
    classifier = logistic(weights, -0.2, 0.7)
    level = Level.of_alphas(alphas)
    torch.testing.assert_close(classifier(latents, level), logits)
    expected = (1 - logits.sigmoid())[:, None, None, None] * weights
    torch.testing.assert_close(log_probability_gradient(classifier, latents, level), expected)


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_the_gradient_is_that_of_finite_differences(kind: type[LatentClassifier]) -> None:
    classifier = random_classifier(kind).double()
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn((3, *SHAPE), generator=generator, dtype=torch.float64)
    level = Level.of_alphas(torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64))
    gradient = log_probability_gradient(classifier, latents, level)

    def log_p(shifted: Tensor) -> Tensor:
        return -torch.log1p(torch.exp(-classifier(shifted, level)))

    for _ in range(5):
        direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        slopes = (log_p(latents + 1e-5 * direction) - log_p(latents - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slopes, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("scale", "eta"), [(2.0, 0.0), (25.0, 0.0), (5.0, 1.34)])
def test_a_guided_trajectory_is_the_formula(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf, weights: Tensor, scale: float, eta: float
) -> None:
    """Written out: diffusers' parts, the regression's gradient by hand, the step of the noise-based probe."""
    trajectory = trajectory_of(
        "a red heart", steps=6, latent_seed=9, noise_seed=8, eta=eta, classifier_guidance=guidance(scale)
    )
    (ours,) = sampler.run([trajectory], given=[Given(classifier=logistic(weights, -0.2, 0.7))])
    prompts = pipeline.encode_prompt("a red heart", "cpu", 1, do_classifier_free_guidance=True)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    pipeline.scheduler.set_timesteps(6)
    latents = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(9))
    noise = torch.Generator().manual_seed(8)
    for timestep in pipeline.scheduler.timesteps.tolist():
        earlier = timestep - 1000 // 6
        a_t, a_p = float(alphas[timestep]), float(alphas[max(earlier, 0)])
        with torch.no_grad():
            prompted, empty = (pipeline.unet(latents, timestep, prompt).sample for prompt in prompts)
        e = empty + 3.0 * (prompted - empty)
        logit = float((latents[0] * weights).sum()) + 0.7 * math.sqrt(a_t) - 0.2
        e = e - math.sqrt(1 - a_t) * scale * (1 - 1 / (1 + math.exp(-logit))) * weights
        x0 = (latents - math.sqrt(1 - a_t) * e) / math.sqrt(a_t)
        s2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
        z = torch.randn(SHAPE, generator=noise)
        latents = math.sqrt(a_p) * x0 + math.sqrt(abs(1 - a_p - eta**2 * s2)) * e + eta * math.sqrt(s2) * z
    torch.testing.assert_close(ours.latents, latents[0], rtol=1e-4, atol=2e-4)


@pytest.fixture(scope="module")
def mixed(trajectory_of: TrajectoryOf) -> list[Trajectory]:
    """Guided by either classifier, by both ways of guidance or one, inpainting or not; and plain ones between."""
    return [
        trajectory_of(latent_seed=5, classifier_guidance=guidance(20.0)),
        trajectory_of(latent_seed=5),
        trajectory_of("", guidance_scale=1.0, classifier_guidance=guidance(60.0, "b"), steps=3),
        trajectory_of(eta=1.34, steps=5, classifier_guidance=guidance(60.0)),
        trajectory_of(
            latent_seed=7,
            classifier_guidance=guidance(60.0),
            inpainting=Inpainting(picture_digest="p", mask_share=0.5),
        ),
        trajectory_of("a red heart", guidance_scale=1.0, classifier_guidance=guidance(20.0)),
        trajectory_of("a red heart", guidance_scale=1.0, classifier_guidance=guidance(20.0), stop_step=2),
        trajectory_of("a blue ring", guidance_scale=1.0, classifier_guidance=guidance(40.0)),
    ]


@pytest.fixture(scope="module")
def named(mixed: list[Trajectory]) -> list[Given]:
    classifiers = {"a": random_classifier(ConvolutionalClassifier), "b": random_classifier(MlpClassifier), "": None}
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return [
        Given(
            picture=picture if one.HasField("inpainting") else None,
            classifier=classifiers[one.classifier_guidance.classifier_digest],
        )
        for one in mixed
    ]


@pytest.fixture(scope="module")
def alone(sampler: Sampler, mixed: list[Trajectory], named: list[Given]) -> list[Finished]:
    return [sampler.run([one], given=[names])[0] for one, names in zip(mixed, named, strict=True)]


def same(one: Finished, other: Finished) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


def test_every_option_has_an_effect(alone: list[Finished]) -> None:
    finished = [item.latents for item in alone]
    assert not any(torch.equal(one, two) for index, one in enumerate(finished) for two in finished[:index])


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_company_order_and_start_gives_the_same_bits(
    sampler: Sampler, mixed: list[Trajectory], named: list[Given], alone: list[Finished], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(mixed))))
    delays = {index: data.draw(st.integers(0, 4)) for index in order}
    finished: dict[str, Finished] = {}
    tick = 0
    while len(finished) < len(mixed):
        for index in order:
            if delays[index] == tick:
                sampler.admit(str(index), mixed[index], given=named[index])
        finished |= {item.key: item for item in sampler.tick()}
        tick += 1
    assert all(same(finished[str(index)], alone[index]) for index in order)


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_a_full_batch_of_the_default_shape_keeps_the_law(
    model: DiffusionModel, trajectory_of: TrajectoryOf, kind: type[LatentClassifier]
) -> None:
    sampler, names = Sampler(model), Given(classifier=random_classifier(kind))
    # Unguided by the prompt, so that the classifier is called more than once a step.
    crowd = [
        trajectory_of(latent_seed=seed, steps=2, guidance_scale=1.0, classifier_guidance=guidance(seed))
        for seed in range(1, 61)
    ]
    together = sampler.run(crowd, given=[names] * len(crowd))
    assert all(same(together[place], sampler.run([crowd[place]], given=[names])[0]) for place in (0, 29, 59))


def test_resuming_is_never_having_stopped(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    names = [Given(classifier=random_classifier(ConvolutionalClassifier))]
    (whole,) = sampler.run([trajectory_of(classifier_guidance=guidance(30.0))], given=names)
    (first,) = sampler.run([trajectory_of(classifier_guidance=guidance(30.0), stop_step=2)], given=names)
    resumption = Resumption(latents=to_message(first.latents), step=2)
    (rest,) = sampler.run([trajectory_of(classifier_guidance=guidance(30.0), resumption=resumption)], given=names)
    assert same(rest, whole)


def test_a_gradient_that_is_not_finite_fails_alone(
    sampler: Sampler,
    trajectory_of: TrajectoryOf,
    mixed: list[Trajectory],
    named: list[Given],
    alone: list[Finished],
    weights: Tensor,
) -> None:
    broken = trajectory_of(classifier_guidance=guidance(1.0, "c"))
    # Finite weights whose products are not.
    names = Given(classifier=logistic(weights * 1e38, 0.0, 0.0))
    results = sampler.run([mixed[0], broken, *mixed[1:]], given=[named[0], names, *named[1:]])
    assert results[1].failure == "the latents are not finite"
    assert all(map(same, [results[0], *results[2:]], alone))


def test_a_classifier_of_other_latents_is_refused(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    for classifier in (MlpClassifier((4, 8, 16)), None):
        with pytest.raises(InvalidRequestError) as caught:
            sampler.admit("bad", trajectory_of(classifier_guidance=guidance(1.0)), given=Given(classifier=classifier))
        assert [violation.field for violation in caught.value.violations] == ["classifier_guidance.classifier_digest"]
    assert not sampler.busy


@pytest.mark.parametrize("kind", ARCHITECTURES.values())
def test_weights_travel_bit_for_bit(kind: type[LatentClassifier]) -> None:
    classifier = random_classifier(kind)
    content = save_classifier(classifier)
    assert content == save_classifier(classifier)
    loaded = load_classifier(content, torch.device("cpu"))
    assert type(loaded) is kind
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert save_classifier(loaded) == content
    latents, level = torch.randn((2, *SHAPE)), Level.of_alphas(torch.tensor([0.1, 0.9]))
    assert torch.equal(loaded(latents, level), classifier(latents, level))


def written(tensors: dict[str, Tensor] | None = None, **described: object) -> bytes:
    """A convolutional classifier's file with other tensors or another description."""
    whole = dict(random_classifier(ConvolutionalClassifier).state_dict()) | (tensors or {})
    description = {"architecture": "convolutional", "latent_shape": [4, 8, 8]} | described
    return safetensors.torch.save(whole, {"classifier": json.dumps(description)})


def test_what_is_written_by_hand_loads() -> None:
    assert isinstance(load_classifier(written(), torch.device("cpu")), ConvolutionalClassifier)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",
        json.dumps({}).encode(),
        save_classifier(random_classifier(MlpClassifier))[:-8],
        safetensors.torch.save({"head.bias": torch.zeros(1)}),
        safetensors.torch.save({"head.bias": torch.zeros(1)}, {"classifier": "no JSON"}),
        written(architecture="transformer"),
        written(architecture="mlp"),
        written(latent_shape=[3, 8, 8]),
        written(latent_shape=[4, 8]),
        written(latent_shape="4,8"),
        # A shape that would take terabytes, if it were believed.
        written(architecture="mlp", latent_shape=[4, 1_000_000, 100_000]),
        written({"extra": torch.zeros(1)}),
        written({"head.bias": torch.tensor([float("nan")])}),
        written({"head.bias": torch.zeros(1, dtype=torch.float64)}),
    ],
)
def test_what_is_no_classifier_is_refused(content: bytes) -> None:
    with pytest.raises(UnsafeModelError):
        load_classifier(content, torch.device("cpu"))
