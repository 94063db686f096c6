"""The interface through which classification reports metrics."""


class ClassificationMetrics:
    """Receives the events that metrics count, and ignores them; its methods are called from the judges' thread."""

    def judged(self, judge: str, pictures: int, seconds: float) -> None:
        """A judge has judged some pictures in one call."""

    def loaded(self, seconds: float) -> None:
        """A judge has been loaded."""
