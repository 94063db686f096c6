"""The encodings of prompts and pictures that a sampler used last, so that each is computed once."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion import conditioning, pictures
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture

PROMPTS_KEPT = 256
PICTURES_KEPT = 256


class KeptEncodings:
    """Encodings of one model; the least recently used are given up first."""

    def __init__(self, model: DiffusionModel, picture_batch: int) -> None:
        self._model, self._picture_batch = model, picture_batch
        self._prompts: OrderedDict[bytes, Encoding] = OrderedDict()
        self.pictures: OrderedDict[str, Tensor] = OrderedDict()
        """Latents of pictures by digest, (channels, height, width), float32 on the CPU."""

    def prompts(self, wanted: Sequence[Conditioning]) -> list[Encoding]:
        """Return the encoding of each conditioning."""
        keys = [item.SerializeToString(deterministic=True) for item in wanted]
        missing = {key: item for key, item in zip(keys, wanted, strict=True) if key not in self._prompts}
        for key, encoding in zip(missing, conditioning.encode(self._model, list(missing.values())), strict=True):
            self._prompts[key] = encoding
        encodings = [self._prompts[key] for key in keys]
        for key in keys:
            self._prompts.move_to_end(key)
        while len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return encodings

    def encode_pictures(self, starting: Sequence[tuple[Trajectory, Given]]) -> None:
        """Encode the pictures that trajectories name and are given; `pictures` then has them."""
        wanted: dict[str, Picture] = {}
        for trajectory, given in starting:
            for digest, picture in (
                (trajectory.inpainting.picture_digest, given.picture),
                (trajectory.resumption.picture_digest, given.beginning),
            ):
                if picture is not None:
                    wanted[digest] = picture
        missing = {digest: picture for digest, picture in wanted.items() if digest not in self.pictures}
        if missing:
            latents = pictures.encode(self._model, list(missing.values()), self._picture_batch)
            self.pictures |= dict(zip(missing, latents, strict=True))
        for digest in wanted:
            self.pictures.move_to_end(digest)
        while len(self.pictures) > max(PICTURES_KEPT, len(wanted)):
            self.pictures.popitem(last=False)
