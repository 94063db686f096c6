"""Small pipelines with random weights, one or several for each family of models, made by diffusers' own classes.

Their pictures have 16 pixels a side, and their tokenizers know a few words as one token each and all others by letters.
The weights are larger than those that the libraries draw, so that a prompt shows in a prediction.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

RESOLUTION = 16
WORDS = ("a", "picture", "of", "the", "hourglass", "heart", "red", "blue", "ring", "thing", "toy")
"""The words that are one token of every tokenizer."""
TOKENS = 16
"""Tokens of a prompt in each text encoder, with start, end and padding."""
START, END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = tuple(chr(code) for code in range(0x21, 0x7F))


@dataclass(frozen=True)
class TinyPipeline:
    """How a small pipeline of a family is made and called."""

    family: str
    build: Callable[[], Any]
    """Returns the pipeline of diffusers, in evaluation mode."""
    entry: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its entry in a catalogue beside the folder and the resolution."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's own call beside prompts, steps, guidance and latents."""
    guided: bool = True
    """Whether guidance is classifier-free."""
    packed: bool = False
    """Whether the pipeline takes and gives latents with squares of 2 x 2 as one token."""
    resolution: int = RESOLUTION
    """Pixels of a picture's side."""
    rounded: bool = False
    """Whether a text encoder computes in float32 whatever the number type of its weights."""


def clip_tokenizer(pad: str = END) -> CLIPTokenizer:
    """Return a tokenizer of CLIP's kind."""
    vocabulary = dict.fromkeys([*_LETTERS, *(letter + "</w>" for letter in _LETTERS)])
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocabulary[parts[0]] = None
    ids = {symbol: index for index, symbol in enumerate([*vocabulary, START, END])}
    return CLIPTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=TOKENS, pad_token=pad)


def t5_tokenizer(words: Sequence[str] = WORDS) -> T5Tokenizer:
    """Return a tokenizer of T5's kind, without the sentinels of its training."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces = [(f"▁{word}", -1.0) for word in words] + [(letter, -4.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=[*special, *pieces], extra_ids=0, model_max_length=TOKENS)


def clip_encoder(kind: Any, tokenizer: CLIPTokenizer, width: int, projection: int = 16) -> Any:
    """Return a text encoder of CLIP's kind."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return enlarged(kind(config), 2.0)


def t5_encoder(tokenizer: T5Tokenizer, width: int) -> Any:
    """Return a text encoder of T5's kind, which embeds more tokens than the tokenizer has, as T5 itself does."""
    config = T5Config(vocab_size=len(tokenizer) + 3, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def autoencoder(**others: Any) -> Any:
    """Return an autoencoder of pictures to latents of half their side."""
    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(down_block_types=down, up_block_types=up, **blocks, **others)


def enlarged(module: Any, factor: float) -> Any:
    """Return a module with its matrices multiplied."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 2:
                weight.mul_(factor)
    return module


def unet(**others: Any) -> Any:
    """Return a UNet of latents with 8 cells a side."""
    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    made = UNet2DConditionModel(sample_size=8, attention_head_dim=2, **blocks, **others)
    return enlarged(made, 2.0)


def betas(**others: Any) -> DDIMScheduler:
    """Return a scheduler with Stable Diffusion's betas."""
    given: dict[str, Any] = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, **others}
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **given)


def stable_diffusion_pipeline(scheduler: Any = None, **of_unet: Any) -> Any:
    """Stable Diffusion 1: a UNet that reads one text encoder, and predicts the noise."""
    tokenizer = clip_tokenizer()
    attention = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return StableDiffusionPipeline(
        vae=autoencoder(),
        unet=unet(cross_attention_dim=16, **attention, **of_unet),
        text_encoder=clip_encoder(CLIPTextModel, tokenizer, 16),
        tokenizer=tokenizer,
        scheduler=scheduler or betas(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2_pipeline() -> Any:
    """Stable Diffusion 2 with betas that end in pure noise: the UNet predicts the velocity."""
    ends: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = betas(prediction_type="v_prediction", **ends)
    return stable_diffusion_pipeline(scheduler, use_linear_projection=True)


def stable_diffusion_xl_pipeline(*, zeros_for_empty: bool = True) -> Any:
    """Stable Diffusion XL: a UNet that reads two text encoders, a pooled encoding and sizes."""
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    pooled, sizes = 20, 8
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13),
        unet=unet(
            cross_attention_dim=16 + 24,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=sizes,
            projection_class_embeddings_input_dim=6 * sizes + pooled,
        ),
        text_encoder=clip_encoder(CLIPTextModel, first, 16),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, second, 24, pooled),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=betas(),
        force_zeros_for_empty_prompt=zeros_for_empty,
        add_watermarker=False,
    )


