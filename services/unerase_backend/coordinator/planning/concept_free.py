"""The concept-free control: the subject under prompts of other concepts, while judges look for the audit's concept.

With m other concepts, case i takes other concept i mod m. It keeps its seeds and its prompt, with a name of that
concept in the place of the audit's; one of the concept's templates takes the place of a prompt that does not name it.
The target keeps the audit's concept's name and the questions about it. Its names and its pictures are those of the
other concepts, in turn, in both halves of the pictures (`known_pictures.py`): picture i of a half is of case i's other
concept. The audit's own names come last: no prompt contains them, and a search for other words must not find them
either.
"""

from collections.abc import Iterator, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.v1.types_pb2 import Case, Concept
from unerase_backend.catalogue import MAX_CONCEPT_NAMES
from unerase_backend.catalogue.kinds import alike
from unerase_backend.evaluation.known_pictures import held_out, learnable
from unerase_backend.evaluation.prompts import SLOT, names_in, templates, with_name_replaced


def stand_ins(concept: Concept, others: Sequence[Target], cases: int) -> list[Concept]:
    """Return those of `others` that can take the concept's place in an audit of so many cases, in their order.

    They are of its kind, and have pictures if it has any: an evaluation that is handed pictures needs them too.
    """
    few = len(concept.picture_digests) < 2
    fit = alike(concept, [other for other in others if few or len(other.concept.picture_digests) >= 2])
    return [other.concept for other in fit[: min(cases, _NAMES_OF_OTHERS)]]


def concept_free_cases(cases: Sequence[Case], concept: Concept, places: Sequence[Concept]) -> Iterator[Case]:
    """Yield the cases of an audit with the names of other concepts, `places`, in the place of its concept's.

    A prompt that does not name the concept is replaced by one of the concept's templates.
    """
    held_out_prompts = [prompt for prompt in concept.held_out_prompts if SLOT in prompt] or templates(concept)
    for case in cases:
        turn, place = divmod(case.index, len(places))
        names = _names(places[place], len(places))
        free = Case()
        free.CopyFrom(case)
        free.prompt = _renamed(case.prompt, concept, templates(concept), case.index, names[turn % len(names)])
        free.held_out_prompt = _renamed(case.held_out_prompt, concept, held_out_prompts, case.index, names[0])
        yield free


def concept_free_target(target: Target, places: Sequence[Concept], cases: int) -> Target:
    """Return an audit's target with the names and pictures of other concepts, `places`, for so many cases."""
    concept = target.concept
    free = Target()
    free.CopyFrom(target)
    free.concept.Clear()
    free.concept.name, free.concept.kind = concept.name, concept.kind
    free.concept.custom = concept.custom
    lent = [name for each in places for name in _names(each, len(places))]
    free.concept.names.extend(dict.fromkeys([*lent, *concept.names[: MAX_CONCEPT_NAMES - _NAMES_OF_OTHERS]]))
    free.concept.prompts.extend(templates(concept))
    free.concept.held_out_prompts.extend(prompt for prompt in concept.held_out_prompts if SLOT in prompt)
    free.concept.initial_token, free.concept.sensitive = concept.initial_token, concept.sensitive
    halves = min(len(each.picture_digests) // 2 for each in places)
    if halves:
        rounds = min(halves, -(-cases // len(places)))
        for half in (learnable, held_out):
            by_place = [half(each, rounds) for each in places]
            free.concept.picture_digests.extend(digest for row in zip(*by_place, strict=True) for digest in row)
    return free


def _renamed(prompt: str, concept: Concept, slotted: Sequence[str], index: int, name: str) -> str:
    if names_in(prompt, concept):
        return with_name_replaced(prompt, concept, name)
    return slotted[index % len(slotted)].replace(SLOT, name)


def _names(concept: Concept, places: int) -> Sequence[str]:
    """Return the names that a concept lends; together they are no more than a concept may have."""
    return concept.names[: _NAMES_OF_OTHERS // places]


_NAMES_OF_OTHERS = MAX_CONCEPT_NAMES // 2
"""The most names that other concepts lend together; the rest is the audit's concept's own."""
