"""The models whose audits are simulated: what each evaluation brings back, and which conclusions would be wrong."""

from dataclasses import dataclass, replace

from unerase.v1.verdicts_pb2 import Conclusion

Rates = tuple[float, float, float, float, float]
"""The chance that a case shows the concept, in the order of `simulation.BATTERY`."""


@dataclass(frozen=True)
class Truth:
    """A kind of model: how often each evaluation brings the concept back, and its true destruction."""

    name: str
    right: Conclusion.ValueType
    wrong: frozenset[Conclusion.ValueType]
    subject: Rates
    destruction: float
    reference: Rates = (0.98, 1.0, 0.95, 0.95, 1.0)


def _removed(name: str, destruction: float, reference: float | None = None) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_AVOIDED, Conclusion.CONCLUSION_NOT_ERASED})
    truth = Truth(name, Conclusion.CONCLUSION_REMOVED, wrong, (0.0, 0.0, 0.0, 0.0, 0.0), destruction)
    if reference is None:
        return truth
    return replace(truth, reference=(reference, reference, reference, reference, reference))


def _avoided(name: str, subject: Rates, destruction: float) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_REMOVED})
    return Truth(name, Conclusion.CONCLUSION_AVOIDED, wrong, subject, destruction)


def _not_erased(name: str, rate: float, destruction: float) -> Truth:
    wrong = frozenset({Conclusion.CONCLUSION_REMOVED})
    return Truth(name, Conclusion.CONCLUSION_NOT_ERASED, wrong, (rate, rate, rate, rate, rate), destruction)


TRUTHS = (
    _removed("removed, destruction 1.0", 1.0),
    _removed("removed, destruction 0.25", 0.25),
    _removed("removed, destruction 1.0, reference shows it in 60 %", 1.0, 0.6),
    _avoided("avoided, knowledge intact, nothing brings it back", (0, 0, 0, 0, 0), 0.0),
    _avoided("avoided, knowledge intact, only textual inversion, 90 %", (0, 0, 0, 0.9, 0), 0.0),
    _avoided("avoided, destruction 0.1, only textual inversion, 40 %", (0, 0, 0, 0.4, 0), 0.1),
    _avoided("avoided, destruction 0.3, only textual inversion, 10 %", (0, 0, 0, 0.1, 0), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 20 %", (0, 0, 0, 0.2, 0), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 40 %", (0, 0, 0, 0.4, 0), 0.3),
    _avoided("avoided, destruction 0.3, only textual inversion, 90 %", (0, 0, 0, 0.9, 0), 0.3),
    _avoided("avoided, destruction 0.3, all but the standard prompt, 20 %", (0, 0.2, 0.2, 0.2, 0.2), 0.3),
    _not_erased("not erased, everything, 10 %, destruction 0.3", 0.1, 0.3),
    _not_erased("not erased, everything, 40 %, knowledge intact", 0.4, 0.0),
    _not_erased("not erased, everything, 90 %, knowledge intact", 0.9, 0.0),
)

COMPARED = (0, 6, 8)
"""The truths in which ways to decide are compared, by their place."""
