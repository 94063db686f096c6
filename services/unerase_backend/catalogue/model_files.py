"""Which files of a folder hold the weights of a part, and which files a model is read from at all.

A folder may hold the same weights several times: whole and in shards, in float32 and as a variant (`fp16`, `bf16`).
One of them is read, the first that is there:

1. the shards that `STEM.safetensors.index.json` names, in diffusers' folders; an index without shards is left over;
2. `STEM.safetensors`; in folders of transformers the index comes after it;
3. `STEM.VARIANT.safetensors`, or the shards that `STEM.safetensors.index.VARIANT.json` names: fp16, else bf16, else the
   first by name. `non_ema`, other weights than those that pictures are made with, comes last.

STEM is `diffusion_pytorch_model` in diffusers' folders and `model` in those of transformers. The order is that of the
libraries themselves.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unerase_backend.catalogue.backbone_kinds import BackboneKind, Part
from unerase_backend.catalogue.configs import parse, shown
from unerase_backend.catalogue.families import DEFAULT_FAMILY, check_family, family_of_folder
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.layouts import PICKLES, UNSAFE, ImportKind, import_command

SUFFIX = ".safetensors"
SCHEDULER = "scheduler"
"""The part of a pipeline that is a configuration alone, whatever the family."""
TRANSFORMERS = "model"
"""The name of a file of weights of transformers, without endings."""

# The kinds by which `unerase import` takes what replaces a part.
_KINDS: dict[str, ImportKind] = {"unet": "unet", "text_encoder": "text-encoder"}
_VARIANTS = ("", "fp16", "bf16")
_LAST = "non_ema"
_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})
_SHARD = re.compile(r".*-(?P<number>\d+)-of-(?P<count>\d+)(?:\.\w+)?\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(?:\.\w+)?\.json")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one set of weights."""

    files: tuple[Path, ...]
    index: Path | None = None
    """The file that names the shards, where there are several."""
    variant: str = ""
    """As in `fp16`; empty for the plain weights."""

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that is read, the index included."""
        return (*self.files, *([self.index] if self.index else []))


def stem_of(part: str) -> str:
    """Return the name of the file of weights of a part, without endings."""
    return TRANSFORMERS if part.startswith("text_encoder") else "diffusion_pytorch_model"


def part_weights(
    part: str, folder: Path, root: Path | None, findings: Findings, *, of_pipeline: bool = True
) -> WeightFiles | None:
    """Return the files that hold the weights of a part, in the part's folder; None, with a problem, if there are none.

    `root` is the folder that no link may lead out of; None for a snapshot of the hub, whose files are links.
    `of_pipeline` says that the folder is a part of a pipeline's, which is imported as a whole.
    """
    whole = folder.parent if of_pipeline else None
    return _weights(part, stem_of(part), folder, root, findings, whole)


def judge_weights(folder: Path, root: Path | None, findings: Findings) -> WeightFiles | None:
    """Return the files that hold the weights of a judge of transformers; as `part_weights`."""
    return _weights("judge", "model", folder, root, findings)


def checker_weights(folder: Path, findings: Findings) -> WeightFiles | None:
    """Return the files that hold the weights of a safety checker; as `part_weights`. Links are checked elsewhere."""
    return _weights("safety_checker", "model", folder, None, findings)


def _weights(
    part: str, stem: str, folder: Path, root: Path | None, findings: Findings, pipeline: Path | None = None
) -> WeightFiles | None:
    if not _is_folder(part, folder, root, findings):
        return None
    names = _names(folder)
    chosen = choose(stem, names)
    plain = f"{stem}{SUFFIX}"
    if chosen is None:
        _find_what_is_there(part, plain, names, pipeline, findings)
        return None
    variant, file = chosen
    if variant:
        findings.note(f"{part}: read from {shown(file)}, since there is no {plain}")
    stale = f"{plain}.index.json"
    if file == plain and stale in names:
        findings.note(f"{part}: {stale} is ignored, since {plain} holds the weights whole")
    elif file == stale and plain in names:
        findings.note(f"{part}: {plain} is ignored, since {stale} names shards, which diffusers reads first")
    return _taken(part, folder, file, variant, root, findings)


def replacing_weights(part: str, path: Path, findings: Findings) -> WeightFiles | None:
    """Return the files that a catalogue entry names for a part: a file, an index of shards, a folder with either, or a
    whole pipeline's folder.

    The entry is checked already: the path leads to a file or folder that the catalogue may name.
    """
    if path.is_dir():
        return part_weights(part, part_folder(part, path), path, findings, of_pipeline=False)
    if (shard := _SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
        what = f"{shown(path.name)} is one of {int(shard['count'])} shards"
        remedy = "name their index (*.safetensors.index.json) or their folder"
        findings.problem(part, "WEIGHTS_SHARD_ALONE", what, remedy=remedy, found=shown(path.name))
        return None
    return _taken(part, path.parent, path.name, "", path.parent, findings)


def part_folder(part: str, folder: Path) -> Path:
    """Return the folder of a part: the one given, or that of the part within a whole pipeline's."""
    return folder / part if (folder / part).is_dir() else folder


