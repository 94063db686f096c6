"""What the units of an audit look for: its cases, and for each kind of control the concepts that are asked about."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import CONTROL_KIND_CONCEPT_FREE, CONTROL_KIND_PLACEBO, Case, Concept, ControlKind
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.concept_free import concept_free_cases, concept_free_target, stand_ins
from unerase_backend.coordinator.planning.fixed_prompts import cases_of_list, guidance_scale, latent_seed
from unerase_backend.coordinator.planning.packs import concept_free_pack, placebo_pack, with_pack
from unerase_backend.coordinator.planning.parts import Parts
from unerase_backend.evaluation.cost import Surroundings
from unerase_backend.evaluation.prompts import SLOT, names_in, templates
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.seeds import derive_seed


def cases_of(concept: Concept, spec: AuditSpec) -> Iterable[Case]:
    """Yield the cases, each with its own latent seed; a prompt repeats only after every distinct prompt was used.

    The audit's concept has the request's fixed prompts, if there are any. A placebo then has its own prompts with the
    seeds and guidance scales of the list.
    """
    naming = [prompt for prompt in concept.held_out_prompts if SLOT in prompt or names_in(prompt, concept)]
    held_out = naming or templates(concept)
    if spec.fixed_prompts and concept.name == spec.concept:
        yield from cases_of_list(spec, concept, lambda index: _prompt(held_out, concept.names[:1], index))
        return
    for index in range(spec.cases):
        yield Case(
            index=index,
            prompt=_prompt(concept.prompts, concept.names, index),
            latent_seed=latent_seed(spec, index),
            held_out_prompt=_prompt(held_out, concept.names[:1], index),
            held_out_latent_seed=derive_seed(spec.seed_base, "held-out latent", index),
            guidance_scale=guidance_scale(spec, index),
        )


def _prompt(templates: Sequence[str], names: Sequence[str], index: int) -> str:
    if any(SLOT not in template for template in templates):
        # One that stands as it is is the same prompt with every name.
        filled = [_filled(templates, names, each) for each in range(len(templates) * len(names))]
        distinct = list(dict.fromkeys(filled))
        return distinct[index % len(distinct)]
    return _filled(templates, names, index)


def _filled(templates: Sequence[str], names: Sequence[str], index: int) -> str:
    # The shift after each common period makes every pair of template and name come once before one repeats.
    period = math.lcm(len(templates), len(names))
    name = names[(index + index // period) % len(names)]
    return templates[index % len(templates)].replace(SLOT, name)


@dataclass(frozen=True)
class Sought:
    """A target and the list of cases with its prompts, by digest."""

    target_digest: str
    cases_digest: str


class Targets:
    """The targets of one audit; what its units share is added to `parts` when it is first asked for."""

    def __init__(
        self, spec: AuditSpec, cases: Sequence[Case], catalogue: Catalogue, store: ArtifactStore, parts: Parts
    ) -> None:
        self._spec = spec
        self._cases = cases
        self._catalogue = catalogue
        self._store = store
        self._parts = parts
        self._own = self._target(spec.concept)
        with_pack(self._own.concept, spec)
        others = {name: self._target(name) for name in _others(spec, catalogue)}
        for other in others.values():
            # No evaluation asks for another concept in other words.
            other.concept.ClearField("pack")
        self.others = [others[name] for name in sorted(others)]
        """The other concepts, which units get."""
        side = catalogue.model(spec.reference).resolution
        shown = [target for name, target in others.items() if catalogue.picture_side(name) in (0, side)]
        self.stand_ins = stand_ins(self._own.concept, shown, spec.cases)
        """The concepts whose prompts a concept-free control takes."""
        self.others_digest = parts.others(self.others)
        self.known: dict[str, Surroundings] = {}
        """The surroundings of each target, by the target's digest."""
        self._sought: dict[ControlKind.ValueType, list[Sought]] = {}

    def of(self, kind: ControlKind.ValueType) -> list[Sought]:
        """Return the targets of a kind of control, which cases take in turn; UNSPECIFIED and MODEL have the audit's."""
        if kind not in self._sought:
            self._sought[kind] = [self._share(target, cases) for target, cases in self._made(kind)]
        return self._sought[kind]

    def _made(self, kind: ControlKind.ValueType) -> Iterator[tuple[Target, Sequence[Case]]]:
        if kind == CONTROL_KIND_PLACEBO:
            for name in self._spec.placebos:
                placebo = self._target(name)
                placebo.concept.pack.CopyFrom(placebo_pack(self._own.concept.pack, placebo.concept))
                yield placebo, tuple(cases_of(placebo.concept, self._spec))
        elif kind == CONTROL_KIND_CONCEPT_FREE:
            cases = tuple(concept_free_cases(self._cases, self._own.concept, self.stand_ins))
            target = concept_free_target(self._own, self.stand_ins, len(cases))
            names = [each.names[0] for each in self.stand_ins]
            target.concept.pack.CopyFrom(concept_free_pack(self._own.concept.pack, self._own.concept, names))
            yield target, cases
        else:
            yield self._own, self._cases

    def _share(self, target: Target, cases: Sequence[Case]) -> Sought:
        digest = self._parts.target(target)
        self.known[digest] = Surroundings.of(target, self.others)
        return Sought(digest, self._parts.cases(cases))

    def _target(self, concept: str) -> Target:
        spec = self._spec
        return self._catalogue.target(concept, self._store, spec.selector, spec.judge, spec.second_judge)


def _others(spec: AuditSpec, catalogue: Catalogue) -> list[str]:
    """Return the other concepts that can be judged, in the order of the catalogue."""
    judges = (spec.selector, spec.judge, spec.second_judge)
    return [
        name
        for name in catalogue.others(spec.concept)
        if not (entry := catalogue.concept(name)).placebo and all(entry.labels.get(judge) for judge in judges)
    ]
