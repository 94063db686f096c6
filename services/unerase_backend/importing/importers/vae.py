"""An autoencoder of a pipeline's folder; a catalogue's entry cannot replace one alone."""

from collections.abc import Mapping

from torch import Tensor

from unerase_backend.importing.registry import Imported, Source, importer

# diffusers before 0.20 called an autoencoder's attention so.
_RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@importer("vae")
def import_vae(source: Source) -> Imported:
    """Return the autoencoder's tensors by today's names."""
    tensors = renamed(source.tensors)
    source.architecture.check("vae", tensors, complete=source.complete)
    return Imported({"vae": tensors})


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an autoencoder's tensors by today's names of diffusers."""
    found = {}
    for name, tensor in tensors.items():
        new = name
        for old, today in _RENAMED.items():
            new = new.replace(old, today) if ".attentions." in new else new
        found[new] = tensor
    return found
