"""The parts of the GPU's bench: each measures one thing within its seconds and returns its figures.

    forward     the denoiser alone by rows: the limit of everything else
    sampler     the sampler's ticks by rows, full of guided pictures, and their share of the limit
    finishing   what decoding costs a picture, and judging in a thread beside the sampler
    diffusers   the family's pipeline, one picture a call, guided and not, and in batches of the sampler's size
    attacks     a step of UnlearnDiffAtk by rows, and of textual inversion by batch
    neighbours  whether a trajectory's bits are the same alone and among others
    float32     how far latents and pictures are from those of float32

Trajectories of full length take as long as a part has; where that is too little, fewer steps are taken and said.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.gpu.models import published_pipeline
from bench.gpu.sizes import Size
from bench.gpu.timing import Timed, once, timed
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.attack.prompts import gradients
from unerase_backend.classification.registry import Judge
from unerase_backend.diffusion.conditioning import (
    empty_encoding,
    encode_tokens,
    tokenise_learned,
    tokenise_searched,
)
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler

Figures = dict[str, Any]

PROMPT = "a picture of a hourglass"
GUIDANCE = 7.5
TOKENS = 3
OUT_OF_MEMORY, TOO_SLOW = "out of memory", "too slow for the time"
# The least calls of a size for which there must be time.
CALLS = 4


@dataclass
class Rig:
    """What the parts share: the model, the judge, and the figures that later parts build on."""

    model: DiffusionModel
    size: Size
    judge: Judge
    forward: dict[int, Timed] = field(default_factory=dict)
    """By rows, as far as the memory goes."""
    finishing_seconds: float = 0.0
    """Of one picture's decoding and judging beside the sampler."""
    sampler_rows: dict[int, float] = field(default_factory=dict)
    """Rows a second of the sampler's ticks, by rows of a call."""
    published: dict[str, float] = field(default_factory=dict)
    """Seconds of diffusers' pictures: "guided", "unguided", one a call."""
    attacked: dict[int, Timed] = field(default_factory=dict)
    """Steps of UnlearnDiffAtk, by rows."""
    inverted: dict[int, Timed] = field(default_factory=dict)
    """Steps of textual inversion, by batch."""

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return self.model.device

    @property
    def most_rows(self) -> int:
        """The rows of the largest call that the memory takes."""
        return max(self.forward)

    def steps_within(self, seconds: float, seconds_a_step: float) -> int:
        """Return the steps of a whole picture, or as many as there is time for; at least two."""
        return max(2, min(self.size.steps, int(seconds / seconds_a_step)))


def trajectory(seed: int, steps: int, guidance_scale: float = GUIDANCE) -> Trajectory:
    """Return the trajectory of a plain picture."""
    return Trajectory(
        conditioning=Conditioning(text=PROMPT),
        guidance_scale=guidance_scale,
        latent_seed=seed,
        steps=steps,
        variance_scale=1.0,
    )


@dataclass(frozen=True)
class BySize:
    """Calls by their rows, ascending, as far as memory and time went; `ended` says what ended them, if anything did."""

    found: dict[int, Timed]
    ended: str = ""

    def figures(self, sizes: Sequence[int]) -> Figures:
        """Return the figures of each size, and why the others have none."""
        return {str(rows): self.found[rows].figures(rows) if rows in self.found else self.ended for rows in sizes}


def by_size(sizes: Sequence[int], seconds: float, measure: Callable[[int, float], Timed], least: int = 1) -> BySize:
    """Measure calls by their rows, each in its share of the seconds, until one is too large or would take too long.

    The `least` first sizes are measured however long they take.
    """
    share = seconds / len(sizes)
    found: dict[int, Timed] = {}
    for rows in sizes:
        if len(found) >= least:
            known, last = max(found.items())
            if last.seconds * rows / known > share / CALLS:
                return BySize(found, TOO_SLOW)
        try:
            found[rows] = measure(rows, share)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return BySize(found, OUT_OF_MEMORY)
    return BySize(found)


def forward(rig: Rig, seconds: float) -> Figures:
    """Time the denoiser by rows, without gradients."""
    model = rig.model

    def measure(rows: int, share: float) -> Timed:
        latents = torch.randn((rows, *model.latent_shape), device=rig.device, dtype=model.dtype)
        encoded = Encoding.stack([empty_encoding(model)] * rows)
        times = model.schedule.times_at(torch.full((rows,), 500, device=rig.device))

        @torch.inference_mode()
        def call() -> None:
            model.predict(latents, times, encoded)

        return timed(call, rig.device, share)

    made = by_size(rig.size.rows, seconds, measure, least=2)
    rig.forward = made.found
    return made.figures(rig.size.rows)