def tokenizer_files(part: str, folder: Path, root: Path | None, findings: Findings) -> tuple[Path, ...]:
    """Return the files of a tokenizer: its configurations and vocabularies."""
    if not _is_folder(part, folder, root, findings):
        return ()
    names = _names(folder)
    if not any(wanted <= set(names) for wanted in _VOCABULARIES):
        findings.problem(
            part,
            "MODEL_INCOMPLETE",
            f"the {part} has no vocabulary",
            looked_for=f"{part}/tokenizer.json, or {part}/vocab.json and {part}/merges.txt",
            found=_listed(part, names),
        )
    paths = tuple(folder / name for name in names if name.endswith((".json", ".txt", ".model")))
    check_inside(part, paths, root, findings)
    return paths


def config_file(part: str, folder: Path, root: Path | None, findings: Findings) -> Path | None:
    """Return the configuration of a part, in the part's folder; None, with a problem, if there is none."""
    if not _is_folder(part, folder, root, findings):
        return None
    path = folder / ("scheduler_config.json" if part == SCHEDULER else "config.json")
    if not check_inside(part, (path,), root, findings):
        return None
    if not path.is_file():
        looked_for, found = f"{part}/{path.name}", _listed(part, _names(folder))
        what, remedy = f"{looked_for} is missing", "fetch the file"
        findings.problem(part, "MODEL_INCOMPLETE", what, remedy=remedy, looked_for=looked_for, found=found)
        return None
    return path


def is_index(file: str) -> bool:
    """Return whether a file is named as an index of shards."""
    return _INDEX.fullmatch(file) is not None


def check_inside(part: str, paths: Iterable[Path], root: Path | None, findings: Findings) -> bool:
    """Return whether all paths lie inside `root`, links followed; find a problem if one does not."""
    outside = [] if root is None else [path for path in paths if not path.resolve().is_relative_to(root.resolve())]
    if outside:
        findings.problem(
            part,
            "PATH_ESCAPES",
            f"{part or 'the model'} contains a link that leads out of its folder",
            remedy="copy the files themselves into the folder (cp -rL)",
            found=shown(outside[0].name),
        )
    return not outside


def loaded_files(folder: Path, root: Path | None, findings: Findings) -> dict[str, list[Path]]:
    """Return the files of a pipeline's folder that a model is loaded from, by part; see `part_weights`."""
    files: dict[str, list[Path]] = {}
    index = folder / "model_index.json"
    if not check_inside("", (index,), root, findings):
        return files
    for part, known in pipeline_parts(folder, findings).items():
        if not known.weighs:
            files[part] = list(tokenizer_files(part, folder / part, root, findings))
            continue
        weights = part_weights(part, folder / part, root, findings)
        config = config_file(part, folder / part, root, findings)
        files[part] = sorted([*(weights.all if weights else ()), *([config] if config else [])])
    if files:
        config = config_file(SCHEDULER, folder / SCHEDULER, root, findings)
        files[SCHEDULER] = [config] if config else []
    return files


def pipeline_parts(folder: Path, findings: Findings | None = None) -> dict[str, Part]:
    """Return the parts of a pipeline's folder by its model_index.json; none, with a problem, if it is of a family that
    cannot be audited.
    """
    index = parse(folder / "model_index.json")
    kind = check_family(index if isinstance(index, dict) else {}, findings or Findings(folder.name))
    return {} if kind is None else present(kind, index)


def present(kind: type[BackboneKind], index: object) -> dict[str, Part]:
    """Return the parts of a family that a folder with this model_index.json has: all but those that it may lack and
    does not name.
    """
    named = index if isinstance(index, Mapping) else {}
    return {
        part: known
        for part, known in kind.parts.items()
        if known.required or (isinstance(named.get(part), list) and any(named[part]))
    }


def replacing_files(replacing: Mapping[str, Path], findings: Findings) -> dict[str, list[Path]]:
    """Return the files of what a catalogue entry names for parts, by "PART replaced"; see `replacing_weights`."""
    found = {part: replacing_weights(part, path, findings) for part, path in replacing.items()}
    return {f"{part} replaced": list(weights.all) for part, weights in found.items() if weights is not None}


