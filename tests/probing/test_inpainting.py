"""Inpainting: which square is taken, what is asked for, and what stands for a case that has none."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from support.backend import NEVER, REDIRECTED, REFERENCE, LocalBackend
from support.recording import Recording
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.trajectories_pb2 import View
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    SAMPLE_STATUS_EXCLUDED,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Judgement,
    Observation,
    Tensor,
)
from unerase_backend.evaluation.known_pictures import held_out_by_case
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture

ARMS = {"filled", "filled@whole", "empty", "empty@whole", "grey-fill"}


@dataclass
class Known(Recording):
    """Judges whose answers are given: by share, the pictures that are detected with the square grey, and cropped."""

    cells: int = 64
    greys: dict[float, set[str]] = field(default_factory=dict)
    crops: dict[float, set[str]] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        async for response in super().generate(request):
            sample = response.sample
            if request.latents:
                sample.latents.CopyFrom(Tensor(shape=[4, self.cells, self.cells]))
                sample.picture_digest = f"case {response.index}" if request.pictures else ""
                if response.index in self.failed:
                    response.sample.Clear()
                    response.sample.status, response.sample.reason = SAMPLE_STATUS_UNSCORED, "the latents are gone"
            yield response

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        self.classified.append(request)
        kind = request.view.WhichOneof("kind")
        detected = {None: {}, "grey_share": self.greys, "crop_share": self.crops}[kind]
        share = getattr(request.view, kind) if kind else 0
        pictures = []
        for digest in request.picture_digests:
            # The grey square fools the second judge alone: one is enough.
            places = (2,) if kind == "grey_share" else (1,)
            judgements = [
                Judgement(judge=question.judge, detected=place in places and digest in detected.get(share, set()))
                for place, question in enumerate(request.questions)
            ]
            answer = PictureJudgements(status=SAMPLE_STATUS_SCORED, judgements=judgements)
            if kind == "grey_share" and digest in self.blind:
                answer = PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason="the picture is damaged")
            pictures.append(answer)
        return ClassifyResponse(pictures=pictures)


def of(observations: list[Observation], case: int) -> dict[str, Observation]:
    return {observation.arm: observation for observation in observations if observation.case_index == case}


async def test_each_case_is_filled_with_its_prompt_and_with_none(local: LocalBackend) -> None:
    known = Known(crops={0.5: {"case 0", "case 1"}})
    unit = local.unit("inpainting", cases=2, seed_base=5)
    seen = await known.observe(unit)
    pictures, fills = known.generated
    assert (pictures.model, fills.model) == (REFERENCE, unit.model)
    assert pictures.pictures
    assert not pictures.questions
    for case, trajectory in zip(unit.cases, pictures.trajectories, strict=True):
        assert (trajectory.conditioning.text, trajectory.latent_seed) == (case.prompt, case.latent_seed)
        assert (trajectory.guidance_scale, trajectory.eta) == (unit.guidance_scale, 0)
        assert not trajectory.HasField("inpainting")
    expected = [
        (case.index, prompt, guidance)
        for case in unit.cases
        for prompt, guidance in ((case.prompt, unit.guidance_scale), ("", 1.0))
    ]
    for (case, prompt, guidance), trajectory in zip(expected, fills.trajectories, strict=True):
        assert (trajectory.conditioning.text, trajectory.guidance_scale) == (prompt, guidance)
        assert trajectory.latent_seed == unit.cases[case].latent_seed
        assert (trajectory.inpainting.picture_digest, trajectory.inpainting.mask_share) == (f"case {case}", 0.5)
        assert (trajectory.eta, trajectory.variance_scale, trajectory.steps) == (0, 1, unit.steps)
    assert len(seen) == 10
    for case in range(2):
        arms = of(seen, case)
        assert set(arms) == ARMS
        assert arms["filled"].picture_digest == arms["filled@whole"].picture_digest == f"1/{2 * case}"
        assert arms["empty"].picture_digest == arms["empty@whole"].picture_digest == f"1/{2 * case + 1}"
        assert arms["grey-fill"].picture_digest == f"case {case}"
        assert not any(judgement.detected for judgement in arms["grey-fill"].judgements)


@pytest.mark.parametrize(
    ("greys", "crops", "share"),
    [
        # The smallest that hides it and shows it.
        ({}, {0.5: {"case 0"}, 0.75: {"case 0"}}, 0.5),
        ({}, {0.625: {"case 0"}, 0.75: {"case 0"}}, 0.625),
        ({0.5: {"case 0"}}, {0.5: {"case 0"}, 0.75: {"case 0"}}, 0.75),
        # None shows it: the largest that hides it.
        ({0.5: {"case 0"}}, {}, 0.875),
        ({0.5: {"case 0"}, 0.875: {"case 0"}}, {0.5: {"case 0"}}, 0.75),
        # A square that does not hide it is no choice, whatever larger ones do.
        ({0.625: {"case 0"}}, {0.625: {"case 0"}}, 0.875),
    ],
)
async def test_the_square_is_the_smallest_that_hides_and_shows_the_concept(
    local: LocalBackend, greys: dict[float, set[str]], crops: dict[float, set[str]], share: float
) -> None:
    known = Known(greys=greys, crops=crops)
    await known.observe(local.unit("inpainting", cases=1))
    assert {trajectory.inpainting.mask_share for trajectory in known.generated[1].trajectories} == {share}


async def test_a_case_that_no_square_hides_is_excluded_and_what_fails_is_unscored(local: LocalBackend) -> None:
    everywhere = {share: {"case 1"} for share in (0.5, 0.625, 0.75, 0.875)}
    known = Known(greys=everywhere, blind={"case 2"}, failed={3})
    seen = await known.observe(local.unit("inpainting", cases=5))
    reasons = {
        1: "no square hides the concept: it is detected in the picture with the square grey",
        2: "a square could not be judged: the picture is damaged",
        3: "the reference's picture failed: the latents are gone",
    }
    for case in range(5):
        arms = of(seen, case)
        assert set(arms) == ARMS
        assert {observation.reason for observation in arms.values()} == {reasons.get(case, "")}
        unmade = SAMPLE_STATUS_EXCLUDED if case == 1 else SAMPLE_STATUS_UNSCORED
        expected = unmade if case in reasons else SAMPLE_STATUS_SCORED
        assert {observation.status for observation in arms.values()} == {expected}
        assert not any(observation.judgements for observation in arms.values() if case in reasons)
    filled = [trajectory.inpainting.picture_digest for trajectory in known.generated[1].trajectories]
    assert filled == ["case 0", "case 0", "case 4", "case 4"]


async def test_where_nothing_can_be_filled_nothing_is_asked_for(local: LocalBackend) -> None:
    known = Known(failed={0, 1})
    seen = await known.observe(local.unit("inpainting", cases=2))
    assert len(known.generated) == 1
    assert not known.classified
    assert {observation.status for observation in seen} == {SAMPLE_STATUS_UNSCORED}


@pytest.mark.parametrize(
    ("cells", "given", "taken"),
    [
        (64, [0.875, 0.5, 0.75, 0.625], [0.5, 0.625, 0.75, 0.875]),
        (8, [0.5, 0.625, 0.75, 0.875], [0.5, 0.75]),
        (96, [0.01, 0.3, 0.99], [2 / 96, 30 / 96, 94 / 96]),
        (7, [0.1, 0.5, 0.9], [1 / 7, 5 / 7]),
        (2, [0.5], []),
    ],
)
async def test_squares_are_whole_cells_with_one_left_around(
    local: LocalBackend, cells: int, given: list[float], taken: list[float]
) -> None:
    known = Known(cells=cells)
    await known.observe(local.unit("inpainting", cases=1, parameters={"mask_shares": given}))
    views = [request.view for request in known.classified if request.HasField("view")]
    expected = [view for share in taken for view in (View(grey_share=share), View(crop_share=share))]
    assert views == expected


async def test_every_model_fills_the_same_squares_of_the_same_pictures(local: LocalBackend) -> None:
    one, other = Known(greys={0.5: {"case 1"}}), Known(greys={0.5: {"case 1"}})
    await one.observe(local.unit("inpainting", REFERENCE))
    await other.observe(local.unit("inpainting", NEVER))
    assert [request.trajectories for request in one.generated] == [request.trajectories for request in other.generated]
    assert [request.model for request in other.generated] == [REFERENCE, NEVER]


async def test_a_placebo_is_filled_into_its_own_pictures(local: LocalBackend) -> None:
    unit = local.unit("inpainting", REDIRECTED, cases=3, control_kind=CONTROL_KIND_PLACEBO)
    digests = [digest for _, digest in held_out_by_case(unit)]
    hidden = {share: {digests[1]} for share in (0.5, 0.75)}
    known = Known(cells=8, greys=hidden)
    seen = await known.observe(unit)
    shape, fills = known.generated
    assert (shape.model, fills.model) == (REFERENCE, REDIRECTED)
    assert [(trajectory.guidance_scale, trajectory.stop_step) for trajectory in shape.trajectories] == [(1, 1)]
    assert [trajectory.inpainting.picture_digest for trajectory in fills.trajectories] == [
        digests[case] for case in (0, 2) for _ in ("filled", "empty")
    ]
    assert [trajectory.conditioning.text for trajectory in fills.trajectories[::2]] == [
        unit.cases[case].prompt for case in (0, 2)
    ]
    assert {observation.status for observation in of(seen, 1).values()} == {SAMPLE_STATUS_EXCLUDED}
    assert [of(seen, case)["grey-fill"].picture_digest for case in (0, 2)] == [digests[0], digests[2]]
    assert {observation.concept for observation in seen} == {"fish"}
    unit.target.concept.ClearField("picture_digests")
    with pytest.raises(InvalidRequestError) as caught:
        await Known().observe(unit)
    assert [violation.field for violation in caught.value.violations] == ["unit.target.concept.picture_digests"]


async def test_around_the_square_the_references_picture_stands(local: LocalBackend) -> None:
    """On the testbed: what is stored is whole, and only the square differs from what was given by more than the VAE."""
    unit = local.unit("inpainting", NEVER, steps=6, parameters={"mask_shares": [0.5]})
    seen = await local.observe(unit)
    for case in range(2):
        arms = of(seen, case)
        given = decode_picture(local.store.get(arms["grey-fill"].picture_digest)).astype(int)
        filled = decode_picture(local.store.get(arms["filled"].picture_digest)).astype(int)
        difference = np.abs(given - filled).mean(2)
        # The VAE's decoder reaches some pixels beyond the square.
        assert difference[8:24, 8:24].mean() > 3 * np.concatenate([difference[:4], difference[-4:]]).mean()
