"""The testbed's CLIP: its text tower is the pipeline's text encoder, and the whole model is the selector judge.

CLIPModel (Radford et al. 2021) of two text and three vision layers, 64 wide. The loss is contrastive in both
directions, with every compatible pair of a batch as a positive (a caption that names no colour fits a picture of any
colour), plus auxiliary classifiers of shape, colour and style on both embeddings, which are discarded after training.
Without them 900 steps give a zero-shot accuracy of 35 %; with them 99 %.

    loss = cross entropy(softmax(scale * image . text), uniform over positives), both ways
         + sum of the six auxiliary cross entropies

A selector picks the best of many pictures, some of them broken, so every batch also holds pictures that fit no caption:
near misses, junk, and decoded latents with much noise added. They are no caption's positives, and the target of their
softmax over the captions is uniform. Without them the selector preferred pictures broken by strong sampling noise to
correct ones in every third case.

AdamW, 1.5e-3 after a warm-up of 50 steps, then cosine; batches of 64 pictures and 24 that fit no caption; a third of
the captions has filler words.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from unerase_backend.testbed import forms, junk, language, world
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.autoencoder import as_tensor, decode
from unerase_backend.testbed.schedule import warm_cosine
from unerase_backend.testbed.world import Album, Pixels

STEPS = 1300
BATCH = 64
UNFIT_BATCH = 24
UNFIT = 3_000
RATE = 1.5e-3
WIDTH = 64
TEXT_LAYERS = 2
FILLER_SHARE = 0.33

SHAPE_NAMES = (*forms.OBJECTS, forms.BLOB)
COLOUR_NAMES = tuple(world.COLOURS)


def untrained(tokenizer: CLIPTokenizer, seed: int, width: int = WIDTH, text_layers: int = TEXT_LAYERS) -> CLIPModel:
    """Return the model before training, both towers and their projections `width` wide."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        max_position_embeddings=bpe.LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world.SIDE,
        patch_size=4,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width))


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return the token ids (N, 24) of captions, padded or cut to that length."""
    ids: Tensor = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def unfit_pictures(
    vae: AutoencoderKL, latents: Tensor, seed: int, without: Collection[str] = (), count: int = UNFIT
) -> Pixels:
    """Return pictures (N, 32, 32, 3) that no caption fits.

    These are `count` decodings of scaled `latents` (M, 4, 8, 8) with much noise added, `count` near misses, and up to
    `count` pictures of junk: objects with a grey middle are left out. None is a near miss of a shape in `without`.
    """
    draws = torch.Generator().manual_seed(seed)
    chosen = latents[torch.randint(len(latents), (count,), generator=draws)]
    share = torch.rand((count, 1, 1, 1), generator=draws)
    strength = 0.6 + torch.rand((count, 1, 1, 1), generator=draws)
    drowned = share * chosen + strength * torch.randn(chosen.shape, generator=draws)
    kinds = [kind for kind, (missed, _) in forms.NEAR_MISSES.items() if missed not in without]
    junk_pictures, junk_kinds = junk.junk_album(count, seed + 1)
    nothing = junk_pictures[np.array(junk_kinds) != "greyed"]
    return np.concatenate([decode(vae, drowned), world.album_of(kinds, count, seed).pictures, nothing])


def train(
    album: Album,
    unfit: Pixels,
    tokenizer: CLIPTokenizer,
    seed: int,
    steps: int = STEPS,
    report: Callable[[str], None] = print,
    width: int = WIDTH,
    text_layers: int = TEXT_LAYERS,
) -> CLIPModel:
    """Train both towers on an album, and on pictures `unfit` (N, 32, 32, 3) that fit no caption.

    Every step draws new captions for the album's pictures.
    """
    model = untrained(tokenizer, seed, width, text_layers)
    # A picture may show no shape; a caption always names one, but not always a colour or a style.
    counts = {"shape": len(SHAPE_NAMES), "colour": len(COLOUR_NAMES), "style": len(world.STYLES)}
    classes = {f"image {kind}": count + (kind == "shape") for kind, count in counts.items()}
    classes |= {f"text {kind}": count + (kind != "shape") for kind, count in counts.items()}
    heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
    no_shape = torch.full((UNFIT_BATCH,), counts["shape"])
    values, unfit_values = as_tensor(album.pictures), as_tensor(unfit)
    truth = torch.tensor(
        [
            [SHAPE_NAMES.index(s.shape), COLOUR_NAMES.index(s.colour), world.STYLES.index(s.style)]
            for s in album.subjects
        ]
    )
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=RATE, weight_decay=0.02)
    schedule = warm_cosine(optimizer, 50, steps)
    model.train()
    for step in range(steps):
        chosen = rng.integers(len(values), size=BATCH)
        others = rng.integers(len(unfit_values), size=UNFIT_BATCH)
        texts = [language.caption(album.subjects[i], rng, bool(rng.random() < FILLER_SHARE)) for i in chosen]
        ids = token_ids(tokenizer, texts)
        shown = torch.cat([values[chosen], unfit_values[others]])
        output = model(input_ids=ids, pixel_values=shown, attention_mask=torch.ones_like(ids))
        seen = truth[chosen]
        named = torch.tensor([_named(caption) for caption in texts])
        named[:, 0] = seen[:, 0]
        contrastive = loss = _contrastive_loss(output, seen, named, torch.tensor(list(counts.values())))
        for column, kind in enumerate(counts):
            answer, right = heads[f"image {kind}"](output.image_embeds * 8), seen[:, column]
            if kind == "shape":
                right = torch.cat([right, no_shape])
            loss = loss + functional.cross_entropy(answer[: len(right)], right)
            loss = loss + functional.cross_entropy(heads[f"text {kind}"](output.text_embeds * 8), named[:, column])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            report(f"clip {step:5d}: loss {loss.item():.3f}, contrastive {contrastive.item():.3f}")
    return model.eval().requires_grad_(False)


def _contrastive_loss(output: Any, seen: Tensor, named: Tensor, unnamed: Tensor) -> Tensor:
    """Return the contrastive loss in both directions.

    `seen` and `named` are the labels (BATCH, 3) of pictures and captions; a label equal to `unnamed` (3,) fits every
    picture. Pictures after the first BATCH fit no caption.
    """
    fits = ((named[:, None] == seen[None]) | (named[:, None] == unnamed)).all(-1).float()
    fits = torch.cat([fits, torch.zeros(BATCH, UNFIT_BATCH)], dim=1)
    by_text = functional.cross_entropy(output.logits_per_text, fits / fits.sum(1, keepdim=True))
    fits[:, BATCH:] = 1
    by_image = functional.cross_entropy(output.logits_per_image, (fits / fits.sum(0)).T)
    return by_text + by_image


def _named(caption: str) -> tuple[int, int, int]:
    """Return the indices of the colour and style that a caption names, after a 0 for the shape, which is not read.

    Where it names none, the index is one past the last.
    """
    words = set(caption.split())
    colour = next((i for i, name in enumerate(COLOUR_NAMES) if name in words), len(COLOUR_NAMES))
    style = next((i for i, name in enumerate(world.STYLES) if name in words), len(world.STYLES))
    return 0, colour, style


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """Return the text tower on its own, as the pipeline's text encoder."""
    tower = CLIPTextModel(model.config.text_config)
    tower.load_state_dict(model.text_model.state_dict())
    return tower.eval().requires_grad_(False)


def text_encoder(model: CLIPModel) -> CLIPTextModelWithProjection:
    """Return the text tower with its projection, as the pipelines with pooled prompts take it."""
    tower = CLIPTextModelWithProjection(model.config.text_config)
    tower.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name.startswith("text_")})
    return tower.eval().requires_grad_(False)


def image_processor() -> CLIPImageProcessorPil:
    """Return the processor that makes 32 x 32 values from -1 to 1 of pictures of any size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": world.SIDE},
        crop_size={"height": world.SIDE, "width": world.SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Pixels, texts: Sequence[str]) -> Tensor:
    """Return the index (N,) of the text that fits each of the pictures (N, 32, 32, 3) best."""
    ids = token_ids(tokenizer, texts)
    best = [
        model(
            input_ids=ids, pixel_values=as_tensor(pictures[at : at + 256]), attention_mask=torch.ones_like(ids)
        ).logits_per_image.argmax(1)
        for at in range(0, len(pictures), 256)
    ]
    return torch.cat(best)


def save_processor(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write the files of the tokenizer and of the image processor beside the model."""
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
