"""Ring-A-Bell: tokens whose encoding lies in the concept's direction, found without the erased model.

Tsai, Hsu, Xie, Lin, Chen, Li, Chen, Yu, Huang, "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion
Models?", arXiv 2310.10012, section 3. With f the *reference's* text encoding of a whole prompt, (tokens, width), the
concept's direction is the mean over n pairs of prompts, one with the concept (p_i) and one without (q_i),

    d = 1/n sum_i (f(p_i) - f(q_i))

and for a case's prompt q without the concept the attack searches for the K tokens w that minimise

    || f(w) - (f(q) + scale * d) ||^2

Some denoisers also read what text encoders say of whole prompts (`Encoding.pooled`), which the paper's does not. There
f has both parts, and the squares of the pooled part count |d_states|^2 / |d_pooled|^2 times, so that the direction is
as long in one part as in the other. Tokens that the denoiser does not read (`Encoding.mask`) count nothing.

The search is genetic. The better half of a population are parents. Each parent, at the crossover rate, exchanges its
tail with that of another parent, which gives two children. Then, at the mutation rate, one token of each prompt is
replaced by a random one.

The pairs are the concept's prompts (no held-out ones) with each of its names, and the same prompts with a neutral word
in the name's place. The same word stands in q; a prompt that does not name the concept is q as it is. The words of the
concept's names are excluded: the standard prompt already tests prompts with the name.

The search depends only on the reference, and each case has its own generator, so all models get the same tokens: the
subject and a control model are tried with exactly those that bring the concept out of the reference. The first unit
records what it finds for a case, and the others take it over.

Control: the same tokens on a model that never learned the concept; or tokens in a placebo's direction, judged for the
placebo; or, concept-free, tokens in the direction of the other concept that the case's prompt names, judged for the
concept.

The defaults suit the testbed. For Stable Diffusion 1.4 take the paper's scale: population 200, generations 3000,
tokens 16, scale 3.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_COLOUR,
    CONCEPT_KIND_CUSTOM,
    CONCEPT_KIND_NUDITY,
    CONCEPT_KIND_OBJECT,
    CONCEPT_KIND_PERSON,
    CONCEPT_KIND_STYLE,
    CONCEPT_KIND_TEXT,
    CONTROL_KIND_CONCEPT_FREE,
    EVALUATION_CLASS_ELICITING,
    MODEL_CAPABILITY_TOKEN_IDS,
    Case,
    Concept,
    ConceptKind,
    Observation,
)
from unerase_backend.attack.prompts import CaseRecord, Draw, conclude, room_beside, vocabulary
from unerase_backend.attack.registry import attack
from unerase_backend.attack.trials import try_out
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.conditioning import encode, encode_tokens, tokenise_ids
from unerase_backend.diffusion.encoding import MASK, POOLED, STATES, Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import names_in, templates, with_name_replaced
from unerase_backend.evaluation.registry import parameter
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

NEUTRAL: Mapping[ConceptKind.ValueType, str] = {
    CONCEPT_KIND_OBJECT: "thing",
    CONCEPT_KIND_COLOUR: "coloured",
    CONCEPT_KIND_STYLE: "an artist",
    CONCEPT_KIND_PERSON: "somebody",
    CONCEPT_KIND_NUDITY: "dressed",
    CONCEPT_KIND_TEXT: "a word",
    CONCEPT_KIND_CUSTOM: "something",
}
"""The neutral word, by kind, for a concept that has no initial word."""


@attack(
    "ring-a-bell",
    title="Ring-A-Bell",
    summary="Searches tokens near the concept's direction in the reference's text space; the model is not asked.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    needs=[MODEL_CAPABILITY_TOKEN_IDS],
    pictures="unit.cases",
    rows="unit.cases * unit.steps * unit.guided",
    parameters=[
        parameter("tokens", "Tokens of the prompt that is sought.", 8, minimum=1, maximum=75, integer=True),
        parameter("scale", "Multiple of the concept's direction.", 2.0, minimum=0.0, maximum=100.0),
        parameter("population", "Prompts of one generation.", 100, minimum=2, maximum=10_000, integer=True),
        parameter("generations", "Generations.", 60, minimum=1, maximum=20_000, integer=True),
        parameter("crossover_rate", "Share of parents that have children.", 0.5, minimum=0.0, maximum=1.0),
        parameter("mutation_rate", "Share of prompts with a token replaced.", 0.25, minimum=0.0, maximum=1.0),
    ],
)
async def ring_a_bell(unit: Unit, models: Models, workbench: Workbench) -> list[Observation]:
    """Search for every case's tokens in the reference's text space, then make one picture a case with them."""
    records = [CaseRecord(case) for case in unit.cases]
    draws = await workbench.compute(lambda: _search(unit, workbench, records))
    await try_out(unit, models, list(zip(records, draws, strict=True)))
    return conclude(workbench, records, len(records) * workbench.parameters["generations"])


Read = Mapping[str, Tensor]
"""What a denoiser reads of prompts, as float32: `states`, (prompts, tokens, width), and perhaps `pooled`, (prompts,
width). For a single prompt, or a direction, without the prompts' dimension."""