def stable_diffusion_3_pipeline(*, with_t5: bool = False) -> Any:
    """Stable Diffusion 3: a transformer on a flow that reads two text encoders, or three."""
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 20,
        pos_embed_max_size=16,
    )
    latents: dict[str, Any] = {"latent_channels": 8, "use_quant_conv": False, "use_post_quant_conv": False}
    return StableDiffusion3Pipeline(
        transformer=enlarged(transformer, 1.5),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06, **latents),
        text_encoder=clip_encoder(CLIPTextModelWithProjection, first, 16, 16),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, second, 24, 20),
        text_encoder_3=t5_encoder(third, 48) if with_t5 else None,
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=third if with_t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux_pipeline(*, dev: bool = True) -> Any:
    """FLUX.1: a transformer on a flow that reads T5 and a pooled encoding; dev reads the guidance scale as well."""
    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(2, 2, 4),
    )
    dynamic: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    latents: dict[str, Any] = {"latent_channels": 4, "use_quant_conv": False, "use_post_quant_conv": False}
    return FluxPipeline(
        transformer=enlarged(transformer, 1.5),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12, **latents),
        text_encoder=clip_encoder(CLIPTextModel, first, 16),
        text_encoder_2=t5_encoder(second, 24),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=FlowMatchEulerDiscreteScheduler(**dynamic) if dev else FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def pixart_pipeline(*, sigma: bool = False) -> Any:
    """PixArt: a transformer that reads T5 with its mask, and predicts the noise and its variance. Alpha's is told the
    size of the picture.
    """
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        # The pipeline tells the size to transformers of 128 cells a side.
        sample_size=8 if sigma else 128,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=24,
        cross_attention_dim=48,
        caption_channels=16,
    )
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, 16),
        vae=autoencoder(scaling_factor=0.13),
        transformer=enlarged(transformer, 2.0),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, steps_offset=1, clip_sample=False),
    )


def gemma_tokenizer(words: Sequence[str] = WORDS) -> GemmaTokenizer:
    """Return a tokenizer of Gemma's kind, which knows other signs by their bytes.

    It knows the words of Sana's instruction too, of which the prompts of its tests would else be a thousand letters.
    """
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    known = dict.fromkeys([*words, *re.findall(r"[a-z]+", " ".join(instruction).lower())])
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocabulary = dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS])
    merges: list[tuple[str, str]] = []
    for piece in (each for word in known for each in (f"▁{word}", word)):
        parts = [*piece]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocabulary[parts[0]] = None
    ids = {symbol: index for index, symbol in enumerate(vocabulary)}
    made = GemmaTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=TOKENS)
    before = [("<bos>", ids["<bos>"])]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=before
    )
    return made


def gemma_encoder(tokenizer: GemmaTokenizer, width: int) -> Any:
    """Return a text encoder of Gemma 2's kind."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 8, "sliding_window": 4096}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return enlarged(Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **sizes, **heads, **ids)), 3.0)


def sana_pipeline(scheduler: Any = None) -> Any:
    """Sana: a transformer on a flow that reads Gemma 2, over the latents of a deep compression autoencoder."""
    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=8,
        timestep_scale=0.9,
    )
    blocks: dict[str, Any] = {"latent_channels": 8, "attention_head_dim": 4, "scaling_factor": 0.41}
    for part in ("encoder", "decoder"):
        blocks |= {f"{part}_block_types": ("ResBlock", "EfficientViTBlock"), f"{part}_block_out_channels": (8, 16)}
        blocks |= {f"{part}_layers_per_block": (1, 1), f"{part}_qkv_multiscales": ((), (5,))}
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_encoder(tokenizer, 16),
        vae=AutoencoderDC(decoder_norm_types="rms_norm", **blocks),
        transformer=enlarged(transformer, 2.0),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


_T5_TOKENS = 12
_OF_FLUX: dict[str, Any] = {
    "family": "flux",
    "entry": {"max_sequence_length": _T5_TOKENS},
    "call": {"max_sequence_length": _T5_TOKENS},
    "guided": False,
    "packed": True,
}
_OF_SD3: dict[str, Any] = {
    "family": "stable-diffusion-3",
    "entry": {"max_sequence_length": _T5_TOKENS},
    "call": {"max_sequence_length": _T5_TOKENS},
}
# The pipelines would else make pictures of the nearest size that the model was trained for.
_AS_GIVEN: dict[str, Any] = {
    "entry": {"max_sequence_length": _T5_TOKENS},
    "call": {"max_sequence_length": _T5_TOKENS, "use_resolution_binning": False},
}
_OF_PIXART: dict[str, Any] = {"family": "pixart", **_AS_GIVEN}

PIPELINES: dict[str, TinyPipeline] = {
    "stable-diffusion-1": TinyPipeline("stable-diffusion", stable_diffusion_pipeline),
    "stable-diffusion-2": TinyPipeline("stable-diffusion", stable_diffusion_2_pipeline),
    "stable-diffusion-xl": TinyPipeline("stable-diffusion-xl", stable_diffusion_xl_pipeline),
    "stable-diffusion-xl-empty": TinyPipeline(
        "stable-diffusion-xl", lambda: stable_diffusion_xl_pipeline(zeros_for_empty=False)
    ),
    "stable-diffusion-3": TinyPipeline(build=stable_diffusion_3_pipeline, **_OF_SD3),
    "stable-diffusion-3-t5": TinyPipeline(build=lambda: stable_diffusion_3_pipeline(with_t5=True), **_OF_SD3),
    "flux-dev": TinyPipeline(build=flux_pipeline, **_OF_FLUX),
    "flux-schnell": TinyPipeline(build=lambda: flux_pipeline(dev=False), **_OF_FLUX),
    "pixart-alpha": TinyPipeline(build=pixart_pipeline, **_OF_PIXART),
    "pixart-sigma": TinyPipeline(build=lambda: pixart_pipeline(sigma=True), **_OF_PIXART),
    "sana": TinyPipeline("sana", sana_pipeline, **_AS_GIVEN, resolution=32, rounded=True),
}
"""The pipelines by name. Every family has one at least."""


def built(name: str) -> Any:
    """Return a pipeline with the same weights in every process."""
    torch.manual_seed(0)
    pipeline = PIPELINES[name].build()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
