"""Stable Diffusion 3 and 3.5: a transformer over patches of latents and tokens of text, on a rectified flow.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206. It reads the
last hidden states but one of two CLIPs, side by side and padded to the width of T5, then T5's states, and the pooled
encodings of both CLIPs. A folder may lack T5 (`text_encoder_3`); zeros stand for its states, as in the pipeline.
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
    from unerase_backend.diffusion.flow_levels import PipelineCall
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader

# What diffusers 0.42 and transformers 5.23 take where a configuration leaves a key out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 96,
    },
    "text_encoder": {"projection_dim": 512},
    "text_encoder_2": {"projection_dim": 512, "hidden_size": 512},
    "text_encoder_3": {"d_model": 512},
}


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

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find widths, channels and lengths that differ between parts, and a resolution that does not divide."""
        model_fit.find_by_rules(_RULES, configs, resolution, findings)

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


def _value(configs: Configs, part: str, key: str) -> int:
    given = configs[part].get(key, _DEFAULTS.get(part, {}).get(key))
    return int(model_fit.value(configs, part, key) if given is None else given)


def _latents(configs: Configs, _: int, findings: Findings) -> None:
    taken, given = (_value(configs, "transformer", key) for key in ("in_channels", "out_channels"))
    latents = int(model_fit.value(configs, "vae", "latent_channels"))
    if not taken == given == latents:
        what = f"the transformer takes {taken} channels and gives {given}, and the VAE's latents have {latents}"
        findings.problem("transformer", UNSUPPORTED, what, remedy=model_fit.SAME_MODEL)


def _states(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "joint_attention_dim")
    written = sum(_value(configs, part, "hidden_size") for part in ("text_encoder", "text_encoder_2"))
    if written > read:
        what = f"the transformer reads {read} numbers for a token (joint_attention_dim), and both CLIPs write {written}"
        findings.problem("transformer", UNSUPPORTED, what, remedy=model_fit.SAME_MODEL)


def _third(configs: Configs, _: int, findings: Findings) -> None:
    read, written = _value(configs, "transformer", "joint_attention_dim"), _value(configs, "text_encoder_3", "d_model")
    model_fit.find_transformer_width(read, "joint_attention_dim", written, ("T5 writes", "d_model"), findings)


def _pooled(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "pooled_projection_dim")
    written = sum(_value(configs, part, "projection_dim") for part in ("text_encoder", "text_encoder_2"))
    model_fit.find_transformer_width(
        read, "pooled_projection_dim", written, ("both CLIPs write", "projection_dim"), findings
    )


def _resolution(configs: Configs, resolution: int, findings: Findings) -> None:
    halvings = min(len(model_fit.value(configs, "vae", "block_out_channels")) - 1, 64)
    multiple = 2**halvings * _value(configs, "transformer", "patch_size")
    if resolution % multiple:
        what = f"the resolution {resolution} does not divide into patches of latents"
        findings.problem("", UNSUPPORTED, what, remedy=f"give a multiple of {multiple} in the catalogue")
    elif resolution // multiple > (most := _value(configs, "transformer", "pos_embed_max_size")):
        what = f"the resolution {resolution} is beyond the transformer's {most} positions a side (pos_embed_max_size)"
        findings.problem("", UNSUPPORTED, what, remedy=f"give at most {most * multiple} in the catalogue")


_RULES: Sequence[model_fit.Rule] = (
    (("transformer", "vae"), _latents),
    (("transformer", "text_encoder", "text_encoder_2"), _states),
    (("transformer", "text_encoder_3"), _third),
    (("transformer", "text_encoder", "text_encoder_2"), _pooled),
    (("tokenizer", "text_encoder"), model_fit.find_long_prompts),
    (("vae",), model_fit.find_bad_scale),
    (("transformer", "vae"), _resolution),
)
