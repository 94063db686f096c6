"""LoRAs as diffusers and PEFT fuse them: `make integrations`.

With PEFT comes accelerate, with which diffusers and transformers load models in another way than where the backend is
installed. So neither belongs beside the other tests.
"""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from diffusion.conftest import save_tiny_pipeline
from support.loras import LAYERS, WORDS, factors, kohya, loaded, peft

pytestmark = pytest.mark.integrations


@pytest.mark.parametrize("layout", ["peft", "kohya"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_diffusers_and_peft_fuse_the_same(tmp_path: Path, layout: str, scale: float) -> None:
    save_tiny_pipeline(tmp_path / "pipeline")
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "pipeline", safety_checker=None, local_files_only=True
    )
    # diffusers 0.42 cannot read the attention of a text encoder in kohya's layout, and leaves it out or fails.
    encoder = {name: rank for name, rank in WORDS.items() if layout == "peft" or "mlp" in name}
    unet, words = factors(pipeline.unet, LAYERS), factors(pipeline.text_encoder, encoder)
    save_file(peft(unet, words) if layout == "peft" else kohya(unet, words, 1.5), tmp_path / "lora.safetensors")
    found = loaded(tmp_path, f"lora: lora.safetensors, scale: {scale}")
    before = {key: tensor.clone() for key, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors", local_files_only=True)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    assert any(not torch.equal(before[key], tensor) for key, tensor in pipeline.unet.state_dict().items())
    for part, module in (("unet", found.denoiser), ("text_encoder", found.text_encoder)):
        theirs = getattr(pipeline, part).state_dict()
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-6, msg=key)