def sampler(rig: Rig, seconds: float) -> Figures:
    """Time the sampler's ticks by rows, with every row in use."""
    sizes = [rows for rows in rig.forward if rows >= 2]
    found: Figures = {}
    for rows in sizes:
        limit = rig.forward[rows]
        ticks = rig.steps_within(seconds / len(sizes), limit.seconds)
        made = Sampler(rig.model, batch_rows=rows)
        for seed in range(rows // 2):
            # One step more than is timed: the first tick encodes and starts all of them.
            made.admit(str(seed), trajectory(seed, ticks + 2), picture=False)
        made.tick()
        took = once(lambda: [made.tick() for _ in range(ticks)], rig.device)  # noqa: B023 - called at once
        rig.sampler_rows[rows] = rows // 2 * 2 * ticks / took
        found[str(rows)] = {
            "pictures_a_second": _short(rig.sampler_rows[rows] / (2 * rig.size.steps)),
            "share_of_limit": round(limit.seconds * ticks / took, 3),
            "ticks": ticks,
        }
    return found


def finishing(rig: Rig, seconds: float) -> Figures:
    """Time the same pictures without decoding, decoded, and judged in a thread beside the sampler."""
    rows = rig.most_rows
    steps = rig.steps_within(seconds / 4, rig.forward[rows].seconds)
    # Of different lengths, so that pictures end while others go on.
    count = rows // 2
    work = [trajectory(seed, max(1, steps - seed * steps // (2 * count))) for seed in range(count)]
    without, decoded, judged = (
        once(lambda: _run(rig, rows, work, picture=picture, judging=judging), rig.device)  # noqa: B023 - called at once
        for picture, judging in ((False, False), (True, False), (True, True))
    )
    rig.finishing_seconds = max(0.0, (judged - without) / count)
    return {
        "pictures": count,
        "steps_at_most": steps,
        "seconds": {"undecoded": _short(without), "decoded": _short(decoded), "judged_beside": _short(judged)},
        "decoding_seconds_a_picture": _short(max(0.0, (decoded - without) / count)),
        "decoding_and_judging_seconds_a_picture": _short(rig.finishing_seconds),
    }


def _run(rig: Rig, rows: int, work: Sequence[Trajectory], *, picture: bool, judging: bool) -> None:
    made = Sampler(rig.model, batch_rows=rows)
    for number, each in enumerate(work):
        made.admit(str(number), each, picture=picture)
    asked: list[Future[Any]] = []
    with ThreadPoolExecutor(1) as beside:
        while made.busy:
            shown = [one.picture for one in made.tick() if one.picture is not None]
            if judging and shown:
                asked.append(beside.submit(rig.judge.look, shown))
        for future in asked:
            future.result()


def diffusers(rig: Rig, seconds: float) -> Figures:
    """Time diffusers' own pipeline on the same denoiser."""
    pipeline, size = published_pipeline(rig.model, rig.size), rig.size
    batch = rig.most_rows // 2
    found: Figures = {}
    for name, pictures, guidance, rows, share in (
        ("guided", 1, size.guidance_scale, 2, 8),
        ("unguided", 1, 1.0, 1, 8),
        ("guided_batch", batch, size.guidance_scale, rig.most_rows, 4),
    ):
        steps = rig.steps_within(seconds / share, rig.forward[rows].seconds)

        def call(pictures: int = pictures, guidance: float = guidance, steps: int = steps) -> None:
            pipeline(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=guidance,
                num_images_per_prompt=pictures,
                height=size.side,
                width=size.side,
                generator=torch.Generator().manual_seed(1),
                output_type="np",
            )

        try:
            took = timed(call, rig.device, seconds / 3, most=8)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            found[name] = OUT_OF_MEMORY
            continue
        a_picture = took.seconds / pictures * rig.size.steps / steps
        rig.published[name] = a_picture
        found[name] = {"seconds_a_picture": _short(a_picture), "steps": steps, "pictures_a_call": pictures}
        if took.peak_gb is not None:
            found[name]["peak_gb"] = round(took.peak_gb, 2)
    return found


def attacks(rig: Rig, seconds: float) -> Figures:
    """Time a step of UnlearnDiffAtk by rows, and of textual inversion by batch."""
    size = rig.size
    attacked = by_size(size.gradient_rows, seconds / 2, lambda rows, share: _attacked(rig, rows, share))
    inverted = by_size(size.inversion_batches, seconds / 2, lambda rows, share: _inverted(rig, rows, share))
    rig.attacked, rig.inverted = attacked.found, inverted.found
    return {
        "unlearn_diff_atk": attacked.figures(size.gradient_rows),
        "textual_inversion": inverted.figures(size.inversion_batches),
    }


def _attacked(rig: Rig, rows: int, seconds: float) -> Timed:
    model, width = rig.model, sum(reader.width for reader in rig.model.backbone.searched)
    words = model.tokens_of(PROMPT)
    prompts = [tokenise_searched(model, TOKENS, words)] * rows
    embeddings = torch.randn((rows, TOKENS, width))
    noisy, target = torch.randn((2, rows, *model.latent_shape))
    times = model.schedule.times_at(torch.full((rows,), 500))
    return timed(lambda: gradients(model, prompts, embeddings, noisy, times, target), rig.device, seconds)


def _inverted(rig: Rig, rows: int, seconds: float) -> Timed:
    model, width = rig.model, sum(reader.width for reader in rig.model.backbone.readers)
    learned = torch.randn((1, width), device=rig.device).requires_grad_()
    prompt = tokenise_learned(model, "a picture of a <learned>", "<learned>", 1)
    noisy, target = torch.randn((2, rows, *model.latent_shape), device=rig.device)
    times = model.schedule.times_at(torch.full((rows,), 500, device=rig.device))

    def call() -> None:
        encoded = encode_tokens(model, [prompt], [learned])[[0] * rows]
        predicted = model.predict(noisy.to(model.dtype), times, encoded)
        torch.autograd.grad(functional.mse_loss(predicted.float(), target), [learned])

    return timed(call, rig.device, seconds)


def neighbours(rig: Rig, _: float) -> Figures:
    """Compare the bits of a trajectory alone, and among others in another order."""
    rows, steps = min(8, max(rig.size.rows)), min(4, rig.size.steps)
    work = [trajectory(seed, steps) for seed in range(rows // 2)]
    alone = Sampler(rig.model, batch_rows=rows).run(work[:1], picture=False)[0]
    among = Sampler(rig.model, batch_rows=rows).run(work[::-1], picture=False)[-1]
    return {"rows": rows, "steps": steps, "same_bits": torch.equal(alone.latents, among.latents)}


def float32(rig: Rig, seconds: float) -> Figures:
    """Compare latents and pictures with those of the same weights in float32."""
    model = rig.model
    parts = model.backbone.modules
    exact = dataclasses.replace(
        model,
        backbone=model.backbone.with_modules({part: copy.deepcopy(each).float() for part, each in parts.items()}),
        dtype=torch.float32,
    )
    rows = min(4, rig.most_rows)
    steps = min(10, rig.steps_within(seconds / 10, rig.forward[rows].seconds))
    work = [trajectory(seed, steps) for seed in range(rows // 2)]
    ours, theirs = (Sampler(each, batch_rows=rows, decode_batch=1).run(work) for each in (model, exact))
    differences = torch.stack([one.latents - other.latents for one, other in zip(ours, theirs, strict=True)])
    spread = torch.stack([each.latents for each in theirs]).std()
    return {
        "steps": steps,
        "mean_difference_over_spread": _short(float(differences.abs().mean() / spread)),
        "largest_difference_over_spread": _short(float(differences.abs().max() / spread)),
        "mean_difference_of_pictures_in_levels": _short(_levels(ours, theirs)),
    }


def _levels(ours: Sequence[Finished], theirs: Sequence[Finished]) -> float:
    pairs = [(one.picture, other.picture) for one, other in zip(ours, theirs, strict=True)]
    return float(
        np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in pairs if a is not None and b is not None])
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


PARTS: dict[str, tuple[Callable[[Rig, float], Figures], float]] = {
    "forward": (forward, 60.0),
    "sampler": (sampler, 60.0),
    "finishing": (finishing, 100.0),
    "diffusers": (diffusers, 90.0),
    "attacks": (attacks, 50.0),
    "neighbours": (neighbours, 15.0),
    "float32": (float32, 25.0),
}
"""The parts in their order, each with its seconds."""
