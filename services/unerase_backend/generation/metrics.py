"""The interface through which generation reports metrics."""


class GenerationMetrics:
    """Receives the events that metrics count, and ignores them; its methods are called from several threads."""

    def ticked(self, unet_seconds: float, rows: int, called: int) -> None:
        """One UNet call has been made, with `rows` of its `called` rows in use."""

    def finished(self, pictures: int, *, cached: bool) -> None:
        """Trajectories have ended; `cached` ones were in the artefact store."""

    def queued(self, trajectories: int) -> None:
        """This many trajectories wait for a place in a batch."""

    def admitted(self, waited_seconds: float) -> None:
        """A trajectory got its place in a batch after this wait, which includes loading its model."""

    def loaded(self, seconds: float, *, failed: bool) -> None:
        """A model was loaded, or failed to load."""
