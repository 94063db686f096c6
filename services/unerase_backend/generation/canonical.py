"""One key for one result: SHA-256 over the model, the trajectory in a canonical encoding, and the numerics profile.

The profile holds a digest of the source, this file's included, so that other code finds none of the results.

Protobuf's bytes are not canonical. Here every field has its fixed place, every value its type and length; fields that
cannot change the result are left out: the noise seed and the variance scale where eta is 0, the latent seed of what
resumes (unless it inpaints: its initial noise stands around the mask), a stop at the schedule's end. A mask and a
classifier come last, each under its name.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.v1.types_pb2 import Tensor


def model_key(base_digest: str, changes: Sequence[tuple[str, float]]) -> str:
    """Return the digest of what changes, in order, make of a model; without any, the model's own.

    A change is the digest of a replacing artefact with share 0, or of the model towards which it goes with the share.
    """
    if not changes:
        return base_digest
    figures = [figure for digest, share in changes for figure in (digest, float(share))]
    return hashlib.sha256(_encoded(["model", base_digest, *figures])).hexdigest()


def trajectory_key(model_digest: str, trajectory: Trajectory, profile: str) -> str:
    """Return the key of a trajectory's result, 64 hexadecimal digits."""
    return hashlib.sha256(_encoded([model_digest, profile, canonical_trajectory(trajectory)])).hexdigest()


def canonical_trajectory(trajectory: Trajectory) -> bytes:
    """Return the bytes that any two trajectories with the same result share."""
    resumes, noisy = trajectory.HasField("resumption"), trajectory.eta > 0
    return _encoded(
        [
            "trajectory",
            *_conditioning(trajectory.conditioning),
            float(trajectory.guidance_scale),
            "" if resumes and not trajectory.HasField("inpainting") else trajectory.latent_seed,
            trajectory.noise_seed if noisy else "",
            trajectory.steps,
            float(trajectory.eta) if noisy else 0.0,
            float(trajectory.variance_scale) if noisy else "",
            *(_tensor(trajectory.resumption.latents) if resumes else [""]),
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
