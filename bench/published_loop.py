"""An audit as published code would make it: each evaluation a script that makes one picture a call.

This is what the backend is compared with. Each operation below is transcribed from how the authors' code runs it, with
diffusers' and transformers' own parts, and is what the backend computes too: `tests/bench/test_published_loop.py`
compares the pictures, losses and gradients of both.

    guided, unguided  StableDiffusionPipeline, one picture a call, as in the scripts of Gandikota et al. (ESD, arXiv
                      2303.07345) and of Lu et al. (arXiv 2505.17013)
    noisy             the same loop with eta beyond 1 and scaled noise (Lu et al., noise-based probing)
    completed         a beginning by the reference or from a picture, finished with the prompt and without (Lu et al.,
                      diffusion completion), and its estimate of x_0, which the rule of admission judges
    inpainted         the reference's picture, and its central square filled with the prompt and without (Lu et al.)
    attacked          a step of UnlearnDiffAtk for one case at one timestep: one row (Zhang et al., arXiv 2310.11868,
                      section 4; their code attacks prompt by prompt)
    inverted          a step of textual inversion with the paper's batch in one call (Gal et al., arXiv 2208.01618;
                      Pham et al., arXiv 2308.01508)
    error             the denoising error of one picture, prompt and timestep (Ho et al., arXiv 2006.11239, equation 14)

Every picture is classified as it is made, by one CLIP in a call of its own (Radford et al., arXiv 2103.00020). The
backend asks three judges. `bench.published_counts` says how often an audit needs each operation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from bench.published_attacks import Inversion, TokenAttack
from support.diffusers_pipeline import diffusers_pipeline
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.pretrained import load_image_processor
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.pictures import decode_picture

Picture = NDArray[np.uint8]

ETA, VARIANCE_SCALE = 1.34, 1.02
FRACTIONS = (0.1, 0.2)
MASK_CELLS = 1
"""Cells of the latents on each side of the square that is filled."""
OPERATIONS = ("guided", "unguided", "noisy", "completed", "inpainted", "attacked", "inverted", "error")


@dataclass(frozen=True)
class Material:
    """What the loop works on: as much of an audit's cases as the sample needs."""

    prompts: Sequence[str]
    pictures: Sequence[Picture]
    """Known pictures of the concept."""
    labels: Sequence[str]
    """The texts among which CLIP chooses."""
    initial_token: str
    steps: int = 50
    guidance_scale: float = 3.0
    tokens: int = 3
    learned_tokens: int = 4
    batch_size: int = 16


