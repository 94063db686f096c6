"""`python -m tools.damaged DIR`: models whose knowledge is known, for the tables of docs/verdict.md.

Each has the testbed's reference with another UNet: with every weight drawn anew, with weights of 0, or with normal
noise on every tensor, of a share of its standard deviation. DIR/catalogue.yaml names them: `unerase serve --catalogue`.
"""

import argparse
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from unerase_backend.testbed import storage, unet
from unerase_backend.testbed.catalogue import REFERENCE
from unerase_backend.testbed.train import WEIGHTS

Weights = dict[str, torch.Tensor]

NOISE = (5, 20, 100)
"""The shares of noise, in per cent."""


def noisy(weights: Weights, share: float) -> Weights:
    """Add normal noise of a share of each tensor's standard deviation."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }


def write(folder: Path) -> Path:
    """Write the UNets into a folder; return its catalogue file."""
    reference: Weights = {name: tensor.float() for name, tensor in storage.load_unet(WEIGHTS).state_dict().items()}
    changed: dict[str, Weights] = {
        "drawn-anew": dict(unet.untrained(5).state_dict()),
        "zero": {name: torch.zeros_like(tensor) for name, tensor in reference.items()},
        **{f"noise-{percent}": noisy(reference, percent / 100) for percent in NOISE},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, weights in changed.items():
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / f"{name}.safetensors")
    entries = {f"damaged/{name}": {"base": REFERENCE, "unet": f"{name}.safetensors"} for name in changed}
    catalogue = folder / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"models": entries}))
    return catalogue


def main() -> None:
    """Write the models."""
    parser = argparse.ArgumentParser(prog="python -m tools.damaged", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write the models and their catalogue")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
