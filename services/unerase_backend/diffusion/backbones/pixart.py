"""PixArt alpha and sigma: a transformer over patches of latents that reads T5's states with their mask.

Chen et al., "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis", arXiv
2310.00426, and "PixArt-Sigma", arXiv 2403.04692. It is trained with betas, and predicts the noise and its variance, of
which the noise is taken, as in the pipelines. Some transformers also read the size of the picture and its aspect ratio.

A prompt is read in lower case, without spaces at its ends. diffusers' pipelines also take addresses, HTML, hashtags and
ideographs out of a prompt (`clean_caption`, on by default) where beautifulsoup4 and ftfy are installed, which this
program neither needs nor installs; here they never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unerase_backend.catalogue import model_fit
from unerase_backend.catalogue.backbone_kinds import Configs, Part, Role
from unerase_backend.catalogue.findings import UNSUPPORTED
from unerase_backend.diffusion.backbone import Backbone, backbone

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.catalogue.findings import Findings
    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader

_ALPHA = "PixArtAlphaPipeline"
_OF_ALPHA = 120
"""The tokens of a prompt of PixArt alpha."""
# What diffusers 0.42 and transformers 5.23 take where a configuration leaves a key out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "in_channels": 4,
        "out_channels": 8,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "caption_channels": None,
        "patch_size": 2,
    },
    "text_encoder": {"d_model": 512},
}


@backbone("pixart")
class PixArt(Backbone):
    """A transformer with T5."""

    title = "PixArt"
    pipelines = (_ALPHA, "PixArtSigmaPipeline")
    default_sequence_length = 300
    lower_case = True
    parts: ClassVar[Mapping[str, Part]] = {
        # The first releases of alpha name a class that diffusers reads as this one.
        "transformer": Part("PixArtTransformer2DModel", Role.DENOISER, others=("Transformer2DModel",)),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("T5EncoderModel", Role.TEXT_ENCODER),
        "tokenizer": Part("T5Tokenizer", Role.TOKENIZER, others=("T5TokenizerFast",)),
    }

    @classmethod
    def sequence_length_of(cls, index: Mapping[str, Any]) -> int:
        """Return 120 for alpha, 300 for sigma."""
        return _OF_ALPHA if index.get("_class_name") == _ALPHA else cls.default_sequence_length

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find widths and channels that differ between parts, and a resolution that does not divide."""
        model_fit.find_by_rules(_RULES, configs, resolution, findings)

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return T5."""
        from unerase_backend.diffusion.text_reader import TextReader, lowered, t5_framing

        tokenizer = tokenizers["tokenizer"]
        framing = t5_framing(tokenizer, self.sequence_length)
        return [TextReader("text_encoder", self.modules["text_encoder"], tokenizer, framing, lowered)]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return T5's last hidden states and their mask."""
        from unerase_backend.diffusion.encoding import MASK, STATES, Encoding

        mask = self.readers[0].mask([prompt.frames[0] for prompt in prompts])
        return Encoding({STATES: self.read(0, prompts, learned, attention_mask=mask)[0], MASK: mask})

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the noise of the transformer's output."""
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:
            height, width = (side * self.shrinking for side in latents.shape[-2:])
            sizes["resolution"] = latents.new_tensor([[height, width]]).expand(len(latents), -1)
            sizes["aspect_ratio"] = latents.new_tensor([[height / width]]).expand(len(latents), -1)
        output: Tensor = denoiser(
            latents,
            encoder_hidden_states=encoding.states,
            encoder_attention_mask=encoding.mask,
            timestep=times,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]


def _value(configs: Configs, part: str, key: str) -> Any:
    return configs[part].get(key, _DEFAULTS[part][key])


def _width(configs: Configs) -> int:
    """Return the width of the transformer's tokens."""
    heads, of_head = (int(_value(configs, "transformer", key)) for key in ("num_attention_heads", "attention_head_dim"))
    return heads * of_head


def _latents(configs: Configs, _: int, findings: Findings) -> None:
    taken = int(_value(configs, "transformer", "in_channels"))
    given = int(_value(configs, "transformer", "out_channels") or taken)
    latents = int(model_fit.value(configs, "vae", "latent_channels"))
    model_fit.find_channel_misfit(taken, given, latents, findings)


def _states(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "caption_channels")
    written = _value(configs, "text_encoder", "d_model")
    model_fit.find_transformer_width(read, "caption_channels", written, ("T5 writes", "d_model"), findings)


def _attention(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "cross_attention_dim")
    if read != _width(configs):
        what = f"the transformer's cross_attention_dim is {read}, and must be {_width(configs)}, as wide as its tokens"
        findings.problem("transformer", UNSUPPORTED, what, found="transformer/config.json")


def _sizes(configs: Configs, _: int, findings: Findings) -> None:
    of_transformer = configs["transformer"]
    told = of_transformer.get("use_additional_conditions")
    if told is None:
        told = of_transformer.get("sample_size", 128) == 128
    width = _width(configs)
    if told and width % 3:
        what = f"the transformer reads three sizes of the picture, and its width {width} does not divide by 3"
        findings.problem("transformer", UNSUPPORTED, what, found="transformer/config.json")


def _resolution(configs: Configs, resolution: int, findings: Findings) -> None:
    halvings = min(len(model_fit.value(configs, "vae", "block_out_channels")) - 1, 64)
    multiple = 2**halvings * int(_value(configs, "transformer", "patch_size"))
    if resolution % multiple:
        what = f"the resolution {resolution} does not divide into patches of latents"
        findings.problem("", UNSUPPORTED, what, remedy=f"give a multiple of {multiple} in the catalogue")


_RULES: Sequence[model_fit.Rule] = (
    (("transformer",), _attention),
    (("transformer",), _sizes),
    (("transformer", "vae"), _latents),
    (("transformer", "text_encoder"), _states),
    (("vae",), model_fit.find_bad_scale),
    (("transformer", "vae"), _resolution),
)
