"""Trains the classifier of noised latents that guides a model, on known pictures only.

    minimise  1/2 E over z+ of -log p(concept | x_t, t)  +  1/2 E over z- of -log (1 - p(concept | x_t, t)),
    x_t = a_t z + s_t e

with z+ the latents of the concept's pictures and z- those of other concepts of its kind (the first half of each; the
likelihood and the classifier are measured on the second half), e Gaussian noise, a_t the signal and s_t the spread
(`diffusion/path`). t is drawn as T u^(1/3), u uniform, so that high noise, which decides a trajectory, comes most
often.

From the code that Lu et al. (arXiv 2505.17013) published: the MLP of `diffusion/classifier` with its dropout, AdamW
with weight decay 0.001, gradients clipped to norm 1, the distribution of t, and both classes of equal weight (there by
a weight on the loss, here by drawing as many of each). Ours: the convolutional architecture, stratified u, the learning
rate (theirs is 0.0001) with its cosine schedule, and a fixed number of steps. Theirs makes ten passes over the pictures
and keeps the weights that are best on a validation set.

The classifier uses nothing of an audited model except its VAE. All models with the same VAE are guided by the same
classifier, which is trained once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Concept, Finding
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue.kinds import alike
from unerase_backend.diffusion.classifier import LatentClassifier, new_classifier, save_classifier
from unerase_backend.diffusion.profile import numerics_profile
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed

WEIGHT_DECAY = 1e-3
CLIPPED_NORM = 1.0
TIMESTEP_POWER = 1 / 3
AUC_POINTS = 10
"""Timesteps at which the classifier is measured: the midpoints of equal parts of the schedule."""
LOSSES_KEPT = 100

_PURPOSES = ("weights", "dropout", "positive", "negative", "timestep", "noise")


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    architecture: str
    steps: int
    batch_size: int
    learning_rate: float


def trained_classifier(unit: Unit, workbench: Workbench, recipe: Recipe) -> Finding:
    """Return the result of training: the digest of the weights, losses, and the area under the ROC curve by timestep.

    Call it within `workbench.compute`. A classifier trained before for the same VAE, pictures, recipe, seed and
    numerics is taken from the artefact store. The area is measured on held-out pictures; 0.5 is chance.

    Raises:
        InvalidRequestError: there are too few pictures of the concept or of other concepts.
        CancelledError, DeadlineError: from the workbench, between two steps.
    """
    concepts = [unit.target.concept, *_others(unit)]
    learned, held_out = zip(*(_halves(concept) for concept in concepts), strict=True)
    if not learned[0]:
        raise _bad("unit.target.concept.picture_digests", "must hold at least two pictures: half of them are held out")
    if not any(learned[1:]):
        raise _bad("unit.others", "must hold another concept of the same kind with at least two pictures")
    key = _key(unit, workbench, recipe, concepts)
    content = workbench.recorded(key)
    if content is not None and workbench.kept((found := Finding.FromString(content)).weights_digest):
        return found
    positives, negatives = _latents(workbench, learned)
    classifier, losses = train(unit, workbench, recipe, positives, negatives)
    found = Finding(
        label=recipe.architecture,
        weights_digest=workbench.keep(save_classifier(classifier)),
        losses=losses[:: -(-len(losses) // LOSSES_KEPT)],
        steps=len(losses),
        figures=areas(unit, workbench, classifier, *_latents(workbench, held_out)),
    )
    workbench.record(key, found.SerializeToString(deterministic=True))
    return found


def train(
    unit: Unit, workbench: Workbench, recipe: Recipe, positives: Tensor, negatives: Tensor
) -> tuple[LatentClassifier, list[float]]:
    """Train on latents, (n, channels, height, width); return a classifier in evaluation mode and each step's loss."""
    model = workbench.model
    training = model.schedule.training_timesteps
    draws = {purpose: _generator(unit, purpose) for purpose in _PURPOSES}
    classifier = new_classifier(recipe.architecture, model.latent_shape, draws["weights"]).to(model.device)
    optimiser = torch.optim.AdamW(classifier.parameters(), recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    half = recipe.batch_size // 2
    target = torch.tensor([1.0] * half + [0.0] * half, device=model.device)
    losses: list[float] = []
    for step in range(recipe.steps):
        shown = torch.cat(
            [
                latents[torch.randint(len(latents), (half,), generator=draws[purpose])]
                for purpose, latents in (("positive", positives), ("negative", negatives))
            ]
        )
        # Stratified within each class, so that neither class gets higher noise than the other.
        strata = (torch.arange(half) + torch.rand((2, half), generator=draws["timestep"])) / half
        timesteps = (strata.flatten() ** TIMESTEP_POWER * training).long().clamp(max=training - 1)
        noise = torch.randn(shown.shape, generator=draws["noise"]).to(model.device)
        at = model.schedule.level_at(timesteps.to(model.device))
        logits = classifier(at.noised(shown.to(model.device), noise), at, draws["dropout"])
        loss = functional.binary_cross_entropy_with_logits(logits, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), CLIPPED_NORM)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        workbench.progress(step + 1, recipe.steps, losses[-1])
    return classifier.eval().requires_grad_(False), losses