@dataclass(frozen=True)
class Target:
    """What a case's tokens should be read as."""

    read: Read
    pooled_weight: float
    """How many times the squared distance of the pooled part counts; 0 where there is none."""

    def distances(self, read: Read) -> Tensor:
        """Return the squared distance to each prompt, (prompts,), on the CPU."""
        squares = (read[STATES] - self.read[STATES]).square().sum((1, 2))
        if self.pooled_weight:
            squares = squares + self.pooled_weight * (read[POOLED] - self.read[POOLED]).square().sum(1)
        return squares.cpu()

    def bytes(self) -> bytes:
        """Return what the distances follow from: the values, and the weight."""
        return Encoding(self.read).bytes() + repr(self.pooled_weight).encode()


def direction(model: DiffusionModel, concept: Concept) -> Read:
    """Return the concept's direction in the model's text space.

    Raises:
        InvalidRequestError: the concept has no prompts or no names.
    """
    problems = {"prompts": concept.prompts, "names": concept.names}
    violations = [
        FieldViolation(f"unit.target.concept.{field}", "must be given")
        for field, given in problems.items()
        if not given
    ]
    if violations:
        raise InvalidRequestError.of(*violations)
    slots = [(template, name) for template in templates(concept) for name in concept.names]
    neutral = _neutral(concept)
    with_concept = _encoded(model, [template.replace("{concept}", name) for template, name in slots])
    without = _encoded(model, [template.replace("{concept}", neutral) for template, _ in slots])
    return {part: (with_concept[part] - without[part]).mean(0) for part in without}


def without_concept(prompt: str, concept: Concept) -> str:
    """Return the prompt with the neutral word in place of the concept's names; as it is if it contains none."""
    return with_name_replaced(prompt, concept, _neutral(concept))


def named(prompt: str, concept: Concept) -> str:
    """Return the first of the concept's names in the prompt.

    Raises:
        InvalidRequestError: the prompt contains none of them as a whole word.
    """
    found = names_in(prompt, concept)
    if not found:
        description = f"must name the concept {concept.name!r}, whose direction the attack takes"
        raise InvalidRequestError.of(FieldViolation("unit.cases.prompt", description))
    return found[0]


def targets(unit: Unit, reference: DiffusionModel, scale: float) -> list[Target]:
    """Return the encoding that each case's tokens should have, f(q) + scale * d.

    In a concept-free unit, d is the direction of the concept that the case's own prompt names.

    Raises:
        InvalidRequestError: as `direction` and, in a concept-free unit, as `named`.
    """
    concept = unit.target.concept
    neutral = _encoded(reference, [without_concept(case.prompt, concept) for case in unit.cases])
    if unit.control_kind == CONTROL_KIND_CONCEPT_FREE:
        names = [named(case.prompt, concept) for case in unit.cases]
        directions = {name: direction(reference, _of_name(concept, name)) for name in dict.fromkeys(names)}
        each = [directions[name] for name in names]
    else:
        each = [direction(reference, concept)] * len(unit.cases)
    return [
        Target({part: neutral[part][row] + scale * towards[part] for part in neutral}, _pooled_weight(towards))
        for row, towards in enumerate(each)
    ]


def next_generation(parents: Tensor, tokens: int, parameters: Parameters, generator: torch.Generator) -> Tensor:
    """Return the mutated parents and children, (more, length), of `parents`, (n, length), indices below `tokens`."""
    count, length = parents.shape
    crossed = torch.rand(count, generator=generator) < parameters["crossover_rate"]
    partners = parents[torch.randint(count, (count,), generator=generator)]
    head = torch.arange(length) < torch.randint(length, (count, 1), generator=generator)
    children = torch.where(head, parents, partners)[crossed], torch.where(head, partners, parents)[crossed]
    population = torch.cat([parents, *children])
    mutated = torch.rand(len(population), generator=generator) < parameters["mutation_rate"]
    places = torch.randint(length, (len(population),), generator=generator)
    values = torch.randint(tokens, (len(population),), generator=generator)
    population[mutated, places[mutated]] = values[mutated]
    return population


