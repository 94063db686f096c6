"""Checks a model of the catalogue without loading its weights, with the modules that they would fill.

The modules are built without memory (on PyTorch's meta device), so that names and shapes of tensors are compared by the
headers of the files alone. `loading.py` fills the same modules with the tensors that are found here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from unerase_backend.catalogue import Catalogue, guard_files, lora, model_check, model_fit
from unerase_backend.catalogue.backbone_kinds import BackboneKind, Role, denoiser_of, encoder_of, of_role
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.embeddings import PART as EMBEDDING
from unerase_backend.catalogue.entries import LoraEntry
from unerase_backend.catalogue.findings import UNSUPPORTED, Findings, ModelCheck
from unerase_backend.catalogue.model_check import ModelSource
from unerase_backend.catalogue.schedules import folder_problems
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.catalogue.tensor_fit import compare_tensors
from unerase_backend.catalogue.tensors import FLOATS, UNREADABLE
from unerase_backend.diffusion import adapters, embeddings
from unerase_backend.diffusion.libraries import library_class
from unerase_backend.diffusion.outline import MOST_COMPUTED, computed, fillable, outline, weights_of
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.runtime.errors import PreconditionError, UneraseError, UnsafeModelError

# No text-to-image model comes near; a check must end soon whatever a configuration says.
_MOST_BLOCKS = 100
_MOST_LAYERS = 200
_LISTS = ("_types", "_channels", "_multiscales")
_LAYERS = ("layers", "layers_per_block")
_BAD_VALUES = (TypeError, ValueError, KeyError, AttributeError, ArithmeticError)


@dataclass
class Prepared:
    """A model that is checked and not loaded: its files, and what they fill."""

    source: ModelSource
    modules: dict[str, Any] = field(default_factory=dict)
    """The parts with weights, without memory."""
    tokenizers: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None

    def to_fill(self, part: str) -> Any:
        """Return a part's module as weights fill it, if nothing is wrong with the model."""
        make = partial(self.source.kind.build, part, self.source.configs[part])
        try:
            return fillable(self.modules[part], make)
        except _BAD_VALUES as error:
            # What is only drawn where there is memory may need values that an outline does not look at.
            message = f"the model {self.source.name!r} cannot be loaded: {_makes_none(part, self.source)}"
            raise PreconditionError(message, reason=UNSUPPORTED) from error


def check_model(
    catalogue: Catalogue, name: str, *, fetch: bool = False, shared: SharedFindings | None = None
) -> ModelCheck:
    """Return everything that can be known of a model without loading its weights.

    Parameters and errors as in `catalogue/model_check.check_model`.
    """
    findings, shared = Findings(name), shared or SharedFindings()
    prepared = _prepare(catalogue, name, findings, fetch, _Made(_KEPT_MODULES, _KEPT_TOKENIZERS, shared))
    return findings.conclude(model_check.facts_of(prepared.source, shared) if prepared else None)


def prepare(catalogue: Catalogue, name: str, findings: Findings, *, fetch: bool = False) -> Prepared | None:
    """Find what a model is loaded from and what is wrong with it; None if nothing of it could be read.

    The modules are the caller's own, to be filled. Raises as `check_model`.
    """
    return _prepare(catalogue, name, findings, fetch, _Made(_build, _read_tokenizer, SharedFindings()))


def _prepare(catalogue: Catalogue, name: str, findings: Findings, fetch: bool, made: "_Made") -> Prepared | None:
    source = model_check.examine(catalogue, name, findings, made.shared, fetch=fetch)
    if source is None:
        return None
    prepared = Prepared(source)
    for part in (name for name, known in source.kind.parts.items() if known.weighs and name in source.configs):
        _prepare_part(part, made, prepared, findings)
    for part in of_role(source.kind.parts, Role.TOKENIZER):
        if part in source.configs:
            read = partial(_prepare_tokenizer, part, made.tokenizer, source)
            prepared.tokenizers[part] = made.shared.examined(("tokenizer", part, source.folder), findings, read)
    if (denoiser := denoiser_of(source.kind.parts)) in prepared.modules:
        family = source.kind.family
        guard_files.find_misfits(catalogue.guards(name), prepared.modules[denoiser], family, findings)
    for word in source.words:
        try:
            for part in word.tensors:
                embeddings.read(word, part)
        except UnsafeModelError as error:
            findings.problem(EMBEDDING, error.reason, error.message, found=shown(word.file.name))
    schedule = source.configs.get("scheduler")
    if schedule is not None:
        made_of = partial(_schedule, source.folder, schedule)
        prepared.schedule = made.shared.examined(("schedule", source.folder), findings, made_of)
    return prepared


def _schedule(folder: Path, config: Mapping[str, Any], _: Findings) -> Schedule | None:
    return None if folder_problems(folder, config) else Schedule.from_config(config)


def _build(kind: type[BackboneKind], part: str, config: str) -> Any:
    """Return a part's module without memory, by its configuration as JSON."""
    content = json.loads(config)
    _check_size(content)
    return outline(partial(kind.build, part, content))


