"""Checks models without computing, and says what memory they need. Imports torch, for the shapes of their modules."""

from unerase.v1.models_pb2 import ModelCheck, ModelMemory, ModelPart, ModelProblem
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.findings import ModelCheck as Found
from unerase_backend.catalogue.findings import ModelProblem as Problem
from unerase_backend.catalogue.model_parts import ModelParts
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.diffusion import model_check
from unerase_backend.diffusion.memory import ModelSize, pipeline_size
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

DTYPES = ("float32", "bfloat16")
"""The number types that the memory is given for; float16 takes what bfloat16 takes."""


def check_model(
    catalogue: Catalogue, name: str, shared: SharedFindings | None = None, *, fetch: bool = False
) -> ModelCheck:
    """Return what can be known of a model without loading its weights. Only with `fetch` it is fetched from the hub.

    `shared` holds what other models of the same check have in common with it.

    Raises:
        NotFoundError: the catalogue has no such model.
    """
    shared = shared or SharedFindings()
    try:
        catalogue.verify(name)
    except (PreconditionError, UnsafeModelError) as error:
        findings = Findings(name)
        findings.problem("", error.reason, error.message)
        return message_of(catalogue, findings.conclude(), shared)
    return message_of(catalogue, model_check.check_model(catalogue, name, shared=shared, fetch=fetch), shared)


def message_of(catalogue: Catalogue, found: Found, shared: SharedFindings) -> ModelCheck:
    """Return what a check found as the message that callers get."""
    facts = found.facts
    return ModelCheck(
        name=found.model,
        family=facts.family,
        problems=map(problem_of, found.problems),
        notes=found.notes,
        parts=[
            ModelPart(component=part, parameters=each.parameters, size_bytes=each.bytes, dtypes=each.dtypes)
            for part, each in facts.parts.items()
        ],
        memory=_memory(catalogue.model_parts(found.model), found, shared) if facts.parts else [],
        prediction_type=facts.prediction_type,
        scheduler=facts.scheduler,
        prompt_length=facts.prompt_length,
        resolution=facts.resolution,
    )


def problem_of(problem: Problem) -> ModelProblem:
    """Return a problem as the message that callers get."""
    return ModelProblem(
        part=problem.part,
        reason=problem.reason,
        description=problem.text,
        file_looked_for=problem.looked_for,
        file_found=problem.found,
    )


def memory_of(size: ModelSize) -> list[ModelMemory]:
    """Return what a model of this size needs in each number type."""
    return [
        ModelMemory(
            dtype=dtype,
            weight_bytes=size.weight_bytes(dtype),
            text_encoder_bytes=size.text_bytes(dtype),
            row_bytes=size.row_bytes(dtype),
            gradient_row_bytes=size.gradient_row_bytes(dtype),
            decoded_bytes=size.decoded_bytes(),
        )
        for dtype in DTYPES
    ]


def _memory(parts: ModelParts, found: Found, shared: SharedFindings) -> list[ModelMemory]:
    folder, resolution, length = parts.folder, found.facts.resolution, parts.max_sequence_length

    def needed(_: Findings) -> list[ModelMemory]:
        try:
            return memory_of(pipeline_size(folder, resolution, length))
        except ValueError:
            # What the configurations lack is among the problems.
            return []

    return shared.examined(("memory", folder, resolution, length), Findings(found.model), needed)
