"""What onnxruntime computes of a model."""

from unerase_backend.diffusion.decoder_graph import with_decoder_graph
from unerase_backend.diffusion.denoiser_graph import with_denoiser_graph
from unerase_backend.diffusion.model import DiffusionModel


def with_graphs(model: DiffusionModel, threads: int) -> DiffusionModel:
    """Return a model with the graphs that it may have, of its denoiser and of its decoder."""
    return with_decoder_graph(with_denoiser_graph(model, threads), threads)
