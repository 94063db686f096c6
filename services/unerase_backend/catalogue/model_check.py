"""Checks a model of the catalogue without loading it, by its configurations and the headers of its files.

Nothing here imports PyTorch: what replaces tensors is compared with the base's files. `diffusion/model_check.py` goes
on where a check needs the modules themselves: the names and shapes of all their tensors, and the schedule. Loading
takes the files and tensors that are found here, so that a check and a load cannot disagree.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unerase_backend.catalogue import configs, families, guard_files, lora, model_fit
from unerase_backend.catalogue.backbone_kinds import BackboneKind, Configs, Parts, Role, of_role, tokenizer_of
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.embeddings import PART as EMBEDDING
from unerase_backend.catalogue.embeddings import StoredWord, named, placed, stored_word
from unerase_backend.catalogue.entries import EmbeddingEntry, LoraEntry
from unerase_backend.catalogue.findings import SCHEDULE, UNSUPPORTED, Findings, ModelCheck, ModelFacts, PartFacts
from unerase_backend.catalogue.guard_kinds import KINDS, needs_rows
from unerase_backend.catalogue.model_families import Guidance, family_of_folder
from unerase_backend.catalogue.model_files import (
    SCHEDULER,
    WeightFiles,
    check_inside,
    config_file,
    part_folder,
    part_weights,
    present,
    replacing_weights,
    tokenizer_files,
)
from unerase_backend.catalogue.model_parts import ModelParts
from unerase_backend.catalogue.part_names import REPLACEABLE
from unerase_backend.catalogue.schedules import audit_problem, folder_problems, prediction_type, schedule_notes
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.catalogue.tensor_fit import compare_tensors
from unerase_backend.catalogue.tensors import StoredTensor, part_tensors
from unerase_backend.catalogue.text_reach import model_reaches
from unerase_backend.runtime.errors import UneraseError, UnsafeModelError

# The guard that uses the folder's own safety checker.
_CHECKER = "safety-checker"
_LIBRARIES = ("diffusers", "transformers")
# What an entry of the catalogue may change.
CHANGING = (Role.DENOISER, Role.TEXT_ENCODER)
# What a configuration says to no effect on the computation.
_INEFFECTIVE = ("architectures", "dropout", "dtype", "sample_size", "torch_dtype", "transformers_version")
# What changes no picture, or is named by its own note.
_UNMENTIONED = ("scheduler", "feature_extractor", "safety_checker")


@dataclass
class ModelSource:
    """The files of a model as a check found them, which loading reads."""

    name: str
    folder: Path
    resolution: int
    kind: type[BackboneKind]
    """Its family."""
    index: dict[str, Any] = field(default_factory=dict)
    """What model_index.json says."""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The configurations of its parts and of `scheduler`."""
    weights: dict[str, WeightFiles] = field(default_factory=dict)
    """The files of each part with weights."""
    tensors: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    """Their tensors by today's names."""
    replacing: dict[Path, dict[str, StoredTensor]] = field(default_factory=dict)
    """The tensors of each file or folder that replaces some, by its path."""
    changes: dict[str, tuple[Path | LoraEntry, ...]] = field(default_factory=dict)
    """What changes the denoiser and the text encoders, in order: paths that replace tensors, and LoRAs."""
    max_sequence_length: int | None = None
    """As the catalogue gives it."""
    words: list[StoredWord] = field(default_factory=list)
    """The words that are learned beside the vocabulary, in order."""

    @property
    def loras(self) -> tuple[LoraEntry, ...]:
        """The LoRAs, each once."""
        found = [change for changes in self.changes.values() for change in changes if isinstance(change, LoraEntry)]
        return tuple(dict.fromkeys(found))


def check_model(
    catalogue: Catalogue, name: str, *, fetch: bool = False, shared: SharedFindings | None = None
) -> ModelCheck:
    """Return everything that can be known of a model without loading it, and without PyTorch.

    A model of the hub that is not in the local cache is fetched with `fetch`; without, a note says that it was not
    checked. `shared` holds what other models of the same check have in common with it.

    Raises:
        NotFoundError: the catalogue has no such model.
        UnavailableError: the model cannot be fetched.
    """
    findings, shared = Findings(name), shared or SharedFindings()
    source = examine(catalogue, name, findings, shared, fetch=fetch)
    if source is not None:
        _compare_replacing(source, findings, shared)
    return findings.conclude(facts_of(source, shared) if source else None)


