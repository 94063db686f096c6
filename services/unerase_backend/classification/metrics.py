"""What classification tells whoever measures it; the engine knows nothing of what becomes of it."""


class ClassificationMetrics:
    """Hears of everything worth a metric; this one keeps silent. Its methods are called from the judges' thread."""

    def judged(self, judge: str, pictures: int, seconds: float) -> None:
        """A judge has looked at some pictures, in one call."""

    def loaded(self, seconds: float) -> None:
        """A judge has been loaded."""
