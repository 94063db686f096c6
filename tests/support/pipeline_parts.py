"""The files of a pipeline of Stable Diffusion 1 and 2, by part."""

from unerase_backend.catalogue.backbone_kinds import backbone_of

_kind = backbone_of("StableDiffusionPipeline")
assert _kind is not None
STEMS = {part: known.stem for part, known in _kind.parts.items() if known.weighs}
"""The parts with weights, each with the name of its file of weights without endings."""
CONFIGS = dict.fromkeys(STEMS, "config.json") | {"scheduler": "scheduler_config.json"}
"""The parts that are read by one configuration."""
