"""Whether the parts of a model fit each other, and what can be sampled, by their configurations alone."""

import math
from collections.abc import Mapping
from typing import Any

from unerase_backend.catalogue.backbone_kinds import Configs
from unerase_backend.catalogue.families import audited, family_of_channels
from unerase_backend.catalogue.findings import UNSUPPORTED, Findings
from unerase_backend.runtime.counting import counted

# What diffusers 0.42 and transformers 5.23 take where a configuration leaves a key out.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "block_out_channels": (320, 640, 1280, 1280),
        "addition_embed_type": None,
        "class_embed_type": None,
        "time_cond_proj_dim": None,
    },
    "vae": {"latent_channels": 4, "block_out_channels": (64,), "scaling_factor": 0.18215},
    "text_encoder": {"hidden_size": 512, "max_position_embeddings": 77, "vocab_size": 49408},
}
_EXTRA_CONDITIONING = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")


def value(configs: Configs, part: str, key: str) -> Any:
    """Return a value of a part's configuration, or its library's default."""
    return configs[part].get(key, DEFAULTS.get(part, {}).get(key))


def embedding_width(configs: Configs, part: str) -> Any:
    """Return how many numbers a text encoder has for a token; None if its configuration could not be read."""
    # T5 calls it d_model.
    return configs[part].get("d_model", value(configs, part, "hidden_size")) if part in configs else None


def find_misfits(configs: Configs, resolution: int, findings: Findings) -> None:
    """Find what keeps the parts from working together.

    `configs` holds the configurations of `unet`, `vae`, `text_encoder` and `tokenizer` as far as they could be read.
    """
    try:
        for parts, rule in _RULES:
            if all(part in configs for part in parts):
                rule(configs, resolution, findings)
    except (TypeError, ValueError, AttributeError, OverflowError):
        findings.problem("", UNSUPPORTED, "a configuration holds a value of the wrong type")


def _conditioning(configs: Configs, _: int, findings: Findings) -> None:
    given = [key for key in _EXTRA_CONDITIONING if value(configs, "unet", key) is not None]
    if given:
        what = f"the UNet needs conditioning beyond the prompt ({given[0]})"
        findings.problem("unet", UNSUPPORTED, what, remedy=f"{audited()} can be audited")


def _latents(configs: Configs, _: int, findings: Findings) -> None:
    taken, given = (int(value(configs, "unet", key)) for key in ("in_channels", "out_channels"))
    latents = int(value(configs, "vae", "latent_channels"))
    if taken == given == latents:
        return
    family = family_of_channels(taken) if given == latents else ""
    what = (
        f"the UNet takes {counted(taken, 'channel')} as that of {family} does, which cannot be audited yet"
        if family
        else f"the UNet and the VAE have different latents: the UNet takes {counted(taken, 'channel')} and gives "
        f"{given}, the VAE has {latents}"
    )
    findings.problem("unet", UNSUPPORTED, what, remedy=f"{audited()} can be audited" if family else "")


def _widths(configs: Configs, _: int, findings: Findings) -> None:
    read = value(configs, "unet", "cross_attention_dim")
    written = value(configs, "text_encoder", "hidden_size")
    if read != written:
        what = f"the UNet reads another width ({read}) than the text encoder writes ({written})"
        findings.problem("unet", UNSUPPORTED, what, remedy="take both parts from one model")


def _lengths(configs: Configs, _: int, findings: Findings) -> None:
    written, read = prompt_length(configs), int(value(configs, "text_encoder", "max_position_embeddings"))
    if not 0 < written <= read:
        length = written or "of no given length"
        what = f"the tokenizer's prompts are longer ({length}) than the text encoder reads ({read})"
        remedy = f"give model_max_length {read} in tokenizer/tokenizer_config.json"
        findings.problem("tokenizer", UNSUPPORTED, what, remedy=remedy, found="tokenizer/tokenizer_config.json")


def _scaling(configs: Configs, _: int, findings: Findings) -> None:
    factor = value(configs, "vae", "scaling_factor")
    if not (type(factor) in (int, float) and math.isfinite(factor) and factor > 0):
        what = f"the scaling_factor of the VAE is {factor!r}, and must be a number above 0"
        findings.problem("vae", UNSUPPORTED, what, found="vae/config.json")


def _resolution(configs: Configs, resolution: int, findings: Findings) -> None:
    halvings = sum(len(value(configs, part, "block_out_channels")) for part in ("vae", "unet")) - 2
    multiple = 2 ** min(halvings, 64)
    if resolution % multiple:
        what = f"the resolution {resolution} does not divide into latents"
        findings.problem("", UNSUPPORTED, what, remedy=f"give a multiple of {multiple} in the catalogue")


_RULES = (
    (("unet",), _conditioning),
    (("unet", "vae"), _latents),
    (("unet", "text_encoder"), _widths),
    (("tokenizer", "text_encoder"), _lengths),
    (("vae",), _scaling),
    (("unet", "vae"), _resolution),
)


def prompt_length(configs: Configs) -> int:
    """Return the tokens of an encoded prompt; 0 where the tokenizer does not say, or says no whole number."""
    length = configs["tokenizer"].get("model_max_length", 0)
    return length if type(length) is int else 0
