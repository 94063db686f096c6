"""AuraFlow: a transformer on a rectified flow that reads the states of one text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unerase_backend.catalogue.backbone_kinds import Part, Role
from unerase_backend.diffusion.backbone import Backbone, backbone

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader


@backbone("aura-flow")
class AuraFlow(Backbone):
    """What diffusers' AuraFlowPipeline does."""

    title = "AuraFlow"
    pipelines = ("AuraFlowPipeline",)
    default_sequence_length = 256
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("AuraFlowTransformer2DModel", Role.DENOISER),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("UMT5EncoderModel", Role.TEXT_ENCODER),
        "tokenizer": Part("LlamaTokenizer", Role.TOKENIZER, others=("LlamaTokenizerFast",)),
    }

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return the text encoder with its tokenizer: words, end, padding."""
        from unerase_backend.diffusion.text_reader import TextReader, t5_framing

        tokenizer = tokenizers["tokenizer"]
        framing = t5_framing(tokenizer, self.sequence_length)
        return [TextReader("text_encoder", self.modules["text_encoder"], tokenizer, framing)]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return the states, with zeros where there is padding."""
        from unerase_backend.diffusion.encoding import STATES, Encoding

        mask = self.readers[0].mask([prompt.frames[0] for prompt in prompts])
        states = self.read(0, prompts, learned, attention_mask=mask)[0]
        return Encoding({STATES: states * mask[:, :, None].to(states)})

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the transformer's output, which takes times from 0 to 1."""
        output: Tensor = denoiser(
            latents, encoder_hidden_states=encoding.states, timestep=times.to(latents) / 1000, return_dict=False
        )[0]
        return output
