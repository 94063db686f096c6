"""Stable Diffusion XL: a UNet that reads two CLIPs' last hidden states but one, a pooled encoding, and sizes.

Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", arXiv 2307.01952. The
UNet is told the size of the original picture, where it was cut, and the size wanted (section 2.2): here each is the
model's resolution, without a cut, as in the pipeline. Where model_index.json has `force_zeros_for_empty_prompt`, the
empty prompt is encoded as zeros, which is what the base model was trained with in the place of a prompt.
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


@backbone("stable-diffusion-xl")
class StableDiffusionXL(Backbone):
    """A UNet with two text encoders."""

    title = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    parts: ClassVar[Mapping[str, Part]] = {
        "unet": Part("UNet2DConditionModel", Role.DENOISER),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("CLIPTextModel", Role.TEXT_ENCODER),
        "text_encoder_2": Part("CLIPTextModelWithProjection", Role.TEXT_ENCODER),
        "tokenizer": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
        "tokenizer_2": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
    }

    @classmethod
    def index_problem(cls, index: Mapping[str, Any]) -> str:
        """Refuse the refiner, which has no first text encoder."""
        if not index.get("requires_aesthetics_score"):
            return ""
        return (
            "it is the refiner of Stable Diffusion XL (requires_aesthetics_score), which finishes the pictures of a "
            "base model; audit the base model"
        )

    @classmethod
    def index_settings(cls, index: Mapping[str, Any]) -> Mapping[str, object]:
        """Return whether the empty prompt is read as any other."""
        return {} if _zeros_for_empty(index) else {"force_zeros_for_empty_prompt": False}

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find conditioning that is not SDXL's, and widths, channels and lengths that differ between parts."""
        model_fit.find_by_rules(_RULES, configs, resolution, findings)

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return CLIP L and OpenCLIP G."""
        return [self.clip_reader(tokenizers, "text_encoder"), self.clip_reader(tokenizers, "text_encoder_2")]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return both encoders' last hidden states but one, side by side, and the second one's pooled encoding."""
        import torch

        from unerase_backend.diffusion.encoding import POOLED, STATES, Encoding

        read = [self.read(place, prompts, learned, output_hidden_states=True) for place in range(2)]
        states = torch.cat([each.hidden_states[-2] for each in read], dim=-1)
        encoding = Encoding({STATES: states, POOLED: read[1][0]})
        if not _zeros_for_empty(self.index):
            return encoding
        empty = torch.tensor([prompt.empty for prompt in prompts], device=states.device)
        return encoding.each(lambda tensor: tensor.masked_fill(empty.view(-1, *[1] * (tensor.dim() - 1)), 0.0))

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the UNet's output."""
        side = latents.shape[-1] * self.shrinking
        sizes = latents.new_tensor([side, side, 0, 0, side, side]).expand(len(latents), -1)
        output: Tensor = denoiser(
            latents,
            times,
            encoder_hidden_states=encoding.states,
            added_cond_kwargs={"text_embeds": encoding.pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return output


def _zeros_for_empty(index: Mapping[str, Any]) -> bool:
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _conditioning(configs: Configs, _: int, findings: Findings) -> None:
    if (kind := model_fit.value(configs, "unet", "addition_embed_type")) != "text_time":
        what = f"the UNet reads {kind or 'nothing'} beside the prompt, and that of SDXL text_time (addition_embed_type)"
        findings.problem("unet", UNSUPPORTED, what)
    elif (width := model_fit.value(configs, "unet", "time_cond_proj_dim")) is not None:
        what = f"the UNet also reads a guidance scale (time_cond_proj_dim {width}), as a latent consistency model does"
        findings.problem("unet", UNSUPPORTED, what)


def _states(configs: Configs, _: int, findings: Findings) -> None:
    width = sum(int(model_fit.embedding_width(configs, part)) for part in ("text_encoder", "text_encoder_2"))
    model_fit.find_other_width(configs, ("unet", "cross_attention_dim"), (width, "hidden_size of both"), findings)


def _pooled(configs: Configs, _: int, findings: Findings) -> None:
    sizes = 6 * int(configs["unet"].get("addition_time_embed_dim") or 0)
    width = sizes + int(configs["text_encoder_2"].get("projection_dim", 512))
    read = ("unet", "projection_class_embeddings_input_dim")
    model_fit.find_other_width(configs, read, (width, "6 addition_time_embed_dim and projection_dim"), findings)


_RULES: Sequence[model_fit.Rule] = (
    (("unet",), _conditioning),
    (("unet", "text_encoder", "text_encoder_2"), _states),
    (("unet", "text_encoder_2"), _pooled),
    *model_fit.OF_UNETS,
)
