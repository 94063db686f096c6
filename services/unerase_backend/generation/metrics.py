"""What generation tells whoever measures it; the engine knows nothing of what becomes of it."""


class GenerationMetrics:
    """Hears of everything worth a metric; this one keeps silent. Its methods are called from several threads."""

    def ticked(self, unet_seconds: float, rows: int, batch_rows: int) -> None:
        """One UNet call has been made, with `rows` of its `batch_rows` in use."""

    def finished(self, pictures: int, *, cached: bool) -> None:
        """Trajectories have come to their end; `cached` ones had been made before."""

    def queued(self, trajectories: int) -> None:
        """So many trajectories wait for a place in a batch."""

    def admitted(self, waited_seconds: float) -> None:
        """A trajectory has got its place in a batch, after so long; its model may have had to be loaded meanwhile."""

    def loaded(self, seconds: float, *, failed: bool) -> None:
        """A model has been loaded, or would not load."""
