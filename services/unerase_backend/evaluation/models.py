"""The backends that an evaluation calls for pictures, encodings, errors and judgements; it knows models by name only.

Production and tests use the same class, over Serve handles or over the engines themselves: it needs four callables and
does not know what is behind them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import (
    EncodedPrompt,
    EncodeRequest,
    EncodeResponse,
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Sample, Target, Trajectory, View
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import MODEL_ACCESS_DEPLOYED

Request = TypeVar("Request", GenerateRequest, MeasureDenoisingRequest)


@dataclass(frozen=True)
class Models:
    """The backends of an evaluation."""

    generate_stream: Callable[[GenerateRequest], AsyncIterator[GenerateResponse]]
    encode_prompts: Callable[[EncodeRequest], Awaitable[EncodeResponse]]
    measure_pictures: Callable[[MeasureDenoisingRequest], Awaitable[MeasureDenoisingResponse]]
    classify_pictures: Callable[[ClassifyRequest], Awaitable[ClassifyResponse]]
    deployed: str = ""
    """The model that makes its pictures with its guards; all others are used without, and this one elsewhere too."""

    def of(self, unit: Unit) -> "Models":
        """Return the backends for a unit: of a deployed subject, the subject's pictures are made with its guards.

        Its models are stepped by the schedule that it names.
        """
        deployed = unit.model if unit.access == MODEL_ACCESS_DEPLOYED else ""
        return replace(self, deployed=deployed).stepped_by(unit.schedule_of)

    def stepped_by(self, model: str) -> "Models":
        """Return these backends with every other model stepped by the schedule of `model`; empty: each by its own.

        The reference of an audit gives the schedule, and evaluations need not know of it.
        """
        if not model:
            return self
        change = ModelChange(schedule_of=model)

        def stepped(request: Request) -> Request:
            if request.model == model:
                return request
            changed = type(request)()
            changed.CopyFrom(request)
            changed.changes.append(change)
            return changed

        return replace(
            self,
            generate_stream=lambda request: self.generate_stream(stepped(request)),
            measure_pictures=lambda request: self.measure_pictures(stepped(request)),
        )

    async def generate(
        self,
        model: str,
        trajectories: Sequence[Trajectory],
        questions: Sequence[Question] = (),
        *,
        pictures: bool = False,
        latents: bool = False,
        changes: Sequence[ModelChange] = (),
    ) -> list[Sample]:
        """Run trajectories and return their samples, in order of the trajectories.

        A picture that fails is an unscored sample, and one that a guard keeps back is withheld; neither is an error.
        `pictures` keeps the pictures without judging them, `latents` returns the latents at which each trajectory
        stopped, and `changes` are applied to the model first.
        """
        request = GenerateRequest(
            model=model,
            trajectories=trajectories,
            questions=questions,
            pictures=pictures,
            latents=latents,
            changes=changes,
            guarded=bool(self.deployed) and model == self.deployed,
        )
        samples: dict[int, Sample] = {}
        async for response in self.generate_stream(request):
            samples[response.index] = response.sample
        return [samples[index] for index in range(len(trajectories))]

    async def encode(self, model: str, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Encode prompts with the text encoder of `model`, in order."""
        response = await self.encode_prompts(EncodeRequest(model=model, prompts=prompts))
        return list(response.prompts)

    async def measure_denoising(
        self,
        model: str,
        picture_digests: Sequence[str],
        prompts: Sequence[str],
        timesteps: Sequence[int],
        noise_seed: int,
        *,
        changes: Sequence[ModelChange] = (),
    ) -> NDArray[np.float64]:
        """Return mean-square errors of what the model predicts, shape (pictures, prompts, timesteps).

        `changes` are applied to the model first.
        """
        response = await self.measure_pictures(
            MeasureDenoisingRequest(
                model=model,
                picture_digests=picture_digests,
                prompts=prompts,
                timesteps=timesteps,
                noise_seed=noise_seed,
                changes=changes,
            )
        )
        errors = np.full((len(picture_digests), len(prompts), len(timesteps)), np.nan)
        for item in response.errors:
            errors[item.picture, item.prompt] = item.errors
        return errors

    async def classify(
        self,
        picture_digests: Sequence[str],
        questions: Sequence[Question],
        view: View | None = None,
        *,
        embedding_judge: str = "",
    ) -> list[PictureJudgements]:
        """Judge pictures of the artefact store, in order.

        `view` says which part of each picture the judges see. The CLIP judge `embedding_judge` also embeds it.
        """
        response = await self.classify_pictures(
            ClassifyRequest(
                picture_digests=picture_digests, questions=questions, view=view, embedding_judge=embedding_judge
            )
        )
        return list(response.pictures)


SELECTOR, JUDGE = 0, 1
"""Indices into the three judgements of an observation."""

UNGUIDED = 1.0
"""The guidance scale that uses the prediction under the one prompt unchanged."""


def panel(target: Target) -> list[Question]:
    """Return the three questions about a concept, in the order of an observation's judgements."""
    return [target.selector, target.judge, target.second_judge]
