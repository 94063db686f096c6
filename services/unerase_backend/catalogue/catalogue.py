"""The catalogue of a deployment: the embedded testbed's file and those of the operator, checked as a whole."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, JudgeLabels
from unerase_backend.catalogue import digests, guard_files, guard_kinds, judge_files, packs, sheets
from unerase_backend.catalogue.custom import CustomConcept, entry_of
from unerase_backend.catalogue.default_judges import choose_judges
from unerase_backend.catalogue.definitions import is_registered
from unerase_backend.catalogue.describing import describe
from unerase_backend.catalogue.entries import ConceptEntry, JudgeEntry, ModelEntry
from unerase_backend.catalogue.kept_digests import KeptDigests, file_digest
from unerase_backend.catalogue.kinds import ALTERNATIVES, KINDS, PROMPTS, first_of_kinds, one_thing
from unerase_backend.catalogue.merging import merge_files
from unerase_backend.catalogue.model_parts import ModelParts
from unerase_backend.catalogue.named_errors import naming
from unerase_backend.catalogue.registered import RegisteredModels
from unerase_backend.catalogue.remembered import Remembered
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError, PreconditionError
from unerase_backend.runtime.spelling import share_a_word

EMBEDDED = Path(__file__).parent.parent / "testbed" / "weights" / "catalogue.yaml"

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Catalogue:
    """Every model, judge and concept by name, in the order of the files."""

    models: Mapping[str, ModelEntry]
    judges: Mapping[str, JudgeEntry]
    concepts: Mapping[str, ConceptEntry]
    custom: Mapping[str, CustomConcept] = field(default_factory=dict)
    """The custom concepts among `concepts`, which are in no file."""
    files: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The name of the file that holds an entry, by its section ("models", "judges", "concepts") and name."""
    _digest: digests.Digest = field(default=file_digest, repr=False, compare=False)
    _registered: RegisteredModels | None = field(default=None, repr=False, compare=False)
    _memory: Remembered = field(default_factory=Remembered, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        paths: Sequence[str] = (),
        *,
        embedded: Path = EMBEDDED,
        digest_folder: str = "",
        registered: RegisteredModels | None = None,
    ) -> "Catalogue":
        """Read the embedded catalogue, if it exists, and the files at `paths`.

        `digest_folder` keeps the digests of files (`kept_digests`); without one, every process hashes them.
        `registered` finds the models that are named `model:DIGEST`; without it there are none.

        Raises:
            InvalidRequestError: a file holds a bad field, two entries share a name, or an entry names a missing one.
        """
        merged = merge_files([*([embedded] if embedded.exists() else []), *(Path(path) for path in paths)])
        return cls(
            MappingProxyType(merged.models),
            MappingProxyType(merged.judges),
            MappingProxyType(merged.concepts),
            files=MappingProxyType(merged.files),
            _digest=KeptDigests(Path(digest_folder) if digest_folder else None),
            _registered=registered,
        )

    def place(self, section: str, name: str, *keys: str) -> str:
        """Return where an entry of `section` stands, or a key in it: "models.yaml: models.sd/edited.unet"."""
        return f"{self.files.get((section, name), 'catalogue')}: {'.'.join((section, name, *keys))}"

    def extended(self, custom: Iterable[CustomConcept]) -> "Catalogue":
        """Return this catalogue with custom concepts added; a custom concept with a name of the files is ignored."""
        added = {each.concept.name: each for each in custom if each.concept.name not in self.concepts}
        entries = {name: entry_of(each.concept, each.side) for name, each in added.items()}
        concepts = MappingProxyType({**self.concepts, **entries})
        return replace(self, concepts=concepts, custom=MappingProxyType({**self.custom, **added}))

    def with_models(self, models: Mapping[str, ModelEntry]) -> "Catalogue":
        """Return this catalogue with further models: one that is to be registered, or registered ones by their name."""
        return replace(self, models=MappingProxyType({**self.models, **models}))

    def model(self, name: str) -> ModelEntry:
        """Return a model's entry, with every figure filled in; a registered model is named `model:DIGEST`.

        Raises:
            NotFoundError: there is none.
            PreconditionError: the settings of this process do not allow the registered model.
        """
        if self._registered is not None and is_registered(name):
            return self._registered.model(self, name).entry
        return _find(self.models, name, "model")

    def verify(self, name: str) -> None:
        """Compare the files of a registered model with its definition; a model of a file has none.

        Raises:
            UnsafeModelError: a file is missing, is another one, or is new.
        """
        if self._registered is not None and is_registered(name):
            self._registered.verify(self, name, self._digest)

    def judge(self, name: str) -> JudgeEntry:
        """Return a judge's entry.

        Raises:
            NotFoundError: there is none.
        """
        return _find(self.judges, name, "judge")

    def concept(self, name: str) -> ConceptEntry:
        """Return a concept's entry.

        Raises:
            NotFoundError: there is none.
        """
        return _find(self.concepts, name, "concept")

    def model_parts(self, name: str) -> ModelParts:
        """Return the files that a model is loaded from; those of a registered model are as its definition says.

        Raises:
            NotFoundError: there is no such model.
            UnavailableError: it cannot be fetched from the hub.
            UnsafeModelError: as `verify`.
        """
        self.verify(name)
        entry = self.model(name)
        if entry.base is not None:
            return self.model_parts(entry.base).changed(entry)
        folder = entry.folder
        assert folder is not None  # noqa: S101 - an entry has a folder or a base
        return ModelParts(folder).changed(entry)

    def guards(self, name: str) -> tuple[guard_kinds.GuardEntry, ...]:
        """Return the guards of a model in the order in which they act: those of its base, and then its own.

        Raises:
            NotFoundError: there is no such model.
        """
        return tuple(guard for each in reversed(self.chain(name)) for guard in self.model(each).guards)

    def guard_folder(self, name: str) -> Path:
        """Return the pipeline's folder with what the guards of a model read of it, fetched if it is the hub's.

        Raises as `model_parts`.
        """
        folder, root = self.model_parts(name).folder, self.model(self.chain(name)[-1])
        if root.hub is not None and root.revision is not None:
            guard_files.fetch(root.hub, root.revision, self.guards(name), folder)
        return folder

    def weights_digest(self, name: str) -> str:
        """Return the digest of a model without its guards; raises as `describe_model`."""
        described = self.describe_model(name)
        return described.weights_digest or described.digest

    def describe_model(self, name: str) -> Model:
        """Return a model with the digests of its weight files, its base's included; they are computed once.

        The model's digest is over its configurations as well.

        Raises:
            NotFoundError: there is no such model.
            UnsafeModelError: a part is missing, has no safetensors, cannot be read, or leads out of its folder; the
                message names the model.
            UnavailableError: it cannot be fetched from the hub.
        """
        self.model(name)
        copy = Model()
        if self._registered is not None and is_registered(name):
            copy.CopyFrom(self._registered.model(self, name).described)
            return copy
        with naming("model", name):
            copy.CopyFrom(self.remembered("model", name, lambda: describe(self, name, self._digest)))
        return copy

    def judge_digest(self, name: str) -> str:
        """Return SHA-256 over all files of a judge and its options, computed once.

        Raises:
            NotFoundError: there is no such judge.
            UnsafeModelError: it has no weights, or leads out of its folder.
            UnavailableError: it cannot be fetched from the hub.
        """
        return self._of_judge("digest", name, judge_files.digest_of)

    def judge_weights(self, name: str) -> str:
        """Return SHA-256 over a judge's weights only; judges of different configurations may have the same weights.

        Raises as `judge_digest`.
        """
        return self._of_judge("weights", name, judge_files.weights_of)

    def judge_weight_files(self, name: str) -> dict[str, str]:
        """Return SHA-256 of each of a judge's files of weights, by its name; raises as `judge_digest`."""
        return self._of_judge("weight files", name, judge_files.weight_files_of)

    def _of_judge(self, what: str, name: str, compute: Callable[[JudgeEntry, digests.Digest], Entry]) -> Entry:
        entry = self.judge(name)
        with naming("judge", name):
            return self.remembered(f"judge {what}", name, lambda: compute(entry, self._digest))

    def chain(self, name: str) -> list[str]:
        """Return a model, its base, that one's base and so on to a whole pipeline.

        Raises:
            NotFoundError: there is no such model.
        """
        names = [name]
        while base := self.model(names[-1]).base:
            names.append(base)
        return names

    def default_judges(self, concept: str = "", given: Sequence[str] = ("", "", "")) -> tuple[str, str, str]:
        """Return selector, judge and second judge of an audit of `concept`, whose request names those `given`.

        Raises:
            PreconditionError: too few judges know the concept.
        """
        return choose_judges(self.judges, concept, self.concepts.get(concept), given)

    def concept_message(self, name: str, store: ArtifactStore) -> Concept:
        """Return a concept, after cutting its pictures out of their sheets and storing them in `store`.

        Raises:
            NotFoundError: there is no such concept.
        """
        entry = self.concept(name)
        if name in self.custom:
            message = Concept()
            message.CopyFrom(self.custom[name].concept)
            message.prompts[:] = entry.prompts or PROMPTS[entry.kind]
            message.sensitive = entry.sensitive
            return message
        message = Concept(
            name=name,
            kind=KINDS[entry.kind],
            names=entry.names,
            prompts=entry.prompts or PROMPTS[entry.kind],
            held_out_prompts=entry.held_out_prompts,
            labels=[
                JudgeLabels(judge=judge, labels=labels, alternatives=entry.alternatives.get(judge, ()))
                for judge, labels in entry.labels.items()
            ],
            control=entry.control or "",
            initial_token=entry.initial_token,
            placebo=entry.placebo,
            sensitive=entry.sensitive,
            pack=packs.pack_of(entry.pack),
        )
        message.picture_digests.extend(store.put(tile) for tile in self._tiles(entry.pictures, entry.tile))
        message.near_miss_digests.extend(store.put(tile) for tile in self._tiles(entry.near_misses, entry.tile))
        return message

    def picture_side(self, concept: str) -> int:
        """Return the side of a concept's pictures in pixels; 0 if it has none.

        Raises:
            NotFoundError: there is no such concept.
        """
        entry = self.concept(concept)
        return entry.tile if concept in self.custom or entry.pictures or entry.near_misses else 0

    def has_pictures(self, concept: str) -> bool:
        """Return whether a concept has pictures; near misses do not count.

        Raises:
            NotFoundError: there is no such concept.
        """
        if concept in self.custom:
            return bool(self.custom[concept].concept.picture_digests)
        return self.concept(concept).pictures is not None

    def others(self, concept: str) -> list[str]:
        """Return the names of the files' concepts other than `concept`, in the order of the files.

        Concepts that are the `same` to the models or to a judge are left out. So are custom concepts: the result of an
        audit must not depend on what somebody else has uploaded.

        Raises:
            NotFoundError: there is no such concept.
        """
        entry = self.concept(concept)
        return [
            name
            for name, other in self.concepts.items()
            if name != concept and name not in self.custom and not self.same(entry, other)
        ]

    def target(self, concept: str, store: ArtifactStore, selector: str, judge: str, second_judge: str) -> Target:
        """Return a concept with the questions for three judges, from the tables of labels.

        A CLIP judge compares the concept's texts with its alternatives, or those of its kind, and with the texts of its
        `others` of the kind (`kinds.py`), without placebos.

        Raises:
            NotFoundError: there is no such concept or judge.
            PreconditionError: the concept has no labels for one of them.
        """
        return Target(
            concept=self.concept_message(concept, store),
            selector=self.question(concept, selector),
            judge=self.question(concept, judge),
            second_judge=self.question(concept, second_judge),
        )

    def question(self, concept: str, judge: str) -> Question:
        """Return what a judge is asked about a concept; errors as in `target`."""
        entry, kind = self.concept(concept), self.judge(judge).kind
        if judge not in entry.labels:
            raise PreconditionError(
                f"the concept {concept!r} has no labels for the judge {judge!r}; add them to the catalogue",
                reason="LABELS_MISSING",
                metadata={"concept": concept, "judge": judge},
            )
        labels = entry.labels[judge]
        own = entry.alternatives.get(judge, ())
        if kind != "clip":
            return Question(judge=judge, labels=labels, alternatives=own)
        others = [other for other in map(self.concept, self.others(concept)) if not other.placebo]
        known = [other for other in others if other.labels.get(judge)]
        alike = first_of_kinds(KINDS[entry.kind], known, lambda other: KINDS[other.kind])
        texts = [*(own or ALTERNATIVES.get(entry.kind, ())), *(text for each in alike for text in each.labels[judge])]
        alternatives = dict.fromkeys(text for text in texts if text not in labels)
        return Question(judge=judge, labels=labels, alternatives=alternatives)

    def same(self, entry: ConceptEntry, other: ConceptEntry) -> bool:
        """Return whether two concepts are the same to the models or to a judge: they share a word, or a label of a
        judge with a closed set of labels, or are of a kind that is one thing.
        """
        if one_thing(entry.kind, other.kind) and not (entry.placebo or other.placebo):
            return True
        return share_a_word(entry.names, other.names) or any(
            self.judges[judge].kind != "clip" and not set(labels).isdisjoint(other.labels.get(judge, ()))
            for judge, labels in entry.labels.items()
            if judge in self.judges
        )

    def _tiles(self, sheet: Path | None, tile: int) -> tuple[bytes, ...]:
        if sheet is None:
            return ()
        return self.remembered("sheet", f"{sheet} {tile}", lambda: sheets.cut(sheet, tile))

    def remembered(self, kind: str, name: str, compute: Callable[[], Entry]) -> Entry:
        """Return what `compute` returned for this entry first; errors are not remembered, and entries do not wait."""
        return self._memory.get(kind, name, compute)


def _find(entries: Mapping[str, Entry], name: str, kind: str) -> Entry:
    if name not in entries:
        raise NotFoundError(
            f"the catalogue has no {kind} {name!r}", reason=f"{kind.upper()}_NOT_FOUND", metadata={kind: name}
        )
    return entries[name]
