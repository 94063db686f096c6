"""`--as model`: a whole Stable Diffusion in one file, or a UNet and a text encoder in one.

A file with an autoencoder becomes a whole pipeline; one without changes the UNet and the text encoder of its base.
"""

from collections.abc import Mapping

from torch import Tensor

from unerase_backend.catalogue.layouts import COMPVIS_MODEL
from unerase_backend.importing import compvis
from unerase_backend.importing.architecture import Part
from unerase_backend.importing.importers import text_encoder, unet
from unerase_backend.importing.registry import Imported, Source, importer
from unerase_backend.runtime.errors import UnsafeModelError


@importer("model")
def import_model(source: Source) -> Imported:
    """Return the parts that the file has; with an autoencoder, every part must be there and whole."""
    whole = source.layout == COMPVIS_MODEL
    roots = {name.partition(".")[0] for name in source.tensors}
    has_vae = "first_stage_model" in roots if whole else "vae" in roots
    files: dict[Part, dict[str, Tensor]] = {}
    if roots & {"unet", "model"}:
        files["unet"] = unet.convert(source)
    if roots & {"text_encoder", "cond_stage_model"}:
        files["text_encoder"] = text_encoder.convert(source)
    if has_vae:
        why = "a whole model needs the configurations, the tokenizer and the schedule of the one that it came from"
        configuration = source.architecture.configuration("vae", why)
        prefix = compvis.VAE if whole else "vae."
        own = {name: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}
        files["vae"] = compvis.vae(own, configuration) if whole else source.of_part("vae")
    if missing := {"unet", "text_encoder"} - set(files):
        message = f"it has no {min(missing)}; import the parts that it has by themselves (--as)"
        raise UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
    for part, tensors in files.items():
        source.architecture.check(part, tensors, complete=has_vae)
    notes = [*_left_out(source.tensors, whole), *text_encoder.unused(source)]
    return Imported({str(part): tensors for part, tensors in files.items()}, notes)


def _left_out(tensors: Mapping[str, Tensor], whole: bool) -> list[str]:
    """Return a note on the tensors of a CompVis checkpoint that are of no part."""
    parts = (compvis.UNET[0], compvis.TEXT_ENCODER, compvis.OPEN_CLIP, compvis.VAE)
    others = sorted(name for name in tensors if whole and not name.startswith(parts))
    strangers = [name for name in others if not compvis.BESIDE.match(name)]
    return compvis.left_out(strangers)
