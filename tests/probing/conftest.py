"""Rooms that only write down what they are asked, and diffusers' own pipelines of the testbed's models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from support.backend import LocalBackend
from support.recording import Recording


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture(scope="session")
def pipeline_of(local: LocalBackend) -> Callable[[str], Any]:
    """Loads a model with diffusers alone: the base's folder, with the replaced tensors put in by hand."""
    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            parts = local.catalogue.model_parts(name)
            pipeline = StableDiffusionPipeline.from_pretrained(
                parts.folder,
                torch_dtype=torch.float32,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                local_files_only=True,
            )
            for component in ("unet", "text_encoder"):
                for file in parts.changes[component]:
                    tensors = {key: value.float() for key, value in load_file(file).items()}
                    getattr(pipeline, component).load_state_dict(tensors, strict=False)
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
            pipeline.set_progress_bar_config(disable=True)
            made[name] = pipeline
        return made[name]

    return load