def examine(
    catalogue: Catalogue, name: str, findings: Findings, shared: SharedFindings, *, fetch: bool = False
) -> ModelSource | None:
    """Find the files of a model and what is wrong with them; None if nothing of it could be read.

    Raises as `check_model`.
    """
    root_entry = catalogue.model(catalogue.chain(name)[-1])
    if not fetch and not root_entry.fetched:
        findings.note(f"{root_entry.hub} is fetched from the hub when it is first used, and was not checked")
        return None
    parts, resolution = catalogue.model_parts(name), catalogue.model(name).resolution
    folder, root = parts.folder, None if root_entry.hub else parts.folder
    guards = frozenset(guard.kind for guard in catalogue.guards(name))
    base = shared.examined(
        ("folder", folder, root, guards), findings, lambda own: _examine_folder(folder, root, guards, own)
    )
    if base is None:
        return None
    source = ModelSource(name, folder, resolution, base.kind, base.index, base.configs, base.weights, base.tensors)
    source.max_sequence_length = parts.max_sequence_length
    known = present(source.kind, source.index)
    source.changes = {part: parts.changes.get(part, ()) for part in of_role(known, *CHANGING)}
    _find_strange(source, parts, findings)
    _examine_changes(source, findings, shared)
    find_misfits = partial(source.kind.find_misfits, base.configs, resolution)
    shared.examined(("misfits", folder, resolution), findings, find_misfits)
    model_fit.find_length(source.kind, known, parts.max_sequence_length, findings)
    _examine_words(parts.embeddings, source, findings)
    _examine_guards(catalogue, name, fetch, findings)
    return source


def _find_strange(source: ModelSource, parts: ModelParts, findings: Findings) -> None:
    """Find what an entry replaces of a part that its family, or the folder, does not have."""
    for part, changes in parts.changes.items():
        if part not in source.changes and any(isinstance(change, Path) for change in changes):
            known = ", ".join(source.changes)
            what = f"it replaces the {part}, which this {source.kind.title} does not have; it has {known}"
            findings.problem(part, UNSUPPORTED, what)


def _examine_folder(folder: Path, root: Path | None, guards: Set[str], findings: Findings) -> ModelSource | None:
    """Return what a pipeline's folder holds; None, with a problem, if it is of no family that is known here."""
    index_file = folder / "model_index.json"
    if not check_inside("", (index_file,), root, findings):
        return None
    index = configs.read_json(index_file, findings, "")
    kind = families.check_family(index, findings) if index is not None else None
    if index is None or kind is None:
        return None
    source = ModelSource("", folder, 0, kind, index)
    parts = present(kind, index)
    _check_classes(index, parts, guards, findings)
    _check_absent(kind, index, parts, findings)
    configs.find_code(folder, findings)
    for part in (name for name, known in parts.items() if known.weighs):
        _examine_part(part, source, root, findings)
    _examine_schedule(source, root, findings)
    for part in of_role(parts, Role.TOKENIZER):
        _examine_tokenizer(part, source, root, findings)
    return source


def _examine_guards(catalogue: Catalogue, name: str, fetch: bool, findings: Findings) -> None:
    guards, root = catalogue.guards(name), catalogue.model(catalogue.chain(name)[-1])
    if not guards:
        return
    folder = catalogue.guard_folder(name) if fetch else catalogue.model_parts(name).folder
    later = guard_files.to_be_fetched(guards, folder) if root.hub and not fetch else []
    for guard in later:
        what = f"what the guard {guard.kind} reads of {root.hub}"
        findings.note(f"{what} is fetched when it is first used, and was not checked")
    guard_files.find_problems([guard for guard in guards if guard not in later], folder, findings)
    guard_files.find_strangers(guards, families.family_of_folder(folder).family, findings)
    family = family_of_folder(folder)
    for guard in guards:
        if family.guidance is not Guidance.CLASSIFIER_FREE and KINDS.all()[guard.kind].needs_classifier_free:
            findings.problem(guard_files.PART, "GUARD_UNFIT", needs_rows(guard.kind, family.title))


def _examine_words(entries: Iterable[EmbeddingEntry], source: ModelSource, findings: Findings) -> None:
    for entry in entries:
        file = configs.shown(entry.file.name)
        try:
            known = present(source.kind, source.index)
            encoders = {part: known[part].kind for part in of_role(known, Role.TEXT_ENCODER)}
            found = placed(stored_word(entry), encoders)
            for part, tensor in found.tensors.items():
                width = model_fit.embedding_width(source.configs, part)
                if width is not None and tensor.shape[-1] != width:
                    encoder = part.replace("_", " ")
                    what = f"{file} has {tensor.shape[-1]} numbers for a token, and the {encoder} {width}"
                    raise UnsafeModelError(what, reason="WEIGHTS_WRONG_SHAPE")
            if source.kind.lower_case and found.word.lower() in (word.word.lower() for word in source.words):
                what = f"two embeddings have the token {found.word.lower()!r}, as prompts are read in lower case"
                raise UnsafeModelError(what, reason="EMBEDDING_TOKEN_TWICE")
            if "tokenizer" in source.configs:
                model_reaches(source.folder, tuple(word.learned for word in (*source.words, found)))
            source.words.append(found)
        except UnsafeModelError as error:
            # What else is wrong with a tokenizer is a problem of its own.
            if error.reason.startswith(("WEIGHTS_", "EMBEDDING_")):
                findings.problem(EMBEDDING, error.reason, named(entry, error), found=file)


