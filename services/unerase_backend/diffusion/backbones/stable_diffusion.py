"""Stable Diffusion 1 and 2: a UNet that reads one CLIP's last hidden states.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752. Stable Diffusion 2
reads OpenCLIP-H's last layer but one, which its checkpoints have as the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unerase_backend.catalogue import model_fit
from unerase_backend.catalogue.backbone_kinds import Configs, Part, Role
from unerase_backend.diffusion.backbone import Backbone, backbone

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.catalogue.findings import Findings
    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader


@backbone("stable-diffusion")
class StableDiffusion(Backbone):
    """A UNet with one text encoder."""

    title = "Stable Diffusion 1 and 2"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("UNet2DConditionModel", Role.DENOISER),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("CLIPTextModel", Role.TEXT_ENCODER),
        "tokenizer": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
    }

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find conditioning beyond the prompt, and widths and lengths that differ between parts."""
        model_fit.find_misfits(configs, resolution, findings)

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return the one text encoder."""
        return [self.clip_reader(tokenizers, "text_encoder")]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return the last hidden states."""
        from unerase_backend.diffusion.encoding import STATES, Encoding

        return Encoding({STATES: self.read(0, prompts, learned)[0]})

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the UNet's output."""
        output: Tensor = denoiser(latents, times, encoder_hidden_states=encoding.states, return_dict=False)[0]
        return output
