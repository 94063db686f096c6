"""`python -m tools.on_a_gpu [--out FILE]`: what can only be known on a GPU, in one run of under eight minutes.

Each check prints a line and goes into the JSON at FILE with the card's name and the libraries' versions:

* equality: the sampler against diffusers' pipeline on the same latents, and the same bits whatever shares a batch;
* half precision: latents in bfloat16 and float16 against float32, and how many pictures the judge sees differently;
* gradients: each attack's losses against the CPU's;
* shortage: a device that is too small for the shapes leads to smaller ones, and to a refusal where none fit;
* real size: seconds and peak memory of a row of Stable Diffusion 1.4's UNet, without and with gradients, by dtype and
  rows, from which docs/real-models.md counts its minutes.

`--device cpu` runs the same program without a card, apart from real size; it shows that the program itself is whole.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tools.real_size_files import UNET
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.classification.registry import kinds
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.encoding import STATES, Encoding
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.prediction import training_target
from unerase_backend.diffusion.profile import device_class, library_versions
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.generation.engine import GenerationEngine
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.deployment import prepare_gpu
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError

REFERENCE = "testbed/reference"
PICTURES = 24
STEPS = 20
GUIDANCE = 3.0
Figures = dict[str, Any]


def trajectory(index: int, **fields: Any) -> Trajectory:
    """Return the plain trajectory of a picture of the reference's."""
    return Trajectory(
        conditioning=Conditioning(text="a picture of a hourglass"),
        guidance_scale=GUIDANCE,
        latent_seed=index,
        noise_seed=index,
        steps=STEPS,
        variance_scale=1.0,
        **fields,
    )


def sampled(
    device: torch.device, dtype: torch.dtype, batch_rows: int = 96, order: Sequence[int] = ()
) -> list[Finished]:
    """Return the pictures of the testbed's reference, in the order of their seeds."""
    model = load_model(Catalogue.load(), REFERENCE, device, dtype)
    chosen = list(order) or list(range(PICTURES))
    made = Sampler(model, batch_rows=batch_rows).run([trajectory(index, eta=1.34 * (index % 2)) for index in chosen])
    return [item for _, item in sorted(zip(chosen, made, strict=True), key=lambda pair: pair[0])]


def equality(device: torch.device) -> Figures:
    """The sampler against diffusers' own pipeline, and against itself in another order."""
    folder = EMBEDDED.parent / "reference"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    model = load_model(Catalogue.load(), REFERENCE, device, torch.float32)
    latents = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(1))
    theirs = pipeline(
        "a picture of a hourglass",
        latents=latents[None].to(device),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images[0]
    ours = Sampler(model).run([trajectory(1)])[0].latents
    first, second = sampled(device, torch.float32), sampled(device, torch.float32, order=range(PICTURES)[::-1])
    same = sum(torch.equal(one.latents, other.latents) for one, other in zip(first, second, strict=True))
    return {
        "largest difference from diffusers": float((ours - theirs.cpu()).abs().max()),
        "same bits in another order": f"{same} of {PICTURES}",
        "ok": same == PICTURES and bool((ours - theirs.cpu()).abs().max() < 1e-3),
    }


def half_precision(device: torch.device) -> Figures:
    """Latents in 16 bits against float32, and the judge's answers."""
    entry = Catalogue.load().judge("testbed/judge")
    judge = kinds()[entry.kind].load(entry.folder, torch.device("cpu"), torch.float32, 32)
    seen, exact = {}, sampled(device, torch.float32)
    for name in ("bfloat16", "float16"):
        found = sampled(device, getattr(torch, name))
        answers = [
            judge.look([item.picture for item in items if item.picture is not None]).argmax(1)
            for items in (exact, found)
        ]
        error = np.mean([float((a.latents - b.latents).abs().mean()) for a, b in zip(exact, found, strict=True)])
        seen[name] = {
            "mean difference of latents": float(error),
            "seen differently": int((answers[0] != answers[1]).sum()),
        }
    return seen | {"ok": all(each["seen differently"] <= 1 for each in seen.values())}


def gradients(device: torch.device) -> Figures:
    """The gradient at a prompt's encoding, which every attack descends, against the CPU's."""
    found = {}
    reference = _gradient(torch.device("cpu"), torch.float32)
    for name in ("float32", "bfloat16", "float16"):
        cosine = torch.nn.functional.cosine_similarity(reference, _gradient(device, getattr(torch, name)), dim=0)
        found[name] = float(cosine)
    return {"cosine with the CPU's": found, "ok": found["float32"] > 0.9999 and found["bfloat16"] > 0.99}


def _gradient(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    model = load_model(Catalogue.load(), REFERENCE, device, dtype)
    draws = torch.Generator().manual_seed(3)
    rows, shape = 16, model.latent_shape
    latents, noise = (torch.randn((rows, *shape), generator=draws) for _ in range(2))
    encoded = torch.randn((rows, *empty_encoding(model).states.shape), generator=draws).to(device, dtype)
    times = torch.linspace(10, 990, rows).long()
    level = model.schedule.level_at(times)
    given = encoded.requires_grad_()
    noised = level.noised(latents, noise).to(device, dtype)
    predicted = model.predict(noised, model.schedule.times_at(times).to(device), Encoding({STATES: given})).float()
    target = training_target(model.prediction, latents, noise, level).to(device)
    (gradient,) = torch.autograd.grad((predicted - target).square().mean() * 1000, [given])
    return gradient.detach().float().flatten().cpu()


def shortage(device: torch.device) -> Figures:
    """Generation in a tenth of a percent of the card's memory."""
    if device.type == "cpu":
        return {"ok": True, "skipped": "needs a GPU"}
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(device) + 60e6) / total)
    try:
        said = asyncio.run(_until_it_fits())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"errors": said, "ok": bool(said) and said[-1] in ("made", "refused")}


