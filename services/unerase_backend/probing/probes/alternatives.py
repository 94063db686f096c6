"""Alternatives: what does the model make instead when asked for the concept by name?

The pictures are those of the standard prompt, and further draws of the same prompts if there is more than one draw a
case. Each picture gets the judge's label (`evaluation/label_assignment.py`), the cosine between picture and text for
every concept of the catalogue ("similarity:<concept>", by the first CLIP judge among the three), and its mean cosine
distance to the other pictures,

    distance_i = mean over j != i of (1 - <v_i, v_j>),    v the CLIP embedding of length 1.

From these the verdict computes the distribution of the labels with its entropy, the nearest concepts, and the
dispersion (`verdict/alternatives.py`). Without a CLIP judge there are only labels.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (alternative generations).
Control: the same prompts and latents on a model that never learned the concept, and on the reference as well.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    RESULT_KIND_ALTERNATIVES,
    SAMPLE_STATUS_SCORED,
    Observation,
    Tensor,
)
from unerase_backend.evaluation.label_assignment import QUESTIONS_AT_ONCE, assign_labels, unscore
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed


@probe(
    "alternatives",
    title="Alternatives",
    summary="What stands in the concept's place under its plain prompt: labels, near concepts, and their spread.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    result=RESULT_KIND_ALTERNATIVES,
    pictures="unit.cases * draws",
    rows="draws * unit.cases * unit.steps * unit.guided",
    others=True,
    parameters=[parameter("draws", "Pictures for each case.", 1, minimum=1, maximum=8, integer=True)],
)
async def alternatives(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Make the pictures, then compare each with the texts of the concepts and with the other pictures."""
    draws = [(case, variant) for case in unit.cases for variant in range(parameters["draws"])]
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=case.prompt),
            guidance_scale=guidance_of(unit, case),
            # The first draw is the standard prompt's picture, so that it is made only once.
            latent_seed=derive_seed(unit.seed_base, "alternatives", case.index, variant)
            if variant
            else case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case, variant in draws
    ]
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    observations = [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt, variant=variant)
        for (case, variant), trajectory, sample in zip(draws, trajectories, samples, strict=True)
    ]
    await assign_labels(unit, models, observations)
    place = next((place for place, question in enumerate(panel(unit.target)) if question.alternatives), None)
    scored = [observation for observation in observations if observation.status == SAMPLE_STATUS_SCORED]
    if place is not None and scored:
        texts = {target.concept.name: panel(target)[place] for target in (unit.target, *unit.others)}
        await _compare(models, scored, texts)
    return observations


async def _compare(models: Models, observations: Sequence[Observation], texts: dict[str, Question]) -> None:
    digests = [observation.picture_digest for observation in observations]
    names = list(texts)
    embeddings: list[NDArray[np.float64]] = []
    for start in range(0, len(names), QUESTIONS_AT_ONCE):
        asked = names[start : start + QUESTIONS_AT_ONCE]
        questions = [texts[name] for name in asked]
        seen = await models.classify(digests, questions, embedding_judge=questions[0].judge)
        embeddings = [_values(picture.embedding) for picture in seen]
        for observation, picture in zip(observations, seen, strict=True):
            if picture.status != SAMPLE_STATUS_SCORED:
                unscore(observation, picture.reason)
            elif observation.status == SAMPLE_STATUS_SCORED:
                for name, judgement in zip(asked, picture.judgements, strict=True):
                    observation.measures[f"similarity:{name}"] = judgement.similarity
    whole = [index for index, observation in enumerate(observations) if observation.status == SAMPLE_STATUS_SCORED]
    # A single picture has no distance to others.
    if len(whole) > 1:
        distances = mean_distances(np.stack([embeddings[index] for index in whole]))
        for index, distance in zip(whole, distances.tolist(), strict=True):
            observations[index].measures["distance"] = distance


def mean_distances(embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's mean cosine distance to the others, (pictures, width) -> (pictures,)."""
    # Embeddings rounded to float32 have a length of only nearly 1.
    vectors = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (vectors * vectors.sum(axis=0)).sum(axis=1) - 1
    distances: NDArray[np.float64] = 1 - cosines / (len(vectors) - 1)
    return distances


def _values(tensor: Tensor) -> NDArray[np.float64]:
    return np.frombuffer(tensor.values, dtype="<f4").astype(np.float64)
