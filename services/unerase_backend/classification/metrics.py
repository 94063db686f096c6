"""What classification reports for metrics; the engine does not know where it goes."""


class ClassificationMetrics:
    """Is told of events that count for a metric, and ignores them; its methods are called from the judges' thread."""

    def judged(self, judge: str, pictures: int, seconds: float) -> None:
        """A judge has judged some pictures in one call."""

    def loaded(self, seconds: float) -> None:
        """A judge has been loaded."""
