"""A concept's known pictures: attacks learn from the first half, and the second half is held out.

The error on pictures x with latents z, with the same noise and timesteps for every model, is

    L(x, c) = mean over t of mean over elements of (eps - eps_theta(sqrt(a_t) z + sqrt(1 - a_t) eps, t, c))^2

with c the first prompt of the picture's own concept ("loss_prompt") or the empty prompt ("loss_empty"), and t the
midpoints of equal parts of the training schedule.
"""

from collections.abc import Sequence

import numpy as np

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Case, Concept, Observation
from unerase_backend.catalogue.kinds import alike
from unerase_backend.catalogue.schedules import TRAINING_TIMESTEPS
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.prompts import SLOT, templates
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed


def learnable(concept: Concept, most: int | None = None) -> list[str]:
    """Return at most `most` of the pictures that an attack may learn from, evenly spread; all of them by default.

    Raises:
        InvalidRequestError: the concept has fewer than two pictures.
    """
    half = len(concept.picture_digests) // 2
    if not half:
        description = "must hold at least two pictures: the attack learns from half of them"
        raise InvalidRequestError.of(FieldViolation("unit.target.concept.picture_digests", description))
    return _spread(concept.picture_digests[:half], most)


def held_out(concept: Concept, most: int) -> list[str]:
    """Return at most `most` of the held-out pictures, evenly spread; empty if there are none."""
    return _spread(concept.picture_digests[len(concept.picture_digests) // 2 :], most)


def held_out_by_case(unit: Unit) -> list[tuple[Case, str]]:
    """Return each case with a held-out picture of the unit's concept; empty if there are none.

    Case i gets the i-th picture in an order that the seed base draws, over and over, however the cases are divided into
    units.
    """
    concept = unit.target.concept
    digests = held_out(concept, len(concept.picture_digests))
    digests.sort(key=lambda digest: derive_seed(unit.seed_base, "held-out picture", digest))
    return [(case, digests[case.index % len(digests)]) for case in unit.cases] if digests else []


def own_prompt(concept: Concept) -> str:
    """Return the first prompt of a concept that names it.

    Raises:
        InvalidRequestError: it has no prompt.
    """
    if not concept.prompts:
        problem = f"must be given; {concept.name!r} has none"
        raise InvalidRequestError.of(FieldViolation("unit.target.concept.prompts", problem))
    return templates(concept)[0].replace(SLOT, concept.names[0])


async def observe_losses(
    unit: Unit,
    models: Models,
    model: str,
    *,
    timesteps: int,
    pictures: int,
    other_pictures: int,
    arms: tuple[str, str],
    changes: Sequence[ModelChange] = (),
) -> list[Observation]:
    """Measure held-out pictures of the concept, and of others of its kind, under their own prompt and the empty one.

    `pictures` and `other_pictures` are the most pictures of the concept and of each other one, `timesteps` the number
    of points of the grid, and `arms` the arms for the concept's pictures and for the others'. Concepts of another kind
    are left out, because their pictures may show the concept: a red thing may be the erased object.

    Raises:
        InvalidRequestError: the concept has no held-out picture.
    """
    concept = unit.target.concept
    groups = [(arms[0], concept, held_out(concept, pictures))]
    if not groups[0][2]:
        description = "must hold at least two pictures: half of them are held out"
        raise InvalidRequestError.of(FieldViolation("unit.target.concept.picture_digests", description))
    for other in alike(concept, unit.others):
        groups.append((arms[1], other.concept, held_out(other.concept, other_pictures)))
    grid = [int((point + 0.5) * TRAINING_TIMESTEPS / timesteps) for point in range(timesteps)]
    noise_seed = derive_seed(unit.seed_base, "likelihood")
    observations: list[Observation] = []
    for arm, pictured, digests in groups:
        if not digests:
            continue
        prompt = own_prompt(pictured)
        errors = await models.measure_denoising(model, digests, ["", prompt], grid, noise_seed, changes=changes)
        for digest, (empty, prompted) in zip(digests, errors.mean(axis=2), strict=True):
            observation = Observation(
                evaluation=unit.evaluation,
                role=unit.role,
                model=unit.model,
                concept=pictured.name,
                case_index=len(observations),
                arm=arm,
                status=SAMPLE_STATUS_SCORED,
                picture_digest=digest,
                prompt=prompt,
                noise_seed=noise_seed,
            )
            if np.isfinite(empty) and np.isfinite(prompted):
                observation.measures.update({"loss_empty": float(empty), "loss_prompt": float(prompted)})
            else:
                observation.status = SAMPLE_STATUS_UNSCORED
                observation.reason = "the noise-prediction error is not finite"
            observations.append(observation)
    return observations


def _spread(digests: Sequence[str], most: int | None) -> list[str]:
    count = len(digests) if most is None else min(most, len(digests))
    return [digests[index * len(digests) // count] for index in range(count)]
