"""FLUX.1: a transformer over packed latents and tokens of text, on a rectified flow with a shift of its resolution.

Black Forest Labs, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in Latent Space", arXiv
2506.15742, section 3, describes the network. It reads T5's last hidden states, without a mask, and the pooled encoding
of CLIP. Squares of 2 x 2 latents are one token (`packed`), with their row and column as its place; all tokens of text
have the place 0.

Guidance was distilled into the weights (Meng et al., "On Distillation of Guided Diffusion Models", arXiv 2210.03142):
each prediction is one row under the prompt. dev reads the guidance scale (`guidance_embeds`), schnell knows none.
`encode` gives the scale 1, which stands for the prediction under the prompt without guidance. So the model's training
error, and what attacks and relearning minimise, are errors of the same prediction as in families with classifier-free
guidance. The sampler gives each trajectory's own scale in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from unerase_backend.catalogue import model_fit
from unerase_backend.catalogue.backbone_kinds import Configs, Part, Role
from unerase_backend.catalogue.findings import UNSUPPORTED
from unerase_backend.catalogue.model_families import Guidance
from unerase_backend.diffusion.backbone import Backbone, backbone
from unerase_backend.runtime.counting import counted

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.catalogue.findings import Findings
    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.flow_levels import PipelineCall
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader

_TIMES = 1000
"""What the transformer multiplies times and guidance scales by, whatever the number of training timesteps."""
# What diffusers 0.42 and transformers 5.23 take where a configuration leaves a key out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "patch_size": 1,
        "in_channels": 64,
        "out_channels": None,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
    "text_encoder_2": {"d_model": 512},
}


@backbone("flux")
class Flux(Backbone):
    """A transformer with T5 and the pooled encoding of a CLIP."""

    title = "FLUX.1"
    pipelines = ("FluxPipeline",)
    default_sequence_length = 512
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("FluxTransformer2DModel", Role.DENOISER),
        "vae": Part("AutoencoderKL", Role.AUTOENCODER),
        "text_encoder": Part("CLIPTextModel", Role.TEXT_ENCODER),
        "text_encoder_2": Part("T5EncoderModel", Role.TEXT_ENCODER),
        "tokenizer": Part("CLIPTokenizer", Role.TOKENIZER, others=("CLIPTokenizerFast",)),
        "tokenizer_2": Part("T5Tokenizer", Role.TOKENIZER, others=("T5TokenizerFast",)),
    }

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find widths, channels and lengths that differ between parts, and a resolution that does not divide."""
        model_fit.find_by_rules(_RULES, configs, resolution, findings)

    @property
    def guidance(self) -> Guidance:
        """How the transformer is led to its prompt: by a scale that it reads, or by its weights alone."""
        return Guidance.EMBEDDED if self.denoiser.config.guidance_embeds else Guidance.NONE

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return T5, whose states are read token by token, and CLIP."""
        from unerase_backend.diffusion.text_reader import TextReader, t5_framing

        tokenizer = tokenizers["tokenizer_2"]
        framing = t5_framing(tokenizer, self.sequence_length)
        t5 = TextReader("text_encoder_2", self.modules["text_encoder_2"], tokenizer, framing)
        return [t5, self.clip_reader(tokenizers, "text_encoder")]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return T5's states, CLIP's pooled encoding and, for dev, the guidance scale 1."""
        import torch

        from unerase_backend.diffusion.encoding import GUIDANCE, POOLED, STATES, Encoding

        pooled = self.read(1, prompts, learned).pooler_output
        # Some layers of T5 are in float32 where the others are in float16.
        tensors = {STATES: self.read(0, prompts, learned)[0].to(pooled.dtype), POOLED: pooled}
        if self.guidance is Guidance.EMBEDDED:
            tensors[GUIDANCE] = torch.ones(len(prompts), device=pooled.device)
        return Encoding(tensors)

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the transformer's output."""
        from unerase_backend.diffusion.encoding import GUIDANCE

        height, width = (side // 2 for side in latents.shape[-2:])
        output: Tensor = denoiser(
            hidden_states=packed(latents),
            timestep=times.to(latents.dtype) / _TIMES,
            guidance=encoding.tensors.get(GUIDANCE),
            pooled_projections=encoding.pooled,
            encoder_hidden_states=encoding.states,
            txt_ids=latents.new_zeros((encoding.states.shape[1], 3)),
            img_ids=_places(latents, height, width),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def pipeline_call(self, latents: tuple[int, int, int]) -> PipelineCall:
        """Return how the pipeline calls the scheduler: with even sigmas, and with the number of image tokens."""
        from unerase_backend.diffusion.flow_levels import PipelineCall, SigmasGiven

        return PipelineCall(SigmasGiven.EVEN, (latents[1] // 2) * (latents[2] // 2))


def packed(latents: Tensor) -> Tensor:
    """Return latents, (rows, channels, 2 height, 2 width), as tokens, (rows, height * width, 4 channels)."""
    rows, channels, height, width = latents.shape
    squares = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(rows, (height // 2) * (width // 2), 4 * channels)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens, (rows, height * width, 4 channels), as latents, (rows, channels, 2 height, 2 width)."""
    rows, _, values = tokens.shape
    squares = tokens.reshape(rows, height, width, values // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(rows, values // 4, 2 * height, 2 * width)


def _places(like: Tensor, height: int, width: int) -> Tensor:
    """Return the places of tokens of an image, (height * width, 3): 0, row and column."""
    import torch

    rows, columns = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    grid = torch.cartesian_prod(torch.zeros(1, device=like.device), rows.float(), columns.float())
    return grid.to(like.dtype)


def _value(configs: Configs, part: str, key: str) -> Any:
    return configs[part].get(key, _DEFAULTS[part][key])


def _conditioning(configs: Configs, _: int, findings: Findings) -> None:
    taken, given = (_value(configs, "transformer", key) for key in ("in_channels", "out_channels"))
    if (patch := _value(configs, "transformer", "patch_size")) != 1:
        what = f"the transformer's patch_size is {patch}; that of FLUX.1 is 1, over packed latents"
        findings.problem("transformer", UNSUPPORTED, what)
    if given not in (None, taken):
        what = f"the transformer takes {counted(int(taken), 'channel')} and gives {given}: it reads a picture too"
        remedy = "FLUX.1 dev and schnell can be audited; Fill, Canny and Depth cannot"
        findings.problem("transformer", UNSUPPORTED, what, remedy=remedy)


def _axes(configs: Configs, _: int, findings: Findings) -> None:
    axes = [int(each) for each in _value(configs, "transformer", "axes_dims_rope")]
    head = int(_value(configs, "transformer", "attention_head_dim"))
    if len(axes) != 3 or any(each <= 0 or each % 2 for each in axes) or sum(axes) != head:
        what = f"the transformer's axes_dims_rope is {axes}, and must be three even numbers with the sum {head}"
        findings.problem("transformer", UNSUPPORTED, f"{what} (attention_head_dim)")


def _latents(configs: Configs, _: int, findings: Findings) -> None:
    taken = int(_value(configs, "transformer", "in_channels"))
    latents = int(model_fit.value(configs, "vae", "latent_channels"))
    if taken != 4 * latents:
        what = (
            f"the transformer takes {counted(taken, 'channel')}, and the VAE's latents have 4 x {latents} once packed"
        )
        findings.problem("transformer", UNSUPPORTED, what, remedy=model_fit.SAME_MODEL)


def _states(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "joint_attention_dim")
    written = _value(configs, "text_encoder_2", "d_model")
    model_fit.find_transformer_width(read, "joint_attention_dim", written, ("T5 writes", "d_model"), findings)


def _pooled(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "pooled_projection_dim")
    written = model_fit.value(configs, "text_encoder", "hidden_size")
    model_fit.find_transformer_width(read, "pooled_projection_dim", written, ("CLIP writes", "hidden_size"), findings)


def _resolution(configs: Configs, resolution: int, findings: Findings) -> None:
    multiple: int = 2 ** min(len(model_fit.value(configs, "vae", "block_out_channels")), 64)
    if resolution % multiple:
        what = f"the resolution {resolution} does not divide into squares of 2 x 2 latents"
        findings.problem("", UNSUPPORTED, what, remedy=f"give a multiple of {multiple} in the catalogue")


_RULES: Sequence[model_fit.Rule] = (
    (("transformer",), _conditioning),
    (("transformer",), _axes),
    (("transformer", "vae"), _latents),
    (("transformer", "text_encoder_2"), _states),
    (("transformer", "text_encoder"), _pooled),
    (("tokenizer", "text_encoder"), model_fit.find_long_prompts),
    (("vae",), model_fit.find_bad_scale),
    (("vae",), _resolution),
)
