"""The small pipelines of all families, each as diffusers has it and as it is loaded here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from support.tiny_pipelines import PIPELINES, TinyPipeline, built
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.backbone_kinds import Role, of_role
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Sampler

CPU = torch.device("cpu")
PROMPTS = ("a picture of a hourglass", "a red heart")
STEPS = 5
ROWS = 6


@dataclass
class TinyModel:
    """A small pipeline, saved by diffusers and loaded here."""

    name: str
    folder: Path
    """Holds the folder `pipeline`, and catalogues with files that change it."""
    pipeline: Any
    """diffusers' own, from which the folder was saved."""
    numbers: Iterator[int] = field(default_factory=count)
    known: dict[str, Encoding] = field(default_factory=dict)
    """The encodings of prompts of slow loops, each of one row."""

    @property
    def tiny(self) -> TinyPipeline:
        """How it is made and called."""
        return PIPELINES[self.name]

    def catalogue(self, change: Mapping[str, Any] | None = None, **further: Mapping[str, Any]) -> Catalogue:
        """Return a catalogue with the model as `base`, and `changed` with what a change says beside the base."""
        whole = {"pipeline": "pipeline", "resolution": self.tiny.resolution, **self.tiny.entry}
        models = {"base": whole, "changed": {"base": "base", **(change or {})}, **further}
        file = self.folder / f"catalogue-{next(self.numbers)}.yaml"
        file.write_text(yaml.safe_dump({"models": models}))
        return Catalogue.load(embedded=file)

    def put(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
        """Write tensors beside the pipeline, and return the file's name in a catalogue."""
        name = f"file-{next(self.numbers)}.safetensors"
        copies = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(copies, self.folder / name, dict(metadata or {}))
        return name

    def load(self, change: Mapping[str, Any]) -> DiffusionModel:
        """Return the model with a change."""
        return load_model(self.catalogue(change), "changed", CPU, torch.float32)

    @cached_property
    def model(self) -> DiffusionModel:
        """The model."""
        return load_model(self.catalogue(), "base", CPU, torch.float32)

    @cached_property
    def sampler(self) -> Sampler:
        """A sampler of few rows."""
        return Sampler(self.model, batch_rows=ROWS, decode_batch=2)

    @cached_property
    def graph_sampler(self) -> Sampler:
        """The same with the denoiser's graph, where the family has one."""
        return Sampler(with_graphs(self.model, 1), batch_rows=ROWS, decode_batch=2)

    @property
    def encoders(self) -> list[str]:
        """The parts that are text encoders, those that it has."""
        parts = of_role(self.model.backbone.parts, Role.TEXT_ENCODER)
        return [part for part in parts if part in self.model.backbone.modules]

    def trajectory(self, text: str = PROMPTS[0], **fields: Any) -> Trajectory:
        """Return a short trajectory, guided where guidance is classifier-free."""
        given: dict[str, Any] = {
            "conditioning": Conditioning(text=text),
            "guidance_scale": 3.0 if self.tiny.guided else 1.0,
            "latent_seed": 1,
            "noise_seed": 2,
            "steps": STEPS,
            "variance_scale": 1.0,
        }
        return Trajectory(**given | fields)

    def noise(self, *seeds: int) -> Tensor:
        """Return the initial latents of seeds, (seeds, channels, height, width)."""
        shape = self.model.latent_shape
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def encoded(self, texts: Sequence[str]) -> Encoding:
        """Return the encodings of prompts."""
        return Encoding.stack(encode(self.model, [Conditioning(text=text) for text in texts]))

    @torch.no_grad()
    def output(self, latents: NDArray[np.float64], time: Tensor, text: str, scale: float) -> NDArray[np.float64]:
        """Return the guided output for one trajectory's latents, each row in a call of its own."""
        given = torch.from_numpy(latents).float()[None]

        def of(prompt: str) -> NDArray[np.float64]:
            if prompt not in self.known:
                self.known[prompt] = self.encoded([prompt])
            found: NDArray[np.float64] = self.model.predict(given, time[None], self.known[prompt])[0].double().numpy()
            return found

        if scale == 1.0:
            return of(text)
        empty = of("")
        return empty + scale * (of(text) - empty)

    def visited(self, steps: int) -> tuple[Tensor, list[tuple[float, float]]]:
        """Return the times of steps and the levels that they pass, one more, as diffusers' own scheduler has them."""
        self.call(PROMPTS[:1], 1.0, self.noise(1), steps)
        scheduler = self.pipeline.scheduler
        times = scheduler.timesteps[:steps]
        if self.model.schedule.config.flow:
            return times.float(), [(1 - sigma, sigma) for sigma in scheduler.sigmas.double().tolist()]
        alphas = scheduler.alphas_cumprod.double()
        last = alphas[0] if not getattr(scheduler.config, "set_alpha_to_one", True) else torch.ones(()).double()
        later = times[-1] - len(alphas) // steps
        ends = [*alphas[times].tolist(), float(alphas[later] if later >= 0 else last)]
        return times, [(alpha**0.5, (1 - alpha) ** 0.5) for alpha in ends]

    def trained_at(self, timestep: int) -> tuple[tuple[float, float], Tensor]:
        """Return the level of a training timestep and its time, as diffusers' scheduler has them for training."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        if self.model.schedule.config.flow:
            sigma = float(scheduler.sigmas.flip(0)[timestep])
            return (1 - sigma, sigma), scheduler.timesteps.flip(0)[timestep].float()
        alpha = float(scheduler.alphas_cumprod[timestep])
        return (alpha**0.5, (1 - alpha) ** 0.5), torch.tensor(timestep)

    def call(self, prompts: Sequence[str], scale: float, latents: Tensor, steps: int = STEPS) -> Tensor:
        """Return the latents that diffusers' pipeline ends with."""
        sides = (self.tiny.resolution, self.tiny.resolution)
        side = dict(zip(("height", "width"), sides, strict=True))
        rows, *shape = latents.shape
        found: Tensor = self.pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=scale,
            latents=self.pipeline._pack_latents(latents, rows, *shape) if self.tiny.packed else latents.clone(),
            output_type="latent",
            **side,
            **self.tiny.call,
        ).images
        if self.tiny.packed:
            found = self.pipeline._unpack_latents(found, *sides, self.pipeline.vae_scale_factor)
        return found


def saved(name: str, folder: Path) -> TinyModel:
    """Build a small pipeline and save it in a folder, in diffusers' layout."""
    pipeline = built(name)
    pipeline.save_pretrained(folder / "pipeline")
    return TinyModel(name, folder, pipeline)
