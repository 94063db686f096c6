"""`--as text-encoder`: a CLIP text encoder, whole or in part, of transformers or of a CompVis checkpoint."""

from torch import Tensor

from unerase_backend.catalogue.findings import UNSUPPORTED
from unerase_backend.catalogue.layouts import COMPVIS_MODEL, COMPVIS_TEXT_ENCODER
from unerase_backend.catalogue.tensor_names import UNUSED
from unerase_backend.importing import compvis
from unerase_backend.importing.registry import Imported, Source, importer
from unerase_backend.runtime.errors import UnsafeModelError


@importer("text-encoder")
def import_text_encoder(source: Source) -> Imported:
    """Return the text encoder's tensors by transformers' names, checked against the model's where that is known."""
    if source.architecture.projects:
        # Without it the base's projection would stand behind the imported weights.
        message = f"the model reads its text encoder's {UNUSED}, which is not imported"
        raise UnsafeModelError(f"{message}; save the encoder by transformers' save_pretrained", reason=UNSUPPORTED)
    tensors = convert(source)
    source.architecture.check("text_encoder", tensors, complete=source.complete)
    return Imported({"text_encoder": tensors}, unused(source))


def unused(source: Source) -> list[str]:
    """Return a note on the projection beside a text encoder."""
    if any(name.endswith(UNUSED) for name in source.tensors):
        return [f"left out {UNUSED}, which no picture of Stable Diffusion 1 and 2 or of FLUX depends on"]
    return []


def convert(source: Source) -> dict[str, Tensor]:
    """Return the text encoder's tensors by transformers' names.

    Raises:
        UnsafeModelError: the layout needs a configuration that is not given.
    """
    if source.layout in (COMPVIS_TEXT_ENCODER, COMPVIS_MODEL):
        own = {name: tensor for name, tensor in source.tensors.items() if name.startswith("cond_stage_model.")}
        own = own or {_in_the_model(name): tensor for name, tensor in source.tensors.items()}
        width = 0
        if not any(name.startswith(compvis.TEXT_ENCODER) for name in own):
            why = "OpenCLIP's matrices are cut by the encoder's width"
            width = int(source.architecture.configuration("text_encoder", why).get("hidden_size", 0))
        return compvis.text_encoder(own, width)
    return {name: each for name, each in source.of_part("text_encoder").items() if name != UNUSED}


def _in_the_model(name: str) -> str:
    """Return a name of CompVis' text encoder alone, transformers' or OpenCLIP's, as a whole model has it."""
    if name.startswith("transformer.text_model."):
        return f"cond_stage_model.{name}"
    return f"{compvis.OPEN_CLIP}{name.removeprefix('model.')}"
