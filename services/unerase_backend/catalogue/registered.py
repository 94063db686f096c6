"""Registered models in every process: read from the artefact store, allowed by the process's own settings, and with
the files that were checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from unerase.v1.models_pb2 import Model
from unerase_backend.catalogue import guard_files, guard_kinds
from unerase_backend.catalogue.allowed_places import AllowedPlaces, ModelPlaces
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.definitions import Definition, digest_of, is_registered
from unerase_backend.catalogue.describing import loaded_by_entry
from unerase_backend.catalogue.digests import Digest
from unerase_backend.catalogue.entries import ModelEntry
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_files import is_index
from unerase_backend.catalogue.spelled import said_of
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError, UnsafeModelError

if TYPE_CHECKING:
    from unerase_backend.catalogue.catalogue import Catalogue

CHANGED = "WEIGHTS_CHANGED"
PLACE_UNUSABLE = "PLACE_UNUSABLE"
"""The reason of a registered model whose places the settings do not allow, or which are gone."""


@dataclass(frozen=True)
class Registered:
    """A registered model as this process reads it."""

    definition: Definition
    entry: ModelEntry
    places: Mapping[str, Path]
    """The local path of each of its places, as the entry names them."""
    described: Model


class RegisteredModels:
    """The registered models, by the name `model:DIGEST` of their definition in `store`."""

    def __init__(self, store: ArtifactStore, allowed: AllowedPlaces) -> None:
        self._store = store
        self._allowed = allowed

    def model(self, catalogue: "Catalogue", name: str) -> Registered:
        """Return a model, which is read once.

        Raises:
            NotFoundError, DataLossError: its definition is lost.
            PreconditionError: its definition is of another version.
            UnsafeModelError: this process may not read its places, or they are gone.
            UnavailableError: a place cannot be fetched.
        """
        return catalogue.remembered("registered", name, lambda: self._read(name))

    def _read(self, name: str) -> Registered:
        try:
            definition = Definition.from_bytes(self._store.get(digest_of(name)))
        except (NotFoundError, DataLossError) as error:
            raise error.prefixed(f"the definition of {name}") from None
        places = ModelPlaces(self._allowed, definition.files)
        try:
            entry = read_entry(definition.entry, places)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, problem["loc"]))
            message = f"the model {name!r} cannot be read here: {key}: {said_of(problem)}"
            raise UnsafeModelError(message, reason=PLACE_UNUSABLE, metadata={"model": name}) from None
        guidance_scale, steps, resolution = definition.figures
        figures = {"guidance_scale": guidance_scale, "steps": steps, "resolution": resolution}
        described = Model()
        described.CopyFrom(definition.described)
        described.name, described.base, described.registered = name, definition.base, True
        return Registered(definition, entry.model_copy(update=figures), places.seen, described)

    def verify(self, catalogue: "Catalogue", name: str, digest: Digest) -> None:
        """Compare what would be read of a model with its definition.

        Raises:
            UnsafeModelError: a file or the base is missing or another one, or a file is new.
        """
        found = self.model(catalogue, name)
        definition, entry = found.definition, found.entry
        if definition.base and catalogue.describe_model(definition.base).digest != definition.base_digest:
            raise _changed(name, f"the base {definition.base!r} is another model")
        pipeline = pipeline_of(catalogue, name, entry) if entry.guards else Path()
        digest = _without_large_files(found, digest)
        files = files_of(name, entry, found.places, pipeline, digest)
        for place in sorted({*files, *definition.files}):
            now, then = files.get(place, {}), definition.files.get(place, {})
            for file in sorted({*now, *then}):
                if now.get(file) != then.get(file):
                    what = "is new" if file not in then else "is missing" if file not in now else "is another file"
                    raise _changed(name, f"{shown(file or place.rsplit('/', 1)[-1])} {what}")
        if entry.guards:
            guards = guard_kinds.describe_guards(entry.guards, pipeline, digest)
            if guards != list(definition.described.guards)[-len(guards) :]:
                raise _changed(name, "what its guards read is another file")


def read_entry(given: Mapping[str, Any], places: ModelPlaces) -> ModelEntry:
    """Return the entry of a model that is or is to be registered; its base may be named `model:DIGEST`.

    Raises:
        ValidationError: a field breaks a rule of entries.
    """
    base = given.get("base")
    if not is_registered(str(base)):
        return ModelEntry.model_validate(given, context={"places": places})
    # No entry may have such a name as its base.
    entry = ModelEntry.model_validate({**given, "base": "registered"}, context={"places": places})
    return entry.model_copy(update={"base": base})


def files_of(
    name: str, entry: ModelEntry, places: Mapping[str, Path], pipeline: Path, digest: Digest
) -> dict[str, dict[str, str]]:
    """Return the files that a model reads of its own places, as in `Definition.files`.

    `pipeline` is the folder of the pipeline that its guards read of.

    Raises:
        UnsafeModelError: a part is missing, has no safetensors, or leads out of its folder.
    """
    findings, folder = Findings(name), entry.folder
    loaded = loaded_by_entry(entry, folder, findings)
    findings.conclude().raise_any()
    paths = [path for part in loaded.values() for path in part]
    paths += [lora.file for lora in entry.lora]
    paths += [learned.file for learned in entry.embedding]
    # They are not loaded, but decide what is.
    texts = [folder / "model_index.json"] if folder else []
    texts += [path / "config.json" for path in entry.replacing.values()]
    paths += [path for path in texts if path.is_file()]
    known = dict(places)
    if folder is not None and entry.hub is not None:
        known[f"{entry.hub}@{entry.revision}"] = folder
    paths += [path for guard in entry.guards for path in guard_kinds.files_of(guard, pipeline)]
    files: dict[str, dict[str, str]] = {}
    for path in dict.fromkeys(paths):
        # What guards read of a base's folder is not the model's own.
        if (placed := _placed(path, known)) is not None:
            files.setdefault(placed[0], {})[placed[1]] = digest(path)
    return files


def _without_large_files(found: Registered, digest: Digest) -> Digest:
    """Return `digest` with the definition's word for files that are empty here, since this process reads no weights."""
    known = {
        (root.parent if is_index(root.name) else root) / file if file else root: sha256
        for place, root in found.places.items()
        if "://" in place
        for file, sha256 in found.definition.files.get(place, {}).items()
    }
    return lambda path: known[path] if path in known and path.stat().st_size == 0 else digest(path)


def _placed(path: Path, places: Mapping[str, Path]) -> tuple[str, str] | None:
    """Return the place that a file belongs to, and its path in it; a shard lies beside its index."""
    for place, root in places.items():
        if path == root:
            return place, ""
        within = root.parent if is_index(root.name) else root
        if path.is_relative_to(within):
            return place, path.relative_to(within).as_posix()
    return None


def pipeline_of(catalogue: "Catalogue", name: str, entry: ModelEntry) -> Path:
    """Return the pipeline's folder with what the guards of a model read of it."""
    folder = entry.folder or catalogue.model_parts(str(entry.base)).folder
    root = catalogue.model(catalogue.chain(name)[-1])
    if root.hub is not None and root.revision is not None:
        guard_files.fetch(root.hub, root.revision, catalogue.guards(name), folder)
    return folder


def _changed(name: str, what: str) -> UnsafeModelError:
    message = f"the model {name!r} is not as it was registered: {what}; register it again"
    return UnsafeModelError(message, reason=CHANGED, metadata={"model": name})
