"""What an evaluation is handed: pictures, encodings, errors and judgements of models that it only knows by name.

The same class serves in production (over Serve handles) and in tests (over the engines themselves): it needs four
callables and does not know what is behind them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Models:
    """The backends of an evaluation."""

    generate_stream: Callable[[GenerateRequest], AsyncIterator[GenerateResponse]]
    encode_prompts: Callable[[EncodeRequest], Awaitable[EncodeResponse]]
    measure: Callable[[MeasureDenoisingRequest], Awaitable[MeasureDenoisingResponse]]
    classify_pictures: Callable[[ClassifyRequest], Awaitable[ClassifyResponse]]

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

        A picture that fails is an unscored sample, not an error. `pictures` keeps the pictures without asking a judge;
        `latents` returns the latents where each trajectory stopped; `changes` are made of the model before.
        """
        request = GenerateRequest(
            model=model,
            trajectories=trajectories,
            questions=questions,
            pictures=pictures,
            latents=latents,
            changes=changes,
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
        """Return mean-square noise-prediction errors, shape (pictures, prompts, timesteps).

        `changes` are made of the model before.
        """
        response = await self.measure(
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

        `view` says what is shown of them; the CLIP judge `embedding_judge` embeds them as well.
        """
        response = await self.classify_pictures(
            ClassifyRequest(
                picture_digests=picture_digests, questions=questions, view=view, embedding_judge=embedding_judge
            )
        )
        return list(response.pictures)


SELECTOR, JUDGE = 0, 1
"""The places of the judgements that rooms look at, among the three of an observation."""


def panel(target: Target) -> list[Question]:
    """Return the three questions about a concept in the order in which observations keep the judgements."""
    return [target.selector, target.judge, target.second_judge]
