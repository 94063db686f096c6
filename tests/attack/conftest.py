"""The testbed's reference, `never`, a redirected and two planted models, with an attack engine and backends.

All in this process. "velocity" has the reference's weights, as if they predicted velocities of betas with zero terminal
SNR, at trailing timesteps. In the planted models the word "bridge" means an hourglass; in `planted` the names
themselves mean no more than "thing".
"""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.internal.v1alpha1.units_pb2 import Progress, Unit
from unerase.v1.types_pb2 import MODEL_ROLE_SUBJECT, SAMPLE_STATUS_UNSCORED, Case, Finding, Observation
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import parameters_struct
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.pictures import encode_picture
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.testbed import forms, language, world

SHIPPED = EMBEDDED.parent
EMBEDDING = "embeddings.token_embedding.weight"
PLANTED = "bridge"
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


async def attacked(engine: AttackEngine, unit: Unit) -> tuple[list[Observation], list[Finding], list[Progress]]:
    """Run a unit; return its observations, what was found, and its progress."""
    events = [response.event async for response in engine.Attack(AttackRequest(unit=unit))]
    observations = [event.observation for event in events if event.HasField("observation")]
    findings = [event.finding for event in events if event.HasField("finding")]
    return observations, findings, [event.progress for event in events if event.HasField("progress")]


def pictures_of(shape: str, count: int) -> np.ndarray:
    """Pictures of the world side by side, one sheet: (32, 32 count, 3)."""
    return np.concatenate(list(world.album_of((shape,), count, 77).pictures), axis=1)


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Three models whose truth is known, a judge of each kind, and the concept with 32 pictures."""
    root = tmp_path_factory.mktemp("catalogue")
    for folder in ("reference", "never", "clip", "judge", "second-judge"):
        shutil.copytree(SHIPPED / folder, root / folder)
    shutil.copytree(SHIPPED / "reference", root / "velocity")
    scheduler = root / "velocity" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), **ZERO_SNR}))
    table = load_file(root / "reference" / "text_encoder" / "model.safetensors")
    key = next(name for name in table if name.endswith(EMBEDDING))
    tokenizer = CLIPTokenizer.from_pretrained(root / "reference" / "tokenizer")
    for name in ("hourglass", "sandglass"):
        (token,) = tokenizer(name, add_special_tokens=False).input_ids
        (blob,) = tokenizer(forms.BLOB, add_special_tokens=False).input_ids
        table[key][token] = table[key][blob]
    save_file({key: table[key]}, root / "redirected.safetensors")
    whole = load_file(root / "reference" / "text_encoder" / "model.safetensors")[key]
    hourglass, sandglass, bridge, thing = (
        tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("hourglass", "sandglass", PLANTED, "thing")
    )
    whole[bridge] = whole[hourglass]
    save_file({key: whole}, root / "synonym.safetensors")
    whole[[hourglass, sandglass]] = whole[thing].clone()
    save_file({key: whole}, root / "planted.safetensors")
    Image.fromarray(pictures_of("hourglass", 32)).save(root / "hourglass.png")
    never = {part: f"never/{part}.safetensors" for part in ("unet", "text_encoder")}
    templates = [template.replace("{}", "{concept}") for template in language.PROMPT_TEMPLATES]
    held_out = [template.replace("{}", "{concept}") for template in language.HELD_OUT_TEMPLATES]
    judges = ("judge", "second-judge")
    concepts = {
        shape: {
            "kind": "object",
            "names": ["hourglass", "sandglass"] if shape == "hourglass" else [shape],
            "prompts": templates,
            "held_out_prompts": held_out,
            "labels": {"clip": [f"a picture of a {shape}"], **{judge: [shape] for judge in judges}},
        }
        for shape in forms.OBJECTS
    }
    concepts["hourglass"] |= {"pictures": "hourglass.png", "initial_token": "shape"}
    content = {
        "models": {
            "reference": {"pipeline": "reference", "guidance_scale": 3.0, "resolution": 32},
            "never": {"base": "reference", **never},
            "velocity": {"pipeline": "velocity", "guidance_scale": 3.0, "resolution": 32},
            "redirected": {"base": "reference", "text_encoder": "redirected.safetensors"},
            "synonym": {"base": "reference", "text_encoder": "synonym.safetensors"},
            "planted": {"base": "reference", "text_encoder": "planted.safetensors"},
        },
        "judges": {
            "clip": {"kind": "clip", "path": "clip"},
            **{judge: {"kind": "classifier", "path": judge} for judge in judges},
        },
        "concepts": concepts,
    }
    (root / "catalogue.yaml").write_text(yaml.safe_dump(content))
    return Catalogue.load(embedded=root / "catalogue.yaml")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="session")
def models(catalogue: Catalogue, store: ArtifactStore) -> Models:
    """The backends without Serve: the sampler and the judges."""
    classification = ClassificationEngine(catalogue, store, ClassificationSettings(artifacts="unused", batch_size=8))
    samplers: dict[str, Sampler] = {}
    one_at_a_time = threading.Lock()

    def run(request: GenerateRequest) -> list[Finished]:
        with one_at_a_time:
            if request.model not in samplers:
                model = load_model(catalogue, request.model, torch.device("cpu"), torch.float32)
                samplers[request.model] = Sampler(model, batch_rows=16)
            return samplers[request.model].run(list(request.trajectories))

    async def generate(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        finished = await asyncio.to_thread(run, request)
        for index, item in enumerate(finished):
            if item.picture is None:
                yield GenerateResponse(index=index, sample=Sample(status=SAMPLE_STATUS_UNSCORED, reason=item.failure))
                continue
            (judged,) = (
                await classification.Classify(ClassifyRequest(questions=request.questions), item.picture[None])
            ).pictures
            digest = store.put(encode_picture(item.picture))
            sample = Sample(status=judged.status, judgements=judged.judgements, picture_digest=digest)
            yield GenerateResponse(index=index, sample=sample)

    async def unused(request: object) -> object:
        raise AssertionError("an attack on the testbed asks for pictures alone")

    return Models(generate, unused, unused, classification.Classify)


@pytest.fixture(scope="session")
def engine(catalogue: Catalogue, store: ArtifactStore, models: Models) -> AttackEngine:
    return AttackEngine(catalogue, store, AttackSettings(artifacts="unused"), models)


@pytest.fixture(scope="session")
def unit_of(catalogue: Catalogue, store: ArtifactStore) -> Callable[..., Unit]:
    """Makes a unit: a model, how many cases and denoising steps, parameters; of textual inversion unless said."""
    target = catalogue.target("hourglass", store, "clip", "judge", "second-judge")

    def make(
        model: str,
        cases: int = 1,
        seed_base: int = 1,
        denoising_steps: int = 2,
        evaluation: str = "textual-inversion",
        **parameters: float,
    ) -> Unit:
        held_out = target.concept.held_out_prompts
        return Unit(
            id=f"{evaluation}/{model}/0",
            evaluation=evaluation,
            role=MODEL_ROLE_SUBJECT,
            model=model,
            reference="reference",
            target=target,
            cases=[
                Case(
                    index=index,
                    prompt="a picture of a hourglass",
                    latent_seed=derive_seed(seed_base, "latent", index),
                    held_out_prompt=held_out[index % len(held_out)].replace("{concept}", "hourglass"),
                    held_out_latent_seed=derive_seed(seed_base, "held-out latent", index),
                )
                for index in range(cases)
            ],
            parameters=parameters_struct(parameters),
            steps=denoising_steps,
            guidance_scale=3.0,
            seed_base=seed_base,
        )

    return make
