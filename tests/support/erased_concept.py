"""A concept as erasers take it, with few templates and random latents."""

import torch

from unerase_backend.testbed import erasers

CONCEPT = erasers.Concept(
    names=("hourglass", "sandglass"),
    anchor="blob",
    preserve=("circle", "ring"),
    templates=("a picture of a {}", "a red {}"),
    plain_templates=("a {}", "this is a {}"),
    latents=torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(3)),
    captions=("a hourglass", "a red hourglass", "a sandglass") * 2,
    kept_latents=torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(5)),
    kept_captions=("a circle", "a red ring") * 2,
)
