"""The entries of a catalogue file: paths that stay inside its folder, hub ids that are pinned.

hub_organisations: [CompVis]              # whose hub ids this file may name
models:
  sd/1.4:     {hub: CompVis/stable-diffusion-v1-4, revision: <40 hex digits>, resolution: 512}
  sd/edited:  {base: sd/1.4, unet: edited/unet.safetensors, method: UCE, erased: [tench]}
  sd/adapted: {base: sd/1.4, lora: adapted/lora.safetensors, scale: 0.8}
  sd/worded:  {base: sd/1.4, embedding: words/toy.safetensors, token: <toy>}
  own/folder: {pipeline: folder, guidance_scale: 3.0, steps: 50, resolution: 32}
  own/shop:   {base: own/folder, guards: [{kind: negative-prompt, text: "an hourglass"}]}
judges:
  sd/clip:    {kind: clip, hub: openai/clip-vit-base-patch32, revision: <40 hex digits>}
  own/judge:  {kind: classifier, path: judge}
  own/parts:  {kind: detector, path: parts, options: {file: parts.onnx, sha256: <64 hex digits>, threshold: 0.25}}
concepts:
  tench:      {kind: object, names: [tench], labels: {own/judge: ["tench, Tinca tinca"]}, pictures: tench.png, ...}
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from unerase.v1.types_pb2 import Concept
from unerase_backend.catalogue import hub, sheets
from unerase_backend.catalogue.guard_kinds import GuardEntry, read_guards
from unerase_backend.catalogue.kinds import ALWAYS_SENSITIVE, PROMPTS
from unerase_backend.catalogue.layouts import PICKLES, ImportKind, import_command
from unerase_backend.catalogue.model_files import is_index
from unerase_backend.catalogue.names import check_name
from unerase_backend.catalogue.packs import checked_pack_file
from unerase_backend.catalogue.part_names import REPLACEABLE
from unerase_backend.catalogue.places import Places
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.labels import checked_labels
from unerase_backend.runtime.pictures import UnreadablePictureError
from unerase_backend.runtime.spelling import share_a_word

GUIDANCE_SCALE = 7.5
STEPS = 50
# A schedule of 1,000 timesteps that begins at timestep 1 has one step fewer.
MAX_STEPS = 999
GUIDANCE_SCALES = (1.0, 50.0)
"""The least and the greatest guidance scale; 1 means no guidance."""
MAX_CONCEPT_NAMES = most_items(Concept, "names")
MAX_CONCEPT_PROMPTS = most_items(Concept, "prompts")
MAX_LORAS = 16
MAX_LORA_SCALE = 100.0
MAX_EMBEDDINGS = 16
# How `unerase import` takes the files of these keys.
_IMPORT_KINDS: dict[str, ImportKind] = {"unet": "unet", "text_encoder": "text-encoder", "file": "lora"}


def _inside(value: object, info: ValidationInfo) -> object:
    return value if value is None else _places(info).inside(value)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("must be a folder")
    return path


def _safetensors(path: Path, info: ValidationInfo, *, kind: ImportKind | None = None) -> Path:
    if path.suffix in PICKLES:
        command = import_command(_places(info).named(path), kind or _IMPORT_KINDS.get(info.field_name or ""))
        raise ValueError(
            f"{path.name} is in a format that can carry code, which the server does not read; import it: {command}"
        )
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError("must be a .safetensors file; no other format is loaded")
    return path


def _replacement(path: Path, info: ValidationInfo) -> Path:
    # Shards are named by their index or by their folder.
    if path.is_dir() or (path.is_file() and is_index(path.name)):
        return path
    return _safetensors(path, info)


def _hub_id(value: str, info: ValidationInfo) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value, re.ASCII) or ".." in value:
        raise ValueError("must be organisation/name")
    _places(info).check_organisation(value.partition("/")[0])
    return value


def _places(info: ValidationInfo) -> Places:
    assert info.context is not None  # noqa: S101 - every entry is validated with the places that it may name
    places: Places = info.context["places"]
    return places


Folder = Annotated[Path, BeforeValidator(_inside), AfterValidator(_folder)]
Weights = Annotated[Path, BeforeValidator(_inside), AfterValidator(_safetensors)]
Embedding = Annotated[Path, BeforeValidator(_inside), AfterValidator(partial(_safetensors, kind="embedding"))]
Replacement = Annotated[Path, BeforeValidator(_inside), AfterValidator(_replacement)]
Sheet = Annotated[Path, BeforeValidator(_inside)]
HubId = Annotated[str, AfterValidator(_hub_id)]
Guards = Annotated[tuple[GuardEntry, ...], BeforeValidator(read_guards)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
WeightsPart = Annotated[str, Field(pattern=r"^(unet|transformer|vae|text_encoder(_[23])?)$")]
Name = Annotated[str, AfterValidator(check_name)]
Word = Annotated[str, Field(min_length=1, max_length=1000)]
Words = Annotated[tuple[Word, ...], Field(strict=False)]


def _template(value: str) -> str:
    if value.count("{concept}") > 1 or "{" in value.replace("{concept}", "") or not value.strip():
        raise ValueError('must be a prompt that holds "{concept}" once or, to stand as it is, never; no other braces')
    return value


def _token(value: str) -> str:
    if not re.fullmatch(r"\S{1,100}", value) or not value.isprintable():
        raise ValueError("must be one word of at most 100 printable characters")
    return value


Texts = Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]
Templates = Annotated[
    tuple[Annotated[Word, AfterValidator(_template)], ...], Field(strict=False, max_length=MAX_CONCEPT_PROMPTS)
]


class Entry(BaseModel):
    """What all entries share: no key but their own, and no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LoraEntry(Entry):
    """A LoRA, merged into a model's weights times `scale`."""

    file: Weights
    scale: float = Field(default=1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)
    sha256: Digest | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> "LoraEntry":
        if not self.scale:
            raise ValueError("a LoRA with the scale 0 changes nothing")
        return self


