"""Writes the testbed's catalogue file, with its models, judges and concepts, and the sheets of concept pictures.

The prompts of a concept differ from each other, and the first 24 (the default number of an audit's cases) use every
template and every attribute. The held-out prompts, on which embeddings are learned, use other templates.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from unerase_backend.testbed import forms, judges, language, world
from unerase_backend.testbed.flow import recipe as flow

GUIDANCE = 3.0
STEPS = 50
SHEET_SEED = 7_000
SHEET = 64
PACKS = Path(__file__).parent / "weights" / "packs"
"""Prompt packs, written by hand, by the name of their concept."""
REFERENCE = "testbed/reference"
FLOW_REFERENCE = "testbed/flow-reference"
COLOUR_NAMES = tuple(world.COLOURS)
# The models that never learned the concept; the first is the control.
NEVERS = ("never", "never-2")

METHODS = {
    "uce": "UCE",
    "rece": "RECE",
    "esd-x": "ESD-x",
    "esd-u": "ESD-u",
    "ga": "GA",
    "task-vector": "TV",
    "stereo": "STEREO",
    "concept-ablation": "Concept Ablation",
    "salun": "SalUn",
    "spm": "SPM",
}
# Trained like the others, but not in the repository, so the shipped catalogue does not name them.
NOT_SHIPPED = ("concept-ablation", "salun", "spm")
FAMILY = (*NEVERS, "redirected", *METHODS)


def object_prompts(templates: tuple[str, ...], count: int) -> list[str]:
    """Return distinct prompts with a `{concept}` slot; templates, colours and styles vary from one to the next."""
    looks = [(colour, style) for style in (None, *world.STYLES) for colour in (None, *COLOUR_NAMES)]
    prompts: list[str] = []
    step = 0
    while len(prompts) < count:
        # 7 is coprime to the 20 looks, so that neighbours differ in colour and in style
        colour, style = looks[7 * (step + step // len(looks)) % len(looks)]
        prompt = templates[step % len(templates)].format(language.phrase("{concept}", colour, style))
        if prompt not in prompts:
            prompts.append(prompt)
        step += 1
    return prompts


def attribute_prompts(templates: tuple[str, ...], count: int) -> list[str]:
    """Return distinct prompts in which `{concept}` is the colour or style of one of the objects."""
    prompts: list[str] = []
    step = 0
    while len(prompts) < count:
        name = forms.OBJECTS[(step + step // len(forms.OBJECTS)) % len(forms.OBJECTS)]
        prompt = templates[step % len(templates)].format("{concept} " + name)
        if prompt not in prompts:
            prompts.append(prompt)
        step += 1
    return prompts


def concept_kind(name: str) -> str:
    """Return "object", "colour" or "style"."""
    return "colour" if name in world.COLOURS else "style" if name in world.STYLES else "object"


def concept_entry(name: str, concept: str) -> dict[str, Any]:
    """Return the catalogue entry of the concept `name`; `concept` is the one that some models never learned.

    Every concept needs a text for the selector, so the placebo has one too, which that judge does not understand.
    """
    kind = concept_kind(name)
    prompts = object_prompts if kind == "object" else attribute_prompts
    candidate = f"a picture of a {name}" if kind == "object" else f"a picture of a {name} shape"
    entry: dict[str, Any] = {
        "kind": kind,
        "names": [name, *language.SYNONYMS.get(name, ())],
        "prompts": prompts(language.PROMPT_TEMPLATES, 36),
        "held_out_prompts": prompts(language.HELD_OUT_TEMPLATES, 28),
        "labels": {"testbed/judge": [name], "testbed/second-judge": [name], "testbed/clip": [candidate]},
        "pictures": f"pictures/{name}.png",
    }
    if kind == "object":
        entry["near_misses"] = f"pictures/{name}-near-misses.png"
    if (PACKS / f"{name}.yaml").exists():
        entry["pack"] = f"packs/{name}.yaml"
    if name == concept:
        entry["control"] = f"testbed/{NEVERS[0]}"
    if name == forms.PLACEBO:
        entry["placebo"] = True
    entry["initial_token"] = {"object": "shape", "colour": "colour", "style": "style"}[kind]
    return entry


def model_entries(
    folder: Path, concept: str, prefix: str, names: Sequence[str], within: str = "", reference: str = REFERENCE
) -> dict[str, dict[str, Any]]:
    """Return the catalogue entries of those models that lack the concept whose folder of weights exists.

    Their folders lie in `folder` / `within`; the entries name files relative to `folder`.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name in names:
        entry: dict[str, Any] = {"base": reference}
        if not (folder / within / name).exists():
            continue
        for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
            file = Path(within) / name / f"{part}.safetensors"
            if (folder / file).exists():
                entry[part] = str(file)
        if name in NEVERS:
            entry["never_learned"] = [concept]
        else:
            entry |= {"method": METHODS.get(name, "redirected"), "erased": [concept]}
        entries[f"{prefix}{name}"] = entry
    return entries


