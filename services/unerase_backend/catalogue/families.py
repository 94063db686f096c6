"""The families of text-to-image models, from the class of pipeline that a folder's model_index.json names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unerase_backend.catalogue import configs
from unerase_backend.catalogue.backbone_kinds import BACKBONES, BackboneKind, backbone_of
from unerase_backend.catalogue.findings import UNSUPPORTED, Findings

DEFAULT = "StableDiffusionPipeline"
"""What a folder is read as whose model_index.json names no class that is known."""
DEFAULT_FAMILY = "stable-diffusion"
UNKNOWN = ""

# What a class is for whose name holds these words, whatever its family: none of it is audited.
_PURPOSES = (
    ("ControlNet", "a ControlNet, which takes a picture beside the prompt"),
    ("Adapter", "a T2I adapter, which takes a picture beside the prompt"),
    ("Control", "a model that takes a picture beside the prompt"),
    ("Inpaint", "a model for inpainting, which takes a picture and a mask beside the prompt"),
    ("Fill", "a model for inpainting, which takes a picture and a mask beside the prompt"),
    ("InstructPix2Pix", "a model for instructions, which takes a picture beside the prompt"),
    ("Kontext", "a model for instructions, which takes a picture beside the prompt"),
    ("Upscale", "a model for upscaling, which takes a picture beside the prompt"),
    ("Video", "a model for videos"),
)
# The first that fits; a class whose name begins so, of diffusers 0.42 or older, belongs to the family.
_FAMILIES = (
    ("StableDiffusionXL", "SDXL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("StableDiffusionDepth2Img", "Stable Diffusion with depth"),
    ("StableDiffusionImageVariation", "Stable Diffusion for variations of pictures"),
    ("StableDiffusionGLIGEN", "GLIGEN"),
    ("StableUnCLIP", "Stable unCLIP"),
    ("StableCascade", "Stable Cascade"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("LatentConsistencyModel", "a latent consistency model"),
    ("LDMTextToImage", "latent diffusion with a BERT encoder"),
    ("AltDiffusion", "AltDiffusion"),
    ("AuraFlow", "AuraFlow"),
    ("Chroma", "Chroma"),
    ("CogView", "CogView"),
    ("Flux2", "FLUX.2"),
    ("Flux3", "FLUX.3"),
    ("Flux", "FLUX"),
    ("Hunyuan", "Hunyuan"),
    ("IF", "DeepFloyd IF"),
    ("Kandinsky", "Kandinsky"),
    ("Kolors", "Kolors"),
    ("Latte", "Latte"),
    ("Lumina", "Lumina"),
    ("PixArt", "PixArt"),
    ("QwenImage", "Qwen-Image"),
    ("Sana", "Sana"),
    ("UnCLIP", "unCLIP"),
    ("VersatileDiffusion", "Versatile Diffusion"),
    ("Wuerstchen", "Wuerstchen"),
)
# What UNets with further channels beside the latents' four are trained for.
_CHANNELS = {
    5: "Stable Diffusion with depth",
    7: "Stable Diffusion for upscaling",
    8: "InstructPix2Pix",
    9: "Stable Diffusion for inpainting",
}


def family_of(pipeline_class: str) -> str:
    """Return the family that a class of pipeline belongs to, if it is known and not supported; else an empty text."""
    if backbone_of(pipeline_class) is not None:
        return UNKNOWN
    family = next((family for start, family in _FAMILIES if pipeline_class.startswith(start)), UNKNOWN)
    purpose = next((purpose for word, purpose in _PURPOSES if word in pipeline_class), "")
    known = family or (pipeline_class.startswith("StableDiffusion") and purpose)
    return ", ".join(filter(None, (family, purpose))) if known else UNKNOWN


def family_of_channels(in_channels: int) -> str:
    """Return the family whose UNets take that many channels; empty for the latents' own or for a strange number."""
    return _CHANNELS.get(in_channels, UNKNOWN)


def version_of(prompt_width: int) -> str:
    """Return the name of a supported model by the width of its encoded prompts: OpenAI's CLIP L, OpenCLIP's H."""
    return {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}.get(prompt_width, "Stable Diffusion")


def family_of_folder(folder: Path) -> type[BackboneKind]:
    """Return the family by which a pipeline's folder is read, whether it can be audited or not."""
    index = configs.parse(folder / "model_index.json")
    named = index.get("_class_name") if isinstance(index, dict) else None
    kind = backbone_of(named) if isinstance(named, str) else None
    return kind or BACKBONES.all()[DEFAULT_FAMILY]


def check_family(index: Mapping[str, Any], findings: Findings) -> type[BackboneKind] | None:
    """Return the family by which a folder is read; None, with a problem, if it is of one that cannot be audited."""
    named = index.get("_class_name")
    if named is not None and not isinstance(named, str):
        what = "model_index.json names code as its class, which is not run here"
        findings.problem("", "MODEL_NAMES_CODE", what, found="model_index.json")
        return None
    if (kind := backbone_of(named or "")) is not None:
        if problem := kind.index_problem(index):
            findings.problem("", UNSUPPORTED, problem, found="model_index.json")
            return None
        return kind
    if family := family_of(named or ""):
        what = f"it is a {named} ({family}), which cannot be audited yet; {audited()} can"
        findings.problem("", UNSUPPORTED, what, found="model_index.json")
        return None
    findings.note(f"model_index.json names {named or 'no class'}; the folder is read as a {DEFAULT}")
    return BACKBONES.all()[DEFAULT_FAMILY]


def audited() -> str:
    """Return the families that can be audited, in words."""
    titles = sorted(kind.title for kind in BACKBONES.all().values())
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))
