"""Published code's side of the bench computes what the backend computes, and as often as the audit's cost says."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench.published_attacks import TEMPLATES, Inversion, TokenAttack
from bench.published_counts import counts_of, seconds_of
from bench.published_loop import OPERATIONS, PublishedLoop
from bench.published_time import CLIP, CONCEPT, MODEL
from support.backend import own_evaluations
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Inpainting, Resumption, Trajectory
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase_backend.attack.prompts import gradients
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.diffusion.conditioning import encode, tokenise_learned, tokenise_searched
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.seeds import derive_seed

STEPS = 10
PROMPT = "a picture of a hourglass"
# Levels of 0 to 255: roundings add up over the steps.
CLOSE = 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> PublishedLoop:
    store = tmp_path_factory.mktemp("store")
    return PublishedLoop.of_catalogue(Catalogue.load(), MODEL, CONCEPT, CLIP, store, pictures=4, steps=STEPS)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return load_model(Catalogue.load(), MODEL, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=8, decode_batch=2)


def trajectory(text: str = PROMPT, guidance_scale: float = 3.0, **fields: Any) -> Trajectory:
    return Trajectory(
        conditioning=Conditioning(text=text),
        guidance_scale=guidance_scale,
        steps=STEPS,
        **{"latent_seed": 5, "variance_scale": 1.0, **fields},
    )


def apart(one: Any, other: Any) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_plain_pictures(loop: PublishedLoop, sampler: Sampler) -> None:
    guided, unguided = sampler.run([trajectory(), trajectory("", 1.0)])
    assert apart(loop.picture(PROMPT, 5, 3.0), guided.picture) <= CLOSE
    assert apart(loop.picture("", 5, 1.0), unguided.picture) <= CLOSE


def test_stochastic_pictures(loop: PublishedLoop, sampler: Sampler) -> None:
    # Beyond 1, eta squared exceeds what is left of the variance.
    (noisy,) = sampler.run([trajectory(eta=1.85, variance_scale=1.04, noise_seed=7)])
    assert apart(loop.noisy(PROMPT, 5, 7, 1.85, 1.04), noisy.picture) <= CLOSE


def test_completed_pictures(loop: PublishedLoop, sampler: Sampler) -> None:
    (begun,) = sampler.run([trajectory(stop_step=2)], picture=False)
    known = loop.material.pictures[0]
    for resumption, picture in (
        (Resumption(latents=to_message(begun.latents), step=2), None),
        (Resumption(picture_digest="known", step=2), known),
    ):
        made = sampler.run(
            [
                trajectory(resumption=resumption),
                trajectory("", 1.0, resumption=resumption),
                trajectory("", 1.0, resumption=resumption, stop_step=3, estimate=True),
            ],
            given=[Given(beginning=picture)] * 3,
        )
        ours = [finished.picture for finished in made]
        assert max(map(apart, loop.completed(PROMPT, 5, 2, picture), ours)) <= CLOSE


def test_inpainted_pictures(loop: PublishedLoop, sampler: Sampler) -> None:
    known = loop.material.pictures[1]
    inpainting = Inpainting(picture_digest="square", mask_share=0.75)
    made = sampler.run(
        [trajectory(inpainting=inpainting), trajectory("", 1.0, inpainting=inpainting)],
        given=[Given(picture=known)] * 2,
    )
    ours = [finished.picture for finished in made]
    assert max(map(apart, loop.inpainted(known, PROMPT, 5), ours)) <= CLOSE


def test_denoising_errors(loop: PublishedLoop, model: DiffusionModel) -> None:
    known = loop.material.pictures[2]
    noise = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(derive_seed(3, "known", 450)))
    encoded = encode(model, [Conditioning(text=PROMPT)])
    measuring = measure_denoising(model, [known], ["known"], encoded, [450], 3, batch_rows=2, decode_batch=1)
    while True:
        try:
            next(measuring)
        except StopIteration as ended:
            measured = ended.value
            break
    assert loop.error(loop.encoded(known), PROMPT, 450, noise) == pytest.approx(measured.item(), rel=1e-4)


def test_a_step_of_unlearn_diff_atk(loop: PublishedLoop, model: DiffusionModel) -> None:
    attack = TokenAttack(loop.pipeline, PROMPT, 3)
    clean, noise, timestep = loop.encoded(loop.material.pictures[0]), loop.initial(4), 300
    table = model.text_encoder.get_input_embeddings().weight.detach()
    embeddings = table[[11, 12, 13]].clone().requires_grad_()
    loss = attack.loss(embeddings, clean, noise, timestep)
    (gradient,) = torch.autograd.grad(loss, [embeddings])
    prompt = tokenise_searched(model, 3, model.tokens_of(PROMPT))
    times = torch.tensor([timestep])
    noisy = model.schedule.level_at(times).noised(clean, noise)
    losses, ours = gradients(model, [prompt], embeddings.detach()[None], noisy, times, noise)
    assert loss.item() == pytest.approx(losses.item(), rel=1e-4)
    torch.testing.assert_close(gradient, ours[0], rtol=1e-3, atol=1e-6)
    before = attack.relaxed.detach().clone()
    attack.step(clean, noise, timestep)
    assert not torch.equal(before, attack.relaxed.detach())
    torch.testing.assert_close(attack.relaxed.detach().sum(1), torch.ones(3))


def test_a_step_of_textual_inversion(loop: PublishedLoop, model: DiffusionModel) -> None:
    inversion = Inversion(loop.pipeline, loop.encoded(loop.material.pictures[0]), ("shape", 4), 16)
    ours = [tokenise_learned(model, template.format("<new>"), "<new>", 4) for template in TEMPLATES]
    assert inversion.prompts == [(list(prompt.ids), prompt.learned_at[0]) for prompt in ours]
    before = inversion.embedding.detach().clone()
    assert 0 < inversion.step(1) < 2
    assert not torch.equal(before, inversion.embedding.detach())


@pytest.fixture(scope="module")
def plan() -> Plan:
    descriptions = {name: evaluation.description for name, evaluation in own_evaluations().items()}
    spec = AuditSpec(
        subject="testbed/uce", concept=CONCEPT, battery=Battery(preset="standard"), cases=12, steps=STEPS, seed_base=1
    )
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(spec, Catalogue.load(), ArtifactStore(folder), descriptions, lambda: 1)


def test_the_counts_are_those_of_the_cost(loop: PublishedLoop, plan: Plan) -> None:
    rows: Counter[str] = Counter()
    taken: Counter[str] = Counter()

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[operation] += len(inputs[0])

    hook = loop.pipeline.unet.register_forward_pre_hook(count)
    for operation in OPERATIONS:
        # Two fractions and two kinds of beginnings take turns.
        for index in range(4 if operation == "completed" else 1):
            loop.run(operation, index)
            taken[operation] += 1
    hook.remove()
    needed = counts_of(plan.cost, plan.spec)
    made = seconds_of(needed, {operation: rows[operation] / taken[operation] for operation in OPERATIONS})
    stated = {each.evaluation: each.rows for each in plan.cost.evaluations}
    # The cost states calls as they are padded, the loop steps every case alone: three models, 12 cases, 10 rounds.
    plain = 2 * STEPS * needed["unlearn-diff-atk"]["guided"]
    assert made["unlearn-diff-atk"] - plain == 3 * 12 * 10 * 24 <= stated["unlearn-diff-atk"] - plain
    # The cost states the most, as if each beginning had one step; some have two.
    assert 0.95 * stated["diffusion-completion"] < made["diffusion-completion"] <= stated["diffusion-completion"]
    assert made["alternatives"] == 0
    apart_from = {"unlearn-diff-atk", "diffusion-completion", "alternatives"}
    assert {name: each for name, each in made.items() if name not in apart_from} == {
        name: each for name, each in stated.items() if name not in apart_from
    }
    assert needed["unlearn-diff-atk"]["attacked"] == 3 * 12 * 10 * 24
    assert needed["textual-inversion"]["inverted"] == 3 * 250
