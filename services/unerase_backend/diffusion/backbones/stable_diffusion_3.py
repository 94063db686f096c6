"""Stable Diffusion 3 and 3.5: a transformer over patches of latents and tokens of text, on a rectified flow.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206. It reads the
last hidden states but one of two CLIPs, side by side and padded to the width of T5, then T5's states, and the pooled
encodings of both CLIPs. A folder may lack T5 (`text_encoder_3`); zeros stand for its states, as in the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unerase_backend.catalogue.backbone_kinds import Part, Role
from unerase_backend.diffusion.backbone import Backbone, backbone

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.flow_levels import PipelineCall
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader


@backbone("stable-diffusion-3")
class StableDiffusion3(Backbone):
    """A transformer with two or three text encoders."""

    title = "Stable Diffusion 3"
    pipelines = ("StableDiffusion3Pipeline",)
    default_sequence_length = 256
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("SD3Transformer2DModel", Role.DENOISER),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("CLIPTextModelWithProjection", Role.TEXT_ENCODER),
        "text_encoder_2": Part("CLIPTextModelWithProjection", Role.TEXT_ENCODER),
        "text_encoder_3": Part("T5EncoderModel", Role.TEXT_ENCODER, required=False),
        "tokenizer": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
        "tokenizer_2": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
        "tokenizer_3": Part("T5Tokenizer", Role.TOKENIZER, required=False, others=("T5TokenizerFast",)),
    }

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return CLIP L, OpenCLIP G and, if it is there, T5."""
        from unerase_backend.diffusion.text_reader import TextReader, t5_framing

        readers = [self.clip_reader(tokenizers, "text_encoder"), self.clip_reader(tokenizers, "text_encoder_2")]
        if "text_encoder_3" in self.modules:
            tokenizer = tokenizers["tokenizer_3"]
            framing = t5_framing(tokenizer, self.sequence_length)
            readers.append(TextReader("text_encoder_3", self.modules["text_encoder_3"], tokenizer, framing))
        return readers

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return the states of all encoders, one after the other, and the pooled encodings of both CLIPs."""
        import torch
        from torch.nn import functional

        from unerase_backend.diffusion.encoding import POOLED, STATES, Encoding

        read = [self.read(place, prompts, learned, output_hidden_states=True) for place in range(2)]
        states = torch.cat([each.hidden_states[-2] for each in read], dim=-1)
        width = int(self.denoiser.config.joint_attention_dim)
        # T5 is read without a mask, as in the pipeline.
        further = (
            self.read(2, prompts, learned)[0].to(states)
            if len(self.readers) > 2
            else states.new_zeros((len(states), self.sequence_length, width))
        )
        padded = functional.pad(states, (0, width - states.shape[-1]))
        pooled = torch.cat([each[0] for each in read], dim=-1)
        return Encoding({STATES: torch.cat([padded, further], dim=1), POOLED: pooled})

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the transformer's output."""
        output: Tensor = denoiser(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=encoding.states,
            pooled_projections=encoding.pooled,
            return_dict=False,
        )[0]
        return output

    def pipeline_call(self, latents: tuple[int, int, int]) -> PipelineCall:
        """Return how the pipeline calls the scheduler: with the number of image tokens."""
        from unerase_backend.diffusion.flow_levels import PipelineCall

        patch = int(self.denoiser.config.patch_size)
        return PipelineCall(image_tokens=(latents[1] // patch) * (latents[2] // patch))
