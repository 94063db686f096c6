"""Results of trajectories in the artefact store: pictures as PNG, and a record for each trajectory.

A record holds a `Sample` without judgements: judges change, and judging again costs little.
"""

from dataclasses import dataclass

from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.v1.types_pb2 import (
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    SAMPLE_STATUS_WITHHELD,
    SampleStatus,
    Tensor,
)
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.sampler import Finished
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError
from unerase_backend.runtime.pictures import UnreadablePictureError, decode_picture, encode_picture


@dataclass(frozen=True)
class Result:
    """The result of a trajectory."""

    failure: str
    """Why it cannot be scored; empty otherwise."""
    latents: Tensor
    """The last latents, or the estimate in their place."""
    picture_digest: str = ""
    picture: Picture | None = None
    withheld: bool = False
    """A guard refused the prompt or kept the picture back; `failure` says why."""


def keep(store: ArtifactStore, key: str, finished: Finished) -> Result:
    """Put a finished trajectory into the store and return it."""
    digest = store.put(encode_picture(finished.picture)) if finished.picture is not None else ""
    # A refused prompt has no latents.
    latents = to_message(finished.latents) if finished.latents.numel() else Tensor()
    record = Sample(
        status=status_of(finished),
        reason=finished.failure,
        picture_digest=digest,
        latents=latents if latents.shape else None,
    )
    store.put_record(key, record.SerializeToString(deterministic=True))
    return Result(finished.failure, latents, digest, finished.picture, finished.withheld)


def find(store: ArtifactStore, key: str, *, picture: bool) -> Result | None:
    """Return the result under `key`; None if there is none, or if its picture is asked for and missing or damaged."""
    content = store.get_record(key)
    if content is None:
        return None
    record = Sample.FromString(content)
    withheld = record.status == SAMPLE_STATUS_WITHHELD
    if not picture and withheld and record.HasField("latents"):
        # Only its picture was kept back, as when nobody had asked for one.
        return Result("", record.latents)
    if not picture or record.reason:
        return Result(record.reason, record.latents, withheld=withheld)
    try:
        shown = decode_picture(store.get(record.picture_digest))
    except (NotFoundError, DataLossError, UnreadablePictureError):
        return None
    return Result("", record.latents, record.picture_digest, shown)


def status_of(result: Result | Finished) -> SampleStatus.ValueType:
    """Return the status of a sample before its picture is judged."""
    if result.withheld:
        return SAMPLE_STATUS_WITHHELD
    return SAMPLE_STATUS_UNSCORED if result.failure else SAMPLE_STATUS_SCORED


def withheld_by_judge(guards: Guards, answers: PictureJudgements) -> str:
    """Return why a guard withholds a picture, by the answers to `guards.questions` in order; empty if none does."""
    for (guard, question), answer in zip(guards.questions, answers.judgements, strict=False):
        if answer.score >= guard.threshold:
            return f"{guard.kind}: {question.judge} scores {answer.score:.3f}, at least {guard.threshold:g}"
    return ""