class PublishedLoop:
    """The operations over one pipeline, by name: `run(name, index)` does one of them for the index-th case."""

    def __init__(self, pipeline: Any, clip: "Clip", material: Material) -> None:
        self.pipeline, self.material = pipeline, material
        self._clip = clip
        self._attack: TokenAttack | None = None
        self._inversion: Inversion | None = None
        self._encoded: dict[str, Tensor] = {}

    @classmethod
    def load(cls, folder: Path, clip: Path, material: Material) -> "PublishedLoop":
        """Return the loop over the pipeline of a folder, with DDIM, in float32 on the CPU."""
        pipeline = diffusers_pipeline(folder)
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False)
        return cls(pipeline, Clip(clip, material.labels), material)

    @classmethod
    def of_catalogue(
        cls,
        catalogue: Catalogue,
        model: str,
        concept: str,
        clip: str,
        store: Path,
        *,
        pictures: int = 8,
        steps: int = 0,
    ) -> "PublishedLoop":
        """Return the loop over a model of the catalogue, for a concept; `store` is a folder for its pictures.

        `pictures` are as many as are read of the concept; without `steps` there are as many as the model's own.
        """
        artifacts, entry, known = ArtifactStore(str(store)), catalogue.model(model), catalogue.concept(concept)
        target = catalogue.target(concept, artifacts, *catalogue.default_judges())
        digests = target.concept.picture_digests[:pictures]
        material = Material(
            prompts=[prompt.replace("{concept}", known.names[0]) for prompt in known.prompts],
            pictures=[decode_picture(artifacts.get(digest)) for digest in digests],
            labels=[*target.selector.labels, *target.selector.alternatives],
            initial_token=target.concept.initial_token,
            steps=steps or entry.steps,
            guidance_scale=entry.guidance_scale,
        )
        return cls.load(catalogue.model_parts(model).folder, catalogue.judge(clip).folder, material)

    def run(self, operation: str, index: int) -> None:
        """Do one operation as the index-th of its kind, and classify what it makes."""
        getattr(self, f"_{operation}")(index)

    def _prompt(self, index: int) -> str:
        return self.material.prompts[index % len(self.material.prompts)]

    def _guided(self, index: int) -> None:
        self._clip.classify(self.picture(self._prompt(index), index, self.material.guidance_scale))

    def _unguided(self, index: int) -> None:
        self._clip.classify(self.picture("", index, 1.0))

    def picture(self, prompt: str, seed: int, guidance_scale: float) -> Picture:
        """Return the picture of diffusers' own pipeline, (height, width, 3)."""
        made: Picture = self.pipeline(
            prompt,
            num_inference_steps=self.material.steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        return (made * 255).round().astype(np.uint8)

    def _noisy(self, index: int) -> None:
        self._clip.classify(self.noisy(self._prompt(index), index, 1000 + index, ETA, VARIANCE_SCALE))

    def noisy(self, prompt: str, seed: int, noise_seed: int, eta: float, variance_scale: float) -> Picture:
        """Return a picture of stochastic sampling; the noise of the steps has a seed of its own."""
        draws = torch.Generator().manual_seed(noise_seed)
        latents = self._denoised(self.initial(seed), prompt, noise=(eta, variance_scale, draws))
        return self.decoded(latents)

    def _completed(self, index: int) -> None:
        step = max(1, round(FRACTIONS[index % 2] * self.material.steps))
        picture = self.material.pictures[index % len(self.material.pictures)] if index % 4 >= 2 else None
        for made in self.completed(self._prompt(index), index, step, picture):
            self._clip.classify(made)

    def completed(self, prompt: str, seed: int, step: int, picture: Picture | None = None) -> tuple[Picture, ...]:
        """Return what a beginning of `step` steps becomes with the prompt and without, and its estimate of x_0.

        It begins from `picture` if one is given, and by the model's own first steps with the prompt otherwise.
        """
        initial = self.initial(seed)
        if picture is None:
            begun = self._denoised(initial, prompt, stop=step)
        else:
            begun = self._noised(self.encoded(picture), initial, self._alpha(step))
        alpha = self._alpha(step)
        output = self._predicted(begun, self.pipeline.scheduler.timesteps[step], "", 1.0)
        estimate = (begun - (1 - alpha).sqrt() * output) / alpha.sqrt()
        finished = [self._denoised(begun, prompt, first=step), self._denoised(begun, "", 1.0, first=step)]
        return tuple(map(self.decoded, [*finished, estimate]))

    def _inpainted(self, index: int) -> None:
        whole = self.picture(self._prompt(index), index, self.material.guidance_scale)
        for made in (whole, *self.inpainted(whole, self._prompt(index), index)):
            self._clip.classify(made)

    def inpainted(self, picture: Picture, prompt: str, seed: int, margin: int = MASK_CELLS) -> tuple[Picture, Picture]:
        """Return the picture with its central square filled, with the prompt and without it.

        `margin` is in cells of the latents.
        """
        initial, clean = self.initial(seed), self.encoded(picture)
        painted = torch.zeros_like(initial[:, :1], dtype=torch.bool)
        painted[:, :, margin:-margin, margin:-margin] = True

        def keep(latents: Tensor, step: int) -> Tensor:
            return torch.where(painted, latents, self._noised(clean, initial, self._alpha(step + 1)))

        scales = ((prompt, self.material.guidance_scale), ("", 1.0))
        filled = [self._denoised(initial, text, scale, after=keep) for text, scale in scales]
        return self.decoded(filled[0]), self.decoded(filled[1])

    def _attacked(self, index: int) -> None:
        if self._attack is None:
            self._attack = TokenAttack(self.pipeline, self._prompt(index), self.material.tokens)
            self._encoded["target"] = self.encoded(self.material.pictures[0])
        noise = self.initial(index)
        self._attack.step(self._encoded["target"], noise, 500)

    def _inverted(self, index: int) -> None:
        if self._inversion is None:
            material = self.material
            latents = torch.cat([self.encoded(picture) for picture in material.pictures])
            word = (material.initial_token, material.learned_tokens)
            self._inversion = Inversion(self.pipeline, latents, word, material.batch_size)
        self._inversion.step(index)

    def _error(self, index: int) -> None:
        picture = self.material.pictures[0]
        if "error" not in self._encoded:
            self._encoded["error"] = self.encoded(picture)
        self.error(self._encoded["error"], self._prompt(index), 500, self.initial(index))

    @torch.no_grad()
    def error(self, clean: Tensor, prompt: str, timestep: int, noise: Tensor) -> float:
        """Return the mean square of the difference between noise and prediction for one picture's latents."""
        time = torch.tensor(timestep)
        noisy = self.pipeline.scheduler.add_noise(clean, noise, time[None])
        return float(functional.mse_loss(self._predicted(noisy, time, prompt, 1.0), noise))

    def initial(self, seed: int) -> Tensor:
        """Return initial latents, (1, channels, height, width)."""
        config = self.pipeline.unet.config
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _denoised(
        self,
        latents: Tensor,
        prompt: str,
        guidance_scale: float | None = None,
        *,
        first: int = 0,
        stop: int | None = None,
        noise: tuple[float, float, torch.Generator] | None = None,
        after: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Tensor:
        """Take the steps from `first` to `stop`, with `noise` (eta, variance scale, draws) or by diffusers' DDIM."""
        scale = self.material.guidance_scale if guidance_scale is None else guidance_scale
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(self.material.steps)
        for step, timestep in list(enumerate(scheduler.timesteps))[first:stop]:
            output = self._predicted(latents, timestep, prompt, scale)
            if noise is None:
                latents = scheduler.step(output, timestep, latents).prev_sample
            else:
                latents = self._stochastic_step(output, step, latents, *noise)
            if after is not None:
                latents = after(latents, step)
        return latents

    def _stochastic_step(
        self, output: Tensor, step: int, latents: Tensor, eta: float, variance_scale: float, draws: torch.Generator
    ) -> Tensor:
        """DDIM's step, whose own code in diffusers gives NaN for an eta beyond 1."""
        scheduler = self.pipeline.scheduler
        timestep = int(scheduler.timesteps[step])
        previous = timestep - scheduler.config.num_train_timesteps // self.material.steps
        alpha = scheduler.alphas_cumprod[timestep]
        reached = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        clean = (latents - (1 - alpha).sqrt() * output) / alpha.sqrt()
        variance = (1 - reached) / (1 - alpha) * (1 - alpha / reached)
        direction = (1 - reached - eta**2 * variance).abs().sqrt()
        drawn = torch.randn(latents.shape, generator=draws)
        stepped: Tensor = reached.sqrt() * clean + direction * output + variance_scale * eta * variance.sqrt() * drawn
        return stepped

    @torch.no_grad()
    def _predicted(self, latents: Tensor, timestep: Tensor, prompt: str, guidance_scale: float) -> Tensor:
        unet = self.pipeline.unet
        if guidance_scale == 1:
            alone: Tensor = unet(latents, timestep, encoder_hidden_states=self._encoding(prompt)).sample
            return alone
        both = torch.cat([self._encoding(""), self._encoding(prompt)])
        empty, conditioned = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=both).sample.chunk(2)
        guided: Tensor = empty + guidance_scale * (conditioned - empty)
        return guided

    @torch.no_grad()
    def _encoding(self, prompt: str) -> Tensor:
        if prompt not in self._encoded:
            self._encoded[prompt] = self.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        return self._encoded[prompt]

    def _alpha(self, step: int) -> Tensor:
        """Return the cumulative alpha at which the step numbered `step` begins; 1 after the last."""
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(self.material.steps)
        alphas: Tensor = scheduler.alphas_cumprod
        return alphas[scheduler.timesteps[step]] if step < self.material.steps else torch.tensor(1.0)

    @staticmethod
    def _noised(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    @torch.no_grad()
    def encoded(self, picture: Picture) -> Tensor:
        """Return a picture's latents, (1, channels, height, width)."""
        values = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(values).latent_dist.mode() * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Picture:
        """Return the picture of latents, (height, width, 3)."""
        vae = self.pipeline.vae
        values = vae.decode(latents / vae.config.scaling_factor).sample[0]
        shown: Picture = ((values / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        return shown


class Clip:
    """Zero-shot classification, one picture a call; the texts are encoded once."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self._process = load_image_processor(folder)
        tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
            list(labels), padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            self._texts = functional.normalize(self._model.get_text_features(**tokens).pooler_output)

    @torch.no_grad()
    def classify(self, picture: Picture) -> int:
        """Return the index of the text that fits the picture best."""
        seen = self._model.get_image_features(self._process(picture)[None]).pooler_output
        return int((functional.normalize(seen) @ self._texts.T).argmax())