class EmbeddingEntry(Entry):
    """A learned embedding of textual inversion, which gives a model the word `token`."""

    file: Embedding
    token: Annotated[str, AfterValidator(_token)]
    sha256: Digest | None = None


def _listed(value: object) -> object:
    """Return a list of LoRAs or embeddings; one may be given alone, and by its file alone."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple({"file": each} if isinstance(each, str) else each for each in listed)


def _alone(content: object) -> object:
    """Move the scale that stands beside a single LoRA into it, and the token beside an embedding."""
    for key, beside in (("lora", "scale"), ("embedding", "token")):
        if not isinstance(content, dict) or beside not in content:
            continue
        rest = {each: value for each, value in content.items() if each != beside}
        if not isinstance(content.get(key), str):
            raise ValueError(f"{beside} belongs beside one {key} that is a file; each of several has its own")
        content = rest | {key: [{"file": content[key], beside: content[beside]}]}
    return content


class ModelEntry(Entry):
    """A model: a pipeline folder, a hub id or a base, with its denoiser or text encoders replaced, wholly or in part,
    LoRAs merged into what comes of that, and words learned beside its vocabulary.

    Figures that an entry leaves out come from its base; they are filled in when the catalogue is loaded.
    """

    pipeline: Folder | None = None
    hub: HubId | None = None
    revision: Revision | None = None
    base: Name | None = None
    unet: Replacement | None = None
    transformer: Replacement | None = None
    text_encoder: Replacement | None = None
    text_encoder_2: Replacement | None = None
    text_encoder_3: Replacement | None = None
    lora: Annotated[tuple[LoraEntry, ...], BeforeValidator(_listed), Field(max_length=MAX_LORAS)] = ()
    embedding: Annotated[tuple[EmbeddingEntry, ...], BeforeValidator(_listed), Field(max_length=MAX_EMBEDDINGS)] = ()
    guards: Guards = ()
    # What a part's own file of weights must have; a LoRA has its own.
    sha256: dict[WeightsPart, Digest] = Field(default_factory=dict)
    # 0 stands for "not given".
    guidance_scale: float = Field(default=0.0, ge=GUIDANCE_SCALES[0], le=GUIDANCE_SCALES[1], allow_inf_nan=False)
    steps: int = Field(default=0, ge=1, le=MAX_STEPS)
    resolution: int = Field(default=0, ge=8, le=4096)
    # Tokens that a text encoder without a length of its own, such as T5, reads of a prompt; a pipeline's alone.
    max_sequence_length: int | None = Field(default=None, ge=0, le=1024)
    method: str = ""
    erased: Words = ()
    never_learned: Words = ()
    labels: Annotated[dict[str, str], AfterValidator(checked_labels)] = Field(default_factory=dict)

    _beside = model_validator(mode="before")(_alone)

    @model_validator(mode="after")
    def _one_source(self) -> "ModelEntry":
        if sum(source is not None for source in (self.pipeline, self.hub, self.base)) != 1:
            raise ValueError("must name exactly one of pipeline, hub and base")
        _check_revision(self.hub, self.revision)
        if both := set(self.erased) & set(self.never_learned):
            raise ValueError(f"cannot have erased and never learned the same concept: {min(both)}")
        if self.base is None and not self.resolution:
            raise ValueError("must give the resolution of its pictures in pixels")
        if self.base is not None and self.max_sequence_length is not None:
            raise ValueError("max_sequence_length is the base's and cannot be changed")
        return self

    @property
    def replacing(self) -> dict[str, Path]:
        """What replaces tensors of a part, by part, the denoiser first."""
        named = {part: getattr(self, part) for part in REPLACEABLE}
        return {part: path for part, path in named.items() if path is not None}

    @property
    def folder(self) -> Path | None:
        """The pipeline's folder, fetched from the hub if the entry has a hub id; None for a change of a base."""
        if self.hub is not None and self.revision is not None:
            return hub.pipeline_folder(self.hub, self.revision)
        return self.pipeline

    @property
    def fetched(self) -> bool:
        """Whether its folder is on this machine, or it is a change of a base."""
        if self.hub is None or self.revision is None:
            return True
        return hub.cached_pipeline(self.hub, self.revision) is not None


