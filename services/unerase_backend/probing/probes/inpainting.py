"""Inpainting: does the concept come back if only the picture around it is given?

A central square is removed from the reference's picture of each case (the case's prompt and latent seed). The model
under evaluation fills it at strength 1, from noise alone, while the rest of the picture is kept. After every step, with
the square's mask m, the picture's latents y, the initial noise n and the cumulative alpha a_p that the step reaches,

    x <- m x + (1 - m) (sqrt(a_p) y + sqrt(1 - a_p) n).

Arm "filled" has the case's prompt and guidance. Arm "empty" is unguided with the empty prompt: it tests only the
unconditional knowledge, which nothing on the text side can hide. Both decide, as in diffusion completion: a concept
that comes back without its prompt is the strongest evidence, and the control gets the same pictures. The judges see
only the square, enlarged to the size of a picture, so that the surroundings cannot influence them. Arms "filled@whole"
and "empty@whole" show them the same pictures whole, and do not decide: judges that know objects at one size do worse on
an enlarged square.

The sides of the square are `mask_shares` of the picture's side, rounded to whole cells of the latents with one cell
left on either side. The square taken is the smallest that hides the concept and in which the judge recognises the
concept in the reference's own picture. A square hides the concept if no judge detects it with the square filled grey
(arm "grey-fill", which does not decide). If the judge recognises the concept in no such square, the largest one that
hides it is taken. A case whose concept no square hides is excluded. Pictures and squares are the same for every model.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (inpainting).
Control: the same pictures and squares, filled by a model that never learned the concept; or, for a placebo, its
held-out pictures in place of the reference's, which the subject fills under the placebo's prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Inpainting, Sample, Trajectory, View
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_INJECTING,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    SAMPLE_STATUS_EXCLUDED,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Observation,
)
from unerase_backend.evaluation.known_pictures import held_out_by_case
from unerase_backend.evaluation.models import JUDGE, Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.pictures import square_margin

FILLED, EMPTY, GREY_FILL = "filled", "empty", "grey-fill"
WHOLE = "@whole"


@dataclass
class _Masked:
    """A case's picture, and the square removed from it as a share of its side; 0 if no square hides the concept."""

    sample: Sample
    share: float = 0.0
    # The picture with the square filled grey, judged.
    grey: Sample = field(default_factory=Sample)
    # What stands for the draws if the square cannot be filled.
    instead: Sample | None = None


