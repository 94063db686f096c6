"""The prompt pack of an audit, and those of its controls: as many draws of each kind, in words of their own.

A placebo has its own pack's prompts of a kind or, without them, its templates with its names. The concept-free control
keeps the words around the concept's name and puts another concept's name there; in place of a prompt that does not
name the concept, such as one in another language, it takes one of the concept's templates. A model as the control gets
the audit's own pack.
"""

import math
from collections.abc import Iterator, Sequence

from unerase._prompt_pack import MAX_PACK_BYTES
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import Concept, PromptKind, PromptPack
from unerase_backend.catalogue.packs import problems_of_pack
from unerase_backend.coordinator.planning.fixed_prompts import problems_of_source
from unerase_backend.coordinator.planning.model_checks import Problem
from unerase_backend.evaluation.prompts import SLOT, names_in, templates, with_name_replaced


def problems_of_request(spec: AuditSpec) -> Iterator[Problem]:
    """Yield what is wrong with a request's pack."""
    if spec.HasField("pack"):
        size = spec.pack.ByteSize()
        if size > MAX_PACK_BYTES:
            yield Problem("spec.pack", f"must be at most {MAX_PACK_BYTES} bytes, not {size}")
        yield from (Problem(each.field, each.description) for each in problems_of_pack(spec.pack, "spec.pack"))
        yield from problems_of_source(spec.pack.source, "spec.pack.source")


def with_pack(concept: Concept, spec: AuditSpec) -> Concept:
    """Return a concept with the request's pack in the place of its own, if the request has one."""
    if spec.pack.kinds:
        concept.pack.CopyFrom(spec.pack)
    return concept


def placebo_pack(pack: PromptPack, placebo: Concept) -> PromptPack:
    """Return the pack of a placebo beside the audit's own `pack`."""
    own = {kind.name: kind.prompts for kind in placebo.pack.kinds}
    plain = [_template(templates(placebo), placebo.names, index) for index in range(_most(pack))]
    return PromptPack(
        kinds=[
            PromptKind(name=kind.name, prompts=own.get(kind.name) or dict.fromkeys(plain[: len(kind.prompts)]))
            for kind in pack.kinds
        ],
        source=placebo.pack.source if placebo.pack.kinds else None,
    )


def concept_free_pack(pack: PromptPack, concept: Concept, names: Sequence[str]) -> PromptPack:
    """Return the audit's pack with `names` of other concepts, in turn, in the place of its concept's."""
    slotted = templates(concept)
    return PromptPack(
        kinds=[
            PromptKind(
                name=kind.name,
                prompts=dict.fromkeys(
                    with_name_replaced(prompt, concept, names[index % len(names)])
                    if names_in(prompt, concept)
                    else _template(slotted, names, index)
                    for index, prompt in enumerate(kind.prompts)
                ),
            )
            for kind in pack.kinds
        ]
    )


def _most(pack: PromptPack) -> int:
    return max((len(kind.prompts) for kind in pack.kinds), default=0)


def _template(slotted: Sequence[str], names: Sequence[str], index: int) -> str:
    # The shift makes every pair of template and name come once before one repeats, as in the audit's cases.
    period = math.lcm(len(slotted), len(names))
    return slotted[index % len(slotted)].replace(SLOT, names[(index + index // period) % len(names)])
