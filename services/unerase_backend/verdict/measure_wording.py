"""What a measure found, in words: likelihood, interference, tracing and alternatives."""

from unerase.v1.types_pb2 import ModelRole
from unerase.v1.verdicts_pb2 import (
    Alternatives,
    AlternativesResult,
    InterferenceResult,
    Interval,
    Knowledge,
    LikelihoodResult,
    TracingResult,
)
from unerase_backend.runtime.counting import counted


def likelihood_sentence(likelihood: LikelihoodResult, tolerance: float) -> str:
    """Return the two mechanisms as a sentence."""
    pull = "the reference has no pull to lose"
    if likelihood.HasField("lost_pull"):
        interval = likelihood.lost_pull.interval
        pull = f"lost pull {likelihood.lost_pull.value:z.2f} ({interval.lower:z.2f} to {interval.upper:z.2f})"
    return (
        f"likelihood: destruction {likelihood.destruction.value:z.3f}, {between(likelihood.destruction_bounds)}, and "
        f"the loss on the concept's pictures, general damage included, {likelihood.concept_loss.value:z.3f}, "
        f"{between(likelihood.concept_loss_bounds)} (each one-sided 95 %; tolerance {tolerance:.2f}): "
        f"{KNOWLEDGE[likelihood.knowledge]}; {pull}; {counted(likelihood.concept_pictures, 'picture')} of the concept, "
        f"{counted(likelihood.other_pictures, 'other')}."
    )


KNOWLEDGE = {
    Knowledge.KNOWLEDGE_UNSPECIFIED: "what this says about the knowledge was not recorded",
    Knowledge.KNOWLEDGE_INTACT: "the knowledge is intact",
    Knowledge.KNOWLEDGE_NO_WORSE_THAN_THE_REST: (
        "the concept's pictures lost hardly more than everything else, which is no evidence of knowledge"
    ),
    Knowledge.KNOWLEDGE_DESTROYED: "the concept's pictures have become less likely beyond the general damage",
    Knowledge.KNOWLEDGE_LOST_WITH_THE_REST: ("the concept's pictures have become less likely, together with much else"),
    Knowledge.KNOWLEDGE_UNSETTLED: "whether the knowledge is intact is not settled",
}
"""Each reading of the likelihood as a clause."""


def general_damage_sentence(likelihood: LikelihoodResult, tolerance: float) -> str:
    """Return the general damage as a sentence."""
    damage = likelihood.general_damage
    return (
        f"general damage {damage.value:z.3f} ({damage.interval.lower:z.3f} to {damage.interval.upper:z.3f}) "
        f"{_against(damage.value, tolerance)}."
    )


def interference_sentence(interference: InterferenceResult, tolerance: float) -> str:
    """Return what happened to the other concepts as a sentence."""
    loss = interference.loss
    return (
        f"interference: detection of {counted(len(interference.concepts), 'other concept')} fell by {loss.value:z.3f} "
        f"({loss.interval.lower:z.3f} to {loss.interval.upper:z.3f}), {_against(loss.value, tolerance)}."
    )


def tracing_sentence(tracing: TracingResult) -> str:
    """Return the curves from the reference to the subject as a sentence."""
    first, last = tracing.points[0], tracing.points[-1]
    start = first.detected.hits / max(first.detected.cases, 1)
    halved = [point.strength for point in tracing.points if 2 * point.detected.hits <= start * point.detected.cases]
    words = (
        f"tracing: on the way from the reference to the subject the concept is found in {first.detected.hits} of "
        f"{counted(first.detected.cases, 'case')} at strength {first.strength:g}, and in {last.detected.hits} of "
        f"{last.detected.cases} at strength {last.strength:g}"
    )
    if start and halved:
        words += f"; at most half of it is left from strength {halved[0]:g}"
    if last.HasField("destruction"):
        destruction, interval = last.destruction.value, last.destruction.interval
        words += f"; destruction comes to {destruction:z.3f} ({interval.lower:z.3f} to {interval.upper:z.3f})"
    return f"{words}."


def alternatives_sentence(alternatives: AlternativesResult) -> str:
    """Return what the models show in the concept's place as a sentence."""
    return f"alternatives: {'; '.join(_alternatives(model) for model in alternatives.models)}."


def _alternatives(model: Alternatives) -> str:
    role = ModelRole.Name(model.role).removeprefix("MODEL_ROLE_").lower()
    if not model.pictures:
        return f"the {role}'s pictures are all unscored"
    most, entropy = model.labels[0], model.entropy
    shown = f"{most.pictures} of {counted(model.pictures, 'picture')}"
    words = (
        f"under the plain prompt the {role} shows {most.label!r} most, in {shown} "
        f"(entropy of its labels {entropy.value:.2f} bits, {entropy.interval.lower:.2f} to {entropy.interval.upper:.2f}"
    )
    if model.HasField("dispersion"):
        interval = model.dispersion.interval
        words += f", dispersion {model.dispersion.value:.2f}, {interval.lower:.2f} to {interval.upper:.2f}"
    return f"{words})"


def between(bounds: Interval) -> str:
    """Return both one-sided bounds of a figure in words."""
    return f"at least {bounds.lower:z.3f} and at most {bounds.upper:z.3f}"


def _against(value: float, tolerance: float) -> str:
    return f"{'exceeds' if value > tolerance else 'within'} the tolerance of {tolerance:.2f}"
