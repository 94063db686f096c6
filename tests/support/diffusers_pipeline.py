"""diffusers' own pipeline, the independent reference of tests and benches."""

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline


def diffusers_pipeline(folder: Path) -> Any:
    """Return the pipeline of a folder, with DDIM, in float32 and diffusers' own memory format, on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
