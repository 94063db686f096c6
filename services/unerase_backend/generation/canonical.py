"""The key of a result: SHA-256 over the model, the trajectory in a canonical encoding, and the numerics profile.

The profile contains a digest of the source, including this file, so results of other code are never found.

Protobuf's bytes are not canonical. Here every field has a fixed position, and every value its type and length. Fields
that cannot change the result are left out: the noise seed and the variance scale if eta is 0; the latent seed of what
resumes from latents, unless it inpaints, which needs the initial noise; a stop at the end of the schedule. A mask, a
classifier and the estimate come last, each under its name.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.v1.types_pb2 import Tensor


def changed_model_digest(base_digest: str, changes: Sequence[tuple[str, float]]) -> str:
    """Return the digest of a model with changes made in this order; without changes it is the model's own.

    A change is the digest of a replacing artefact and 0, the digest of another model and the share towards it, or a
    schedule in words and 0.
    """
    if not changes:
        return base_digest
    figures = [figure for digest, share in changes for figure in (digest, float(share))]
    return hashlib.sha256(_encoded(["model", base_digest, *figures])).hexdigest()


def trajectory_key(model_digest: str, trajectory: Trajectory, profile: str) -> str:
    """Return the key of a trajectory's result, 64 hexadecimal digits."""
    return hashlib.sha256(_encoded([model_digest, profile, canonical_trajectory(trajectory)])).hexdigest()


def canonical_trajectory(trajectory: Trajectory) -> bytes:
    """Return the canonical bytes; trajectories that cannot differ in their result have the same."""
    resumes, noisy = trajectory.HasField("resumption"), trajectory.eta > 0
    from_latents = resumes and not trajectory.resumption.picture_digest
    return _encoded(
        [
            "trajectory",
            *_conditioning(trajectory.conditioning),
            float(trajectory.guidance_scale),
            "" if from_latents and not trajectory.HasField("inpainting") else trajectory.latent_seed,
            trajectory.noise_seed if noisy else "",
            trajectory.steps,
            float(trajectory.eta) if noisy else 0.0,
            float(trajectory.variance_scale) if noisy else "",
            *(_tensor(trajectory.resumption.latents) if from_latents else [trajectory.resumption.picture_digest]),
            trajectory.resumption.step if resumes else "",
            trajectory.stop_step or trajectory.steps,
            *_given(trajectory),
        ]
    )


def _conditioning(conditioning: Conditioning) -> Iterable[bytes | str | int | float]:
    kind = conditioning.WhichOneof("kind") or ""
    match kind:
        case "text":
            return [kind, conditioning.text]
        case "token_ids":
            return [kind, *conditioning.token_ids.ids, ""]
        case "learned":
            learned = conditioning.learned
            return [kind, learned.text, learned.placeholder, *_tensor(learned.embedding)]
        case "embedding":
            return [kind, *_tensor(conditioning.embedding)]
    return [kind]


def _given(trajectory: Trajectory) -> Iterable[bytes | str | int | float]:
    if trajectory.HasField("inpainting"):
        yield from ("inpainting", trajectory.inpainting.picture_digest, trajectory.inpainting.mask_share)
    if trajectory.HasField("classifier_guidance"):
        guidance = trajectory.classifier_guidance
        yield from ("classifier", guidance.classifier_digest, guidance.scale)
    if trajectory.estimate:
        yield "estimate"


def _tensor(tensor: Tensor) -> Iterable[bytes | str | int | float]:
    return [len(tensor.shape), *tensor.shape, tensor.values]


def _encoded(values: Iterable[bytes | str | int | float]) -> bytes:
    encoded = []
    for value in values:
        match value:
            case bytes():
                tag, content = b"b", value
            case str():
                tag, content = b"s", value.encode()
            case int():
                tag, content = b"i", struct.pack(">Q", value)
            case float():
                tag, content = b"f", struct.pack(">d", value)
        encoded.append(tag + struct.pack(">Q", len(content)) + content)
    return b"".join(encoded)
