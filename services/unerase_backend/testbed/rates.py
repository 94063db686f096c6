"""How often each model draws each concept: `python -m unerase_backend.testbed.rates [--weights DIR] [--steps N]
[--models NAME ...]`.

A rate is the share of pictures in which a judge detects the concept (p > 0.5). Pictures take the catalogue's prompts in
turn, each with its own latent seed; DDIM, eta 0, the catalogue's guidance. Prompts for colours and styles name an
object as well. "Bound" prompts name style, colour and object, and count where all three are detected.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageClassification

from unerase_backend.testbed import autoencoder, catalogue, forms, judges, language, sampling, storage, world
from unerase_backend.testbed.flow import recipe as flow_recipe
from unerase_backend.testbed.flow import sampling as flow_sampling
from unerase_backend.testbed.flow import storage as flow_storage
from unerase_backend.testbed.world import Pixels

JUDGES = tuple(judges.KINDS)
LATENT_SEED = 100_000

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Models:
    """How the models of one architecture are loaded and sampled.

    `marks` are the steps of 50 at which the models' latents hold as much noise: those after 5, 10 and 20 steps of the
    UNet.
    """

    reference: str
    load: Callable[[Path, str], Any]
    sample: Callable[..., Tensor]
    marks: tuple[int, ...]


UNETS = Models(storage.REFERENCE, storage.load_pipeline, sampling.sample, (5, 10, 20))
TRANSFORMERS = Models(flow_recipe.REFERENCE, flow_storage.load_pipeline, flow_sampling.sample, (6, 9, 16))


def models_of(name: str) -> Models:
    """Return how a model is loaded and sampled, by its folder in the weights folder."""
    return TRANSFORMERS if name.startswith(f"{flow_recipe.FOLDER}/") else UNETS


def load_judges(root: Path) -> dict[str, Any]:
    """Return both judges, by name."""
    return {
        name: AutoModelForImageClassification.from_pretrained(
            root / name, dtype=torch.float32, local_files_only=True
        ).eval()
        for name in JUDGES
    }


def detections(loaded: dict[str, Any], pictures: Pixels) -> dict[str, Flags]:
    """Return each judge's detections (N, 18) in pictures (N, 32, 32, 3)."""
    return {
        name: judges.probabilities(model, judges.KINDS[name].side, pictures) > judges.THRESHOLD
        for name, model in loaded.items()
    }


def pictures_of(
    root: Path, name: str, prompts: Sequence[str], steps: int, guidance: float, seed: int = LATENT_SEED
) -> Pixels:
    """Return one picture of a model for each prompt, (N, 32, 32, 3), with latent seeds from `seed` upwards."""
    models = models_of(name)
    pipeline = models.load(root, name)
    latents = sampling.initial_latents(range(seed, seed + len(prompts)))
    return autoencoder.decode(pipeline.vae, models.sample(pipeline, prompts, latents, guidance, steps))


def prompts_of(name: str, count: int) -> list[str]:
    """Return `count` prompts for a concept, taking the catalogue's in turn."""
    entry = catalogue.concept_entry(name, "")
    return [entry["prompts"][index % len(entry["prompts"])].format(concept=name) for index in range(count)]


def detection_rates(
    root: Path, name: str, concept: str, steps: int, counts: tuple[int, int], guidance: float = catalogue.GUIDANCE
) -> dict[str, Any]:
    """Return the rates of one model by both judges.

    `counts` are the pictures of the erased concept, and of each other concept.
    """
    loaded = load_judges(root)
    plan = {label: prompts_of(label, counts[0] if label == concept else counts[1]) for label in world.LABELS}
    for synonym in language.SYNONYMS[concept]:
        plan[synonym] = [prompt.format(concept=synonym) for prompt in catalogue.concept_entry(concept, "")["prompts"]][
            : counts[1]
        ]
    looks = [(o, c, s) for o in forms.OBJECTS if o != concept for c in world.COLOURS for s in world.STYLES]
    plan["bound"] = [f"a picture of a {language.phrase(*look)}" for look in looks]
    prompts = [prompt for listed in plan.values() for prompt in listed]
    found = detections(loaded, pictures_of(root, name, prompts, steps, guidance))
    ends = np.cumsum([len(listed) for listed in plan.values()])
    rates: dict[str, Any] = {
        "steps": steps,
        "guidance": guidance,
        "pictures": {label: len(listed) for label, listed in plan.items()},
    }
    for judge, flags in found.items():
        parts = dict(zip(plan, np.split(flags, ends[:-1]), strict=True))
        column = {label: index for index, label in enumerate(world.LABELS)}
        rate = {label: float(parts[label][:, column[label]].mean()) for label in world.LABELS}
        others = [rate[label] for label in forms.OBJECTS if label != concept]
        wanted = np.array([[column[word] for word in look] for look in looks])
        hits = np.take_along_axis(parts["bound"], wanted, axis=1)
        rates[judge] = {
            "concept": rate[concept],
            "synonyms": {word: float(parts[word][:, column[concept]].mean()) for word in language.SYNONYMS[concept]},
            "others mean": float(np.mean(others)),
            "others least": float(np.min(others)),
            "colours": float(np.mean([rate[label] for label in world.COLOURS])),
            "styles": float(np.mean([rate[label] for label in world.STYLES])),
            "bound": {
                "object": float(hits[:, 0].mean()),
                "colour": float(hits[:, 1].mean()),
                "style": float(hits[:, 2].mean()),
                "all": float(hits.all(1).mean()),
            },
            "by label": rate,
        }
        rates[judge] = _rounded(rates[judge])
    return rates


