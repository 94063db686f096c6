"""Checks a model that is to be registered, fetches what it is made of, and hashes it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unerase.v1.models_pb2 import ModelCheck
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.definitions import Definition
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.kept_digests import KeptDigests
from unerase_backend.catalogue.opening import allowed_places, copies, open_catalogue
from unerase_backend.catalogue.registering import Candidate, define, find_links, read_candidate
from unerase_backend.catalogue.remote_files import RemoteFiles
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.checking.models import check_model, message_of, problem_of
from unerase_backend.checking.weights import find_infinite
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.settings import RoomSettings


def examine(settings: RoomSettings, name: str, entry: Mapping[str, Any]) -> tuple[ModelCheck, Definition | None]:
    """Return what the check of a model finds, and its definition unless something is wrong with it.

    Raises:
        InvalidRequestError: a field of the entry breaks a rule, as when a file was removed since it was named.
        UnsafeModelError: a file cannot be read, or is not the one whose digest the entry names.
        UnavailableError: a place cannot be fetched.
    """
    catalogue, remote = open_catalogue(settings, ArtifactStore(settings.artifacts)), copies(settings)
    candidate = read_candidate(name, entry, catalogue, allowed_places(settings, remote))
    try:
        return _examined(candidate, catalogue, settings, remote)
    finally:
        for place, path in candidate.places.items():
            if "://" in place:
                shutil.rmtree(path.parent, ignore_errors=True)


def _examined(
    candidate: Candidate, catalogue: Catalogue, settings: RoomSettings, remote: RemoteFiles | None
) -> tuple[ModelCheck, Definition | None]:
    name = candidate.name
    findings = Findings(name)
    find_links(candidate, findings)
    if findings.problems:
        return message_of(catalogue, findings.conclude(), SharedFindings()), None
    known = catalogue.with_models({name: candidate.entry})
    check = check_model(known, name, fetch=True)
    if not check.problems:
        find_infinite(known, name, findings, own=True)
        check.problems.extend(map(problem_of, findings.problems))
    if check.problems:
        return check, None
    digest = KeptDigests(Path(settings.digests) if settings.digests else None)
    definition = define(candidate, known, digest)
    for place, path in candidate.places.items():
        if remote is not None and "://" in place:
            remote.keep(place, path, definition.files.get(place, {}))
    return check, definition
