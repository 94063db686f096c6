"""Fixed prompts: a published list of prompts, with their seeds, sizes and guidance scales, as the cases of an audit.

The first prompts of a request are its cases, in their order. The others are held-out prompts, for evaluations that put
something of their own in the place of the concept's name; so only those that name the concept can serve.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import Case, Concept, FixedPrompt, PromptSource
from unerase_backend.catalogue import GUIDANCE_SCALES, MAX_PROMPT_BYTES
from unerase_backend.coordinator.planning.model_checks import Problem
from unerase_backend.evaluation.prompts import SLOT, names_in
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import MOST_NAMED
from unerase_backend.runtime.identifiers import DIGEST
from unerase_backend.runtime.seeds import derive_seed

MAX_FIXED_PROMPTS = most_items(AuditSpec, "fixed_prompts")
MAX_LIST_BYTES = 256 * 1024
"""The most bytes of all fixed prompts of a request together; an audit's specification stands in each of its events."""
MAX_ID = 100
MAX_SOURCE = 255


def cases_listed(spec: AuditSpec) -> int:
    """Return the number of cases of a request that names none: as many fixed prompts as an audit can take."""
    return min(len(spec.fixed_prompts), MAX_CASES)


def problems_of_list(spec: AuditSpec) -> Iterator[Problem]:
    """Yield what is wrong with a request's fixed prompts."""
    given = spec.fixed_prompts
    if spec.HasField("fixed_prompts_source"):
        yield from problems_of_source(spec.fixed_prompts_source, "spec.fixed_prompts_source")
        if not given:
            yield Problem("spec.fixed_prompts_source", "must be empty where there are no fixed prompts")
    if len(given) > MAX_FIXED_PROMPTS:
        yield Problem("spec.fixed_prompts", f"must be at most {MAX_FIXED_PROMPTS}, not {len(given)}")
        return
    size = sum(each.ByteSize() for each in given)
    if size > MAX_LIST_BYTES:
        yield Problem("spec.fixed_prompts", f"must be at most {MAX_LIST_BYTES} bytes together, not {size}")
        return
    if given and spec.cases > len(given):
        yield Problem("spec.cases", f"must be at most {len(given)}, the number of fixed prompts, not {spec.cases}")
    found = [problem for index, each in enumerate(given) for problem in _problems_of(each, index)]
    found += _repeated(given)
    yield from found[:MOST_NAMED]


def problems_of_source(source: PromptSource, field: str) -> Iterator[Problem]:
    """Yield what is wrong with the source of prompts in `field`."""
    if len(source.name) > MAX_SOURCE or not source.name.isprintable():
        yield Problem(f"{field}.name", f"must be a file's name of at most {MAX_SOURCE} characters")
    if source.digest and not DIGEST.fullmatch(source.digest):
        yield Problem(f"{field}.digest", "must be a SHA-256 of 64 hexadecimal digits")


