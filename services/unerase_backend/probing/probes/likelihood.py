"""Likelihood: how well does the model know the concept's pictures, and how much does the prompt pull towards them?

The error on held-out pictures x of the concept and of other concepts, with the same noise and timesteps for every
model, is

    L(x, c) = mean over t of mean over elements of (eps - eps_theta(sqrt(a_t) z + sqrt(1 - a_t) eps, t, c))^2

with z the latents of x, c the first prompt of the picture's own concept ("loss_prompt") or the empty prompt
("loss_empty"), and t the midpoints of equal parts of the training schedule (`evaluation/known_pictures.py`). From it
the verdict computes destruction, lost pull and general damage (`verdict/measures.py`). The second half of each
concept's pictures is held out; attacks learn from the first. The other concepts are those of the concept's kind,
because a picture of another kind may show the concept: a red thing may be the erased object.

Source: the two mechanisms of Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013, measured
through the denoising loss, a reweighted bound of the negative log likelihood (Ho et al., arXiv 2006.11239, eq. 14).
Control: the same measure of a model that never learned the concept.
"""

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    RESULT_KIND_LIKELIHOOD,
    Observation,
)
from unerase_backend.evaluation.known_pictures import observe_losses
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe


@probe(
    "likelihood",
    title="Likelihood",
    summary="Noise-prediction errors on held-out pictures: destruction, lost pull and general damage.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    needs=[MODEL_CAPABILITY_UNGUIDED_ROW],
    result=RESULT_KIND_LIKELIHOOD,
    pictures="0",
    rows="2 * timesteps * held_out(pictures, other_pictures)",
    others=True,
    weights_only=True,
    least_pictures=1,
    parameters=[
        parameter("timesteps", "Points of the even grid of timesteps.", 10, minimum=1, maximum=200, integer=True),
        parameter("pictures", "Most pictures of the concept.", 32, minimum=2, maximum=1024, integer=True),
        parameter("other_pictures", "Most pictures of each other concept.", 8, minimum=1, maximum=1024, integer=True),
    ],
    required=True,
)
async def likelihood(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Measure every held-out picture under its concept's prompt and under the empty prompt."""
    return await observe_losses(
        unit,
        models,
        unit.model,
        timesteps=parameters["timesteps"],
        pictures=parameters["pictures"],
        other_pictures=parameters["other_pictures"],
        arms=("concept", "other"),
    )