@probe(
    "inpainting",
    title="Inpainting",
    summary="The model fills a square of the reference's picture that hides the concept, with its prompt and none.",
    evaluation_class=EVALUATION_CLASS_INJECTING,
    needs=[MODEL_CAPABILITY_UNGUIDED_ROW],
    pictures="(3 - unit.placebo) * unit.cases",
    rows="unit.cases * unit.steps * ((2 - unit.placebo) * unit.guided + 1) + unit.placebo",
    parameters=[
        parameter(
            "mask_shares",
            "Sides of the square that may be taken, as shares of the picture's.",
            [0.5, 0.625, 0.75, 0.875],
            minimum=0.01,
            maximum=0.99,
        ),
    ],
    deciding_arms=[FILLED, EMPTY],
    cases_per_unit=24,
)
async def inpainting(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Choose each case's square in the reference's picture, then fill all squares together."""
    plain = [_trajectory(unit, case.prompt, guidance_of(unit, case), case.latent_seed) for case in unit.cases]
    if unit.control_kind == CONTROL_KIND_PLACEBO:
        masked = await _held_out(unit, models)
    else:
        masked = [
            _Masked(sample) for sample in await models.generate(unit.reference, plain, pictures=True, latents=True)
        ]
    for item in masked:
        if item.sample.status != SAMPLE_STATUS_SCORED:
            item.instead = _unscored(f"the reference's picture failed: {item.sample.reason}")
    await _choose(unit, models, [item for item in masked if not item.instead], parameters["mask_shares"])

    draws = []
    for case, item in zip(unit.cases, masked, strict=True):
        for arm, prompt, guidance_scale in ((FILLED, case.prompt, guidance_of(unit, case)), (EMPTY, "", 1.0)):
            trajectory = _trajectory(unit, prompt, guidance_scale, case.latent_seed)
            trajectory.inpainting.CopyFrom(Inpainting(picture_digest=item.sample.picture_digest, mask_share=item.share))
            draws.append((case, arm, prompt, trajectory, item))
    fillable = [trajectory for *_, trajectory, item in draws if not item.instead]
    filled = iter(await models.generate(unit.model, fillable, panel(unit.target)) if fillable else [])
    samples = [item.instead or next(filled) for *_, item in draws]
    whole = await _judged(unit, models, samples)
    observations = []
    for (case, arm, prompt, trajectory, _), sample, seen_whole in zip(draws, samples, whole, strict=True):
        for judged_as, judged in ((arm, sample), (arm + WHOLE, seen_whole)):
            observations.append(observe(unit, judged, trajectory, case_index=case.index, prompt=prompt, arm=judged_as))
    for case, trajectory, item in zip(unit.cases, plain, masked, strict=True):
        grey = item.instead or item.grey
        observations.append(observe(unit, grey, trajectory, case_index=case.index, prompt=case.prompt, arm=GREY_FILL))
    return observations


async def _held_out(unit: Unit, models: Models) -> list[_Masked]:
    """Return a held-out picture for each case, as if the reference had made it.

    Raises:
        InvalidRequestError: the concept has no held-out picture.
    """
    pictures = held_out_by_case(unit)
    if not pictures:
        description = "must hold at least two pictures: squares of the held-out half are filled"
        raise InvalidRequestError.of(FieldViolation("unit.target.concept.picture_digests", description))
    # One step of anything tells the shape of the latents, in whose cells squares are measured.
    step = _trajectory(unit, "", 1.0, pictures[0][0].latent_seed)
    step.stop_step = 1
    (shape,) = await models.generate(unit.reference, [step], latents=True)
    return [
        _Masked(Sample(status=shape.status, reason=shape.reason, picture_digest=digest, latents=shape.latents))
        for _, digest in pictures
    ]


async def _choose(unit: Unit, models: Models, masked: Sequence[_Masked], mask_shares: Sequence[float]) -> None:
    """Choose each picture's square, trying the smallest first, or record why it has none."""
    if not masked:
        return
    questions, digests = panel(unit.target), [item.sample.picture_digest for item in masked]
    settled = [False] * len(masked)
    for share in _whole_cells(mask_shares, masked[0].sample.latents.shape[-1]):
        greys = await models.classify(digests, questions, View(grey_share=share))
        crops = await models.classify(digests, questions, View(crop_share=share))
        for place, (item, grey, crop) in enumerate(zip(masked, greys, crops, strict=True)):
            if settled[place]:
                continue
            blind = next((each for each in (grey, crop) if each.status != SAMPLE_STATUS_SCORED), None)
            if blind is not None:
                item.instead, settled[place] = _unscored(f"a square could not be judged: {blind.reason}"), True
            elif not any(judgement.detected for judgement in grey.judgements):
                # The digest is that of the whole picture: the one with the grey square is never stored.
                item.share, item.grey = share, _sample(grey, item.sample.picture_digest)
                settled[place] = crop.judgements[JUDGE].detected
    for item in masked:
        if not item.share and item.instead is None:
            reason = "no square hides the concept: it is detected in the picture with the square grey"
            item.instead = Sample(status=SAMPLE_STATUS_EXCLUDED, reason=reason)


def _whole_cells(mask_shares: Sequence[float], cells: int) -> list[float]:
    """Return the shares in ascending order, rounded outward to whole cells, with one cell left on either side."""
    margins = {max(1, square_margin(cells, share)) for share in mask_shares}
    return [(cells - 2 * margin) / cells for margin in sorted(margins, reverse=True) if 2 * margin < cells]


def _trajectory(unit: Unit, prompt: str, guidance_scale: float, latent_seed: int) -> Trajectory:
    return Trajectory(
        conditioning=Conditioning(text=prompt),
        guidance_scale=guidance_scale,
        latent_seed=latent_seed,
        steps=unit.steps,
        variance_scale=1.0,
    )


async def _judged(unit: Unit, models: Models, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with their whole pictures judged; samples that failed are unchanged."""
    digests = [sample.picture_digest for sample in samples if sample.status == SAMPLE_STATUS_SCORED]
    judged = iter(await models.classify(digests, panel(unit.target)) if digests else [])
    return [
        _sample(next(judged), sample.picture_digest) if sample.status == SAMPLE_STATUS_SCORED else sample
        for sample in samples
    ]


def _sample(judged: PictureJudgements, picture_digest: str) -> Sample:
    return Sample(
        status=judged.status, reason=judged.reason, judgements=judged.judgements, picture_digest=picture_digest
    )


def _unscored(reason: str) -> Sample:
    return Sample(status=SAMPLE_STATUS_UNSCORED, reason=reason)