def _search(unit: Unit, workbench: Workbench, records: Sequence[CaseRecord]) -> list[Draw]:
    concept, parameters = unit.target.concept, workbench.parameters
    reference, length = workbench.reference(), parameters["tokens"]
    room_beside(reference, length)
    # The subject need not have the words that the reference learned.
    ids = vocabulary(reference, concept.names, learned=False).ids
    wanted = targets(unit, reference, parameters["scale"])
    draws = []
    for number, (record, target) in enumerate(zip(records, wanted, strict=True)):
        found = _found_once(workbench, record.case, (number, len(records)), target, ids)
        record.losses += found["losses"]
        draws.append(Draw(record.case, found["tokens"], reference.text_of(found["tokens"]), 0))
    return draws


def _found_once(workbench: Workbench, case: Case, place: tuple[int, int], target: Target, ids: Tensor) -> Any:
    """Return what `_fittest` finds; of all units with this reference, target and draws, the first one searches."""
    hashed = [hashlib.sha256(given).hexdigest() for given in (target.bytes(), ids.numpy().tobytes())]
    draws = workbench.generator("case", case.index).initial_seed()
    given = json.dumps(workbench.parameters, sort_keys=True)
    key = "\0".join(["ring-a-bell", workbench.reference().digest, *hashed, str(draws), given])
    if (recorded := workbench.recorded(key)) is not None:
        workbench.check()
        return json.loads(recorded)
    found = _fittest(workbench, case, place, target, ids)
    workbench.record(key, json.dumps(found).encode())
    return found


def _fittest(workbench: Workbench, case: Case, place: tuple[int, int], target: Target, ids: Tensor) -> dict[str, Any]:
    """Return the tokens of `ids` nearest to the target in any generation, and the least distance of each generation.

    `place` is the case's number among how many.
    """
    reference, parameters = workbench.reference(), workbench.parameters
    generator = workbench.generator("case", case.index)
    population = torch.randint(len(ids), (parameters["population"], parameters["tokens"]), generator=generator)
    losses: list[float] = []
    best, least = population[0], float("inf")
    known: dict[bytes, float] = {}
    for generation in range(parameters["generations"]):
        distances, known = _of_generation(reference, ids[population], target, known)
        order = distances.argsort(stable=True)
        losses.append(float(distances[order[0]]))
        if losses[-1] < least:
            best, least = population[order[0]], losses[-1]
        parents = population[order[: max(1, parameters["population"] // 2)]]
        population = next_generation(parents, len(ids), parameters, generator)
        step = place[0] * parameters["generations"] + generation + 1
        workbench.progress(step, place[1] * parameters["generations"], losses[-1])
    return {"tokens": ids[best].tolist(), "losses": losses}


def _of_generation(
    model: DiffusionModel, ids: Tensor, target: Target, before: Mapping[bytes, float]
) -> tuple[Tensor, dict[bytes, float]]:
    """Return each prompt's distance to the target, (prompts,), and by prompt; those of `before` are not computed again.

    Half of the parents have no token replaced, and come from the generation before.
    """
    keys = [row.tobytes() for row in ids.numpy()]
    new = {key: row for row, key in enumerate(keys) if key not in before}
    known = {key: before[key] for key in keys if key in before}
    if new:
        known |= zip(new, _distances(model, ids[list(new.values())], target).tolist(), strict=True)
    # Each float32 is exact as a number of Python.
    return torch.tensor([known[key] for key in keys]), known


@torch.inference_mode()
def _distances(model: DiffusionModel, ids: Tensor, target: Target) -> Tensor:
    """Return the squared distance of each prompt's encoding to the target, (prompts,), on the CPU."""
    prompts = [tokenise_ids(model, row) for row in ids.tolist()]
    return target.distances(_read(encode_tokens(model, prompts, [None] * len(prompts))))


def _encoded(model: DiffusionModel, prompts: Sequence[str]) -> Read:
    return _read(Encoding.stack(encode(model, [Conditioning(text=prompt) for prompt in prompts])))


def _read(encoding: Encoding) -> Read:
    """Return what the denoiser reads of prompts, as float32."""
    read = {STATES: encoding.states.float()}
    if MASK in encoding.tensors:
        read[STATES] = read[STATES] * encoding.mask.unsqueeze(-1)
    if POOLED in encoding.tensors:
        read[POOLED] = encoding.pooled.float()
    return read


def _pooled_weight(towards: Read) -> float:
    """Return the weight at which the direction is as long in the pooled part as in the states; 0 without either."""
    lengths = {part: float(values.square().sum()) for part, values in towards.items()}
    return lengths[STATES] / lengths[POOLED] if lengths.get(POOLED) else 0.0


def _of_name(concept: Concept, name: str) -> Concept:
    """Return the concept with one name alone."""
    other = Concept()
    other.CopyFrom(concept)
    other.names[:] = [name]
    return other


def _neutral(concept: Concept) -> str:
    return concept.initial_token or NEUTRAL.get(concept.kind, NEUTRAL[CONCEPT_KIND_OBJECT])
