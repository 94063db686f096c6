"""Statistics, outcomes, verdict, and the simulation of their errors: pure functions of observations."""

from unerase_backend.verdict.decision import Tolerances, conclude, has_answer

__all__ = ["Tolerances", "conclude", "has_answer"]
