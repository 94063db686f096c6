"""Whether the parts of a model fit each other, and what can be sampled, by their configurations alone."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unerase_backend.catalogue.backbone_kinds import BackboneKind, Configs, Parts, Role, of_role
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
SAME_MODEL = "take both parts from one model"
"""What to do where parts do not fit each other."""
Rule = tuple[tuple[str, ...], Callable[[Configs, int, Findings], None]]
"""The parts that a rule looks at, and what finds its problems by configurations and the resolution."""
_EXTRA_CONDITIONING = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")


def value(configs: Configs, part: str, key: str) -> Any:
    """Return a value of a part's configuration, or its library's default."""
    return configs[part].get(key, DEFAULTS.get(part, {}).get(key))


def embedding_width(configs: Configs, part: str) -> Any:
    """Return how many numbers a text encoder has for a token; None if its configuration could not be read."""
    # T5 calls it d_model.
    return configs[part].get("d_model", value(configs, part, "hidden_size")) if part in configs else None


def find_misfits(configs: Configs, resolution: int, findings: Findings) -> None:
    """Find what keeps the parts of Stable Diffusion 1 and 2 from working together.

    `configs` holds the configurations of `unet`, `vae`, `text_encoder` and `tokenizer` as far as they could be read.
    """
    find_by_rules(_RULES, configs, resolution, findings)


def find_length(kind: type[BackboneKind], parts: Parts, given: int | None, findings: Findings) -> None:
    """Find a length of prompts in a catalogue that a model's text encoders, among `parts`, cannot or do not read."""
    if given is None:
        return
    if not kind.default_sequence_length:
        findings.note(f"max_sequence_length is not used: the text encoders of {kind.title} have lengths of their own")
    encoders = of_role(parts, Role.TEXT_ENCODER)
    without = [part for part in encoders if not parts[part].kind.startswith("CLIP")]
    if given == 0 and without:
        what = f"max_sequence_length is 0, and the {without[0]} reads at least the end of a prompt"
        findings.problem("", UNSUPPORTED, what, remedy="give a number above 0 in the catalogue")


def find_by_rules(rules: Iterable[Rule], configs: Configs, resolution: int, findings: Findings) -> None:
    """Find what is wrong by rules, each of which is asked if the parts that it looks at could be read."""
    try:
        for parts, rule in rules:
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
        findings.problem("unet", UNSUPPORTED, what, remedy=SAME_MODEL)


def find_long_prompts(configs: Configs, _: int, findings: Findings) -> None:
    """Find a `tokenizer` whose prompts are longer than the CLIP of `text_encoder` reads."""
    written, read = prompt_length(configs), int(value(configs, "text_encoder", "max_position_embeddings"))
    if not 0 < written <= read:
        length = written or "of no given length"
        what = f"the tokenizer's prompts are longer ({length}) than the text encoder reads ({read})"
        remedy = f"give model_max_length {read} in tokenizer/tokenizer_config.json"
        findings.problem("tokenizer", UNSUPPORTED, what, remedy=remedy, found="tokenizer/tokenizer_config.json")


def find_channel_misfit(taken: int, given: int, latents: int, findings: Findings) -> None:
    """Find a transformer whose channels are not those of the VAE's latents; it may give twice as many as it takes,
    the second half of which is the variance.
    """
    if taken != latents or given not in (taken, 2 * taken):
        what = (
            f"the transformer takes {counted(taken, 'channel')} and gives {given}, and the VAE's latents have {latents}"
        )
        findings.problem("transformer", UNSUPPORTED, what, remedy=SAME_MODEL)


def find_bad_scale(configs: Configs, _: int, findings: Findings) -> None:
    """Find factors of the `vae` that scale and shift no latents."""
    factor, shift = value(configs, "vae", "scaling_factor"), value(configs, "vae", "shift_factor")
    if not (type(factor) in (int, float) and math.isfinite(factor) and factor > 0):
        what = f"the scaling_factor of the VAE is {factor!r}, and must be a number above 0"
        findings.problem("vae", UNSUPPORTED, what, found="vae/config.json")
    if shift is not None and not (type(shift) in (int, float) and math.isfinite(shift)):
        what = f"the shift_factor of the VAE is {shift!r}, and must be a number"
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
    (("tokenizer", "text_encoder"), find_long_prompts),
    (("vae",), find_bad_scale),
    (("unet", "vae"), _resolution),
)


OF_UNETS: tuple[Rule, ...] = (
    (("unet", "vae"), _latents),
    (("tokenizer", "text_encoder"), find_long_prompts),
    (("vae",), find_bad_scale),
    (("unet", "vae"), _resolution),
)
"""The rules of all families with a UNet."""


def find_transformer_width(read: Any, key: str, written: Any, writes: tuple[str, str], findings: Findings) -> None:
    """Find a transformer that reads another width, at `key`, than is written; `writes` says who does, and at which key,
    as in ("T5 writes", "d_model").
    """
    if read != written:
        who, where = writes
        what = f"the transformer reads another width ({read}, {key}) than {who} ({written}, {where})"
        findings.problem("transformer", UNSUPPORTED, what, remedy=SAME_MODEL)


def find_other_width(configs: Configs, read: tuple[str, str], written: tuple[int, str], findings: Findings) -> None:
    """Find a denoiser that reads another width than text encoders write.

    `read` is the denoiser's part and the key of its configuration, `written` the width and where it comes from.
    """
    part, key = read
    if (wanted := int(value(configs, part, key))) != written[0]:
        what = f"the {part} reads another width ({wanted}, {key}) than the text encoders write ({written[0]}"
        findings.problem(part, UNSUPPORTED, f"{what}, {written[1]})", remedy=SAME_MODEL)


def prompt_length(configs: Configs) -> int:
    """Return the tokens of an encoded prompt; 0 where the tokenizer does not say, or says no whole number."""
    length = configs["tokenizer"].get("model_max_length", 0)
    return length if type(length) is int else 0