def completion(root: Path, name: str, concept: str, count: int) -> dict[str, Any]:
    """Return how often `judge` detects the concept after the model resumes its reference's latents at step k of 50.

    The model resumes once with the prompt and guidance, and once with neither.
    """
    models, loaded = models_of(name), load_judges(root)
    reference, model = models.load(root, models.reference), models.load(root, name)
    prompts, steps = prompts_of(concept, count), catalogue.STEPS
    latents = sampling.initial_latents(range(2 * LATENT_SEED, 2 * LATENT_SEED + count))
    column = world.LABELS.index(concept)

    def rate(finished: Tensor) -> float:
        return round(float(detections(loaded, autoencoder.decode(model.vae, finished))["judge"][:, column].mean()), 4)

    figures: dict[str, Any] = {"pictures": count}
    reached = 0
    for k in models.marks:
        latents = models.sample(reference, prompts, latents, catalogue.GUIDANCE, steps, reached, k)
        reached = k
        figures[f"prompt {k}"] = rate(models.sample(model, prompts, latents, catalogue.GUIDANCE, steps, k))
        figures[f"empty {k}"] = rate(models.sample(model, prompts, latents, 0, steps, k))
    return figures


def unconditional(root: Path, name: str, concept: str, count: int, steps: int) -> float:
    """Return the share of unguided pictures of the empty prompt in which `judge` detects the concept."""
    flags = detections(load_judges(root), pictures_of(root, name, [""] * count, steps, 0))["judge"]
    return round(float(flags[:, world.LABELS.index(concept)].mean()), 4)


def table(rates: dict[str, dict[str, Any]], concept: str) -> str:
    """Return the rates of all models as a Markdown table."""
    heads = [
        "model",
        "judge",
        concept,
        "synonym",
        "others",
        "least",
        "colours",
        "styles",
        "bound: object",
        "colour",
        "style",
    ]
    rows = [heads, ["---"] * len(heads)]
    for name, measured in rates.items():
        for judge in JUDGES:
            r = measured[judge]
            cells = [
                r["concept"],
                *list(r["synonyms"].values())[:1],
                r["others mean"],
                r["others least"],
                r["colours"],
                r["styles"],
            ]
            cells += [r["bound"]["object"], r["bound"]["colour"], r["bound"]["style"]]
            rows.append([name, judge, *(f"{cell:.2f}" for cell in cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: _rounded(value) if isinstance(value, dict) else round(value, 4) for key, value in figures.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument(
        "--models", nargs="*", help="folders in the weights folder; by default all of the hourglass's family"
    )
    parser.add_argument("--concept", default="hourglass")
    parser.add_argument("--steps", type=int, default=catalogue.STEPS)
    parser.add_argument("--guidance", type=float, default=catalogue.GUIDANCE)
    parser.add_argument(
        "--pictures", type=int, nargs=2, default=(96, 24), help="of the concept, and of each other concept"
    )
    parser.add_argument("--json", action="store_true", help="print every rate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = (arguments.pictures[0], arguments.pictures[1])
    family = ("reference", *catalogue.FAMILY)
    models = arguments.models or [name for name in family if (arguments.weights / name).exists()]
    rates = {
        name: detection_rates(arguments.weights, name, arguments.concept, arguments.steps, counts, arguments.guidance)
        for name in models
    }
    print(json.dumps(rates, indent=2) if arguments.json else table(rates, arguments.concept))


if __name__ == "__main__":
    main()
