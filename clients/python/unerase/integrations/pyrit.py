"""A model of a backend as a target of PyRIT, and a judge of a backend as a scorer.

`GenerationTarget` sends a prompt and returns the picture; `JudgeScorer` says whether a judge sees a concept in a
picture, whoever made it. Both call internal services of the backend (docs/integrations.md): a backend with tokens asks
for the scopes `generation`, `classification` and `model:read`. The backend is found as by the command: UNERASE_ADDRESS,
UNERASE_TOKEN and others. Needs the extra `pyrit`.
"""

import secrets
from typing import Any

import grpc
from pyrit.memory import data_serializer_factory
from pyrit.models import Message, MessagePiece, Score, construct_response_from_request
from pyrit.prompt_target import PromptTarget, TargetCapabilities, TargetConfiguration
from pyrit.score import MessageTrueFalseScorer, ScorerPromptValidator

from unerase._aio import AsyncClient
from unerase._environment import address_of, settings_from_environment
from unerase._errors import error_of
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.classification_pb2_grpc import ClassificationServiceStub
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.generation_pb2_grpc import GenerationServiceStub
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Trajectory
from unerase.v1.types_pb2 import SampleStatus

CALL_SECONDS = 600.0
"""How long a picture, or a judge's answer, may take: the first one loads a model."""


class UnscoredError(RuntimeError):
    """A picture that could not be made, or that the judge could not score: it is neither a hit nor a miss."""


class GenerationTarget(PromptTarget):
    """Sends each prompt to a model of the backend, and returns the picture as a PNG file in PyRIT's memory.

    What a guard of the model keeps back is a blocked response, as from any service with a filter.
    """

    _DEFAULT_CONFIGURATION = TargetConfiguration(
        capabilities=TargetCapabilities(
            input_modalities=frozenset({frozenset(["text"])}), output_modalities=frozenset({frozenset(["image_path"])})
        )
    )

    def __init__(
        self,
        *,
        model: str,
        address: str | None = None,
        guidance_scale: float | None = None,
        steps: int | None = None,
        seed: int | None = None,
        guarded: bool = True,
        max_requests_per_minute: int | None = None,
        custom_configuration: TargetConfiguration | None = None,
    ) -> None:
        """Prepare a target; nothing is asked yet.

        Args:
            model: Name of the model, as `unerase models` lists it.
            address: HOST:PORT of the backend.
            guidance_scale: Of classifier-free guidance; the model's own if absent.
            steps: Denoising steps; the model's own if absent.
            seed: Of the first picture's noise; each further picture takes the next. Drawn at random if absent.
            guarded: The model's guards act, as for its users.
            max_requests_per_minute: PyRIT's own limit.
            custom_configuration: PyRIT's own.
        """
        self._client = AsyncClient(address_of(address), settings=settings_from_environment())
        self._guidance_scale, self._steps = guidance_scale, steps
        self._next_seed = seed
        self._guarded = guarded
        super().__init__(
            endpoint=address_of(address),
            model_name=model,
            max_requests_per_minute=max_requests_per_minute,
            custom_configuration=custom_configuration,
        )

    def _build_identifier(self) -> Any:
        return self._create_identifier(
            params={"guidance_scale": self._guidance_scale, "steps": self._steps, "guarded": self._guarded}
        )

    async def _send_prompt_to_target_async(self, *, normalized_conversation: list[Message]) -> list[Message]:
        """Return the picture for the last message.

        Raises:
            UneraseError: the backend refuses, or does not answer.
            UnscoredError: the picture could not be made.
        """
        piece = normalized_conversation[-1].message_pieces[0]
        if self._steps is None or self._guidance_scale is None:
            model = await self._client.model(self._model_name)
            self._steps = self._steps or model.steps
            self._guidance_scale = model.guidance_scale if self._guidance_scale is None else self._guidance_scale
        trajectory = Trajectory(
            conditioning=Conditioning(text=piece.converted_value),
            guidance_scale=self._guidance_scale,
            steps=self._steps,
            latent_seed=self._seed(),
            noise_seed=0,
        )
        answer = await self._generate(trajectory)
        said: dict[str, str | int] = {
            "model": self._model_name,
            "latent_seed": str(trajectory.latent_seed),
            "steps": trajectory.steps,
            "guidance_scale": str(trajectory.guidance_scale),
            "picture_digest": answer.sample.picture_digest,
        }
        return [await self._message(piece, answer, said)]

    async def _message(self, piece: MessagePiece, answer: GenerateResponse, said: dict[str, str | int]) -> Message:
        if answer.sample.status == SampleStatus.SAMPLE_STATUS_WITHHELD:
            return construct_response_from_request(
                request=piece,
                response_text_pieces=[answer.sample.reason],
                response_type="error",
                error="blocked",
                prompt_metadata=said,
            )
        if answer.sample.status != SampleStatus.SAMPLE_STATUS_SCORED or not answer.picture:
            raise UnscoredError(f"{self._model_name} made no picture: {answer.sample.reason or 'the answer has none'}")
        file = data_serializer_factory(category="prompt-memory-entries", data_type="image_path", extension="png")
        await file.save_data_async(data=answer.picture)
        return construct_response_from_request(
            request=piece, response_text_pieces=[file.value], response_type="image_path", prompt_metadata=said
        )

    async def _generate(self, trajectory: Trajectory) -> GenerateResponse:
        request = GenerateRequest(
            model=self._model_name,
            trajectories=[trajectory],
            pictures=True,
            picture_bytes=True,
            guarded=self._guarded,
        )
        stub = GenerationServiceStub(self._client._open())
        try:
            async for answer in stub.Generate(request, timeout=CALL_SECONDS, metadata=self._client._metadata()):
                found: GenerateResponse = answer
                return found
        except grpc.RpcError as error:
            raise error_of(error) from None
        raise UnscoredError(f"{self._model_name} made no picture: the answer is empty")

    def _seed(self) -> int:
        if self._next_seed is None:
            return secrets.randbits(63)
        self._next_seed += 1
        return self._next_seed - 1


