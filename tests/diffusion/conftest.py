"""The testbed's models, a pipeline of diffusers over the same weights, and a tiny pipeline with random weights."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from support.diffusers_pipeline import diffusers_pipeline
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel

REFERENCE = "testbed/reference"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture(scope="session")
def model(catalogue: Catalogue) -> DiffusionModel:
    return load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def pipeline(catalogue: Catalogue) -> Any:
    """The same folder as diffusers itself loads it, in its own memory format."""
    return diffusers_pipeline(catalogue.model_parts(REFERENCE).folder)


@pytest.fixture(scope="session")
def trajectory_of() -> Callable[..., Trajectory]:
    """Makes a short guided trajectory; keyword arguments replace its fields."""

    def make(text: str = "a picture of a hourglass", **fields: Any) -> Trajectory:
        defaults: dict[str, Any] = {
            "conditioning": Conditioning(text=text),
            "guidance_scale": 3.0,
            "latent_seed": 1,
            "noise_seed": 2,
            "steps": 4,
            "variance_scale": 1.0,
        }
        return Trajectory(**defaults | fields)

    return make


def save_tiny_pipeline(folder: Path) -> None:
    """A StableDiffusionPipeline with random weights: 16 pixels, latents of 4 x 8 x 8, width 16."""
    torch.manual_seed(0)
    words = ["a", "picture", "of", "the", "hourglass", "heart", "circle"]
    letters = [chr(code) for code in range(0x21, 0x7F)]
    vocabulary = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocabulary[parts[0]] = None
    ids = {symbol: index for index, symbol in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=12)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=ids["<|startoftext|>"],
            eos_token_id=ids["<|endoftext|>"],
            pad_token_id=ids["<|endoftext|>"],
        )
    )
    blocks: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        unet=UNet2DConditionModel(
            sample_size=8,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **blocks,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def saved_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's folder, which nobody changes."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    save_tiny_pipeline(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path, saved_tiny: Path) -> Path:
    """A folder with the tiny pipeline in `pipeline`, to be spoiled."""
    shutil.copytree(saved_tiny, tmp_path / "pipeline")
    return tmp_path


@pytest.fixture
def load_tiny(tiny: Path) -> Callable[..., DiffusionModel]:
    """Loads the tiny pipeline as it is then on the disk, with what the keyword arguments replace."""

    def load(**replaced: str) -> DiffusionModel:
        changes = "".join(f", {part}: {file}" for part, file in replaced.items())
        (tiny / "catalogue.yaml").write_text(
            f"models:\n  base: {{pipeline: pipeline, resolution: 16}}\n  changed: {{base: base{changes}}}\n"
        )
        read = Catalogue.load(embedded=tiny / "catalogue.yaml")
        return load_model(read, "changed", torch.device("cpu"), torch.float32)

    return load
