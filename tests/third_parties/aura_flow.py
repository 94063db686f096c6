"""A small AuraFlow of random weights, loaded by the example's family and compared with diffusers.

    python aura_flow.py FOLDER

writes the pipeline there, and prints JSON: what was found of the family, and how far its latents are from diffusers'.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import LlamaTokenizer, UMT5Config, UMT5EncoderModel

from support.tiny_pipelines import WORDS
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.backbone_kinds import BACKBONES
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime import source

PROMPTS = ["a picture of a hourglass", "a red heart"]
TOKENS = 12


def tokenizer() -> LlamaTokenizer:
    """A tokenizer of Llama's kind that knows some words."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    vocabulary = dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters])
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = ["▁", *word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocabulary[parts[0]] = None
    ids = {symbol: index for index, symbol in enumerate(vocabulary)}
    ends = {"add_bos_token": False, "add_eos_token": True, "pad_token": "<unk>", "padding_side": "right"}
    return LlamaTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), **ends)


def pipeline() -> AuraFlowPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(1.5)
    return AuraFlowPipeline(
        tokenizer=words,
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(words), **sizes)).eval(),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def main(folder: Path) -> None:
    theirs = pipeline()
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "pipeline")
    entry = f"{{pipeline: pipeline, resolution: 16, max_sequence_length: {TOKENS}}}"
    (folder / "catalogue.yaml").write_text(f"models: {{aura: {entry}}}\n")
    catalogue = Catalogue.load(embedded=folder / "catalogue.yaml")
    checked = check_model(catalogue, "aura")
    model = load_model(catalogue, "aura", torch.device("cpu"), torch.float32)
    sampler = Sampler(model, batch_rows=4)
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(n)) for n in (0, 1)])
    differences, moved = [], 0.0
    for scale in (1.0, 3.0):
        made = sampler.run(
            [
                Trajectory(
                    conditioning=Conditioning(text=text),
                    guidance_scale=scale,
                    latent_seed=seed,
                    steps=4,
                    variance_scale=1.0,
                )
                for seed, text in enumerate(PROMPTS)
            ]
        )
        given = {"height": 16, "width": 16, "output_type": "latent", "max_sequence_length": TOKENS}
        expected = theirs(PROMPTS, num_inference_steps=4, guidance_scale=scale, latents=noise.clone(), **given).images
        differences += [float((one.latents - other).abs().max()) for one, other in zip(made, expected, strict=True)]
        moved = float((made[0].latents - noise[0]).abs().max())
    (reader,) = model.backbone.readers
    rows = reader.embedding.weight[[reader.tokens_of("hourglass")[0]]]
    word = LearnedPrompt(text="a picture of a <it>", placeholder="<it>", embedding=to_message(rows))
    one, other = encode(model, [Conditioning(text=PROMPTS[0]), Conditioning(learned=word)])
    print(
        json.dumps(
            {
                "families": sorted(BACKBONES.all()),
                "broken": BACKBONES.broken(),
                "problems": [str(problem) for problem in checked.problems],
                "family": checked.facts.family if checked.facts else "",
                "difference": max(differences),
                "moved": moved,
                "learned": float((one.states - other.states).abs().max()),
                "source": source.rooms_digest(source.PICTURE_ROOMS) != source.PICTURES,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
