"""What a trajectory is given beside its message: the pictures and the classifier that it names, and guards."""

from dataclasses import dataclass

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.classifier import LatentClassifier
from unerase_backend.diffusion.guarding import UNGUARDED, Guards
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.pictures import square_margin


@dataclass(frozen=True)
class Given:
    """The pictures and the classifier that a trajectory names by digest, and the guards that act on it."""

    picture: Picture | None = None
    """The picture of `inpainting`, (height, width, 3)."""
    beginning: Picture | None = None
    """The picture of `resumption`, (height, width, 3)."""
    classifier: LatentClassifier | None = None
    """The classifier of `classifier_guidance`, on the model's device."""
    guards: Guards = UNGUARDED
    """The guards of the model, if it is used with them."""


NOTHING_GIVEN = Given()


def check_given(model: DiffusionModel, trajectory: Trajectory, given: Given) -> None:
    """Check that a trajectory has what it names, and that it fits the model.

    Raises:
        InvalidRequestError: fields are relative to the trajectory.
    """
    violations = []
    side = model.resolution
    for field, named, picture in (
        ("resumption", bool(trajectory.resumption.picture_digest), given.beginning),
        ("inpainting", trajectory.HasField("inpainting"), given.picture),
    ):
        if named and (picture is None or picture.shape != (side, side, 3)):
            problem = f"the model's pictures are {side} x {side} pixels"
            violations.append(FieldViolation(f"{field}.picture_digest", problem))
    if trajectory.HasField("inpainting"):
        cells = model.latent_shape[1]
        if square_margin(cells, trajectory.inpainting.mask_share) < 1:
            problem = f"must leave one of the model's {cells} latent cells on either side"
            violations.append(FieldViolation("inpainting.mask_share", problem))
    if trajectory.HasField("classifier_guidance"):
        classifier = given.classifier
        if classifier is None or classifier.latent_shape != model.latent_shape:
            problem = f"must be a classifier of latents of the shape {model.latent_shape}"
            violations.append(FieldViolation("classifier_guidance.classifier_digest", problem))
    if violations:
        raise InvalidRequestError.of(*violations)