def flow_entries(folder: Path, concept: str) -> dict[str, dict[str, Any]]:
    """Return the catalogue entries of the second world's models, as far as their weights exist."""
    if not (folder / flow.REFERENCE).exists():
        return {}
    reference = {**_reference_entry(flow.REFERENCE), "max_sequence_length": 0}
    changes = model_entries(folder, concept, "testbed/flow-", FAMILY, flow.FOLDER, FLOW_REFERENCE)
    return {FLOW_REFERENCE: reference, **changes}


def _reference_entry(pipeline: str) -> dict[str, Any]:
    return {"pipeline": pipeline, "guidance_scale": GUIDANCE, "steps": STEPS, "resolution": world.SIDE}


def write_family(folder: Path, concept: str) -> None:
    """Write the `catalogue.yaml` of a family that is not shipped: only its models.

    Their base, the judges and the concepts are those of the embedded catalogue.
    """
    _dump({"models": model_entries(folder, concept, f"testbed/{concept}/", FAMILY)}, folder / "catalogue.yaml")


def write(out: Path, concept: str) -> None:
    """Write `catalogue.yaml`, the pictures and the prompt packs, `flow.yaml`, and `not-shipped.yaml`.

    `not-shipped.yaml`, for the models not shipped, has the embedded catalogue's models as bases, as a further family's
    file has. `flow.yaml` has the models of the second world.
    """
    if further := model_entries(out, concept, "testbed/", NOT_SHIPPED):
        _dump({"models": further}, out / "not-shipped.yaml")
    if models := flow_entries(out, concept):
        _dump({"models": models}, out / "flow.yaml")
    if out.resolve() != PACKS.parent.resolve():
        shutil.copytree(PACKS, out / "packs", dirs_exist_ok=True)
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(judges.LABELS):
        seed = SHEET_SEED + 10 * index
        kind = concept_kind(name)
        if kind == "object":
            album = world.album_of([name], SHEET, seed)
            _save(album, folder / f"{name}.png")
            _save(world.album_of(forms.near_misses_of(name), SHEET, seed + 1), folder / f"{name}-near-misses.png")
        else:
            _save(world.album_of(forms.OBJECTS, SHEET, seed, **{kind: name}), folder / f"{name}.png")
    catalogue = {
        "models": {
            REFERENCE: _reference_entry("reference"),
            **model_entries(out, concept, "testbed/", [name for name in FAMILY if name not in NOT_SHIPPED]),
        },
        "judges": {
            "testbed/clip": {"kind": "clip", "path": "clip"},
            "testbed/judge": {"kind": "classifier", "path": "judge"},
            "testbed/second-judge": {"kind": "classifier", "path": "second-judge"},
        },
        "concepts": {name: concept_entry(name, concept) for name in judges.LABELS},
    }
    _dump(catalogue, out / "catalogue.yaml")


def _dump(catalogue: dict[str, Any], path: Path) -> None:
    path.write_text(yaml.safe_dump(catalogue, sort_keys=False, width=140))


def _save(album: world.Album, path: Path) -> None:
    Image.fromarray(world.sheet(album.pictures)).save(path, optimize=True)
