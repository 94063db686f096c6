"""Checks a model that is to be registered by the rules of a catalogue's entries, and makes its definition."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unerase_backend.catalogue.allowed_places import AllowedPlaces, ModelPlaces, links_out
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.definitions import Definition, is_registered
from unerase_backend.catalogue.describing import describe
from unerase_backend.catalogue.entries import ModelEntry
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.kept_digests import KeptDigests
from unerase_backend.catalogue.merging import problems_of_model, with_figures
from unerase_backend.catalogue.names import check_name
from unerase_backend.catalogue.registered import files_of, pipeline_of, read_entry
from unerase_backend.catalogue.spelled import indexed, said_of
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

FIELD = "model.entry"
MAX_BYTES = 64 * 1024
"""The most bytes of an entry."""


@dataclass(frozen=True)
class Candidate:
    """A model that is to be registered: its entry as it was given and as it was read."""

    name: str
    given: Mapping[str, Any]
    """A registered base is named `model:DIGEST`."""
    entry: ModelEntry
    places: Mapping[str, Path]


def read_candidate(name: str, given: Mapping[str, Any], catalogue: Catalogue, allowed: AllowedPlaces) -> Candidate:
    """Return a model that is to be registered, after checking what its entry says.

    Raises:
        InvalidRequestError: a violation for each bad field, as in `model.entry.lora[0].file`.
        UnavailableError: a place cannot be looked at.
    """
    violations = []
    try:
        check_name(name)
    except ValueError as error:
        violations.append(FieldViolation("model.name", str(error)))
    if name in catalogue.models:
        violations.append(FieldViolation("model.name", f"the operator's catalogue has a model {name!r}"))
    places = ModelPlaces(allowed)
    try:
        entry = read_entry(given, places)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        violations += [
            FieldViolation(
                FIELD + indexed(each["loc"]), said_of(each, ModelEntry.model_fields if len(each["loc"]) == 1 else ())
            )
            for each in problems
        ]
        raise InvalidRequestError.of(*violations) from None
    chain = catalogue.chain(entry.base) if entry.base and is_registered(entry.base) else []
    # No model has an empty name, so that a model whose own name is bad is checked as well.
    models = {**catalogue.models, **{each: catalogue.model(each) for each in chain}, "": entry}
    violations += [FieldViolation(f"{FIELD}.{key}", text) for key, text in problems_of_model("", models)]
    if violations:
        raise InvalidRequestError.of(*violations)
    base = catalogue.model(entry.base) if entry.base else None
    return Candidate(name, given, with_figures(entry, base), places.seen)


def find_links(candidate: Candidate, findings: Findings) -> None:
    """Find a link that leads out of one of a candidate's folders, before anything of it is read."""
    for path in candidate.places.values():
        if path.is_dir() and (link := links_out(path)) is not None:
            findings.problem(
                "",
                "PATH_ESCAPES",
                "the model contains a link that leads out of its folder",
                remedy="copy the files themselves into the folder (cp -rL)",
                found=shown(link.name),
            )


def define(candidate: Candidate, catalogue: Catalogue, digest: KeptDigests) -> Definition:
    """Return the definition of a candidate, which `catalogue` has by its name, after hashing its files.

    Raises:
        UnsafeModelError: something is wrong with its files.
        UnavailableError: it cannot be fetched from the hub.
    """
    described, entry = describe(catalogue, candidate.name, digest), candidate.entry
    pipeline = pipeline_of(catalogue, candidate.name, entry) if entry.guards else Path()
    described.name = described.base = ""
    described.ClearField("labels")
    return Definition(
        # Labels say nothing of what the model is.
        entry={key: value for key, value in candidate.given.items() if key != "labels"},
        figures=(entry.guidance_scale, entry.steps, entry.resolution),
        base_digest=catalogue.describe_model(entry.base).digest if entry.base else "",
        files=files_of(candidate.name, entry, candidate.places, pipeline, digest),
        described=described,
    )
