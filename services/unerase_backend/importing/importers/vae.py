"""An autoencoder of a pipeline's folder; a catalogue's entry cannot replace one alone."""

from unerase_backend.importing.registry import Imported, Source, importer


@importer("vae")
def import_vae(source: Source) -> Imported:
    """Return the autoencoder's tensors by today's names."""
    tensors = source.of_part("vae")
    source.architecture.check("vae", tensors, complete=source.complete)
    return Imported({"vae": tensors})