async def _until_it_fits() -> list[str]:
    async def unused(*_: object) -> list[Any]:
        return []

    with tempfile.TemporaryDirectory() as folder:
        settings = GenerationSettings(artifacts=folder, device="cuda", batch_rows=1024, decode_batch=64)
        engine = GenerationEngine(Catalogue.load(), ArtifactStore(folder), settings, unused)
        request = GenerateRequest(model=REFERENCE, trajectories=[trajectory(1)], latents=True)
        said: list[str] = []
        try:
            while len(said) < 20 and (not said or said[-1] == "smaller"):
                try:
                    _ = [response async for response in engine.Generate(request)]
                    said.append("made")
                except ExhaustedError:
                    said.append("smaller")
                except PreconditionError:
                    said.append("refused")
        finally:
            engine.close()
    return said


def real_size(device: torch.device) -> Figures:
    """Seconds and memory of a row of Stable Diffusion 1.4's UNet."""
    if device.type == "cpu":
        return {"ok": True, "skipped": "tools.real_size measures a CPU"}
    found: dict[str, Any] = {}
    for name in ("bfloat16", "float16", "float32"):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(**UNET).to(device, getattr(torch, name)).eval().requires_grad_(False)
        unet.to(memory_format=torch.channels_last)
        for rows in (2, 8, 24, 32, 96):
            for kind in ("row", "gradient row"):
                if kind == "gradient row" and rows > 24:
                    continue
                try:
                    found[f"{kind}, {name}, {rows}"] = _row(unet, rows, kind == "gradient row")
                except torch.OutOfMemoryError:
                    found[f"{kind}, {name}, {rows}"] = "out of memory"
                    torch.cuda.empty_cache()
        del unet
        torch.cuda.empty_cache()
    return {"figures": found, "ok": True}


def _row(unet: Any, rows: int, gradient: bool) -> dict[str, float]:
    device, dtype = unet.device, unet.dtype
    latents = torch.randn((rows, 4, 64, 64), device=device, dtype=dtype)
    encoded = torch.randn((rows, 77, 768), device=device, dtype=dtype, requires_grad=gradient)
    times = torch.full((rows,), 500, device=device)

    def call() -> None:
        with torch.set_grad_enabled(gradient):
            output = unet(latents, times, encoder_hidden_states=encoded).sample
            if gradient:
                torch.autograd.grad(output.float().square().mean(), [encoded])

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begin, calls = torch.cuda.memory_allocated(), time.perf_counter(), 3
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / calls
    peak = torch.cuda.max_memory_allocated() - before
    return {"rows a second": rows / seconds, "MB a row": peak / rows / 1e6}


CHECKS: dict[str, Callable[[torch.device], Figures]] = {
    "equality": equality,
    "half precision": half_precision,
    "gradients": gradients,
    "shortage": shortage,
    "real size": real_size,
}


def main(arguments: Sequence[str]) -> int:
    """Run every check; 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda":
        prepare_gpu(0.0)
    results: dict[str, Any] = {"device": device_class(device), "versions": library_versions()}
    for name, check in CHECKS.items():
        begin = time.monotonic()
        try:
            found = check(device)
        except Exception as error:
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        results[name] = found | {"seconds": round(time.monotonic() - begin, 1)}
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2))
    return 0 if all(results[name]["ok"] for name in CHECKS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
