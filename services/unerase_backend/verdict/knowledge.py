"""What the likelihood says about the subject's knowledge of the concept's pictures.

Two figures are compared with the tolerance of destruction: the concept's loss, which is how much less likely the
concept's pictures became in all, and destruction, which is the loss beyond what all other pictures suffered. A model of
random weights has no destruction, because everything else suffered as much, and no knowledge either. So only a small
loss shows knowledge, and small destruction shows nothing.
"""

from unerase.v1.verdicts_pb2 import Interval, Knowledge, LikelihoodResult

INTACT = Knowledge.KNOWLEDGE_INTACT
NO_WORSE_THAN_THE_REST = Knowledge.KNOWLEDGE_NO_WORSE_THAN_THE_REST
DESTROYED = Knowledge.KNOWLEDGE_DESTROYED
LOST_WITH_THE_REST = Knowledge.KNOWLEDGE_LOST_WITH_THE_REST
UNSETTLED = Knowledge.KNOWLEDGE_UNSETTLED
UNMEASURED = Knowledge.KNOWLEDGE_UNSPECIFIED

LOST = (DESTROYED, LOST_WITH_THE_REST)
"""The readings in which the concept's pictures became less likely, which "removed" needs."""


def knowledge_of(likelihood: LikelihoodResult, destruction: float, general_damage: float) -> Knowledge.ValueType:
    """Return the reading of a likelihood result at the two tolerances."""
    return read_bounds(
        likelihood.destruction_bounds,
        likelihood.concept_loss_bounds,
        destruction,
        damaged=likelihood.general_damage.value > general_damage,
    )


def read_bounds(destruction: Interval, loss: Interval, tolerance: float, *, damaged: bool) -> Knowledge.ValueType:
    """Return the first reading that holds, from the one-sided bounds of destruction and of the concept's loss.

    `damaged` is True if general damage exceeds its tolerance.
    """
    if loss.upper < tolerance:
        return INTACT
    # In a model that became better at everything else, destruction alone would overstate what the concept lost.
    if destruction.lower > tolerance and loss.lower > tolerance:
        return DESTROYED
    if damaged and loss.lower > tolerance:
        return LOST_WITH_THE_REST
    if destruction.upper < tolerance:
        return NO_WORSE_THAN_THE_REST
    return UNSETTLED


def of_bounds(lower: float, upper: float, tolerance: float) -> Knowledge.ValueType:
    """Return the reading of a model without general damage, whose destruction is the concept's whole loss."""
    bounds = Interval(lower=lower, upper=upper)
    return read_bounds(bounds, bounds, tolerance, damaged=False)
