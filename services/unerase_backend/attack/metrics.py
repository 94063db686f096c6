"""The events that attacks report for metrics; the engine does not know who receives them."""


class AttackMetrics:
    """Receives the events, and ignores them unless a subclass does more; called from the attacks' thread."""

    def stepped(self, evaluation: str) -> None:
        """An optimisation has done one step."""

    def computed(self, evaluation: str, seconds: float) -> None:
        """An optimisation, or other work of an attack, has used the thread for `seconds`."""

    def loaded(self, seconds: float) -> None:
        """A model was loaded in `seconds`."""