class JudgeScorer(MessageTrueFalseScorer):
    """True where a judge of the backend sees the concept in a picture.

    A picture that the judge cannot score raises `UnscoredError`: it is not false.
    """

    def __init__(
        self,
        *,
        concept: str,
        judge: str,
        labels: list[str] | None = None,
        alternatives: list[str] | None = None,
        address: str | None = None,
        validator: ScorerPromptValidator | None = None,
    ) -> None:
        """Prepare a scorer; nothing is asked yet.

        Args:
            concept: Name of the concept, as `unerase concepts` lists it.
            judge: Name of the judge, as in `testbed/judge`.
            labels: What the judge calls the concept; absent means what the concept says of this judge.
            alternatives: For a judge that weighs the labels against other texts; absent means the concept's.
            address: HOST:PORT of the backend.
            validator: PyRIT's own; pictures alone unless given.
        """
        self._client = AsyncClient(address_of(address), settings=settings_from_environment())
        self._concept, self._judge = concept, judge
        self._labels, self._alternatives = labels, alternatives
        super().__init__(validator=validator or ScorerPromptValidator(supported_data_types=["image_path"]))

    def _build_identifier(self) -> Any:
        return self._create_identifier(params={"concept": self._concept, "judge": self._judge})

    async def _score_piece_async(self, message_piece: MessagePiece, *, objective: str | None = None) -> list[Score]:
        """Return the judge's answer.

        Raises:
            UneraseError: the backend refuses, or does not answer.
            UnscoredError: the judge could not score the picture.
        """
        file = data_serializer_factory(
            category="prompt-memory-entries", data_type="image_path", value=message_piece.converted_value
        )
        picture = await file.read_data_async()
        request = ClassifyRequest(questions=[await self._question()], pictures=[picture])
        stub = ClassificationServiceStub(self._client._open())
        answer = await self._client._ask(stub.Classify, request, CALL_SECONDS)
        (judged,) = answer.pictures
        if judged.status != SampleStatus.SAMPLE_STATUS_SCORED:
            raise UnscoredError(f"{self._judge} could not score the picture: {judged.reason}")
        (judgement,) = judged.judgements
        sees = "sees" if judgement.detected else "does not see"
        return [
            Score(
                score_value=str(judgement.detected).lower(),
                score_value_description=f"{self._judge} {sees} {self._concept}",
                score_type="true_false",
                score_category=[self._concept],
                score_rationale=f"score {judgement.score:.4f}; its first choice is {judgement.label or 'not known'}",
                score_metadata={"judge": self._judge, "score": judgement.score, "label": judgement.label},
                scorer_class_identifier=self.get_identifier(),
                message_piece_id=message_piece.id,
                objective=objective,
            )
        ]

    async def _question(self) -> Question:
        if self._labels is None:
            known = await self._client.concept(self._concept)
            said = next((each for each in known.labels if each.judge == self._judge), None)
            if said is None:
                raise ValueError(f"the concept {self._concept} has no labels for {self._judge}; give the scorer labels")
            self._labels = list(said.labels)
            if self._alternatives is None:
                self._alternatives = list(said.alternatives)
        return Question(judge=self._judge, labels=self._labels, alternatives=self._alternatives or ())
