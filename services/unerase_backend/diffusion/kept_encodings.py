"""The encodings of prompts and pictures that were used last, so that each is computed once.

Encodings of prompts are shared by all models of a process that read prompts alike (`DiffusionModel.text_digest`): a
subject, its reference and its control often have the same text encoders, and a large one takes seconds for a prompt.
They are kept in main memory, apart from what the denoiser needs of a device.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion import conditioning, pictures
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture

PROMPT_BYTES = 256 * 2**20
"""Bytes of all encodings of prompts that are kept."""
PICTURES_KEPT = 256

_Key = tuple[str, torch.dtype, torch.device, bytes]


class KeptPrompts:
    """Encodings of prompts; the least recently used are given up first. Any thread may use it."""

    def __init__(self, most_bytes: int = PROMPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[_Key, Encoding] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def encode(self, model: DiffusionModel, wanted: Sequence[Conditioning]) -> list[Encoding]:
        """Return the encoding of each conditioning, on the model's device; errors as in `conditioning.encode`."""
        keys = [self._key(model, item) for item in wanted]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: item for key, item in zip(keys, wanted, strict=True) if key not in found}
        for key, encoding in zip(missing, conditioning.encode(model, list(missing.values())), strict=True):
            found[key] = encoding.each(Tensor.cpu)
        self._keep(found)
        return [found[key].each(lambda tensor: tensor.to(model.device)) for key in keys]

    def _keep(self, used: dict[_Key, Encoding]) -> None:
        with self._lock:
            for key, encoding in used.items():
                if key not in self._kept:
                    self._kept[key] = encoding
                    self._bytes += encoding.size_bytes
                self._kept.move_to_end(key)
            while self._bytes > self._most_bytes and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1].size_bytes

    @staticmethod
    def _key(model: DiffusionModel, item: Conditioning) -> _Key:
        return (model.text_digest, model.dtype, model.device, item.SerializeToString(deterministic=True))


_PROMPTS = KeptPrompts()


class KeptEncodings:
    """Encodings for the sampler of one model."""

    def __init__(self, model: DiffusionModel, picture_batch: int) -> None:
        self._model, self._picture_batch = model, picture_batch
        self.pictures: OrderedDict[str, Tensor] = OrderedDict()
        """Latents of pictures by digest, (channels, height, width), float32 on the CPU."""

    def prompts(self, wanted: Sequence[Conditioning]) -> list[Encoding]:
        """Return the encoding of each conditioning."""
        return _PROMPTS.encode(self._model, wanted)

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