def _is_folder(part: str, folder: Path, root: Path | None, findings: Findings) -> bool:
    if not folder.is_dir():
        beside = _entries(folder.parent)
        findings.problem(
            part, "MODEL_INCOMPLETE", f"{part} is missing", looked_for=f"{part}/", found=", ".join(beside) or "nothing"
        )
        return False
    return check_inside(part, (folder,), root, findings)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _entries(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(shown(path.name) + "/" * path.is_dir() for path in folder.iterdir())[:10]


def choose(stem: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the variant and the file to read of those with these names: weights, or the index of shards."""
    pattern = (
        rf"{re.escape(stem)}(?:(?:\.(?P<whole>\w+))?\.safetensors|\.safetensors\.index(?:\.(?P<shards>\w+))?\.json)"
    )
    sharded = any(name.startswith(stem) and _SHARD.fullmatch(name) for name in names)
    # transformers reads a whole file first, and diffusers shards.
    shards_first = sharded and stem != TRANSFORMERS
    found = []
    for name in names:
        if match := re.fullmatch(pattern, name):
            variant = match["whole"] or match["shards"] or ""
            rank = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS) + (variant == _LAST)
            found.append(((rank, variant, is_index(name) != shards_first), variant, name))
    return min(found)[1:] if found else None


def _find_what_is_there(part: str, plain: str, names: Sequence[str], pipeline: Path | None, findings: Findings) -> None:
    """Find why none of the files with these names is read; `pipeline` is the folder that is imported."""
    unsafe = [name for name in names if name.endswith(UNSAFE)]
    shards = [name for name in names if _SHARD.fullmatch(name)]
    others = [name for name in names if name.endswith(SUFFIX)]
    if others:
        looked_for = f"{plain}.index.json" if shards else plain
        what = f"{part} has shards without their index" if shards else f"{part} has no weights under their name"
        remedy = "fetch the index too" if shards else f"rename the file to {plain} if it holds the weights"
        reason, found = "WEIGHTS_MISSING", others
    elif unsafe:
        looked_for, found, reason = plain, unsafe, "WEIGHTS_NOT_SAFETENSORS"
        what = f"{part} has its weights in a format that can carry code"
        remedy = _unsafe_remedy(part, unsafe[0], pipeline)
    else:
        looked_for, found, reason = plain, list(names), "WEIGHTS_MISSING"
        what, remedy = f"{part} has no weights", "fetch the file"
    looked_for = f"{part}/{looked_for}"
    findings.problem(part, reason, what, remedy=remedy, looked_for=looked_for, found=_listed(part, found))


def _unsafe_remedy(part: str, file: str, pipeline: Path | None) -> str:
    imported = (*_KINDS, "vae") if pipeline is None or family_of_folder(pipeline).family == DEFAULT_FAMILY else ()
    if not file.endswith(PICKLES) or part not in imported:
        return "convert it to safetensors"
    named = (file, _KINDS.get(part)) if pipeline is None else (pipeline.name, "model")
    return f"import it: {import_command(shown(named[0]), named[1])}"


def _listed(part: str, names: Sequence[str]) -> str:
    return ", ".join(f"{part}/{shown(name)}" for name in names[:10]) or "nothing"


def _taken(
    part: str, folder: Path, file: str, variant: str, root: Path | None, findings: Findings
) -> WeightFiles | None:
    """Return the file itself or, if it is an index, the shards that it names, once all are there and inside `root`."""
    if not is_index(file):
        files = WeightFiles((folder / file,), None, variant)
    else:
        shards = _shards(part, folder, file, findings)
        if shards is None:
            return None
        files = WeightFiles(tuple(folder / name for name in shards), folder / file, variant)
    return files if check_inside(part, (folder, *files.all), root, findings) else None


def _shards(part: str, folder: Path, index: str, findings: Findings) -> list[str] | None:
    content = parse(folder / index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    named = set(weight_map.values()) if isinstance(weight_map, dict) and _all_texts(weight_map.values()) else set()
    name = shown(index)
    if not named or any(Path(each).name != each or not each.endswith(SUFFIX) for each in named):
        what = f"{name} does not say which safetensors files beside it hold which tensors"
        findings.problem(part, "WEIGHTS_INDEX", what, remedy="fetch the index again", found=name)
        return None
    missing = sorted(each for each in named if not (folder / each).is_file())
    for each in missing:
        findings.problem(
            part,
            "WEIGHTS_SHARD_MISSING",
            f"the shard {shown(each)}, which {name} names, is missing",
            remedy="fetch the shard",
            looked_for=shown(each),
            found=", ".join(shown(there) for there in sorted(named - {*missing})) or "nothing",
        )
    return None if missing else sorted(named)


def _all_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)