def _examine_changes(source: ModelSource, findings: Findings, shared: SharedFindings) -> None:
    for part, changes in source.changes.items():
        for path in [change for change in changes if isinstance(change, Path)]:
            kind = source.kind.parts[part].kind
            examine = partial(_replacing_tensors, part, kind, path)
            tensors = shared.examined(("replacing", part, kind, path), findings, examine)
            if tensors is not None:
                source.replacing[path] = tensors
            what = ("configuration", part, path, source.folder)
            shared.examined(what, findings, partial(_compare_config, part, path, source))
    for entry in source.loras:
        known = tuple(present(source.kind, source.index))
        examine_lora = partial(_examine_lora, entry.file, known, source.kind.title)
        shared.examined(("lora", entry.file, known), findings, examine_lora)


def _replacing_tensors(part: str, kind: str, path: Path, findings: Findings) -> dict[str, StoredTensor] | None:
    weights = replacing_weights(part, path, findings)
    return part_tensors(part, kind, weights, findings) if weights else None


def _examine_lora(file: Path, known: Sequence[str], title: str, findings: Findings) -> None:
    try:
        if other := [part for part in lora.parts_of(file) if part not in known]:
            there = ", ".join(part for part in known if part in REPLACEABLE)
            message = f"the LoRA changes the {other[0]}, which this {title} does not have; it has {there}"
            raise UnsafeModelError(message, reason="LORA_UNSUPPORTED")
    except UneraseError as error:
        findings.problem("lora", error.reason, error.message, found=configs.shown(file.name))


def _compare_replacing(source: ModelSource, findings: Findings, shared: SharedFindings) -> None:
    """Compare what replaces tensors of a part with the base's own, which stand for those of its module."""
    for part, changes in source.changes.items():
        for path in changes if part in source.tensors else ():
            if isinstance(path, Path) and path in source.replacing:
                what = ("replaced", part, path, source.folder)
                shared.examined(what, findings, partial(_compare_with_base, part, path, source))


def _compare_with_base(part: str, path: Path, source: ModelSource, findings: Findings) -> None:
    shapes = {name: tensor.shape for name, tensor in source.tensors[part].items()}
    if shapes:
        compare_tensors(part, source.replacing[path], shapes, findings, whole=False)


def _compare_config(part: str, folder: Path, source: ModelSource, findings: Findings) -> None:
    """Find what a folder that replaces a part configures otherwise: the part is built as its base configures it."""
    given, base = configs.parse(part_folder(part, folder) / "config.json"), source.configs.get(part)
    if not isinstance(given, dict) or base is None:
        return
    if other := sorted(key for key in {*given} & {*base} if given[key] != base[key] and _matters(key)):
        what = f"the folder {configs.shown(folder.name)} configures {', '.join(other)} otherwise than the base"
        remedy = "name the file of weights in it if the base's configuration is right"
        findings.problem(part, "WEIGHTS_OTHER_CONFIG", what, remedy=remedy, found="config.json")


def _matters(key: str) -> bool:
    return not key.startswith("_") and key not in _INEFFECTIVE


def facts_of(source: ModelSource, shared: SharedFindings) -> ModelFacts:
    """Return what the files of a model say of it."""
    known = source.configs
    scheduler = known.get("scheduler", {})
    return ModelFacts(
        family=_family_of(source.kind, known),
        parts={part: _shared_facts(part, source, shared) for part in source.kind.parts if part in source.tensors},
        prediction_type=prediction_type(scheduler) if scheduler else "",
        scheduler=str(scheduler.get("_class_name", "")),
        prompt_length=model_fit.prompt_length(known) if "tokenizer" in known else 0,
        resolution=source.resolution,
    )


def _family_of(kind: type[BackboneKind], known: Configs) -> str:
    """Return the family in words, with the version that the width of prompts tells of Stable Diffusion 1 and 2."""
    if families.DEFAULT not in kind.pipelines:
        return kind.title
    width = known.get("unet", {}).get("cross_attention_dim", 0)
    return families.version_of(width) if width and isinstance(width, int) else ""


def _shared_facts(part: str, source: ModelSource, shared: SharedFindings) -> PartFacts:
    words = tuple(word.tensors[part] for word in source.words if part in word.tensors)
    what = ("facts", part, source.folder, source.changes.get(part, ()), words)
    return shared.examined(what, Findings(source.name), lambda _: _part_facts(part, source))


