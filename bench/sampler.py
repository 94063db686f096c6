"""The sampler against diffusers' StableDiffusionPipeline called one picture at a time, on the testbed's reference.

The work is the noise-based probe's: 24 variants of 4 cases, 50 steps, guided. Both get two threads. Pictures per second
of both are measured in turn, the pipeline on a few of the 96 pictures, and the median of the ratios is reported, so
that what else runs on the machine hardly counts.
"""

import json
import statistics
import time
from typing import Any

import torch
import transformers

from bench.figures import figure
from support.diffusers_pipeline import diffusers_pipeline
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.runtime.allocation import keep_freed_memory

MODEL = "testbed/reference"
ETAS = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
VARIANCE_SCALES = (1.0, 1.02, 1.03, 1.04)
CASES = 4
STEPS = 50
THREADS = 2
REPEATS = 3
LOOPED_PICTURES = 4


def measure() -> list[dict[str, Any]]:
    """Return the figures `sampler.batched_over_loop` and `sampler.unet_fraction`."""
    torch.set_num_threads(THREADS)
    # As generation's process does; the pipeline, in the same process, has it too.
    keep_freed_memory()
    transformers.logging.disable_progress_bar()
    catalogue = Catalogue.load()
    entry = catalogue.model(MODEL)
    # As generation's process has it.
    model = with_graphs(load_model(catalogue, MODEL, torch.device("cpu"), torch.float32), THREADS)
    if model.graph is None:
        raise RuntimeError("the denoiser has no graph, whose calls are timed")
    sampler, clock = Sampler(model), list[float]()
    model.graph.timed = clock.append
    pipeline = diffusers_pipeline(catalogue.model_parts(MODEL).folder)
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=catalogue.concept("hourglass").prompts[case].format(concept="hourglass")),
            guidance_scale=entry.guidance_scale,
            latent_seed=case,
            noise_seed=1000 * case + variant,
            steps=STEPS,
            eta=eta,
            variance_scale=scale,
        )
        for case in range(CASES)
        for variant, (eta, scale) in enumerate((eta, scale) for eta in ETAS for scale in VARIANCE_SCALES)
    ]
    # The first calls allocate.
    sampler.run([Trajectory(conditioning=Conditioning(text=""), guidance_scale=2, steps=2)])
    _loop(pipeline, trajectories[:1])
    ratios, fractions = [], []
    for _ in range(REPEATS):
        looped = _loop(pipeline, trajectories[:LOOPED_PICTURES]) / LOOPED_PICTURES
        clock.clear()
        begun = time.perf_counter()
        sampler.run(trajectories)
        wall = time.perf_counter() - begun
        ratios.append(looped / (wall / len(trajectories)))
        fractions.append(sum(clock) / wall)
    return [
        figure("sampler.batched_over_loop", round(statistics.median(ratios), 2), spread=_spread(ratios)),
        figure("sampler.unet_fraction", round(statistics.median(fractions), 4), spread=_spread(fractions)),
    ]


def _spread(values: list[float]) -> list[float]:
    return [round(min(values), 4), round(max(values), 4)]


def _loop(pipeline: Any, trajectories: list[Trajectory]) -> float:
    begun = time.perf_counter()
    for trajectory in trajectories:
        pipeline(
            trajectory.conditioning.text,
            num_inference_steps=trajectory.steps,
            guidance_scale=trajectory.guidance_scale,
            eta=trajectory.eta,
            generator=torch.Generator().manual_seed(trajectory.latent_seed),
        )
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
