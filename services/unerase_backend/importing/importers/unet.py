"""`--as unet`: a UNet, whole or in part, in diffusers' or CompVis' layout."""

from collections.abc import Mapping

from torch import Tensor

from unerase_backend.catalogue.layouts import COMPVIS_MODEL, COMPVIS_UNET
from unerase_backend.importing import compvis
from unerase_backend.importing.registry import Imported, Source, importer


@importer("unet")
def import_unet(source: Source) -> Imported:
    """Return the UNet's tensors by diffusers' names, checked against the model's architecture where that is known."""
    tensors = convert(source)
    source.architecture.check("unet", tensors, complete=source.complete)
    return Imported({"unet": tensors}, _left_out(source))


def _left_out(source: Source) -> list[str]:
    """Return a note on the tensors of a file with a UNet in CompVis' layout that are of no part."""
    if source.layout != COMPVIS_UNET:
        return []
    prefix = next(each for each in compvis.UNET if any(name.startswith(each) for name in source.tensors))
    strangers = sorted(
        name for name in source.tensors if not name.startswith(prefix) and not compvis.BESIDE.match(name)
    )
    return compvis.left_out(strangers)


def convert(source: Source) -> dict[str, Tensor]:
    """Return the UNet's tensors by diffusers' names.

    Raises:
        UnsafeModelError: there are none, one is unknown, or the layout needs a configuration that is not given.
    """
    if source.layout in (COMPVIS_UNET, COMPVIS_MODEL):
        why = "where CompVis' blocks go depends on the number of layers in a block"
        layers = source.architecture.configuration("unet", why).get("layers_per_block")
        return compvis.unet(_of_the_unet(source.tensors), layers if isinstance(layers, int) else 2)
    return source.of_part("unet")


def _of_the_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    others = (compvis.TEXT_ENCODER, compvis.OPEN_CLIP, compvis.VAE, "cond_stage_model.")
    kept = {
        name: each for name, each in tensors.items() if not name.startswith(others) and not compvis.BESIDE.match(name)
    }
    return compvis.without_prefix(kept, compvis.UNET)