def _part_facts(part: str, source: ModelSource) -> PartFacts:
    tensors = dict(source.tensors[part])
    for change in source.changes.get(part, ()):
        # A tensor that the part lacks is a problem of its own.
        replacing = source.replacing.get(change, {}) if isinstance(change, Path) else {}
        tensors |= {name: each for name, each in replacing.items() if name in tensors}
    tensors |= {f"{EMBEDDING} {word.word}": word.tensors[part] for word in source.words if part in word.tensors}
    return PartFacts(
        files=tuple(dict.fromkeys(tensor.file.name for tensor in tensors.values())),
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
    )


def _check_classes(index: Mapping[str, Any], parts: Parts, guards: Set[str], findings: Findings) -> None:
    for part, known in parts.items():
        named = index.get(part)
        if not isinstance(named, list) or len(named) != 2 or named[1] not in (known.kind, *known.others):
            given = named[1] if isinstance(named, list) and len(named) == 2 and named[1] else "nothing"
            what = f"the {part} must be a {known.kind}, and model_index.json names {given}"
            findings.problem(part, UNSUPPORTED, what, found="model_index.json")
        elif named[0] not in _LIBRARIES:
            what = f"the {part} comes from {named[0]!r}, but only code of diffusers and transformers is run"
            findings.problem(part, "MODEL_NAMES_CODE", what, found="model_index.json")
    if (checker := _component(index, "safety_checker")) and _CHECKER not in guards:
        findings.note(f"the folder's safety checker ({checker}) is not used; the guard {_CHECKER} would use it")
    for name in index:
        if not name.startswith("_") and name not in (*_UNMENTIONED, *parts) and (kind := _component(index, name)):
            findings.note(f"{name} ({kind}) is not used")


def _check_absent(kind: type[BackboneKind], index: Mapping[str, Any], parts: Parts, findings: Findings) -> None:
    """Find what a folder only seems to lack, and text encoders without the tokenizer that they read by."""
    for part, known in kind.parts.items():
        named = index.get(part)
        if part not in parts and named not in (None, [None, None]):
            what = f"the {part} must be a {known.kind} or [null, null], and model_index.json has {named!r:.40}"
            findings.problem(part, UNSUPPORTED, what, found="model_index.json")
    for part in of_role(parts, Role.TEXT_ENCODER):
        if (tokenizer := tokenizer_of(part)) not in parts:
            what = f"the {part} is there without its {tokenizer}, which model_index.json must name as well"
            findings.problem(tokenizer, UNSUPPORTED, what, found="model_index.json")


def _component(index: Mapping[str, Any], name: str) -> str:
    """Return the class of a component that the folder has; empty if it has none."""
    named = index.get(name)
    if isinstance(named, list) and len(named) == 2 and isinstance(named[1], str):
        return named[1]
    return ""


def _examine_part(part: str, source: ModelSource, root: Path | None, findings: Findings) -> None:
    folder = source.folder / part
    _examine_config(part, folder, source, root, findings)
    weights = part_weights(part, folder, root, findings)
    if weights is None:
        return
    source.weights[part] = weights
    tensors = part_tensors(part, source.kind.parts[part].kind, weights, findings)
    if tensors is not None:
        source.tensors[part] = tensors


def _examine_config(part: str, folder: Path, source: ModelSource, root: Path | None, findings: Findings) -> None:
    path = config_file(part, folder, root, findings)
    content = configs.read_json(path, findings, part) if path else None
    if content is None:
        return
    known = source.kind.parts.get(part)
    named = content.get("_class_name", known.kind) if known and known.library == "diffusers" else None
    if known is not None and named not in (None, known.kind, *known.others):
        what = f"the {part} must be a {known.kind}, and its configuration names {named}"
        findings.problem(part, UNSUPPORTED, what, found=f"{part}/config.json")
    if part.startswith("text_encoder") and isinstance(content.get("text_config"), dict):
        # The configuration of a whole CLIP model.
        content = content["text_config"]
    source.configs[part] = content


def _examine_schedule(source: ModelSource, root: Path | None, findings: Findings) -> None:
    _examine_config(SCHEDULER, source.folder / SCHEDULER, source, root, findings)
    if (schedule := source.configs.get(SCHEDULER)) is None:
        return
    problems = folder_problems(source.folder, schedule)
    unaudited = None if problems else audit_problem(schedule)
    for problem in filter(None, (*problems, unaudited)):
        findings.problem(SCHEDULER, SCHEDULE, str(problem), found="scheduler/scheduler_config.json")
    for note in schedule_notes(schedule):
        findings.note(f"scheduler: {note}")


def _examine_tokenizer(part: str, source: ModelSource, root: Path | None, findings: Findings) -> None:
    folder = source.folder / part
    if tokenizer_files(part, folder, root, findings):
        content = configs.read_json(folder / "tokenizer_config.json", findings, part)
        if content is not None:
            source.configs[part] = content
