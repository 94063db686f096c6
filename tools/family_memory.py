"""`python -m tools.family_memory`: the settings that published models need on cards of 24 and 80 GB, as a table.

Parameters are counted on the meta device, the memory of rows and pictures is that of `diffusion/memory.py`, and the
settings are what `unerase serve` chooses (`compute_plan.plan_gpus`) beside judges of CLIP ViT-B/32's and ResNet-50's
size. Where two models and one row with a gradient do not fit, one model is tried, and then two cards; Stable
Diffusion 3 also without T5.
`--measure` prints what a row takes by the storage of its tensors at the published size, beside the formulas' figure, of
all models or of those that are named.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from diffusers.utils import logging

from tools.published_models import PUBLISHED, Published
from tools.tracked_memory import inputs_of, row_bytes
from unerase_backend.compute_plan import ComputePlan, Load, plan_gpus
from unerase_backend.diffusion.memory import ModelSize, model_size
from unerase_backend.evaluation.families import described_families
from unerase_backend.machine import Card

CARDS = (24, 80)
_DTYPE = "bfloat16"
_JUDGES = 700_000_000
_GB = 10**9
_ONE_MODEL = {"models_in_memory": 1, "models_kept": 1}


def size_of(model: Published) -> ModelSize:
    """Return the size of a published model."""
    return model_size(
        model.denoiser.kind,
        model.denoiser.whole_config(),
        model.autoencoder.whole_config(),
        model.resolution,
        model.sequence_length,
        denoiser_parameters=model.denoiser.parameters(),
        text_parameters=tuple(part.parameters() for part in model.encoders),
        autoencoder_parameters=model.autoencoder.parameters(),
    )


def settings_on(load: Load, gigabytes: int) -> tuple[int, ComputePlan] | None:
    """Return how many cards of a size a model needs, one or two, and the plan for them; None if it fits on neither."""
    for cards in (1, 2):
        for given in ({}, _ONE_MODEL):
            try:
                return cards, plan_gpus(load, _DTYPE, [Card("a card", gigabytes * _GB)] * cards, given=given)
            except ValueError:
                continue
    return None


def without_t5(sizes: dict[str, ModelSize]) -> dict[str, ModelSize]:
    """Return the sizes of those models that may lack T5, without it."""
    return {
        f"{model.title}, without T5": replace(
            sizes[model.title], text_parameters=sizes[model.title].text_parameters[:2]
        )
        for model in PUBLISHED
        if model.family == "stable-diffusion-3"
    }


def memory_rows(sizes: dict[str, ModelSize]) -> Iterator[str]:
    """Yield the table of memory, in bfloat16."""
    yield "| model | denoiser | text encoders | autoencoder | a row | a row with a gradient | a decoded picture |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for title, size in sizes.items():
        parts = (size.denoiser_parameters * 2, size.text_bytes(_DTYPE), size.autoencoder_parameters * 4)
        calls = (size.row_bytes(_DTYPE), size.gradient_row_bytes(_DTYPE), size.decoded_bytes())
        yield f"| {title} | " + " | ".join(f"{each / _GB:.2f}" for each in (*parts, *calls)) + " |"


def settings_rows(sizes: dict[str, ModelSize]) -> Iterator[str]:
    """Yield the table of settings, in bfloat16."""
    names = ("batch_rows", "decode_batch", "models_in_memory", "gradient_rows", "models_kept")
    yield "| model | card | cards | " + " | ".join(f"`{name}`" for name in names) + " |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for title, size in {**sizes, **without_t5(sizes)}.items():
        for gigabytes in CARDS:
            found = settings_on(Load(title, size, _JUDGES), gigabytes)
            if found is None:
                yield f"| {title} | {gigabytes} GB | does not fit | | | | | |"
                continue
            cards, plan = found
            chosen = " | ".join(str(getattr(plan.shapes, name)) for name in names)
            yield f"| {title} | {gigabytes} GB | {cards} | {chosen} |"


def measured_rows(sizes: dict[str, ModelSize], titles: Sequence[str]) -> Iterator[str]:
    """Yield the table of what rows take, measured and by the formulas, in MB."""
    yield "| model | number type | a row, measured | formula | with a gradient, measured | formula |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for model in (each for each in PUBLISHED if not titles or each.title in titles):
        config = model.denoiser.whole_config()
        blocks = model.autoencoder.whole_config()
        halved = len(blocks.get("decoder_block_out_channels") or blocks["block_out_channels"]) - 1
        inputs = inputs_of(model.denoiser.kind, config, model.resolution // 2**halved, model.sequence_length)
        for dtype in ("float32", "bfloat16"):
            plain, kept = (
                row_bytes(model.denoiser.module, inputs, getattr(torch, dtype), gradient=gradient)
                for gradient in (False, True)
            )
            size = sizes[model.title]
            cells = (plain, size.row_bytes(dtype), kept, size.gradient_row_bytes(dtype))
            yield f"| {model.title} | {dtype} | " + " | ".join(f"{each / 1e6:,.0f}" for each in cells) + " |"


def main(arguments: Sequence[str]) -> int:
    """Print the tables, and which families this version cannot load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", nargs="*", metavar="MODEL", choices=[each.title for each in PUBLISHED])
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    sizes = {model.title: size_of(model) for model in PUBLISHED}
    if options.measure is not None:
        for line in measured_rows(sizes, options.measure):
            print(line, flush=True)
        return 0
    for table in (memory_rows, settings_rows):
        for line in table(sizes):
            print(line)
        print()
    waiting = [family.title for family in described_families([]) if not family.loaded]
    if waiting:
        print(f"this version cannot load: {', '.join(waiting)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