class JudgeEntry(Entry):
    """A judge: a folder or a hub id, loaded by the code for its kind, which also checks its `options`."""

    kind: Name
    path: Folder | None = None
    hub: HubId | None = None
    revision: Revision | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> "JudgeEntry":
        if (self.path is None) == (self.hub is None):
            raise ValueError("must name either path or hub")
        _check_revision(self.hub, self.revision)
        return self

    @property
    def folder(self) -> Path:
        """The judge's folder, fetched from the hub if the entry has a hub id."""
        if self.path is not None:
            return self.path
        assert self.hub is not None and self.revision is not None  # noqa: S101, PT018 - validated above
        # A detector's file, which is no safetensors; its kind refuses any other name.
        file = str(self.options.get("file", ""))
        return hub.judge_folder(self.hub, self.revision, *([file] if file.endswith(".onnx") else []))


class ConceptEntry(Entry):
    """A concept: its words, prompts, labels and pictures.

    A `placebo` is a concept that no model knows; it serves as a control. It is never an
    "other concept" of an audit. Reports blur the pictures of a `sensitive` concept until the reader asks for them.

    Pictures come as sheets: files cut into square tiles of side `tile`, by default the resolution of the file's
    first pipeline.
    """

    kind: Literal["object", "colour", "style", "person", "nudity", "text", "custom"]
    names: Annotated[tuple[Word, ...], Field(strict=False, min_length=1, max_length=MAX_CONCEPT_NAMES)]
    prompts: Templates = Field(default=(), validate_default=True)
    held_out_prompts: Templates = ()
    labels: dict[Name, Texts] = Field(default_factory=dict)
    # What else a picture may show, by judge.
    alternatives: dict[Name, Texts] = Field(default_factory=dict)
    tile: int = Field(default=0, ge=8, le=4096)
    pictures: Sheet | None = None
    near_misses: Sheet | None = None
    # A prompt pack: prompts that ask for the concept in other words.
    pack: Annotated[Path, BeforeValidator(_inside), AfterValidator(checked_pack_file)] | None = None
    control: Name | None = None
    initial_token: str = ""
    placebo: bool = False
    sensitive: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, content: object) -> object:
        if isinstance(content, dict) and content.get("kind") in [*ALWAYS_SENSITIVE]:
            return {"sensitive": True, **content}
        return content

    @field_validator("prompts")
    @classmethod
    def _prompts(cls, prompts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind = info.data.get("kind")
        if kind and not prompts and kind not in PROMPTS:
            raise ValueError(f"must be given: the kind {kind} has none of its own")
        return prompts

    @field_validator("alternatives")
    @classmethod
    def _alternatives(cls, given: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        labels = info.data.get("labels", {})
        for judge, texts in given.items():
            if judge not in labels:
                raise ValueError(f"the concept has no labels for the judge {judge!r}")
            if both := set(texts) & set(labels[judge]):
                raise ValueError(f"{min(both)!r} is a label for the judge {judge!r}, and cannot be an alternative")
        return given

    @field_validator("sensitive")
    @classmethod
    def _sensitive(cls, sensitive: bool, info: ValidationInfo) -> bool:
        if not sensitive and (kind := info.data.get("kind")) in ALWAYS_SENSITIVE:
            raise ValueError(f"cannot be false: pictures of the kind {kind} are always blurred")
        return sensitive

    @field_validator("pictures", "near_misses")
    @classmethod
    def _whole_tiles(cls, sheet: Path | None, info: ValidationInfo) -> Path | None:
        tile = info.data.get("tile")
        if sheet is None or tile is None:
            return sheet
        if not tile:
            raise ValueError("needs the side of its tiles as tile, since the file has no model with a resolution")
        try:
            width, height = sheets.check(sheet)
        except UnreadablePictureError as error:
            raise ValueError(error.message) from None
        if width % tile or height % tile:
            raise ValueError(f"a sheet of {width} x {height} pixels has no tiles of {tile}")
        return sheet


def problems_of_concept(
    name: str, entry: ConceptEntry, models: Mapping[str, ModelEntry], judges: Mapping[str, JudgeEntry]
) -> list[tuple[tuple[str, ...], str]]:
    """Return the contradictions between a concept and the catalogue: keys within its entry, and a description."""
    problems: list[tuple[tuple[str, ...], str]] = [
        (("labels", judge), "there is no such judge") for judge in entry.labels if judge not in judges
    ]
    if (padded := next((word for word in entry.names if word != word.strip()), None)) is not None:
        problems.append((("names",), f"{padded!r} begins or ends with a space, which no prompt has beside it"))
    if entry.control is not None:
        control = models.get(entry.control)
        if control is None:
            problems.append((("control",), "there is no such model"))
        elif not share_a_word((name, *entry.names), control.never_learned):
            description = "the model's never_learned names neither the concept nor one of its words"
            problems.append((("control",), description))
    erased = next((model for model, given in models.items() if share_a_word((name, *entry.names), given.erased)), None)
    if entry.placebo and erased is not None:
        problems.append((("placebo",), f"no model may know a placebo, and {erased!r} is said to have erased it"))
    return problems


def _check_revision(hub_id: str | None, revision: str | None) -> None:
    if (hub_id is None) != (revision is None):
        raise ValueError("a hub id needs its revision: the commit's 40 hexadecimal digits")
