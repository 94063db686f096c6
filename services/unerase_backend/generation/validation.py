"""Checks requests as far as that is possible without the model, and names every bad field."""

import math
from collections.abc import Iterator, Sequence

from unerase.internal.v1alpha1.generation_pb2 import (
    EncodeRequest,
    GenerateRequest,
    MeasureDenoisingRequest,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Resumption, Trajectory
from unerase_backend.catalogue import GUIDANCE_SCALES, MAX_PROMPT_BYTES, MAX_STEPS
from unerase_backend.evaluation.questions import question_violations
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.identifiers import DIGEST

MAX_TRAJECTORIES = most_items(GenerateRequest, "trajectories")
MAX_ETA = 10.0
MAX_VARIANCE_SCALE = 10.0
MAX_CLASSIFIER_SCALE = 10_000.0
MAX_PROMPTS = most_items(EncodeRequest, "prompts")
MAX_PICTURES = most_items(MeasureDenoisingRequest, "picture_digests")
MAX_TIMESTEPS = most_items(MeasureDenoisingRequest, "timesteps")
MAX_ERRORS = 1_000_000
MAX_CHANGES = most_items(GenerateRequest, "changes")


def check_generate(request: GenerateRequest) -> None:
    """Check a request for trajectories.

    Raises:
        InvalidRequestError: with every bad field.
    """
    violations = list(_count("trajectories", len(request.trajectories), MAX_TRAJECTORIES))
    for index, trajectory in enumerate(request.trajectories[:MAX_TRAJECTORIES]):
        violations += [
            FieldViolation(f"trajectories[{index}].{field}", description)
            for field, description in _problems(trajectory)
        ]
    violations += question_violations(request.questions)
    violations += _changes(request.changes)
    _raise(violations)


def check_encode(request: EncodeRequest) -> None:
    """Check a request for encoded prompts.

    Raises:
        InvalidRequestError: with every bad field.
    """
    _raise(_prompts(request.prompts))


def check_measure(request: MeasureDenoisingRequest) -> None:
    """Check a request for denoising errors.

    Raises:
        InvalidRequestError: with every bad field.
    """
    violations = [
        *_count("picture_digests", len(request.picture_digests), MAX_PICTURES),
        *_prompts(request.prompts),
        *_count("timesteps", len(request.timesteps), MAX_TIMESTEPS),
        *_changes(request.changes),
    ]
    errors = len(request.picture_digests) * len(request.prompts) * len(request.timesteps)
    if errors > MAX_ERRORS:
        violations.append(FieldViolation("timesteps", f"must make at most {MAX_ERRORS} errors in all, not {errors}"))
    _raise(violations)


def _problems(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    steps = trajectory.steps
    conditioning = trajectory.conditioning
    if conditioning.WhichOneof("kind") is None:
        yield "conditioning", "must be given"
    for field, text in (("text", conditioning.text), ("learned.text", conditioning.learned.text)):
        if len(text.encode()) > MAX_PROMPT_BYTES:
            yield f"conditioning.{field}", f"must be at most {MAX_PROMPT_BYTES} bytes"
    if not 1 <= steps <= MAX_STEPS:
        yield "steps", f"must be 1 to {MAX_STEPS}, not {steps}"
    yield from _within("guidance_scale", trajectory.guidance_scale, *GUIDANCE_SCALES)
    yield from _within("eta", trajectory.eta, 0.0, MAX_ETA)
    yield from _within("variance_scale", trajectory.variance_scale, 0.0, MAX_VARIANCE_SCALE)
    taken = trajectory.resumption.step
    if trajectory.HasField("resumption"):
        yield from _resumption(trajectory.resumption, steps)
    if trajectory.stop_step and not taken < trajectory.stop_step <= steps:
        yield "stop_step", f"must be 0, or {taken + 1} to {steps}, not {trajectory.stop_step}"
    if trajectory.HasField("inpainting"):
        yield from _digest("inpainting.picture_digest", trajectory.inpainting.picture_digest)
        share = trajectory.inpainting.mask_share
        if not 0 < share < 1:
            yield "inpainting.mask_share", f"must be above 0 and under 1, not {share:g}"
    if trajectory.HasField("classifier_guidance"):
        guidance = trajectory.classifier_guidance
        yield from _digest("classifier_guidance.classifier_digest", guidance.classifier_digest)
        yield from _within("classifier_guidance.scale", guidance.scale, 0.0, MAX_CLASSIFIER_SCALE)


def _resumption(resumption: Resumption, steps: int) -> Iterator[tuple[str, str]]:
    if not 1 <= resumption.step < steps:
        yield "resumption.step", f"must be 1 to {steps - 1}, not {resumption.step}"
    if resumption.HasField("latents") == bool(resumption.picture_digest):
        yield "resumption", "must hold either latents or a picture_digest"
    elif resumption.picture_digest:
        yield from _digest("resumption.picture_digest", resumption.picture_digest)


def _digest(field: str, digest: str) -> Iterator[tuple[str, str]]:
    if not DIGEST.fullmatch(digest):
        yield field, "must be 64 hexadecimal digits in lower case"


def _changes(changes: Sequence[ModelChange]) -> Iterator[FieldViolation]:
    if len(changes) > MAX_CHANGES:
        yield FieldViolation("changes", f"must be at most {MAX_CHANGES}, not {len(changes)}")
    for index, change in enumerate(changes[:MAX_CHANGES]):
        field = f"changes[{index}]"
        match change.WhichOneof("kind"):
            case None:
                yield FieldViolation(field, "must be a digest, an interpolation or a schedule")
            case "interpolation":
                if not change.interpolation.model:
                    yield FieldViolation(f"{field}.interpolation.model", "must name a model")
                for name, problem in _within("share", change.interpolation.share, 0.0, 1.0):
                    yield FieldViolation(f"{field}.interpolation.{name}", problem)


def _within(field: str, value: float, minimum: float, maximum: float) -> Iterator[tuple[str, str]]:
    if math.isnan(value) or not minimum <= value <= maximum:
        yield field, f"must be {minimum:g} to {maximum:g}, not {value:g}"


def _prompts(prompts: Sequence[str]) -> Iterator[FieldViolation]:
    yield from _count("prompts", len(prompts), MAX_PROMPTS)
    for index, prompt in enumerate(prompts[:MAX_PROMPTS]):
        if len(prompt.encode()) > MAX_PROMPT_BYTES:
            yield FieldViolation(f"prompts[{index}]", f"must be at most {MAX_PROMPT_BYTES} bytes")


def _count(field: str, count: int, maximum: int) -> Iterator[FieldViolation]:
    if not 1 <= count <= maximum:
        yield FieldViolation(field, f"must be 1 to {maximum}, not {count}")


def _raise(violations: Sequence[FieldViolation] | Iterator[FieldViolation]) -> None:
    found = list(violations)
    if found:
        raise InvalidRequestError.of(*found)