def _read_tokenizer(kind: str, folder: Path, _: tuple[Any, ...]) -> Any:
    """Return the tokenizer of a folder, whose files with their sizes and times are given beside it."""
    read = library_class("transformers", kind)
    return read.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


class _Made(NamedTuple):
    """What makes modules without memory and tokenizers, and what models of one check share."""

    module: Callable[[type[BackboneKind], str, str], Any]
    tokenizer: Callable[[str, Path, tuple[Any, ...]], Any]
    shared: SharedFindings


# Most models of a catalogue are changes of a few bases; nothing fills these modules.
_KEPT_MODULES = lru_cache(maxsize=16)(_build)
_KEPT_TOKENIZERS = lru_cache(maxsize=8)(_read_tokenizer)


class _Built(NamedTuple):
    """A part's module without memory, and the shapes of its tensors."""

    module: Any
    shapes: dict[str, tuple[int, ...]]


def _prepare_part(part: str, made: _Made, prepared: Prepared, findings: Findings) -> None:
    source, shared = prepared.source, made.shared
    built = shared.examined(("module", part, source.folder), findings, partial(_built, part, made.module, source))
    if built is None:
        return
    prepared.modules[part] = built.module
    for change in source.changes.get(part, ()):
        what = ("fits", part, source.folder, change)
        if isinstance(change, LoraEntry):
            shared.examined(what, findings, partial(_compare_lora, part, change, built.module))
        elif change in source.replacing:
            compare = partial(compare_tensors, part, source.replacing[change], built.shapes, whole=False)
            shared.examined(what, findings, compare)


def _built(
    part: str, build: Callable[[type[BackboneKind], str, str], Any], source: ModelSource, findings: Findings
) -> _Built | None:
    """Return a part as its folder configures it, after comparing it with the folder's weights."""
    try:
        module = build(source.kind, part, json.dumps(source.configs[part]))
    except Exception:
        findings.problem(part, UNSUPPORTED, _makes_none(part, source), found=f"{part}/config.json")
        return None
    if (count := sum(tensor.numel() for tensor in computed(module).values())) > MOST_COMPUTED:
        what = f"the {part} computes {count} numbers that no file holds; at most {MOST_COMPUTED} are computed"
        findings.problem(part, UNSUPPORTED, what, found=f"{part}/config.json")
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(module).items()}
    if part in source.tensors:
        compare_tensors(part, source.tensors[part], shapes, findings, whole=True)
    return _Built(module, shapes)


def _makes_none(part: str, source: ModelSource) -> str:
    return f"the configuration of {part} makes no {source.kind.parts[part].kind}"


def _check_size(config: Mapping[str, Any]) -> None:
    for key, given in config.items():
        values = given if isinstance(given, list) else [given]
        if len(values) > _MOST_BLOCKS and key.endswith(_LISTS):
            raise ValueError(key)
        if key.endswith(_LAYERS) and any(isinstance(each, int) and each > _MOST_LAYERS for each in values):
            raise ValueError(key)


def _compare_lora(part: str, entry: LoraEntry, module: Any, findings: Findings) -> None:
    """Merge a LoRA into the module without memory, which finds whatever keeps it from being merged."""
    try:
        parsed, metadata = lora.read_keys(entry.file)
        with safe_open(entry.file, framework="pt") as file:
            tensors = {
                key: file.get_tensor(key) if each.role == "alpha" else _without_memory(file.get_slice(key))
                for key, each in parsed.items()
            }
        adapters.merge(part, module, adapters.collect(parsed, tensors, metadata).get(part, {}), entry.scale)
    except UneraseError as error:
        findings.problem("lora", error.reason, error.message, found=shown(entry.file.name))
    except UNREADABLE:
        what = f"{shown(entry.file.name)} cannot be read"
        findings.problem("lora", "WEIGHTS_UNREADABLE", what, found=shown(entry.file.name))


def _without_memory(view: Any) -> torch.Tensor:
    # Integers are refused, whatever their size.
    dtype = torch.float32 if view.get_dtype() in FLOATS else torch.int64
    return torch.empty(view.get_shape(), dtype=dtype, device="meta")


def _prepare_tokenizer(
    part: str, read: Callable[[str, Path, tuple[Any, ...]], Any], source: ModelSource, findings: Findings
) -> Any:
    """Return a tokenizer of a folder; None, with a problem, if it does not load."""
    folder = source.folder / part
    try:
        states = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
        files = tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)
        tokenizer = read(source.kind.parts[part].kind, folder, files)
        highest = max(tokenizer.get_vocab().values(), default=0)
    except Exception:
        findings.problem(part, "TOKENIZER_UNREADABLE", f"the {part} does not load", found=f"{part}/")
        return None
    encoder = encoder_of(part)
    if encoder in source.configs:
        embedded = model_fit.value(source.configs, encoder, "vocab_size")
        if isinstance(embedded, int) and highest >= embedded:
            what = f"the {part} has the token {highest}, and the {encoder.replace('_', ' ')} embeds {embedded} tokens"
            findings.problem(part, UNSUPPORTED, what, remedy=model_fit.SAME_MODEL)
    return tokenizer
