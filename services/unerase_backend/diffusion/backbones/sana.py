"""Sana: a transformer with linear attention on a rectified flow that reads Gemma 2, over latents shrunk 32 times.

Xie et al., "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", arXiv 2410.10629.
Gemma reads a prompt after an instruction to enhance it, the pipeline's own (section 2.3.3 there). Of its states those
of the first token and of the last 299 are read, which stand for the prompt. The prompt is in lower case, without spaces
at its ends. A prompt without words is read without the instruction, as the pipeline reads the negative prompt; the text
of a guard such as `negative-prompt` is read with it.

The autoencoder has no distribution: its code is the mode.
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

# What diffusers 0.42 and transformers 5.23 take where a configuration leaves a key out.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "in_channels": 32,
        "out_channels": 32,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "patch_size": 1,
        "guidance_embeds": False,
    },
    "text_encoder": {"hidden_size": 2304},
    "vae": {
        "latent_channels": 32,
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "scaling_factor": 1.0,
    },
}


@backbone("sana")
class Sana(Backbone):
    """A transformer with Gemma 2 and a deep compression autoencoder."""

    title = "Sana"
    pipelines = ("SanaPipeline",)
    default_sequence_length = 300
    lower_case = True
    parts: ClassVar[Mapping[str, Part]] = {
        "transformer": Part("SanaTransformer2DModel", Role.DENOISER),
        "vae": Part("AutoencoderDC", Role.AUTOENCODER),
        "text_encoder": Part("Gemma2Model", Role.TEXT_ENCODER),
        "tokenizer": Part("GemmaTokenizer", Role.TOKENIZER, others=("GemmaTokenizerFast",)),
    }

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find an embedded guidance, widths and channels that differ, and a resolution that does not divide."""
        model_fit.find_by_rules(_RULES, configs, resolution, findings)

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return Gemma, which reads prompts after the instruction."""
        from unerase_backend.diffusion.text_reader import Framing, Lead, TextReader, lowered

        tokenizer, text = tokenizers["tokenizer"], _instruction()
        start = tuple(tokenizer("").input_ids)
        lead = Lead.of(tokenizer, text)
        # As long as the pipeline has it, so that what it reads of a prompt are the last states.
        length = len(tokenizer(text).input_ids) + self.sequence_length - 2
        framing = Framing(length, (*start, *lead.ids), (), tokenizer.pad_token_id, bare=start)
        return [TextReader("text_encoder", self.modules["text_encoder"], tokenizer, framing, lowered, lead=lead)]

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return Gemma's last hidden states that stand for prompts, and their mask."""
        import torch

        from unerase_backend.diffusion.encoding import MASK, STATES, Encoding

        frames, count = [prompt.frames[0] for prompt in prompts], self.sequence_length
        mask = self.readers[0].mask(frames)
        states = self.read(0, prompts, learned, attention_mask=mask, use_cache=False)[0]
        length = mask.shape[1]
        after_instruction, whole = [0, *range(length - count + 1, length)], list(range(count))
        chosen = [whole if prompt.empty else after_instruction for prompt in prompts]
        places = torch.tensor(chosen, device=states.device)
        wide = places[:, :, None].expand(-1, -1, states.shape[-1])
        return Encoding({STATES: states.gather(1, wide), MASK: mask.gather(1, places)})

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the transformer's output."""
        output: Tensor = denoiser(
            latents,
            encoder_hidden_states=encoding.states,
            encoder_attention_mask=encoding.mask,
            timestep=times * denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : latents.shape[1]]

    @property
    def shrinking(self) -> int:
        """Pixels of a picture on a side of one cell of latents."""
        factor: int = self.autoencoder.spatial_compression_ratio
        return factor

    def to_distribution(self, values: Tensor) -> Tensor:
        """Return the autoencoder's code of pictures from -1 to 1, (n, 3, height, width)."""
        code: Tensor = self.autoencoder.encode(values, return_dict=False)[0]
        return code


def _instruction() -> str:
    """Return what the pipeline puts before a prompt if nothing else is given."""
    import inspect

    from unerase_backend.diffusion.libraries import library_class

    call = library_class("diffusers", "SanaPipeline").__call__
    return "\n".join(inspect.signature(call).parameters["complex_human_instruction"].default)


def _value(configs: Configs, part: str, key: str) -> Any:
    return configs[part].get(key, _DEFAULTS[part][key])


def _guidance(configs: Configs, _: int, findings: Findings) -> None:
    if _value(configs, "transformer", "guidance_embeds"):
        what = "the transformer reads the guidance scale (guidance_embeds), as that of Sana Sprint does"
        findings.problem("transformer", UNSUPPORTED, what, remedy="Sana with classifier-free guidance can be audited")


def _latents(configs: Configs, _: int, findings: Findings) -> None:
    taken = int(_value(configs, "transformer", "in_channels"))
    given = int(_value(configs, "transformer", "out_channels") or taken)
    latents = int(_value(configs, "vae", "latent_channels"))
    model_fit.find_channel_misfit(taken, given, latents, findings)


def _states(configs: Configs, _: int, findings: Findings) -> None:
    read = _value(configs, "transformer", "caption_channels")
    written = _value(configs, "text_encoder", "hidden_size")
    model_fit.find_transformer_width(read, "caption_channels", written, ("Gemma writes", "hidden_size"), findings)


def _attention(configs: Configs, _: int, findings: Findings) -> None:
    width = int(_value(configs, "transformer", "num_attention_heads"))
    width *= int(_value(configs, "transformer", "attention_head_dim"))
    read = _value(configs, "transformer", "cross_attention_dim")
    if read not in (None, width):
        what = f"the transformer's cross_attention_dim is {read}, and must be {width}, as wide as its tokens"
        findings.problem("transformer", UNSUPPORTED, what, found="transformer/config.json")


def _scale(configs: Configs, resolution: int, findings: Findings) -> None:
    vae = {"scaling_factor": _DEFAULTS["vae"]["scaling_factor"], **configs["vae"]}
    model_fit.find_bad_scale({"vae": vae}, resolution, findings)


def _resolution(configs: Configs, resolution: int, findings: Findings) -> None:
    halvings = min(len(_value(configs, "vae", "encoder_block_out_channels")) - 1, 64)
    multiple = 2**halvings * int(_value(configs, "transformer", "patch_size"))
    if resolution % multiple:
        what = f"the resolution {resolution} does not divide into latents"
        findings.problem("", UNSUPPORTED, what, remedy=f"give a multiple of {multiple} in the catalogue")


_RULES: Sequence[model_fit.Rule] = (
    (("transformer",), _guidance),
    (("transformer",), _attention),
    (("transformer", "vae"), _latents),
    (("transformer", "text_encoder"), _states),
    (("vae",), _scale),
    (("transformer", "vae"), _resolution),
)
