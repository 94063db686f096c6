"""The names that Stability's own code has for the layers of a UNet, which counts its blocks through.

diffusers names a UNet's halves level by level, `down_blocks.1.attentions.0`, and Stability's code counts what stands
in them: `input_blocks.4.1` is the second module of the fifth place. On the way down each level has a place for each of
its n residual blocks, with the attention behind it, and one for the halving of the sides; `input_blocks.0` is the first
convolution. On the way up each level has n + 1 places, and the doubling stands behind the last. Trainers for Stable
Diffusion XL store their LoRAs by these names.
"""

import re
from collections.abc import Iterable

_LEVEL = re.compile(
    r"(?P<way>down|up)_blocks\.(?P<level>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\."
    r"(?P<place>\d+)\.(?P<layer>.+)"
)
_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<place>\d+)\.(?P<layer>.+)")
_OF_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ALONE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def counted(layers: Iterable[str]) -> dict[str, str]:
    """Return the names of a UNet's layers in Stability's code, by those in diffusers; none of another module."""
    names = list(layers)
    down = [match for name in names if (match := _LEVEL.fullmatch(name)) and match["way"] == "down"]
    each = 1 + max((int(match["place"]) for match in down if match["kind"] == "resnets"), default=-1)
    with_attention = {name.split(".attentions.")[0] for name in names if ".attentions." in name}
    found = {name: _ALONE[name] for name in names if name in _ALONE and each}
    for name in names:
        if match := _LEVEL.fullmatch(name):
            level, place = int(match["level"]), int(match["place"])
            layer = _OF_RESNETS.get(match["layer"], match["layer"]) if match["kind"] == "resnets" else match["layer"]
            if match["kind"] == "downsamplers":
                found[name] = f"input_blocks.{(level + 1) * (each + 1)}.0.op"
            elif match["kind"] == "upsamplers":
                behind = 1 + (f"up_blocks.{level}" in with_attention)
                found[name] = f"output_blocks.{level * (each + 1) + each}.{behind}.{layer}"
            else:
                behind = int(match["kind"] == "attentions")
                at = 1 + level * (each + 1) + place if match["way"] == "down" else level * (each + 1) + place
                way = "input" if match["way"] == "down" else "output"
                found[name] = f"{way}_blocks.{at}.{behind}.{layer}"
        elif middle := _MIDDLE.fullmatch(name):
            of_resnet = middle["kind"] == "resnets"
            layer = _OF_RESNETS.get(middle["layer"], middle["layer"]) if of_resnet else middle["layer"]
            found[name] = f"middle_block.{2 * int(middle['place']) if of_resnet else 1}.{layer}"
    return found