@torch.no_grad()
def areas(
    unit: Unit, workbench: Workbench, classifier: LatentClassifier, positives: Tensor, negatives: Tensor
) -> dict[str, float]:
    """Return the area under the ROC curve at each timestep, by names such as "auc@550"."""
    model = workbench.model
    training = model.schedule.training_timesteps
    noise = _generator(unit, "held-out noise")
    figures = {}
    for point in range(AUC_POINTS):
        timestep = int((point + 0.5) * training / AUC_POINTS)
        time = torch.tensor(timestep)
        logits = []
        for latents in (positives, negatives):
            at = model.schedule.level_at(time.expand(len(latents)))
            noised = at.noised(latents, torch.randn(latents.shape, generator=noise))
            logits.append(classifier(noised.to(model.device), at.to(model.device)).double().cpu())
        figures[f"auc@{timestep}"] = area_under_curve(*logits)
    return figures


def area_under_curve(positives: Tensor, negatives: Tensor) -> float:
    """Return the share of pairs that the scores, (n,) and (m,), put in the right order; a tie counts half."""
    differences = positives[:, None] - negatives[None, :]
    return float(((differences > 0).double() + (differences == 0).double() / 2).mean())


def _others(unit: Unit) -> list[Concept]:
    return [other.concept for other in alike(unit.target.concept, unit.others)]


def _halves(concept: Concept) -> tuple[Sequence[str], Sequence[str]]:
    half = len(concept.picture_digests) // 2
    return concept.picture_digests[:half], concept.picture_digests[half:] if half else ()


def _latents(workbench: Workbench, digests: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    every = workbench.latents([digest for group in digests for digest in group])
    return every[: len(digests[0])], every[len(digests[0]) :]


def _key(unit: Unit, workbench: Workbench, recipe: Recipe, concepts: Sequence[Concept]) -> str:
    model = workbench.model
    digest = hashlib.sha256()
    profile = numerics_profile(
        model.device, model.dtype, torch.get_num_threads(), recipe.batch_size, workbench.calls.encode_batch, "none"
    )
    pictures = [list(concept.picture_digests) for concept in concepts]
    digest.update(repr((recipe, _seed(unit, "weights"), profile, model.backbone.latent_scale, pictures)).encode())
    for name, tensor in sorted(model.vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    digest.update(model.schedule.identity)
    return digest.hexdigest()


def _seed(unit: Unit, purpose: str) -> int:
    # The seed does not depend on the evaluation: both evaluations that use a classifier share it.
    return derive_seed(unit.seed_base, "classifier", purpose)


def _generator(unit: Unit, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(unit, purpose))


def _bad(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldViolation(field, description))
