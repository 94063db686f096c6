"""What the attacks tell whoever measures them; the engine knows nothing of what becomes of it."""


class AttackMetrics:
    """Hears of everything worth a metric; this one keeps silent. Its methods are called from the attacks' thread."""

    def stepped(self, evaluation: str) -> None:
        """An optimisation has made one step."""

    def computed(self, evaluation: str, seconds: float) -> None:
        """An optimisation, or another piece of an attack's own work, has had the thread for so long."""

    def loaded(self, seconds: float) -> None:
        """A model has been loaded."""