def cases_of_list(spec: AuditSpec, concept: Concept, template: Callable[[int], str]) -> Iterator[Case]:
    """Yield the cases of an audit of fixed prompts; `template` gives a case's prompt from the concept's templates.

    A held-out prompt is one of the rest of the list that names the concept, or else one of the cases' own that does, at
    another seed; where there is neither, it is the concept's `template`.
    """
    cases, rest = spec.fixed_prompts[: spec.cases], spec.fixed_prompts[spec.cases :]
    held_out = [each for each in rest if names_in(each.prompt, concept)]
    again = [FixedPrompt(prompt=each.prompt) for each in cases if names_in(each.prompt, concept)]
    pool = held_out or again
    for index, fixed in enumerate(cases):
        # Half a list away, so that a case's held-out prompt is not its own.
        chosen = pool[(index + (0 if held_out else len(pool) // 2)) % len(pool)] if pool else None
        seeded = chosen is not None and index < len(pool) and chosen.HasField("latent_seed")
        yield Case(
            index=index,
            prompt=fixed.prompt,
            latent_seed=latent_seed(spec, index),
            held_out_prompt=chosen.prompt if chosen is not None else template(index),
            held_out_latent_seed=chosen.latent_seed
            if chosen is not None and seeded
            else derive_seed(spec.seed_base, "held-out latent", index),
            guidance_scale=guidance_scale(spec, index),
        )


def latent_seed(spec: AuditSpec, index: int) -> int:
    """Return the seed of a case's initial noise: the list's, or else one that follows from the seed base."""
    fixed = spec.fixed_prompts[index] if index < len(spec.fixed_prompts) else FixedPrompt()
    return fixed.latent_seed if fixed.HasField("latent_seed") else derive_seed(spec.seed_base, "latent", index)


def guidance_scale(spec: AuditSpec, index: int) -> float | None:
    """Return a case's own guidance scale; None if it has the audit's."""
    fixed = spec.fixed_prompts[index] if index < len(spec.fixed_prompts) else FixedPrompt()
    return fixed.guidance_scale if fixed.HasField("guidance_scale") else None


def notes_on_list(spec: AuditSpec, concept: Concept, resolution: int) -> list[str]:
    """Return in sentences what the audit does with its list that a reader would not expect."""
    cases = spec.fixed_prompts[: spec.cases]
    if not cases:
        return []
    notes = []
    if other := [index for index, each in enumerate(cases) if each.width and _size(each) != (resolution, resolution)]:
        sizes = sorted({_size(cases[index]) for index in other})
        said = ", ".join(f"{width} x {height}" for width, height in sizes[:5]) + (", ..." if len(sizes) > 5 else "")
        notes.append(
            f"{_share(other, cases)} published for pictures of {said} pixels, and the models make {resolution} x "
            f"{resolution} ({_rows(other, cases)}): there the same seed is other noise, so that the pictures are not "
            "the published ones."
        )
    scales = {index: each.guidance_scale for index, each in enumerate(cases) if each.HasField("guidance_scale")}
    if differing := [index for index, scale in scales.items() if scale != spec.guidance_scale]:
        notes.append(
            f"{_share(differing, cases)} made with a guidance scale of the list's own, where the audit's is "
            f"{spec.guidance_scale:g} ({_rows(differing, cases)})."
        )
    if unseeded := [index for index, each in enumerate(cases) if not each.HasField("latent_seed")]:
        notes.append(f"{_share(unseeded, cases)} without a seed in the list: it follows from the seed base.")
    if unnamed := [index for index, each in enumerate(cases) if not names_in(each.prompt, concept)]:
        notes.append(
            f"{_share(unnamed, cases)} without a name of {concept.name!r} ({_rows(unnamed, cases)}): an evaluation "
            "that puts something in the name's place leaves them as they are, or takes prompts that hold a name."
        )
    counts = Counter(each.prompt for each in cases)
    if len(counts) < len(cases):
        notes.append(
            f"{len(cases)} fixed prompts are {counted(len(counts), 'distinct one')}: cases of one prompt are less "
            "independent than the intervals take them to be."
        )
    return notes


def _problems_of(fixed: FixedPrompt, index: int) -> Iterator[Problem]:
    field = f"spec.fixed_prompts[{index}]"
    if not fixed.prompt.strip():
        yield Problem(f"{field}.prompt", "must not be empty")
    if len(fixed.prompt.encode()) > MAX_PROMPT_BYTES:
        yield Problem(f"{field}.prompt", f"must be at most {MAX_PROMPT_BYTES} bytes")
    if SLOT in fixed.prompt:
        description = f"stands as it is and cannot hold {SLOT}; templates are prompts of a concept"
        yield Problem(f"{field}.prompt", description)
    low, high = GUIDANCE_SCALES
    scale = fixed.guidance_scale
    if fixed.HasField("guidance_scale") and (math.isnan(scale) or not low <= scale <= high):
        yield Problem(f"{field}.guidance_scale", f"must be from {low:g} to {high:g}, not {scale:g}")
    if bool(fixed.width) != bool(fixed.height):
        yield Problem(f"{field}.{'height' if fixed.width else 'width'}", "must be given, because the other side is")
    if len(fixed.id) > MAX_ID:
        yield Problem(f"{field}.id", f"must be at most {MAX_ID} characters")


def _repeated(given: Sequence[FixedPrompt]) -> Iterator[Problem]:
    first: dict[tuple[str, int], int] = {}
    for index, fixed in enumerate(given):
        if fixed.HasField("latent_seed"):
            before = first.setdefault((fixed.prompt, fixed.latent_seed), index)
            if before != index:
                description = f"is fixed_prompts[{before}] again, with the same seed: it would count one picture twice"
                yield Problem(f"spec.fixed_prompts[{index}]", description)


def _size(fixed: FixedPrompt) -> tuple[int, int]:
    return fixed.width, fixed.height


def _share(places: Sequence[int], cases: Sequence[FixedPrompt]) -> str:
    one = len(places) == 1
    if len(places) == len(cases):
        return "The one fixed prompt is" if one else f"All {len(cases)} fixed prompts are"
    return f"{len(places)} of {len(cases)} fixed prompts {'is' if one else 'are'}"


def _rows(places: Sequence[int], cases: Sequence[FixedPrompt]) -> str:
    """Return the cases in words, with the list's own names of the prompts."""
    said = [f"case {place}" + (f" = {cases[place].id}" if cases[place].id else "") for place in places[:MOST_NAMED]]
    return ", ".join(said) + (", ..." if len(places) > MOST_NAMED else "")
