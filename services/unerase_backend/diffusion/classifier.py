"""Classifiers of noised latents, which say whether the picture under the noise shows the concept; guidance by one.

A classifier reads latents x_t, (rows, channels, height, width), and the signal a and spread s of each row (`path`); it
returns logits, (rows,), with p(concept | x_t, t) = sigmoid(logit). Time enters as (a, s), so a classifier does not
depend on a schedule. Guidance by it (Dhariwal and Nichol, arXiv 2105.05233, algorithm 2), with e the noise prediction
after classifier-free guidance:

    e <- e - s scale grad_x log p(concept | x_t, t)

Its weights are stored as safetensors, whose metadata holds the architecture and the latents' shape. They are in one
entry, because safetensors writes several entries in no fixed order, and the same weights must have the same digest.
"""

import json
from abc import abstractmethod
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from unerase_backend.diffusion.path import Level
from unerase_backend.runtime.errors import UnsafeModelError

DROPOUT = 0.3
_ENTRY = "classifier"

LatentShape = tuple[int, int, int]


class LatentClassifier(nn.Module):
    """A classifier of noised latents of one shape."""

    architecture: str

    def __init__(self, latent_shape: LatentShape) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        """Channels, height and width of the latents."""

    @abstractmethod
    def forward(self, latents: Tensor, level: Level, dropout: torch.Generator | None = None) -> Tensor:
        """Return logits, (rows,), of latents, (rows, channels, height, width), at their levels, (rows,).

        Training passes a CPU generator for dropout; without one there is no dropout.
        """


class MlpClassifier(LatentClassifier):
    """The paper's: flattened latents and time, each through a layer of 1024, summed; then 512, then the logit."""

    architecture = "mlp"
    widths = (1024, 512)

    def __init__(self, latent_shape: LatentShape) -> None:
        super().__init__(latent_shape)
        channels, height, width = latent_shape
        first, second = self.widths
        self.of_latents = nn.Linear(channels * height * width, first)
        self.of_time = nn.Linear(2, first)
        self.hidden = nn.Linear(first, second)
        self.head = nn.Linear(second, 1)

    def forward(self, latents: Tensor, level: Level, dropout: torch.Generator | None = None) -> Tensor:
        """Return logits, (rows,)."""
        first = self.of_latents(latents.flatten(1)) + self.of_time(_time(level))
        second = self.hidden(_dropped(functional.silu(first), dropout))
        logits: Tensor = self.head(_dropped(functional.silu(second), dropout))
        return logits[:, 0]


class ConvolutionalClassifier(LatentClassifier):
    """This project's: three convolutions, time added after each, group norm and SiLU; the cells' mean; the logit."""

    architecture = "convolutional"
    widths = (32, 64, 64)
    strides = (1, 2, 1)
    groups = 8

    def __init__(self, latent_shape: LatentShape) -> None:
        super().__init__(latent_shape)
        inputs = (latent_shape[0], *self.widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride, padding=1)
            for before, after, stride in zip(inputs, self.widths, self.strides, strict=False)
        )
        self.of_time = nn.ModuleList(nn.Linear(2, width) for width in self.widths)
        self.norms = nn.ModuleList(nn.GroupNorm(self.groups, width) for width in self.widths)
        self.head = nn.Linear(self.widths[-1], 1)

    def forward(self, latents: Tensor, level: Level, dropout: torch.Generator | None = None) -> Tensor:
        """Return logits, (rows,)."""
        time, features = _time(level), latents
        for convolution, of_time, norm in zip(self.convolutions, self.of_time, self.norms, strict=True):
            features = functional.silu(norm(convolution(features) + of_time(time)[:, :, None, None]))
        logits: Tensor = self.head(_dropped(features.mean((2, 3)), dropout))
        return logits[:, 0]


ARCHITECTURES: dict[str, type[LatentClassifier]] = {
    kind.architecture: kind for kind in (MlpClassifier, ConvolutionalClassifier)
}


def new_classifier(architecture: str, latent_shape: LatentShape, generator: torch.Generator) -> LatentClassifier:
    """Return a classifier with weights drawn from `generator`, uniform within 1 / sqrt(inputs) like torch's layers."""
    classifier = ARCHITECTURES[architecture](latent_shape)
    with torch.no_grad():
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
    return classifier


def log_probability_gradient(classifier: LatentClassifier, latents: Tensor, level: Level) -> Tensor:
    """Return grad_x log p(concept | x_t, t) of each row, of the latents' shape.

    Rows are independent, so the gradient of the sum over rows contains each row's own gradient.
    """
    # The sampler runs in inference mode, whose tensors cannot have gradients, so they are cloned.
    with torch.inference_mode(False), torch.enable_grad():
        rows = latents.clone().requires_grad_()
        probability = functional.logsigmoid(classifier(rows, Level(level.signal.clone(), level.spread.clone()))).sum()
        (gradient,) = torch.autograd.grad(probability, rows)
    return gradient


def save_classifier(classifier: LatentClassifier) -> bytes:
    """Return the classifier as safetensors, the same bytes for the same weights."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    described = {"architecture": classifier.architecture, "latent_shape": classifier.latent_shape}
    content: bytes = safetensors.torch.save(tensors, {_ENTRY: json.dumps(described)})
    return content


def load_classifier(content: bytes, device: torch.device) -> LatentClassifier:
    """Return the classifier that `save_classifier` wrote, frozen and in evaluation mode, float32.

    Raises:
        UnsafeModelError: the bytes are not safetensors, name an unknown architecture, or do not hold its tensors.
    """
    try:
        tensors = safetensors.torch.load(content)
        described = _described(content)
        kind = ARCHITECTURES[described["architecture"]]
        channels, height, width = described["latent_shape"]
        # On the meta device, a large shape that the file merely claims takes no memory.
        with torch.device("meta"):
            classifier = kind((channels, height, width))
        classifier.load_state_dict(tensors, assign=True)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnsafeModelError("the classifier's weights do not load", reason="CLASSIFIER_UNREADABLE") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise UnsafeModelError(f"{name!r} of the classifier must be finite float32", reason="CLASSIFIER_NOT_FINITE")
    return classifier.to(device).eval().requires_grad_(False)


def _described(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    described: dict[str, Any] = json.loads(header["__metadata__"][_ENTRY])
    return described


def _time(level: Level) -> Tensor:
    return torch.stack([level.signal, level.spread], dim=-1)


def _dropped(features: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return features
    # Not torch's own dropout, whose generator every thread of a process shares.
    kept = torch.rand(features.shape, generator=generator) >= DROPOUT
    return features * kept.to(features) / (1 - DROPOUT)
